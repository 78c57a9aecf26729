# SPDX-License-Identifier: GPL-2.0-only
"""Lab: carries out work of any job, one piece after the other, and keeps the VM between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.base.cause import Cause
from harness.base.errors import HarnessError
from harness.base.outcome import Outcome
from harness.lab.attempt import Again, Attempt
from harness.lab.retries import MOST_CONFIRMED, again, is_last_chance
from harness.lab.settings import Settings
from harness.plan import Job, too_late
from harness.results.model import WHOLE_PROGRAM
from harness.suites.model import CaseResult, Work

if TYPE_CHECKING:
    from harness.lab.current import CurrentVM


class Lab:
    """Carries out work in one VM at a time, which belongs to the job of the last piece of work."""

    def __init__(self, directory: Path, settings: Settings, builds: Path | None = None) -> None:
        """Write below *directory*; *builds* is the run directory of a process that still builds kernels."""
        self._directory = directory
        self._settings = settings
        self._builds = builds
        self._vm: CurrentVM | None = None
        self._confirmed = 0
        """How many failures of the current job were retried for confirmation."""

    def perform(self, job: Job, work: Work) -> Iterator[Attempt]:
        """Run *work* of *job* as often as the rule for retries says; yield each Attempt when it ends."""
        if work.refusal:
            yield unused(work, Outcome.SKIP, work.refusal, Cause.NOT_APPLICABLE)
            return
        if late := too_late(self._settings.until):
            yield unused(work, Outcome.NOT_RUN, late, Cause.DEADLINE)
            return
        attempts: list[Attempt] = []
        why: Again | None = None
        confirms = False
        while not attempts or why is not None:
            if why is Again.CONFIRM:
                confirms = True
                self._confirmed += 1
                self._vm_of(job).end()
            attempt = self._try(self._vm_of(job), work, attempts)
            attempts.append(dataclasses.replace(attempt, number=len(attempts) + 1, confirms=confirms))
            why = self._again(attempts)
            yield dataclasses.replace(attempts[-1], again=why)

    def retire(self) -> Attempt | None:
        """Stop the VM; return what its kernel printed after the last attempt, if it did."""
        if self._vm is None:
            return None
        vm, self._vm = self._vm, None
        vm_dir = vm.vm_dir
        vm.end()
        last = Attempt(vm_dir=vm_dir, **vm.untold())
        return last if last.strays or last.boots else None

    def close(self) -> None:
        """Stop the VM at once."""
        if self._vm is not None:
            self._vm.close()
            self._vm = None

    def _again(self, attempts: Sequence[Attempt]) -> Again | None:
        may_confirm = self._settings.confirm and self._confirmed < MOST_CONFIRMED
        return None if too_late(self._settings.until) else again(attempts, may_confirm=may_confirm)

    def _try(self, vm: CurrentVM, work: Work, before: Sequence[Attempt]) -> Attempt:
        from harness.lab.carry_out import carry_out

        try:
            return carry_out(vm, work, last_chance=is_last_chance(before))
        except (HarnessError, TimeoutError) as error:
            cause = error.cause if isinstance(error, HarnessError) else Cause.NO_ANSWER
            untried = unused(work, Outcome.NOT_RUN, str(error), cause or Cause.HOST)
            return dataclasses.replace(untried, **vm.untold())

    def _vm_of(self, job: Job) -> CurrentVM:
        if self._vm is None or self._vm.job.name != job.name:
            self.close()
            # SSH and QMP take longer to import than a plan to collect.
            from harness.lab.current import CurrentVM

            self._confirmed = 0
            self._vm = CurrentVM(job, self._directory, self._settings, self._builds)
        return self._vm


def unused(work: Work, outcome: Outcome, reason: str, cause: Cause) -> Attempt:
    """Return the Attempt of work that no VM was used for."""
    result = CaseResult(case=WHOLE_PROGRAM, outcome=outcome, reason=reason, cause=cause)
    return Attempt(work=work, results=(result,))
