# SPDX-License-Identifier: GPL-2.0-only
"""The pytest items: one per probe case, one per selftest program.

An item runs its work through the worker's Lab, hands the Results to the controller as a user property of
its report, and ends the way pytest knows for the worst of their outcomes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Generic, Self, TypeVar

import pytest

from harness.plugin.lab import LAB
from harness.plugin.recorder import RESULTS_PROPERTY
from harness.results import Outcome, Result, result_to_plain, settle
from harness.suites.catalogue import ProbeWork, ProgramWork


class CaseFailed(Exception):
    """A piece of work whose results are bad; printed as they are, never with a traceback of ours."""

    def __init__(self, results: Sequence[Result]) -> None:
        super().__init__(results[0].reason if results else "no result")
        self.results = tuple(results)


W = TypeVar("W", ProbeWork, ProgramWork)


class WorkItem(pytest.Item, Generic[W]):
    """A piece of work as pytest sees it."""

    work: W

    @classmethod
    def of(cls, parent: pytest.Collector, work: W) -> Self:
        # Spelt out: pytest 9.2's --lf parses the brackets out of an id, which a bare name keeps.
        nodeid = f"{parent.nodeid}::{work.title}"
        item: Self = cls.from_parent(parent, name=work.title, nodeid=nodeid)
        item.work = work
        item.add_marker(pytest.mark.xdist_group(work.group))
        return item

    def runtest(self) -> None:
        results = self.config.stash[LAB].perform(self.work)
        carry(self, RESULTS_PROPERTY, results)
        conclude(settle(results))

    def repr_failure(  # type: ignore[override]
        self, excinfo: pytest.ExceptionInfo[BaseException], style: None = None
    ) -> str:
        if isinstance(excinfo.value, CaseFailed):
            return "\n".join(_paragraph(result) for result in excinfo.value.results)
        if isinstance(excinfo.value, pytest.xfail.Exception):
            # pytest would parse our own sources for a traceback that nobody is shown.
            return str(excinfo.value)
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[str, int | None, str]:
        return str(self.path), self.line(), self.name

    def line(self) -> int | None:
        return None


class ProbeItem(WorkItem[ProbeWork]):
    """One case of ours."""

    def line(self) -> int | None:
        return self.work.case.lineno - 1


class ProgramItem(WorkItem[ProgramWork]):
    """One of upstream's selftest programs; each KTAP point it prints is a Result."""


def carry(item: pytest.Item, name: str, results: Sequence[Result]) -> None:
    """Let *item*'s reports carry *results* to the process that records them."""
    item.user_properties.append((name, json.dumps([result_to_plain(result) for result in results])))


def conclude(results: Sequence[Result]) -> None:
    """End the running item the way pytest knows for the worst of *results*."""
    bad = [result for result in results if result.is_bad]
    if bad or not results:
        raise CaseFailed(bad)
    worst = max(results, key=lambda result: result.outcome.severity)
    if any(result.outcome is Outcome.XFAIL for result in results):
        pytest.xfail(next(r.reason for r in results if r.outcome is Outcome.XFAIL))
    if all(result.outcome is Outcome.SKIP for result in results):
        pytest.skip(worst.reason)


def _paragraph(result: Result) -> str:
    lines = [f"{result.outcome.name} {result.address}: {result.reason}"]
    if result.vm_dir:
        lines.append(f"  everything: {result.vm_dir}")
    if result.splat:
        lines += ["  the kernel said:", *(f"    {line}" for line in result.splat.splitlines())]
    if result.rerun:
        lines.append(f"  again: {result.rerun}")
    return "\n".join(lines)
