# SPDX-License-Identifier: GPL-2.0-only
"""What is left of a plan after a run or a part of one, and whether the run can be resumed unchanged.

Results of two kernels, or of two QEMUs, are not one run.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping

from harness.base.cause import Cause
from harness.base.errors import ExitCode, UsageError
from harness.lab.retries import is_lost_for_good
from harness.plan import Job, Plan
from harness.results import BOOTS, Outcome, Result, Run, RunState
from harness.session.wishes import KernelWish
from harness.suites.catalogue import to_do
from harness.suites.registry import work_address

SELFTESTS = "selftests"
"""The name in Inputs.extra of the tree of `--selftests`: what always opens it, and its identity."""


def jobs_with_a_chance(plan: Plan, run: Run) -> tuple[Job, ...]:
    """Return the jobs of *plan* whose kernel was built and did not crash at every boot."""
    unbuilt = {job.name for job in run.jobs if job.problem}
    crashed = {case.job for case in run.cases if case.address == BOOTS and case.outcome.is_failure}
    tried = {case.job for case in run.cases if case.address != BOOTS and not _is_untried(case)}
    return tuple(job for job in plan.jobs if job.name not in unbuilt | (crashed - tried))


def _is_untried(case: Result) -> bool:
    """Return whether *case* says nothing about the kernel."""
    return case.outcome.is_infra or case.outcome is Outcome.SKIP


def left_to_try(plan: Plan, run: Run) -> Plan | None:
    """Return the work of *plan* that *run*, which was to carry it out, could not try; None if there is none.

    Work that is lost for good is left out.
    """
    done = (*done_in(run), *_lost_for_good(run))
    again = dataclasses.replace(plan, done=done, jobs=jobs_with_a_chance(plan, run))
    return again if run.state is RunState.FINISHED and to_do(again) and not plan.too_late else None


def done_in(run: Run) -> tuple[str, ...]:
    """Return the work that *run* has finished, as Plan.done names it."""
    done: dict[str, bool] = {}
    for case in run.cases:
        done[_name(case)] = done.get(_name(case), True) and not case.outcome.is_infra
    return tuple(name for name, is_done in done.items() if is_done)


def _lost_for_good(run: Run) -> tuple[str, ...]:
    """Return the work in *run* whose guest was lost too often, or which killed several workers of a fleet."""
    attempts = {(_name(one), one.attempt) for one in run.results if one.outcome is Outcome.LOST}
    losses = collections.Counter(name for name, _ in attempts)
    # pytest says LOST, already of the first worker that died.
    unrun = (one for one in run.results if one.outcome is Outcome.NOT_RUN)
    deadly = {_name(one) for one in unrun if one.cause is Cause.WORKER_DIED}
    return (*deadly, *(name for name, count in losses.items() if is_lost_for_good(count)))


def _name(result: Result) -> str:
    """Return the piece of work that *result* belongs to, as Plan.done names it."""
    return f"{result.job} {work_address(result.address)}"


def pins(before: Run | None, kernels: Iterable[KernelWish]) -> dict[str | None, str]:
    """Return what to open for the trees of *kernels* that may have changed since *before*, the run to resume.

    Debian may have uploaded a new release since; the resumed run uses the one that it began with.
    """
    if before is None:
        return {}
    exact = {job.line: job.exact_tree for job in before.jobs}
    found: dict[str | None, str] = {}
    for wish in kernels:
        if wish.selftests is not None:
            found[wish.selftests] = before.info.inputs.extra.get(SELFTESTS, "").rpartition(" ")[0]
        if wish.ready is None:
            found[wish.tree] = exact.get(wish.line, "")
    return {spec: tree for spec, tree in found.items() if tree}


def check_trees(before: Run, trees: Mapping[str, str]) -> None:
    """Refuse to resume *before* if a line of development in *trees* has changed since.

    A source that could not be fetched then may be fetched now.
    """
    unfetched = {job.line for job in before.jobs if job.problem_code is ExitCode.INFRA and not job.kernel}
    was = {job.line: job.tree for job in before.jobs}
    for line, tree in trees.items():
        if line not in unfetched:
            _refuse_change(before, f"the tree {line}", tree, was.get(line, "not in it"))


def check_inputs(before: Run, inputs: Mapping[str, str]) -> None:
    """Refuse to resume *before* if one of *inputs* has changed since.

    Names are those of kernels, whose digests cover compiler and configuration, those of Inputs.extra, `QEMU`
    and `the accelerator`.
    """
    then = before.info.inputs
    was = {**then.kernels, **then.extra, "QEMU": then.qemu, "the accelerator": then.accel}
    for name, value in inputs.items():
        _refuse_change(before, name, value, was.get(name, value))


def _refuse_change(before: Run, name: str, now: str, then: str) -> None:
    if now != then:
        raise UsageError(
            f"{name} has changed since run {before.info.id} began",
            hint=f"it is {now} and was {then}: begin a new run",
        )
