# SPDX-License-Identifier: GPL-2.0-only
"""Writes KTAP version 1 (Documentation/dev-tools/ktap.rst).  Knows nothing of cases or of how they run."""

from __future__ import annotations

from typing import TextIO


class Writer:
    """One KTAP document on *stream*, each line flushed so that a dying VM loses nothing already said."""

    def __init__(self, stream: TextIO, *, plan: int) -> None:
        self._stream = stream
        self._number = 0
        self._line("KTAP version 1")
        self._line(f"1..{plan}")

    def _line(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def diagnostic(self, text: str) -> None:
        """Write *text* as `# ` lines."""
        for line in text.splitlines() or [""]:
            self._line(f"# {printable(line)}".rstrip())

    def ok(self, name: str, *, skip: str = "") -> None:
        """Write a test point that passed, or that was skipped for the reason *skip*."""
        self._point("ok", name, f"SKIP {skip}" if skip else "")

    def not_ok(self, name: str, *, directive: str = "") -> None:
        """Write a test point that failed; *directive* follows the `#`, such as `TIMEOUT after 30s`."""
        self._point("not ok", name, directive)

    def _point(self, status: str, name: str, directive: str) -> None:
        self._number += 1
        tail = f" # {printable(directive)}" if directive else ""
        self._line(f"{status} {self._number} {name}{tail}")

    def end(self, name: str) -> None:
        """Write the line that tells the reader that nothing more follows about *name*."""
        self._line(f"# END {name}")


def printable(line: str) -> str:
    """Return *line* without what would end it or upset a terminal; tabs stay."""
    return "".join(c if c == "\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in line)
