# SPDX-License-Identifier: GPL-2.0-only
"""Code addresses as a kernel prints them, and the places in its source that they stand for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

ADDRESS = re.compile(
    r"(?P<symbol>[A-Za-z_][\w.]*)\+0x(?P<offset>[0-9a-f]+)/0x(?P<size>[0-9a-f]+)"
    r"(?: \[(?P<module>[A-Za-z_][\w-]*)[^\]]*\])?"
)
"""What printk makes of %pS (Documentation/core-api/printk-formats.rst): symbol+offset/size [module]."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CodeAddress:
    """An offset in a function, or another symbol, of a kernel or of one of its modules."""

    text: str
    """As it is in a splat."""
    symbol: str
    offset: int
    """In bytes, from the start of the symbol."""
    size: int
    """In bytes, up to the next symbol: padding counts."""
    module: str = ""
    """Empty for the kernel itself."""
    exact: bool = False
    """Whether it is that of the instruction, not a return address, which is behind the call."""

    @property
    def asked(self) -> int:
        """The offset of a byte of the instruction."""
        return self.offset if self.exact or not self.offset else self.offset - 1


def find_addresses(text: str) -> Iterator[CodeAddress]:
    """Yield the addresses in *text*."""
    for found in ADDRESS.finditer(text):
        yield CodeAddress(
            text=found[0],
            symbol=found["symbol"],
            offset=int(found["offset"], 16),
            size=int(found["size"], 16),
            module=(found["module"] or "").replace("-", "_"),
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of a kernel's source."""

    function: str
    file: str
    """Relative to the top of the tree."""
    line: int
    code: tuple[str, ...] = ()
    """The source around it; empty where that is not known."""
    first: int = 0
    """The number of the first line of *code*."""
    changed: bool = False
    """Whether it is in a file with the user's uncommitted changes."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a code address stands for."""

    lines: tuple[Line, ...] = ()
    """The line, in a function that may be inlined; then the line that calls that function, and so on.  Empty
    where it could not be found."""
    reason: str = ""
    """Why it could not be found."""
