# SPDX-License-Identifier: GPL-2.0-only
"""Render coverage as text.  Pure."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Iterator, Mapping

from rich import box
from rich.console import Console
from rich.table import Table

from harness.base.words import count_of
from harness.results.coverage.model import Coverage, Row, ranges

_SHOWN = 8
"""How many cases are named; the others are only counted."""


def render_table(coverage: Coverage) -> str:
    """Return one row for the no-IOMMU code and one for each file."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(coverage.tree)
    for head in ("lines", "run", "", "branches", "taken", ""):
        table.add_column(head, justify="right")
    for number, row in enumerate(coverage.rows()):
        table.add_row(*_cells(row), end_section=number == 0)
    out = io.StringIO()
    Console(file=out, width=120, color_system=None, emoji=False, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().strip("\n").splitlines())


def _cells(row: Row) -> Iterator[str]:
    yield row.name
    for whole, part in ((row.lines, row.lines_run), (row.branches, row.branches_taken)):
        yield str(whole)
        yield str(part)
        # Rounded down: 100 % means all.
        yield f"{1000 * part // whole / 10:.1f} %" if whole else ""


def render_cases(cases: Collection[str]) -> str:
    """Return how many *cases* there are, with the names of the first."""
    shown = sorted(cases)[:_SHOWN]
    more = ", ..." if len(cases) > len(shown) else ""
    return f"{count_of(len(cases), 'case')}: {', '.join(shown)}{more}" if cases else "no case"


def render_missing(coverage: Coverage, *, noiommu: bool) -> str:
    """Return the lines with code that never ran, by function, and those of which a branch was not taken."""
    found = [
        f"{name}:{ranges(lines)}{_of(function)}" for name, function, lines in coverage.missing(noiommu)
    ] or ["every line with code ran"]
    found += [
        f"{name}:{line}{_of(function)}: {counts.count(0)} of {len(counts)} branches never taken"
        for name, function, line, counts in coverage.untaken(noiommu)
    ]
    return "\n".join(found)


def _of(function: str) -> str:
    return f"  {function}()" if function else ""


def render_diff(coverage: Coverage, changed: Mapping[str, Collection[int]], outside: Iterable[str]) -> str:
    """Return which *changed* lines ran and by which cases; *outside* are changed files without counters."""
    known = {
        name: sorted(line for line in lines if line in coverage.files[name].lines)
        for name, lines in changed.items()
    }
    run = {
        name: [line for line in lines if coverage.files[name].lines[line]] for name, lines in known.items()
    }
    total, ran = (sum(map(len, one.values())) for one in (known, run))
    never = [
        f"{name.rpartition('/')[2]}:{ranges(left)}"
        for name, lines in known.items()
        if (left := set(lines) - set(run[name]))
    ]
    said = [f"{ran} of {count_of(total, 'changed line')} with code ran"]
    said[0] += f"; never: {', '.join(never)}" if never else ""
    for name, lines in known.items():
        for together, cases in _grouped(coverage, name, lines):
            said.append(f"  {name}:{ranges(together)}  {render_cases(cases)}")
    said += [f"  {name}: changed, but has no coverage counters" for name in outside]
    return "\n".join(said)


def _grouped(
    coverage: Coverage, name: str, lines: Iterable[int]
) -> Iterator[tuple[list[int], frozenset[str]]]:
    """Yield neighbouring *lines* that the same cases ran, with the cases."""
    reached = coverage.reached(name, lines)
    group: list[int] = []
    last: frozenset[str] = frozenset()
    for line in lines:
        cases = frozenset(case for case, hit in reached.items() if line in hit)
        if group and cases != last:
            yield group, last
            group = []
        group.append(line)
        last = cases
    if group:
        yield group, last
