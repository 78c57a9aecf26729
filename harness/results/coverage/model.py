# SPDX-License-Identifier: GPL-2.0-only
"""Coverage: which lines of the profiled files ran, how often, and in which cases.

A run has one file for each source tree, in its directory `coverage`.
"""

from __future__ import annotations

import collections
import dataclasses
import gzip
import itertools
import json
import operator
import os
import re
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path

from harness.base.csource import find_functions
from harness.base.errors import InfraError, UsageError, nearest
from harness.base.files import write_atomic
from harness.base.words import count_of
from harness.results.coverage.source import find_noiommu

DIRECTORY = "coverage"
"""In a run's directory."""

NOIOMMU_CODE = "no-IOMMU code"

_FORMAT = 1
_SUFFIX = ".json.gz"

_LINES = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


@dataclasses.dataclass(slots=True)
class FileCoverage:
    """The counts of one source file, added up over all cases."""

    lines: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    """Line with code -> how often it ran."""
    branches: dict[int, list[int]] = dataclasses.field(default_factory=dict)
    """Line with branches -> how often each was taken."""

    def add(self, other: FileCoverage) -> None:
        """Add the counts of *other*; the branches of a line are matched by their order."""
        for line, count in other.lines.items():
            self.lines[line] += count
        for line, counts in other.branches.items():
            pairs = itertools.zip_longest(self.branches.get(line, ()), counts, fillvalue=0)
            self.branches[line] = [mine + theirs for mine, theirs in pairs]


def add_counts(total: dict[str, FileCoverage], counts: Iterable[tuple[str, FileCoverage]]) -> None:
    """Add *counts*, of file after file, to *total*."""
    for name, counted in counts:
        total.setdefault(name, FileCoverage()).add(counted)


@dataclasses.dataclass(frozen=True, slots=True)
class Reach:
    """The lines that one case of one job ran."""

    job: str
    case: str
    files: Mapping[str, frozenset[int]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """The coverage of one source tree in one run."""

    tree: str
    """The tree's name, for people."""
    line: str
    """The kernel version, such as `7.3`."""
    sources: Mapping[str, str]
    """Profiled file -> its text."""
    files: Mapping[str, FileCoverage]
    """Profiled file -> its counts; only files with code in a kernel that ran."""
    cases: tuple[Reach, ...]
    lost: tuple[str, ...] = ()
    """Cases that ran and sent no counters, as `JOB CASE`."""

    def reached(self, name: str, lines: Iterable[int]) -> dict[str, frozenset[int]]:
        """Return case -> which of *lines* of the file *name* it ran in any job."""
        wanted, found = frozenset(lines), dict[str, frozenset[int]]()
        for one in self.cases:
            if hit := one.files.get(name, frozenset()) & wanted:
                found[one.case] = found.get(one.case, frozenset()) | hit
        return found

    def functions_of(self, reach: Reach) -> frozenset[str]:
        """Return the functions that *reach* ran, as `FILE:FUNCTION`."""
        return frozenset(
            f"{name}:{one.name}"
            for name, lines in reach.files.items()
            for one in find_functions(self.sources[name])
            if not lines.isdisjoint(one.lines)
        )

    def find(self, place: str) -> tuple[str, frozenset[int]]:
        """Return file and lines of `FILE:LINE`, `FILE:FIRST-LAST` or `FILE:FUNCTION`.

        The file may lack leading directories, or have those of a tree.
        Raises UsageError, with the nearest name, for what does not exist.
        """
        what, _, where = place.rpartition(":")
        if not what or not where:
            raise UsageError(f"--line {place}: it names no line", hint="give FILE:LINE or FILE:FUNCTION")
        what = os.path.normpath(what)
        names = [one for one in self.sources if f"/{one}".endswith(f"/{what}") or what.endswith(f"/{one}")]
        if len(names) != 1:
            short = {name.rpartition("/")[2]: name for name in self.sources}
            hint = (
                f"give one of {', '.join(names)}"
                if names
                else nearest(what, {*short, *self.sources}, otherwise="vfio-harness coverage shows the files")
            )
            raise UsageError(
                f"--line {place}: {'several files end' if names else 'no profiled file ends'} with {what!r}",
                hint=hint,
            )
        text = self.sources[names[0]]
        if found := _LINES.fullmatch(where):
            first, last = int(found[1]), int(found[2] or found[1])
            count = text.count("\n")
            if not 1 <= first <= last <= count:
                raise UsageError(f"--line {place}: {names[0]} has {count_of(count, 'line')}")
            return names[0], frozenset(range(first, last + 1))
        functions = find_functions(text)
        lines = frozenset(line for one in functions if one.name == where for line in one.lines)
        if not lines:
            raise UsageError(
                f"--line {place}: {names[0]} has no function {where!r}",
                hint=nearest(where, [one.name for one in functions]),
            )
        return names[0], lines

    def rows(self) -> Iterator[Row]:
        """Yield the row of the no-IOMMU code, then one for each file."""
        rows = [Row.of(name, self.files[name], self.files[name].lines) for name in sorted(self.files)]
        noiommu = [
            Row.of(name, counted, find_noiommu(name, self.sources[name]))
            for name, counted in self.files.items()
        ]
        yield Row(NOIOMMU_CODE, *map(sum, zip((0, 0, 0, 0), *(row.numbers for row in noiommu), strict=True)))
        yield from rows

    def missing(self, noiommu: bool) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """Yield file, function and the lines with code that nothing ran; of the no-IOMMU code or of all."""
        for name, function, lines in self._by_function(noiommu):
            if left := tuple(line for line in lines if not self.files[name].lines[line]):
                yield name, function, left

    def untaken(self, noiommu: bool) -> Iterator[tuple[str, str, int, list[int]]]:
        """Yield file, function, line and its branches' counts where a line ran, but not all its branches."""
        for name, function, lines in self._by_function(noiommu):
            counted = self.files[name]
            for line in lines:
                if counted.lines[line] and 0 in counted.branches.get(line, ()):
                    yield name, function, line, counted.branches[line]

    def _by_function(self, noiommu: bool) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """Yield file, function and the lines with code, of the no-IOMMU code or of all."""
        for name in sorted(self.files):
            text, known = self.sources[name], self.files[name].lines
            wanted = find_noiommu(name, text) if noiommu else known.keys()
            where = {line: one.name for one in find_functions(text) for line in one.lines}
            named = [(where.get(line, ""), line) for line in sorted(known) if line in wanted]
            for function, lines in itertools.groupby(named, operator.itemgetter(0)):
                yield name, function, tuple(line for _, line in lines)

    def save(self, directory: Path) -> None:
        """Write it below the run's *directory*.  Raises OSError."""
        plain = {
            "format": _FORMAT,
            "tree": self.tree,
            "line": self.line,
            "sources": dict(self.sources),
            "files": {
                name: {"lines": list(one.lines.items()), "branches": list(one.branches.items())}
                for name, one in self.files.items()
            },
            "cases": [
                [one.job, one.case, {name: ranges(lines) for name, lines in one.files.items()}]
                for one in self.cases
            ],
            "lost": list(self.lost),
        }
        place = directory / DIRECTORY
        place.mkdir(exist_ok=True)
        write_atomic(place / f"{file_name(self.tree)}{_SUFFIX}", gzip.compress(json.dumps(plain).encode()))


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """How much of a file, or of the no-IOMMU code, ran."""

    name: str
    lines: int
    lines_run: int
    branches: int
    branches_taken: int

    @classmethod
    def of(cls, name: str, counted: FileCoverage, wanted: Container[int]) -> Row:
        """Return the row of the *wanted* lines of a file."""
        lines = [count for line, count in counted.lines.items() if line in wanted]
        branches = [count for line, counts in counted.branches.items() if line in wanted for count in counts]
        return cls(name, len(lines), sum(map(bool, lines)), len(branches), sum(map(bool, branches)))

    @property
    def numbers(self) -> tuple[int, int, int, int]:
        return self.lines, self.lines_run, self.branches, self.branches_taken


def load(directory: Path) -> tuple[Coverage, ...]:
    """Return the coverage of each source tree in the run in *directory*; empty without any.

    Raises InfraError for a file that is damaged or of another version of the harness.
    """
    return tuple(_load(path) for path in sorted((directory / DIRECTORY).glob(f"*{_SUFFIX}")))


def _load(path: Path) -> Coverage:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            plain = json.load(file)
        if plain["format"] != _FORMAT:
            raise ValueError(f"format {plain['format']}, expected {_FORMAT}")
        return Coverage(
            tree=plain["tree"],
            line=plain["line"],
            sources=plain["sources"],
            files={
                name: FileCoverage(collections.Counter(dict(one["lines"])), dict(one["branches"]))
                for name, one in plain["files"].items()
            },
            cases=tuple(
                Reach(job, case, {name: frozenset(parse_ranges(text)) for name, text in files.items()})
                for job, case, files in plain["cases"]
            ),
            lost=tuple(plain["lost"]),
        )
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
        hint = "run `vfio-harness coverage --again` to read the counters again"
        raise InfraError(f"cannot read {path}: {error}", hint=hint) from error


def file_name(tree: str) -> str:
    """Return *tree* as part of a file's name."""
    return re.sub(r"[^\w.+~-]+", "-", tree)


def ranges(lines: Iterable[int]) -> str:
    """Return *lines* for people and files: `12-14,20`."""
    found: list[list[int]] = []
    for line in sorted(lines):
        if found and found[-1][1] == line - 1:
            found[-1][1] = line
        else:
            found.append([line, line])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def parse_ranges(text: str) -> Iterator[int]:
    """Yield the lines that ranges() wrote."""
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
