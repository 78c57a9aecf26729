# SPDX-License-Identifier: GPL-2.0-only
"""Read the kernel's coverage counters (Documentation/dev-tools/gcov.rst)."""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Iterator

ROOT = "/sys/kernel/debug/gcov"

PREFIX = "gcov: "
"""Of the diagnostic with the counters of a case, see Counters.collect()."""

_LEVEL = 1
"""Of compression: most of a file is zeros, and the guest is emulated."""


class Counters:
    """The counters of all profiled objects."""

    def __init__(self) -> None:
        self._unused: dict[str, int] = {}
        """File -> hash of its content while all of its counters are zero."""

    def reset(self) -> None:
        """Set all counters to zero.  Raises OSError."""
        with open(f"{ROOT}/reset", "w", encoding="ascii") as file:
            file.write("1")

    def collect(self) -> str:
        """Return the files with a counter that is not zero, in base64 and compressed.

        They begin with a line of JSON, [[name, size], ...], and their contents follow one another.
        Raises OSError.
        """
        found = _read()
        if found.keys() - self._unused.keys():
            self.reset()
            self._unused.update((name, hash(content)) for name, content in _read().items())
        used = {name: content for name, content in found.items() if self._unused.get(name) != hash(content)}
        head = json.dumps([[name, len(content)] for name, content in used.items()])
        whole = b"".join((head.encode(), b"\n", *used.values()))
        return base64.b64encode(zlib.compress(whole, _LEVEL)).decode("ascii")


def _read() -> dict[str, bytes]:
    return dict(_contents(ROOT))


def _contents(directory: str) -> Iterator[tuple[str, bytes]]:
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            yield from _contents(entry.path)
        elif entry.name.endswith(".gcda"):
            with open(entry.path, "rb", buffering=0) as file:
                yield entry.path[len(ROOT) :], file.read()
