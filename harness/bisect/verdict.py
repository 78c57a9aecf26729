# SPDX-License-Identifier: GPL-2.0-only
"""Derive the Status of a commit from its Runs: pure functions.

Known issues count as failures here.  A bisect asks where the case's own outcome changes, so a documented
defect can be bisected like any other.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Sequence

from harness.base.cause import Cause
from harness.base.errors import ExitCode
from harness.bisect.state import BisectState, CommitRun, Rules, Status, Step
from harness.results import (
    BOOTS,
    KERNEL_SUITE,
    QUIET,
    WHOLE_PROGRAM,
    Address,
    JobRecord,
    Outcome,
    Result,
    Run,
)
from harness.results.fingerprint import fingerprint
from harness.suites.model import COMPILES
from harness.suites.registry import work_address

UNTESTED_RUNS = 2
"""How many runs without a result make a commit UNTESTED."""

_CONFIRM = 2
"""How many VMs must show a failure before it counts."""

_SILENT = frozenset(
    {
        Cause.NO_BOOT,
        Cause.NO_SSH,
        Cause.NO_AGENT,
        Cause.TIMED_OUT,
        Cause.PANICKED,
        Cause.GUEST_RESET,
        Cause.GUEST_OFF,
    }
)
"""The VM ran, and its guest never came up."""

_NUMBER = re.compile(r"\b0x[0-9a-f]+\b|\d+")


def read_run(run: Run, *, cases: Sequence[str] = (), boot: bool = False, seconds: float = 0.0) -> CommitRun:
    """Return what *run* showed of its commit, judged by *cases*, or by all of its cases when there are none.

    With *boot* only the boot counts.
    """
    problem = next((job for job in run.jobs if job.problem), None)
    if problem is not None:
        status = _problem_status(problem)
        return CommitRun(status=status, why=problem.problem, run_dir=run.directory, seconds=seconds)
    results = run.cases
    status, why, result = _read_boot(results) if boot else _read_cases(results, cases)
    silent = result is not None and result.outcome is Outcome.NOT_RUN and result.cause in _SILENT
    topologies = {job.name: job.topology for job in run.jobs}
    several = len(topologies) > 1
    if several and result is not None:
        why = f"{topologies.get(result.job, result.job)}: {why}"
    return CommitRun(
        status=status,
        why=why,
        failure=_failure(result) if result and status in (Status.FAILS, Status.NO_BOOT) else "",
        failures={} if boot else {str(r.address): _failure(r) for r in results if _fails(r)},
        cases={
            f"{topologies.get(r.job, r.job)} {r.address}" if several else str(r.address): result_status(r)
            for r in results
            if r.address.suite != KERNEL_SUITE
        },
        bad=tuple(dict.fromkeys(work_address(r.address) for r in results if _is_bad(r))),
        outside=next((describe_result(r) for r in results if _is_outside(r)), ""),
        flaky=next((describe_result(r) for r in results if _is_flaky(r)), ""),
        run_dir=run.directory,
        silent=status is Status.UNTESTED and silent,
        seconds=seconds,
    )


def _problem_status(job: JobRecord) -> Status:
    """The status of a commit without a kernel."""
    if job.problem_code is ExitCode.INFRA:
        return Status.UNTESTED
    return Status.NO_BUILD if job.applicable else Status.MISSING


def outcome_status(outcome: Outcome) -> Status:
    """The status of a commit whose only case has *outcome*."""
    match outcome:
        case Outcome.PASS | Outcome.XPASS:
            return Status.PASSES
        case Outcome.FAIL | Outcome.XFAIL | Outcome.ERROR | Outcome.TIMEOUT | Outcome.CRASH:
            return Status.FAILS
        case Outcome.SKIP:
            return Status.MISSING
        case Outcome.LOST | Outcome.NOT_RUN:
            return Status.UNTESTED


def result_status(result: Result) -> Status:
    """The status of a commit whose only case has *result*."""
    if _is_flaky(result):
        return Status.PASSES
    # A program that ends early, without its guest being lost, fails the test points it did not report.
    unreported = result.cause in (Cause.VANISHED, Cause.NOT_REACHED)
    if result.outcome is Outcome.NOT_RUN and unreported and result.stopped_by is not Outcome.LOST:
        return Status.FAILS
    return outcome_status(result.outcome)


def _failure(result: Result) -> str:
    """Return the kind of failure of *result*; empty for an XFAIL, whose reason is that of the known issue."""
    if result.outcome is Outcome.XFAIL:
        return ""
    return f"{result.outcome.value} {fingerprint(result.splat) or _NUMBER.sub('N', result.reason)}"


_Read = tuple[Status, str, Result | None]
"""A status, why, and the result that decided it."""


def _read_boot(results: Sequence[Result]) -> _Read:
    crash = next((r for r in results if _is_boot_crash(r) or _is_boot_splat(r)), None)
    if crash is not None:
        return Status.NO_BOOT, crash.reason, crash
    cases = [r for r in results if r.address.suite != KERNEL_SUITE]
    if any(not r.outcome.is_infra and r.outcome is not Outcome.SKIP for r in cases):
        return Status.PASSES, "the kernel boots", None
    lost = next((r for r in cases if r.outcome.is_infra), None)
    return Status.UNTESTED, lost.reason if lost else "nothing was booted", lost


def _read_cases(results: Sequence[Result], cases: Sequence[str]) -> _Read:
    crash = next((r for r in results if _is_boot_crash(r)), None)
    if crash is not None:
        return Status.NO_BOOT, crash.reason, crash
    counted = [r for r in results if _counts(r, cases)]
    for status in (Status.FAILS, Status.UNTESTED, Status.PASSES, Status.MISSING):
        first = next((r for r in counted if result_status(r) is status), None)
        if first is not None:
            return status, describe_result(first), first
    return Status.MISSING, "none of the cases is there", None


def _fails(result: Result) -> bool:
    """Whether *result* is a failure of a case or a program, or a splat outside any case."""
    return result_status(result) is Status.FAILS and (
        result.address.suite != KERNEL_SUITE or _is_outside(result)
    )


def _counts(result: Result, cases: Sequence[str]) -> bool:
    """Whether *result* belongs to *cases*: to one of them, to their program, or a splat after them."""
    address = result.address
    if address.suite == KERNEL_SUITE:
        return _is_outside(result)
    skipped = address.case == WHOLE_PROGRAM and result.outcome is Outcome.SKIP
    return _concerns(address, cases) and not (skipped and cases and str(address) not in cases)


def _concerns(address: Address, cases: Sequence[str]) -> bool:
    """Whether *address* is one of *cases*, their program as a whole, or of the kernel."""
    if str(address) in cases or address.suite == KERNEL_SUITE:
        return True
    # A commit whose selftests do not compile shows nothing about the cases.
    if f"{address.program}/{address.case}" == COMPILES:
        return False
    if not cases:
        return True
    whole = address.case == WHOLE_PROGRAM
    return whole and any(case.startswith(f"{address.program_path}/") for case in cases)


def usual_failures(state: BisectState) -> frozenset[str]:
    """Return the kinds of failure that the cases of *state* showed at the failing end."""
    failing = state.old_end if state.rules.find_fix else state.new_end
    kinds: set[str] = set()
    for run in failing.runs if failing is not None else ():
        if not run.failures:
            kinds.add(run.failure)
        found = run.failures.items()
        kinds |= {kind for address, kind in found if _concerns(Address.parse(address), state.cases)}
    return frozenset(kinds - {""})


def _is_outside(result: Result) -> bool:
    crashed = result.address.suite == KERNEL_SUITE and result.outcome is Outcome.CRASH
    return crashed and not _is_boot_splat(result)


def _is_bad(result: Result) -> bool:
    """Whether it ends a run with -x, or fails each case of its program."""
    whole = result.address.case == WHOLE_PROGRAM
    return result.is_failure or (whole and result_status(result) is Status.FAILS)


def _is_flaky(result: Result) -> bool:
    return result.flaky and not result.is_failure


def _is_boot_crash(result: Result) -> bool:
    # A boot that was tried again has this address too, LOST and then PASS.
    return result.address == BOOTS and result.outcome is Outcome.CRASH


def _is_boot_splat(result: Result) -> bool:
    return result.address == QUIET and result.cause is Cause.BOOT_CRASH


def describe_result(result: Result) -> str:
    """Return address, outcome and reason in one line."""
    if result.outcome is Outcome.PASS:
        return f"{result.address} passes"
    return f"{result.address} {result.label}" + (f": {result.reason}" if result.reason else "")


def decide(step: Step, rules: Rules, *, wary: bool = False, usual: Collection[str] = ()) -> Step | None:
    """Return *step* with the status that its runs show together; None when another VM must test it.

    A failure counts when a second VM shows it too.  When two VMs disagree, the majority of `rules.repeat`
    decides; with *wary*, after VMs disagreed about another commit, a pass needs that majority too.
    *usual* are the failures of the failing end: a failure of another kind counts only when all of
    `rules.repeat` VMs fail.
    """
    final = next((run for run in step.runs if _is_final(run.status, rules)), None)
    if final is not None:
        return dataclasses.replace(step, status=final.status, why=final.why)
    passes = [run for run in step.runs if run.status is Status.PASSES]
    fails = [run for run in step.runs if rules.fails(run.status)]
    alike = [run for run in fails if not usual or not run.failure or run.failure in usual]
    flaky = bool(passes and fails)
    majority = rules.repeat // 2 + 1
    needed = majority if flaky else _CONFIRM if len(alike) == len(fails) else rules.repeat
    if len(alike if flaky else fails) >= needed:
        why = _why(fails[0], passes, fails)
        why = why if alike else f"a different failure than at the {rules.word(rules.failing)} end: {why}"
        return dataclasses.replace(step, status=fails[0].status, why=why, flaky=flaky)
    decided = flaky and len(passes) + len(fails) >= rules.repeat
    if len(passes) >= (majority if flaky or wary else 1) or (decided and not alike):
        why = _why(passes[0], passes, fails)
        return dataclasses.replace(step, status=Status.PASSES, why=why, flaky=flaky)
    if decided:
        why = f"VMs disagree: {len(fails)} failed, {len(passes)} passed"
        return dataclasses.replace(step, status=Status.UNTESTED, why=why, flaky=True)
    lost = [run for run in step.runs if run.status is Status.UNTESTED]
    if len(lost) < UNTESTED_RUNS:
        return None
    return dataclasses.replace(step, status=Status.UNTESTED, why=lost[-1].why)


def _is_final(status: Status, rules: Rules) -> bool:
    """Whether one run decides: *status* depends on the source alone, or the commit is skipped anyway."""
    if status in (Status.NO_BUILD, Status.MISSING, Status.INVALID):
        return True
    return status is Status.NO_BOOT and not rules.boot


def _why(first: CommitRun, passes: Sequence[CommitRun], fails: Sequence[CommitRun]) -> str:
    if not passes or not fails:
        return first.why
    return f"flaky, {len(fails)} of {len(passes) + len(fails)} VMs failed: {fails[0].why}"


def majority_run(step: Step) -> CommitRun:
    """Return one run of *step*, with the status of each case by the majority of all runs; a draw fails."""
    chosen = step.typical or step.runs[0]
    cases = dict(chosen.cases)
    for case in cases:
        shown = [run.cases.get(case) for run in step.runs]
        if Status.FAILS in shown:
            passed = shown.count(Status.PASSES) > shown.count(Status.FAILS)
            cases[case] = Status.PASSES if passed else Status.FAILS
    return dataclasses.replace(chosen, cases=cases)


def cases_that_differ(passing: CommitRun, failing: CommitRun) -> tuple[str, ...]:
    """Return the cases that pass at the passing end only: the steps run these.

    A case that fails at both ends was broken before, and shows nothing.
    """
    passed = [case for case, status in passing.cases.items() if status is Status.PASSES]
    failed = tuple(case for case in passed if failing.cases.get(case, Status.FAILS) is Status.FAILS)
    if failed and failing.status is not Status.MISSING:
        return failed
    return tuple(case for case in passed if failing.cases.get(case, Status.MISSING) is Status.MISSING)
