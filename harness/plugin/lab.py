# SPDX-License-Identifier: GPL-2.0-only
"""The Lab: what one pytest process works with.  One VM at a time, of the job that is being worked on."""

from __future__ import annotations

import pytest

from harness.errors import HarnessError
from harness.plan import Plan
from harness.plugin.jobvm import Done, JobVM
from harness.results import WHOLE_PROGRAM, Address, Expectation, Outcome, Result, check
from harness.suites.catalogue import ProbeWork, ProgramWork, Work, features_for
from harness.suites.judging import Judged
from harness.suites.manifest import expected_points


class Lab:
    """Runs any work of the plan and says what became of it."""

    def __init__(self, plan: Plan, worker: str) -> None:
        self._plan = plan
        self._worker = worker
        self._job = ""
        self._jobvm: JobVM | None = None

    def probe(self, work: ProbeWork) -> tuple[Result, ...]:
        """Run one probe case, or say why it does not apply."""
        if work.refusal:
            return (self._unused(work, Outcome.SKIP, work.refusal),)
        try:
            done = self._vm_of(work.job).probe(work.case)
        except HarnessError as error:
            return (self._unused(work, Outcome.NOT_RUN, str(error)),)
        return (self._result(work, done.judged[0], done),)

    def program(self, work: ProgramWork) -> tuple[Result, ...]:
        """Run one selftest program, or say why it does not apply; a Result for each of its points."""
        if work.refusal:
            return (self._unused(work, Outcome.SKIP, work.refusal),)
        features = features_for(work.program, self._plan.job(work.job))
        try:
            done = self._vm_of(work.job).program(work.program, features)
        except HarnessError as error:
            return (self._unused(work, Outcome.NOT_RUN, str(error)),)
        results = tuple(self._result(work, judged, done) for judged in done.judged)
        points = [judged.case for judged in done.judged]
        fewest = work.program.fewest_under(features, points)
        expectation = Expectation(
            job=work.job,
            suite=work.program.suite,
            program=work.program.title,
            fewest=fewest,
            cases=self._manifest(work) if fewest else (),
            rerun=self._rerun(work),
        )
        return (*results, *check(results, [expectation]))

    def close(self) -> None:
        """Stop the VM."""
        if self._jobvm is not None:
            self._jobvm.close()
            self._jobvm = None

    def _vm_of(self, job: str) -> JobVM:
        if self._jobvm is None or self._job != job:
            self.close()
            self._job = job
            self._jobvm = JobVM(self._plan, self._plan.job(job), self._worker)
        return self._jobvm

    def _manifest(self, work: ProgramWork) -> tuple[str, ...]:
        """The points that must appear, whatever their outcomes."""
        program = work.program
        return expected_points(program, self._plan.job(work.job).kernel.sources.get(program.path, ""))

    def _rerun(self, work: Work) -> str:
        return f"{self._plan.job(work.job).rerun} --case {work.address}"

    def _unused(self, work: Work, outcome: Outcome, reason: str) -> Result:
        """The result of work that no VM was used for."""
        case = work.case.name if isinstance(work, ProbeWork) else WHOLE_PROGRAM
        return self._result(work, Judged(case=case, outcome=outcome, reason=reason), Done())

    def _result(self, work: Work, judged: Judged, done: Done) -> Result:
        if isinstance(work, ProbeWork):
            address = Address.parse(work.address)
        else:
            address = Address(suite=work.program.suite, program=work.program.title, case=judged.case)
        said = "\n".join(judged.diagnostics)
        return Result(
            address=address,
            job=work.job,
            outcome=judged.outcome,
            reason=judged.reason,
            duration=done.seconds / max(1, len(done.judged)),
            log=said or done.printed if judged.outcome.is_bad else "",
            splat=done.splat if judged.outcome is Outcome.CRASH else "",
            vm_dir=done.vm_dir,
            rerun=self._rerun(work),
        )


LAB = pytest.StashKey[Lab]()
