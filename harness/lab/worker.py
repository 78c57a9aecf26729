# SPDX-License-Identifier: GPL-2.0-only
"""Worker: the state of a process that runs items: a Lab, and the spool for unreported results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from harness.lab.lab import Lab
from harness.lab.records import records
from harness.lab.settings import Settings
from harness.lab.spool import Spool
from harness.plan import Plan, load_plan
from harness.results.model import Result
from harness.suites.catalogue import work_of
from harness.suites.model import Work

Tell = Callable[[str, Sequence[Result]], object]
"""Called with the key of work that is tried once more, and its Results so far."""


class Worker:
    """Runs work of the plan and returns its Results."""

    def __init__(self, plan: Plan, name: str, tell: Tell | None = None) -> None:
        """What would be lost if this process died goes to *tell*; without it to the run's spool.

        A worker with a *tell* is on another host: no kernel is built in its run directory.
        """
        self._plan = plan
        self._name = name
        self._run_dir = Path(plan.run_dir)
        self._spool = Spool(self._run_dir)
        self._tell = tell
        self._works: dict[str, Work] = {}
        self._lab: Lab | None = None
        """Made for the first item: a process that only collects reads no known issues."""

    @classmethod
    def of_file(cls, path: Path, name: str, tell: Tell) -> Self:
        """Return the worker *name* for the plan in the file *path*.

        Results are for *tell*, and VMs run in the directory of the file.
        """
        return cls(load_plan(path), name, tell)

    def perform(self, work: Work) -> list[Result]:
        """Run *work*, or say why it does not apply; return the Results of every attempt."""
        job = self._plan.job(work.job)
        found: list[Result] = []
        self._lab = self._lab or self._make_lab()
        for attempt in self._lab.perform(job, work):
            found += records(attempt, job.name, self._plan.reruns.get(job.name, ""))
            if attempt.again is not None:
                # This process may die in the next attempt.
                if self._tell is not None:
                    self._tell(work.key, found)
                else:
                    self._spool.keep(work, found)
        return found

    def perform_named(self, key: str) -> list[Result]:
        """Run the work of the plan with this *key*."""
        self._works = self._works or {one.key: one for job in self._plan.jobs for one in work_of(job)}
        return self.perform(self._works[key])

    def retire(self, job: str) -> tuple[Result, ...]:
        """Stop the VM of *job*; return the Results of what its kernel still printed."""
        last = self._lab.retire() if self._lab is not None else None
        return records(last, job, self._plan.reruns.get(job, "")) if last is not None else ()

    def close(self) -> None:
        """Stop the VM at once."""
        if self._lab is not None:
            self._lab.close()

    def _make_lab(self) -> Lab:
        builds = self._run_dir if self._tell is None else None
        return Lab(self._run_dir, Settings.of(self._plan, self._name), builds=builds)
