# SPDX-License-Identifier: GPL-2.0-only
"""Spool: results that are not reported yet, in files of the run directory.

A piece of work is reported when its last attempt has ended.  A process that dies or is interrupted before
leaves its results here, so that a failure that was seen is not lost by a retry.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from harness.base.files import write_atomic
from harness.results.codec import result_from_plain, result_to_plain
from harness.results.model import Result
from harness.suites.model import Work


class Spool:
    """The unreported results of one run, one file for each piece of work."""

    def __init__(self, run_dir: Path) -> None:
        self._directory = run_dir / "spool"

    def keep(self, work: Work, results: Sequence[Result]) -> None:
        """Replace what is kept of *work* with *results*."""
        path = self._path(work)
        text = json.dumps([result_to_plain(result) for result in results])
        # On a full disk the report of the work fails later, and says so.
        with contextlib.suppress(OSError):
            self._directory.mkdir(exist_ok=True)
            write_atomic(path, text)

    def take(self, work: Work) -> tuple[Result, ...]:
        """Return what is kept of *work*, and forget it."""
        path = self._path(work)
        found: tuple[Result, ...] = ()
        with contextlib.suppress(OSError, ValueError):
            found = tuple(map(result_from_plain, json.loads(path.read_text(encoding="utf-8"))))
        self.drop(work)
        return found

    def drop(self, work: Work) -> None:
        """Forget *work*, which was reported.  The directory stays: another process may write there."""
        with contextlib.suppress(OSError):
            self._path(work).unlink()

    def _path(self, work: Work) -> Path:
        name = hashlib.sha256(work.key.encode()).hexdigest()[:32]
        return self._directory / f"{name}.json"
