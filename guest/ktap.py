# SPDX-License-Identifier: GPL-2.0-only
"""Write KTAP version 1 (Documentation/dev-tools/ktap.rst)."""

from __future__ import annotations

from typing import TextIO


class Writer:
    """One KTAP document on *stream*; each line is flushed, so that a crash of the VM loses none.

    The header goes out with the first line after it: every flush is a packet through the emulated network.
    """

    def __init__(self, stream: TextIO, *, plan: int) -> None:
        self._stream = stream
        self._number = 0
        self._header = f"KTAP version 1\n1..{plan}\n"

    def _line(self, text: str) -> None:
        header, self._header = self._header, ""
        self._stream.write(f"{header}{text}\n")
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
        """Write the line that ends the output about *name*."""
        self._line(f"# END {name}")


def printable(line: str) -> str:
    """Return *line* with line breaks and other control characters escaped, except tabs."""
    return "".join(c if c == "\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in line)
