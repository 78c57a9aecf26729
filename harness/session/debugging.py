# SPDX-License-Identifier: GPL-2.0-only
"""Find what `vfio-harness debug` opens: the dump of a guest that died in a run, or the VM of a case."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from harness.base.deadline import Deadline
from harness.base.errors import HarnessError, HostError, UsageError, nearest
from harness.kernel.debugfile import (
    DebugInformation,
    find_debug_information,
    provide_debug_information,
)
from harness.kernel.store import Built, find_built
from harness.kernel.trees import open_tree
from harness.plan import PLAN_FILE, Job, load_plan
from harness.results import Dump, Result, Run
from harness.session.dumps import BUDGET_SECONDS, find_dump
from harness.session.planning import plan_wished_kernel
from harness.session.remaining import pins
from harness.session.wishes import load_wishes

_NAMED = 5
"""How many cases with a dump are named: a kernel may crash in every case."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A case of a run, and the dump of the guest that died in it."""

    result: Result
    dump: Dump | None
    """None if no guest died; it has a reason instead of a file if the dump is missing."""

    def path(self, run: Run) -> Path | None:
        """Return the path of the dump; None if there is none."""
        return Path(run.directory, self.dump.file) if self.dump is not None and self.dump.file else None


def find_target(run: Run, case: str | None, job: str | None = None) -> Target:
    """Return the attempt at *case* in *run* to debug, of *job* if given: one that left a dump, else the last.

    Without *case* there must be one dump only.  Raises UsageError when there is not, and when *case* or *job*
    is unknown.
    """
    if job is not None:
        jobs = {one.name for one in run.jobs}
        if job not in jobs:
            raise UsageError(f"run {run.info.id} has no job {job!r}", hint=nearest(job, jobs))
        run = dataclasses.replace(run, results=tuple(one for one in run.results if one.job == job))
    if case is None:
        found = [target for one in run.results if (target := _target(run, one)).path(run)]
        guests = {target.result.vm_dir: target for target in found}
        if not guests:
            raise UsageError(
                f"no guest that died in run {run.info.id} left a dump",
                hint="name a case to open the VM in which it starts",
            )
        if len(guests) > 1:
            names = list(dict.fromkeys(str(one.result.address) for one in guests.values()))
            more = ", ..." if len(names) > _NAMED else ""
            raise UsageError(
                f"{len(guests)} guests died in run {run.info.id}",
                hint=f"name a case: {', '.join(names[:_NAMED])}{more}",
            )
        return next(iter(guests.values()))
    attempts = [_target(run, one) for one in run.results if str(one.address) == case]
    if not attempts:
        known = {str(one.address) for one in run.cases}
        hint = nearest(case, known, otherwise=f"vfio-harness report {run.info.id} shows its cases")
        raise UsageError(f"run {run.info.id} has no case {case!r}", hint=hint)
    return max(reversed(attempts), key=lambda target: target.path(run) is not None)


def _target(run: Run, result: Result) -> Target:
    return Target(result=result, dump=find_dump(run, result) if result.vm_dir else None)


def job_of(run: Run, result: Result) -> Job:
    """Return the Job of *result*.  Raises UsageError when the plan of *run* cannot be read."""
    plan = load_plan(Path(run.directory, PLAN_FILE))
    found = next((job for job in plan.jobs if job.name == result.job), None)
    if found is None:
        raise UsageError(f"the plan of run {run.info.id} has no job {result.job!r}")
    return found


def debug_information(run: Run, job: Job) -> DebugInformation:
    """Return the debug information of the kernel of *job* in *run*; it is made if it is missing.

    Raises HarnessError with the reason when that is not possible.
    """
    found = find_debug_information(kernel_of(job))
    if found is not None:
        return found
    wishes, _ = load_wishes(Path(run.directory))
    line = next((one.line for one in run.jobs if one.name == job.name), "")
    problem: HarnessError = HostError(
        f"the source of the kernel of job {job.name} has changed since run {run.info.id}", hint="run it again"
    )
    for wish in {wish.kernel: wish for wish in wishes}:
        if wish.variant != job.kernel.variant or wish.line != line:
            continue
        try:
            # A branch may have moved since, and Debian may have uploaded a new release.
            tree = open_tree(pins(run, [wish]).get(wish.tree, wish.tree)) if wish.ready is None else None
            planned = plan_wished_kernel(tree, wish, with_selftests=False)
        except HarnessError as error:
            problem = error
            continue
        if planned.plan is not None and planned.plan.key == job.kernel.digest:
            return provide_debug_information(planned.plan, Deadline.after(BUDGET_SECONDS))
        problem = planned.problem or problem
    raise problem


def kernel_of(job: Job) -> Built:
    """Return the kernel of *job*.  Raises HostError when the store lacks it."""
    built = find_built(job.kernel.digest)
    if built is None:
        message = f"the kernel of job {job.name} is not in the store"
        raise HostError(message, hint="vfio-harness run builds it")
    return built
