# SPDX-License-Identifier: GPL-2.0-only
"""The pytest items: one for each piece of work, under the file that declares it.

Node ids read `guest/probes/get_pa.py::unmapped[7.3.4-group-cdev-edu-igb]` and
`harness/suites/kselftest-vfio.yaml::vfio_pci_device_test@edu0[...]`.  An item runs its work, hands the
Results to the controller as a user property of its report, and ends with the pytest outcome for the worst of
them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import pytest

from harness.lab.worker import Worker
from harness.results import Outcome, Result, result_to_plain, settle
from harness.suites.model import Work

WORKER = pytest.StashKey[Worker]()

RESULTS_PROPERTY = "vfio_harness_results"
"""The user property that carries an item's Results from the process that ran it, as JSON."""

LATE_PROPERTY = "vfio_harness_late_results"
"""The same for what the kernel printed when the item's VM was stopped."""


class CaseFailed(Exception):
    """A piece of work whose results are bad; shown without a traceback."""

    def __init__(self, results: Sequence[Result]) -> None:
        super().__init__(results[0].reason if results else "no result")
        self.results = tuple(results)


class WorkFile(pytest.File):
    """A file that declares work, with the items of the plan from it."""

    work: tuple[Work, ...] = ()

    @classmethod
    def of(cls, parent: pytest.Collector, path: Path, work: Sequence[Work]) -> Self:
        # pytest gives files outside its root no name.
        name = None if path.is_relative_to(parent.config.rootpath) else path.name
        node: Self = cls.from_parent(parent, path=path, nodeid=name)
        node.work = tuple(work)
        return node

    def collect(self) -> Iterator[WorkItem]:
        for work in self.work:
            yield WorkItem.of(self, work)


class WorkItem(pytest.Item):
    """A piece of work as pytest sees it."""

    work: Work

    @classmethod
    def of(cls, parent: pytest.Collector, work: Work) -> Self:
        # In full: pytest 9.2's --lf cuts the brackets off an id, and keeps them in a name.
        nodeid = f"{parent.nodeid}::{work.title}"
        item: Self = cls.from_parent(parent, name=work.title, nodeid=nodeid)
        item.work = work
        item.add_marker(pytest.mark.xdist_group(work.group))
        return item

    def runtest(self) -> None:
        results = self.config.stash[WORKER].perform(self.work)
        carry(self, RESULTS_PROPERTY, results)
        conclude(settle(results))

    def repr_failure(  # type: ignore[override]
        self, excinfo: pytest.ExceptionInfo[BaseException], style: None = None
    ) -> str:
        if isinstance(excinfo.value, CaseFailed):
            return "\n".join(_paragraph(result) for result in excinfo.value.results)
        if isinstance(excinfo.value, pytest.xfail.Exception):
            # pytest would parse our own sources for a traceback that is not shown.
            return str(excinfo.value)
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[str, int | None, str]:
        line = self.work.line - 1 if self.work.line is not None else None
        return str(self.path), line, self.name


def carry(item: pytest.Item, name: str, results: Sequence[Result]) -> None:
    """Add *results* to *item*'s reports as the user property *name*."""
    item.user_properties.append((name, json.dumps([result_to_plain(result) for result in results])))


def conclude(results: Sequence[Result]) -> None:
    """End the running item with the pytest outcome for the worst of *results*."""
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
        lines.append(f"  logs: {result.vm_dir}")
    if result.splat:
        lines += ["  the kernel said:", *(f"    {line}" for line in result.splat.splitlines())]
    if result.rerun:
        lines.append(f"  run it again: {result.rerun}")
    return "\n".join(lines)
