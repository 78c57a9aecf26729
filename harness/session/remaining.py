# SPDX-License-Identifier: GPL-2.0-only
"""What is left of a plan after a run, or a part of one: for who resumes it, and for a second chance.

A run can only go on as what it began as: results of two kernels, or of two emulators, are not one run.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping

from harness.errors import ExitCode, UsageError
from harness.kernel.debian import request_in
from harness.plan import Job, Plan
from harness.results import BOOTS, Outcome, Result, Run, State
from harness.retries import LOST_TRIES
from harness.session.wishes import line_of
from harness.suites.catalogue import to_do
from harness.suites.probes import SUITE as PROBES


def jobs_with_a_chance(plan: Plan, run: Run) -> tuple[Job, ...]:
    """The jobs whose kernel was built and boots, if not every time."""
    unbuilt = {job.name for job in run.jobs if job.problem}
    crashed = {case.job for case in run.cases if case.address == BOOTS and case.outcome.is_failure}
    tried = {case.job for case in run.cases if case.address != BOOTS and not _is_untried(case)}
    return tuple(job for job in plan.jobs if job.name not in unbuilt | (crashed - tried))


def _is_untried(case: Result) -> bool:
    """Whether *case* says nothing of what the kernel can do."""
    return case.outcome.is_infra or case.outcome is Outcome.SKIP


def left_to_try(plan: Plan, run: Run) -> Plan | None:
    """What of *plan* had no chance in *run*, which was to carry it out; None when nothing.

    Work that was lost LOST_TRIES times is left out.
    """
    done = (*done_in(run), *_lost_for_good(run))
    again = dataclasses.replace(plan, done=done, jobs=jobs_with_a_chance(plan, run))
    return again if run.state is State.FINISHED and to_do(again) and not plan.too_late else None


def done_in(run: Run) -> tuple[str, ...]:
    """What of its plan *run* has finished, as Plan.done names it: what had its chance."""
    done: dict[str, bool] = {}
    for case in run.cases:
        done[_name(case)] = done.get(_name(case), True) and not case.outcome.is_infra
    return tuple(name for name, is_done in done.items() if is_done)


def _lost_for_good(run: Run) -> tuple[str, ...]:
    """The work in *run* whose attempts were lost LOST_TRIES times or more."""
    attempts = {(_name(one), one.attempt) for one in run.results if one.outcome is Outcome.LOST}
    losses = collections.Counter(name for name, _ in attempts)
    return tuple(name for name, count in losses.items() if count >= LOST_TRIES)


def _name(result: Result) -> str:
    """The piece of work that *result* is of, as Plan.done names it."""
    probe = result.address.suite == PROBES
    return f"{result.job} {result.address if probe else result.address.program_path}"


def pins(before: Run, specs: Iterable[str | None]) -> dict[str | None, str]:
    """What of *specs* is to be opened in its place for a run that goes on with *before*.

    Debian may have uploaded the next release meanwhile; the run began with the one before.
    """
    trees = {job.line: job.tree for job in before.jobs}
    found = {spec: request_in(trees.get(line_of(spec), "")) for spec in specs}
    return {spec: f"debian:{request}" for spec, request in found.items() if request is not None}


def check_trees(before: Run, trees: Mapping[str, str]) -> None:
    """Refuse to go on with *before* when a line of development in *trees* has another identity now.

    A source that could not be had then is no other one when it can be had now.
    """
    unheard = {job.line for job in before.jobs if job.problem_code is ExitCode.INFRA and not job.kernel}
    was = {job.line: job.tree for job in before.jobs}
    for line, tree in trees.items():
        if line not in unheard and tree != was.get(line):
            raise UsageError(
                f"the tree {line} has changed since run {before.info.id} began",
                hint=f"it is {tree} and was {was.get(line, 'not in it')}: begin a new run",
            )


def check_inputs(before: Run, inputs: Mapping[str, str]) -> None:
    """Refuse to go on with *before* when one of *inputs*, each by its name, is not what it was then.

    Names are those of kernels, whose digests hold compiler and configuration, `QEMU` and `the accelerator`.
    """
    then = before.info.inputs
    was = {**then.kernels, "QEMU": then.qemu, "the accelerator": then.accel}
    for name, value in inputs.items():
        if was.get(name, value) != value:
            raise UsageError(
                f"{name} has changed since run {before.info.id} began",
                hint=f"it is {value} and was {was[name]}: begin a new run",
            )
