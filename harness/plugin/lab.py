# SPDX-License-Identifier: GPL-2.0-only
"""The Lab: what one pytest process works with.  One VM at a time, of the job that is being worked on."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.errors import BootCrash, HarnessError
from harness.machine.splat import Splat
from harness.plan import Isolation, Plan
from harness.plugin.done import Done, text_of
from harness.plugin.spool import Spool
from harness.results import (
    BOOTS,
    KERNEL_SUITE,
    QUIET,
    WHOLE_PROGRAM,
    Address,
    Outcome,
    Requirement,
    Result,
    check,
)
from harness.retries import LOST_PROCESSOR_TRIES, LOST_TRIES, MOST_CONFIRMED
from harness.suites.catalogue import ProbeWork, ProgramWork, Work, features_for
from harness.suites.judging import Judged
from harness.suites.manifest import expected_points

if TYPE_CHECKING:
    from guest.case import Case
    from harness.plugin.jobvm import JobVM


class Lab:
    """Runs any work of the plan and says what became of it."""

    def __init__(self, plan: Plan, worker: str) -> None:
        self._plan = plan
        self._worker = worker
        self._job = ""
        self._jobvm: JobVM | None = None
        self._crashed_at_boot: set[str] = set()
        self._confirmed = 0
        """How many failures of the current job were tried again."""
        self._started = 0
        """How many of its boots are told of."""
        self._alongside: dict[str, Done] | None = None
        """What its cases that ran alongside one another came to, until asked for; None before they ran."""
        self._expected: tuple[Work, ...] = ()
        self._spool = Spool(Path(plan.run_dir))

    def expect(self, work: Sequence[Work]) -> None:
        """Say what may be asked for."""
        self._expected = tuple(work)

    def perform(self, work: Work) -> tuple[Result, ...]:
        """Run *work*, or say why it does not apply; every attempt is in what it returns."""
        if work.refusal:
            return (self._unused(work, Outcome.SKIP, work.refusal),)
        if self._plan.too_late and not self._is_unasked(work):
            return (self._unused(work, Outcome.NOT_RUN, self._plan.too_late),)
        return tuple(self._attempts(work))

    def _attempts(self, work: Work) -> list[Result]:
        """The results of *work*; once more after a loss, and once more to confirm a failure."""
        attempt, losses, confirms = 1, 0, False
        told: list[Result] = []
        while True:
            done, results = self._try(work, final=losses + 1 >= LOST_TRIES)
            results = [dataclasses.replace(result, attempt=attempt, confirms=confirms) for result in results]
            told += (*self._boots(work.job, done), *results)
            own = [result.outcome for result in results if result.address.suite != KERNEL_SUITE]
            most = LOST_PROCESSOR_TRIES if done.lost_processor else LOST_TRIES
            if Outcome.LOST in own and losses + 1 < most:
                losses += 1
            elif not confirms and any(outcome.is_failure for outcome in own) and self._may_confirm():
                confirms = True
            else:
                return told
            if self._plan.too_late:
                return told
            self._spool.keep(work, told)
            attempt += 1

    def _may_confirm(self) -> bool:
        """Whether to try once more what failed; nothing has run in the VM it gets."""
        if not self._plan.confirm or self._jobvm is None or self._confirmed == MOST_CONFIRMED:
            return False
        self._confirmed += 1
        self._jobvm.renew()
        return True

    def retire(self) -> tuple[Result, ...]:
        """End the job that is being worked on: stop its VM and hear the kernel's last words."""
        if self._jobvm is None:
            return ()
        done = self._jobvm.retire()
        self._jobvm = None
        return self._strays(self._job, done)

    def close(self) -> None:
        """Stop the VM at once."""
        if self._jobvm is not None:
            self._jobvm.close()
            self._jobvm = None

    def _try(self, work: Work, *, final: bool) -> tuple[Done, Sequence[Result]]:
        vm = self._vm_of(work.job)
        vm.final = final
        try:
            done = self._carry_out(vm, work)
        except (HarnessError, TimeoutError) as error:
            done = vm.with_unheard(Done())
            crash = self._boot_crash(work.job, error) if isinstance(error, BootCrash) else ()
            untried = self._unused(work, Outcome.NOT_RUN, str(error))
            return done, (*crash, untried, *self._strays(work.job, done))
        results = [self._result(work, judged, done) for judged in done.judged]
        if isinstance(work, ProgramWork):
            results += check(results, [self._requirement(work, done)])
        return done, (*results, *self._strays(work.job, done))

    def _carry_out(self, vm: JobVM, work: Work) -> Done:
        if isinstance(work, ProbeWork):
            return self._done_alongside(vm, work) or vm.probe(work.case)
        return vm.program(work.program, features_for(work.program, self._plan.job(work.job)))

    def _done_alongside(self, vm: JobVM, work: ProbeWork) -> Done | None:
        """What *work* came to alongside its like, which all run when the first of them is asked for.

        None for what runs by itself, and at every further attempt.
        """
        if work.case.alongside and self._alongside is None:
            cases = self._cases_alongside(work.job) if self._plan.isolation is Isolation.VM else ()
            self._alongside = vm.alongside(cases) if len(cases) > 1 else {}
            self._keep_alongside(work.job)
        done = self._unasked(work.job).pop(work.case.address, None)
        return vm.with_unheard(done) if done is not None else None

    def _keep_alongside(self, job: str) -> None:
        """Write down what came of the cases of *job* that ran, which may be asked for much later or never."""
        for work in self._expected:
            if isinstance(work, ProbeWork) and work.job == job and self._is_unasked(work):
                done = self._unasked(job)[work.case.address]
                self._spool.keep(work, [self._result(work, judged, done) for judged in done.judged])

    def _unasked(self, job: str) -> dict[str, Done]:
        """What cases of *job* that ran alongside one another came to and nobody has asked for yet."""
        return self._alongside or {} if job == self._job else {}

    def _is_unasked(self, work: Work) -> bool:
        return isinstance(work, ProbeWork) and work.case.address in self._unasked(work.job)

    def _cases_alongside(self, job: str) -> tuple[Case, ...]:
        """The cases of *job* that may run alongside one another, of what this process may be asked for."""
        mine = (one for one in self._expected if isinstance(one, ProbeWork) and one.job == job)
        return tuple(one.case for one in mine if one.case.alongside and one.refusal is None)

    def _vm_of(self, job: str) -> JobVM:
        if self._jobvm is None or self._job != job:
            self.close()
            # Not before it is needed: SSH and QMP take longer to import than a plan to collect.
            from harness.plugin.jobvm import JobVM

            self._job, self._confirmed, self._started = job, 0, 0
            self._alongside = None
            self._jobvm = JobVM(self._plan, self._plan.job(job), self._worker)
        return self._jobvm

    def _requirement(self, work: ProgramWork, done: Done) -> Requirement:
        """What the program must show: enough passes, and every point of its manifest."""
        program, job = work.program, self._plan.job(work.job)
        points = [judged.case for judged in done.judged if judged.case != WHOLE_PROGRAM]
        fewest = program.fewest_under(features_for(program, job), points)
        listed = expected_points(program, job.kernel.sources.get(program.path, ""))
        return Requirement(
            job=work.job,
            suite=program.suite,
            program=program.title,
            fewest=fewest,
            cases=listed if fewest or points else (),
            rerun=self._rerun(work),
        )

    def _boot_crash(self, job: str, error: BootCrash) -> tuple[Result, ...]:
        """The one result that says that the kernel does not boot."""
        if job in self._crashed_at_boot:
            return ()
        self._crashed_at_boot.add(job)
        return (self._about_kernel(job, BOOTS, error.message, error.splat),)

    def _boots(self, job: str, done: Done) -> Iterator[Result]:
        """What became of the boots before the one that did the work, so that no retry goes untold."""
        came_up = Result(address=BOOTS, job=job, outcome=Outcome.PASS, vm_dir=done.vm_dir)
        for start in done.false_starts:
            self._started += 1
            yield dataclasses.replace(
                came_up,
                outcome=Outcome.CRASH if start.splat else Outcome.LOST,
                reason=start.reason,
                splat=start.splat,
                vm_dir=start.vm_dir,
                rerun=self._plan.job(job).rerun if start.splat else "",
                attempt=self._started,
            )
        if done.false_starts and done.judged:
            self._started += 1
            yield dataclasses.replace(came_up, attempt=self._started)

    def _strays(self, job: str, done: Done) -> tuple[Result, ...]:
        if not done.strays:
            return ()
        reason = f"the kernel said outside any case: {_where(done.strays[0])}{done.strays[0].title}"
        result = self._about_kernel(job, QUIET, reason, text_of(done.strays))
        return (dataclasses.replace(result, vm_dir=done.vm_dir),)

    def _about_kernel(self, job: str, address: Address, reason: str, splat: str) -> Result:
        rerun = self._plan.job(job).rerun
        return Result(
            address=address, job=job, outcome=Outcome.CRASH, reason=reason, splat=splat, rerun=rerun
        )

    def _rerun(self, work: Work) -> str:
        return f"{self._plan.job(work.job).rerun} --case {shlex.quote(work.address)}"

    def _unused(self, work: Work, outcome: Outcome, reason: str) -> Result:
        """The result of work that no VM was used for."""
        return self._result(work, Judged(case=WHOLE_PROGRAM, outcome=outcome, reason=reason), Done())

    def _result(self, work: Work, judged: Judged, done: Done) -> Result:
        if isinstance(work, ProbeWork):
            address = Address.parse(work.address)
        else:
            address = Address(suite=work.program.suite, program=work.program.title, case=judged.case)
        said = "\n".join(judged.diagnostics) or done.printed
        log = f"{said}\n\nconsole:\n{done.console}" if done.console else said
        return Result(
            address=address,
            job=work.job,
            outcome=judged.outcome,
            reason=judged.reason,
            duration=done.seconds / max(1, len(done.judged)),
            log=log if judged.outcome.is_bad else "",
            splat=done.splat if judged.outcome is Outcome.CRASH else "",
            vm_dir=done.vm_dir,
            rerun=self._rerun(work),
        )


def _where(splat: Splat) -> str:
    return f"after {splat.after}: " if splat.after else "while booting: "


LAB = pytest.StashKey[Lab]()
