# SPDX-License-Identifier: GPL-2.0-only
"""Where functions are in a C file in the kernel's style, and which lines are no-IOMMU code.  Pure."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence

_NAME = re.compile(r"\b[A-Z][A-Z0-9_]*\((\w+)\)\s*\(|\b(?!__(?:printf|scanf|attribute__)\b)(\w+)\s*\(")
"""The name of a function before its parameters; or as the argument of a macro: DOMAIN_NS(map_pages)(...)."""

_BEFORE = re.compile(r"\s*$|.*[;}]\s*$|#|.*\*/\s*$|\s*\*|//")
"""A line before the head of a function."""

_CODE = re.compile(r'"(?:\\.|[^"\\])*"|//.*|/\*.*?\*/')
"""Strings and comments within a line, in which brackets do not count."""

NOIOMMU = re.compile(r"no_?iommu", re.IGNORECASE)

_NEGATED = re.compile(r"!\s*[\w>().-]*no_?iommu", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Function:
    """A function, with the lines of its head and body."""

    start: int
    end: int
    name: str

    @property
    def lines(self) -> range:
        return range(self.start, self.end + 1)


@functools.lru_cache(maxsize=512)
def find_functions(text: str) -> tuple[Function, ...]:
    """Return the functions of a C file: as in all of the kernel their outer braces are in column one."""
    lines = text.splitlines()
    return tuple(_functions(lines))


def _functions(lines: Sequence[str]) -> Iterator[Function]:
    begin = 0
    for number, line in enumerate(lines):
        if line.startswith("{"):
            begin = number
            while begin and not _BEFORE.match(lines[begin - 1]):
                begin -= 1
            named = _NAME.search(" ".join(lines[begin:number]))
            end = next((n for n in range(number, len(lines)) if lines[n].startswith("}")), len(lines) - 1)
            if named is not None:
                yield Function(begin + 1, end + 1, named[1] or named[2])


def find_noiommu(name: str, text: str) -> frozenset[int]:
    """Return the lines of no-IOMMU code in the file *name*.

    These are: all lines of a file with `noiommu` in its name; functions with it in their name; what `#if` or
    `#ifdef` of a NOIOMMU symbol includes; statements that mention it, and the block after an `if` whose
    condition mentions it without negating it.  `no_iommu` and capitals count as well.
    """
    lines = text.splitlines()
    if NOIOMMU.search(name.rpartition("/")[2]):
        return frozenset(range(1, len(lines) + 1))
    found = {line for one in find_functions(text) if NOIOMMU.search(one.name) for line in one.lines}
    found.update(_conditional(lines))
    for number, line in enumerate(lines, 1):
        if NOIOMMU.search(line) and line[:1].isspace():
            found.update(_statement(lines, number))
    return frozenset(found)


def _conditional(lines: Sequence[str]) -> Iterator[int]:
    """Yield the lines that the preprocessor keeps because a NOIOMMU symbol is on."""
    stack: list[bool] = []
    for number, line in enumerate(lines, 1):
        word = re.match(r"\s*#\s*(if|ifdef|ifndef|elif|else|endif)\b(.*)", line)
        if word is None:
            if any(stack):
                yield number
        elif word[1].startswith("if"):
            stack.append(word[1] != "ifndef" and bool(NOIOMMU.search(word[2])) and not _NEGATED.search(line))
        elif stack:
            if word[1] == "endif":
                stack.pop()
            else:
                stack[-1] = False


def _statement(lines: Sequence[str], number: int) -> range:
    """Return the lines of the statement with line *number*, and of the block that it is the condition of."""
    start = number
    while start > 1 and not re.search(r"[;{}:]\s*$|^\s*#|^\s*$|\*/\s*$", _bare(lines[start - 2])):
        start -= 1
    condition = _balanced(lines, start, start)
    end = max(condition, _balanced(lines, condition + 1, number))
    whole = " ".join(lines[start - 1 : condition])
    is_condition = number <= condition and re.match(r"\s*(?:\} else )?if\b", whole)
    return range(
        start, (_end_of_block(lines, end) if is_condition and not _NEGATED.search(whole) else end) + 1
    )


def _balanced(lines: Sequence[str], start: int, least: int) -> int:
    """Return the first line from *least* on at which all parentheses since *start* are closed."""
    depth, end = 0, start - 1
    while end < len(lines) and (end < least or depth > 0):
        end += 1
        depth += _bare(lines[end - 1]).count("(") - _bare(lines[end - 1]).count(")")
    return end


def _end_of_block(lines: Sequence[str], end: int) -> int:
    """Return the last line of what depends on the condition that ends in line *end*."""
    if not _bare(lines[end - 1]).rstrip().endswith("{"):
        while end < len(lines) and not _bare(lines[end]).rstrip().endswith((";", "{")):
            end += 1
        end = min(end + 1, len(lines))
        if not _bare(lines[end - 1]).rstrip().endswith("{"):
            return end
    depth = 1
    while end < len(lines) and depth > 0:
        end += 1
        depth += _bare(lines[end - 1]).count("{") - _bare(lines[end - 1]).count("}")
    return end


def _bare(line: str) -> str:
    return _CODE.sub("", line)
