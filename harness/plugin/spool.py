# SPDX-License-Identifier: GPL-2.0-only
"""Results that nobody was told yet, in files of the run directory.

A piece of work is reported when its last attempt has ended, and one that ran alongside others when it is
asked for.  Whoever dies before, or is interrupted, leaves here what is known, so that a failure that was seen
is not retried into silence.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from harness.results import Result, result_from_plain, result_to_plain
from harness.suites.catalogue import Work, key_of


class Spool:
    """The results of one run that nobody was told yet, by piece of work; one file each."""

    def __init__(self, run_dir: Path) -> None:
        self._directory = run_dir / "spool"

    def keep(self, work: Work, results: Sequence[Result]) -> None:
        """Let *results* be all that is known of *work* so far."""
        path = self._path(work)
        text = json.dumps([result_to_plain(result) for result in results])
        # On a full disk the results are no worse off than before; that of the work itself will say so.
        with contextlib.suppress(OSError):
            self._directory.mkdir(exist_ok=True)
            part = path.with_suffix(".part")
            part.write_text(text, encoding="utf-8")
            part.replace(path)

    def take(self, work: Work) -> tuple[Result, ...]:
        """What was known of *work*, which is then told; nothing when it was."""
        path = self._path(work)
        found: tuple[Result, ...] = ()
        with contextlib.suppress(OSError, ValueError):
            found = tuple(map(result_from_plain, json.loads(path.read_text(encoding="utf-8"))))
        self.drop(work)
        return found

    def drop(self, work: Work) -> None:
        """Forget *work*: all there is to know of it has been told."""
        with contextlib.suppress(OSError):
            self._path(work).unlink()
            self._directory.rmdir()

    def _path(self, work: Work) -> Path:
        name = hashlib.sha256(key_of(work).encode()).hexdigest()[:32]
        return self._directory / f"{name}.json"
