# SPDX-License-Identifier: GPL-2.0-only
"""Find what edits of a tree touch, and which cases reach that.  Pure."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Mapping

from harness.base.csource import find_functions
from harness.base.words import count_of

Map = Mapping[str, frozenset[str]]
"""Case -> the functions that it reaches, as `FILE:FUNCTION`."""

_UNBUILT = re.compile(
    r"Documentation/.*|LICENSES/.*|(?!arch/|scripts/|tools/).*\.(?:rst|txt)|(?:MAINTAINERS|CREDITS|\.[^/]*)"
    r"|tools/(?!Makefile$|(?:arch|bootconfig|bpf/resolve_btfids|build|include|lib|objtool|scripts)/).*"
)
"""Files from which neither a kernel nor a program of its build, such as objtool, is made."""

_SELFTEST = re.compile(r"tools/testing/selftests/([^/]+)/.*")

_SHARED = re.compile(r"tools/testing/selftests/[^/]+")
"""Files that any selftest may be built from."""

_COMMENT = re.compile(r"""("(?:\\.|[^"\\\n])*"|'\\?[^\n]')|//[^\n]*|/\*.*?(?:\*/|\Z)""", re.DOTALL)
"""A comment, or a string or character, which may look as if it held one."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A file that changed: its text before and after, and the lines of each that differ."""

    name: str
    texts: tuple[str, str]
    lines: tuple[Collection[int], Collection[int]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Touched:
    """The functions and selftests that edits touch."""

    functions: frozenset[str] = frozenset()
    """As `FILE:FUNCTION`; `FILE:` is the whole file."""
    suites: frozenset[str] = frozenset()
    """Directories of tools/testing/selftests; `*` is all."""
    everything: str = ""
    """Why every case may be affected; empty if only some are."""

    def reaches(self, functions: Iterable[str]) -> bool:
        """Whether a case that reaches *functions* is affected."""
        return any(
            name in self.functions or f"{name.rpartition(':')[0]}:" in self.functions for name in functions
        )

    def unreached(self, functions: Iterable[str]) -> str:
        """Return, for people, which code is touched that is not among *functions*; empty without any."""
        known = set(functions)
        left = sorted(self.functions - known - {f"{name.rpartition(':')[0]}:" for name in known})
        if not left:
            return ""
        file, _, function = left[0].rpartition(":")
        first = f"{function}()" if function else file.rpartition("/")[2]
        more = f" and {count_of(len(left) - 1, 'other')}" if left[1:] else ""
        return f"; no case is known to reach {first}{more}"

    def has_suite(self, directory: str | None) -> bool:
        """Whether selftests from *directory* are affected; None is that of other suites."""
        return directory is not None and not self.suites.isdisjoint({directory, "*"})


def find_touched(edits: Iterable[Edit], is_profiled: Callable[[str], bool]) -> Touched:
    """Return what *edits* touch.

    A change outside all functions touches its whole file; a header, a Kconfig file, a makefile and code
    without counters touch everything.
    """
    functions: set[str] = set()
    suites: set[str] = set()
    for edit in edits:
        selftest = _SELFTEST.fullmatch(edit.name)
        if selftest is not None:
            suites.add(selftest[1])
        elif _SHARED.fullmatch(edit.name):
            suites.add("*")
        elif _UNBUILT.fullmatch(edit.name):
            continue
        elif not edit.name.endswith(".c") or not is_profiled(edit.name):
            what = "has no coverage counters" if edit.name.endswith(".c") else "may affect every file"
            return Touched(everything=f"{edit.name} {what}")
        else:
            functions |= {f"{edit.name}:{name}" for name in functions_of(edit)}
    return Touched(functions=frozenset(functions), suites=frozenset(suites))


def functions_of(edit: Edit) -> frozenset[str]:
    """Return the functions that *edit* changes; an empty name stands for code outside all functions."""
    found: set[str] = set()
    kept: list[list[tuple[str, str]]] = []
    for text, lines in zip(edit.texts, edit.lines, strict=True):
        owner = {line: one.name for one in find_functions(text) for line in one.lines}
        rows = list(enumerate(_code_of(text), 1))
        found |= {owner.get(line, "") for line, code in rows if line in lines and (line in owner or code)}
        kept.append([(code, owner.get(line, "")) for line, code in rows if line not in lines])
    # The end of a comment that moves hides or shows lines that stay.
    for before, after in zip(*kept, strict=False):
        found |= {before[1], after[1]} if before[0] != after[0] else set()
    return frozenset(found)


def _code_of(text: str) -> list[str]:
    """Return the lines of *text* without comments and the blanks around them."""
    plain = _COMMENT.sub(lambda match: match[1] or "\n" * match[0].count("\n"), text)
    return [row.strip() for row in plain.split("\n")]
