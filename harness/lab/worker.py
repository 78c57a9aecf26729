# SPDX-License-Identifier: GPL-2.0-only
"""Worker: the state of a process that runs items: a Lab, and the spool for unreported results."""

from __future__ import annotations

from pathlib import Path

from harness.lab.lab import Lab
from harness.lab.records import records
from harness.lab.settings import Settings
from harness.lab.spool import Spool
from harness.plan import Plan
from harness.results.model import Result
from harness.suites.model import Work


class Worker:
    """Runs work of the plan and returns its Results."""

    def __init__(self, plan: Plan, name: str) -> None:
        self._plan = plan
        self._name = name
        self._run_dir = Path(plan.run_dir)
        self._spool = Spool(self._run_dir)
        self._lab: Lab | None = None
        """Made for the first item: a process that only collects reads no known issues."""

    def perform(self, work: Work) -> list[Result]:
        """Run *work*, or say why it does not apply; return the Results of every attempt."""
        job = self._plan.job(work.job)
        found: list[Result] = []
        self._lab = self._lab or self._make_lab()
        for attempt in self._lab.perform(job, work):
            found += records(attempt, job.name, self._plan.reruns.get(job.name, ""))
            if attempt.again is not None:
                # This process may die in the next attempt.
                self._spool.keep(work, found)
        return found

    def retire(self, job: str) -> tuple[Result, ...]:
        """Stop the VM of *job*; return the Results of what its kernel still printed."""
        last = self._lab.retire() if self._lab is not None else None
        return records(last, job, self._plan.reruns.get(job, "")) if last is not None else ()

    def close(self) -> None:
        """Stop the VM at once."""
        if self._lab is not None:
            self._lab.close()

    def _make_lab(self) -> Lab:
        return Lab(self._run_dir, Settings.of(self._plan, self._name), builds=self._run_dir)
