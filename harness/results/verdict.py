# SPDX-License-Identifier: GPL-2.0-only
"""What a Run means: its Verdict, with the reason and the exit code."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from harness.base.cause import Cause
from harness.base.errors import ExitCode
from harness.base.outcome import Outcome
from harness.base.words import count_of
from harness.results.compare import Comparison
from harness.results.model import FLAKY, KERNEL_SUITE, Result, Run, RunState, Verdict


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunVerdict:
    """A Verdict with its reason."""

    verdict: Verdict
    why: str
    """One sentence."""
    exit_code: ExitCode


def reach_verdict(run: Run, comparison: Comparison | None = None) -> RunVerdict:
    """Return the Verdict on *run*, the reason, and the exit code.

    In order of precedence: a failure; coverage that the last good Run had, by *comparison*, and this one has
    not, unless that was accepted; a kernel that could not be built; infrastructure.  Only a finished Run in
    which something passed, and no Job skipped all, is good.  A flaky case is no failure; the reason names it.
    """
    verdict, why = _verdict(run, comparison)
    code = verdict.exit_code
    if run.state.is_cut_off:
        code = ExitCode.INTERRUPTED
    return RunVerdict(verdict=verdict, why=why, exit_code=code)


def _verdict(run: Run, comparison: Comparison | None) -> tuple[Verdict, str]:
    cases = run.cases
    failures = [case for case in cases if case.is_failure]
    if failures:
        return Verdict.BAD, _about_failures(failures, comparison)
    if run.state.is_cut_off:
        by = "interrupted" if run.state is RunState.INTERRUPTED else "overtaken by a newer save"
        return Verdict.INFRASTRUCTURE, f"the run was {by}"
    if comparison is not None and comparison.loses and not run.accepted:
        return Verdict.BAD, f"tests are missing: {_about_losses(comparison)}"
    trouble = _trouble(run, cases)
    if trouble is not None:
        return trouble
    if shards := run.info.inputs.missing_shards:
        return Verdict.INFRASTRUCTURE, f"{count_of(len(shards), 'shard')} not merged: {', '.join(shards)}"
    if run.state is RunState.RUNNING:
        return Verdict.INFRASTRUCTURE, "the run was cut off before it finished"
    if not cases and all(job.applicable for job in run.jobs):
        return Verdict.INFRASTRUCTURE, "nothing was run"
    if why := _untested(run, cases):
        return Verdict.UNTESTABLE, why
    passes = sum(map(_passes, cases))
    flaky = [case for case in cases if case.label == FLAKY]
    told = "no failure, no crash, no lost guest"
    if flaky:
        told = f"flaky: {count_of(len(flaky), 'case')} failed and then passed in a fresh VM"
        told += f", first {flaky[0].address}"
    left = sum(case.cause is Cause.BY_WISH for case in cases)
    told += f"; {count_of(left, 'case')} left out by --affected" if left else ""
    return Verdict.GOOD, f"{count_of(passes, 'case')} passed; {told}"


def _passes(case: Result) -> bool:
    # A boot at the second try passes too, but is no case.
    return case.outcome is Outcome.PASS and case.address.suite != KERNEL_SUITE


def _untested(run: Run, cases: Sequence[Result]) -> str:
    """Return why *run* is untestable: nothing passed, or a Job skipped all that applied to it.

    A Job may skip all of the cases that the user named.
    """
    if not any(map(_passes, cases)):
        absent = next((f"job {job.name}: {job.problem}" for job in run.jobs if not job.applicable), None)
        return absent or f"none of {count_of(len(cases), 'case')} passed"
    if run.info.inputs.cases or run.info.inputs.narrowed:
        return ""
    jobs: dict[str, list[Result]] = {}
    for case in cases:
        if case.address.suite != KERNEL_SUITE and case.cause is not Cause.NOT_APPLICABLE:
            jobs.setdefault(case.job, []).append(case)
    for job, tried in jobs.items():
        if all(case.outcome is Outcome.SKIP for case in tried):
            first = f"first {tried[0].address}: {tried[0].reason}"
            return f"job {job} skipped all of its {count_of(len(tried), 'case')}, {first}"
    return ""


def _about_failures(failures: Sequence[Result], comparison: Comparison | None) -> str:
    worst = max(failures, key=lambda case: case.outcome.severity)
    had = f"{count_of(len(failures), 'case')} failed"
    if comparison is not None:
        had += f" ({_about_news(failures, comparison)})"
    told = f"{had}, the worst: {worst.outcome.value} {worst.address}"
    return f"{told}; tests are missing: {_losses(comparison)}" if comparison and comparison.loses else told


def _about_news(failures: Sequence[Result], comparison: Comparison) -> str:
    """Say how many *failures* are new; where a job has no baseline, that there is none."""
    alone = list(dict.fromkeys(case.job for case in failures if case.job not in comparison.against))
    several = f"{len(alone)} jobs have" if len(alone) > 1 else f"job {alone[0]} has" if alone else ""
    if len(alone) == len({case.job for case in failures}):
        return f"{several} no baseline to tell what is new"
    new = sum(1 for change in comparison.new_failures if change.job in comparison.against)
    if not alone:
        return f"{new} of them newly"
    compared = sum(1 for case in failures if case.job in comparison.against)
    return f"{new} of {compared} newly; {several} no baseline"


def _about_losses(comparison: Comparison) -> str:
    if comparison.lost_jobs:
        job = comparison.lost_jobs[0]
        return f"{_losses(comparison)} since {job.since}, first {job.job}: {job.reason}"
    first = comparison.lost[0]
    since = comparison.against.get(first.job, "")
    return f"{_losses(comparison)} since {since}, first {first.address} of {first.job}"


def _losses(comparison: Comparison) -> str:
    def some(lost: Sequence[object], noun: str, then: str) -> str:
        are = "is" if len(lost) == 1 else "are"
        return f"{count_of(len(lost), noun)} {then.format(are=are)}" if lost else ""

    parts = (
        some(comparison.lost_jobs, "job", "{are} no longer tested"),
        some(comparison.vanished, "case", "vanished"),
        some(comparison.new_skips, "case", "that ran before {are} skipped"),
    )
    return " and ".join(filter(None, parts))


def _trouble(run: Run, cases: Sequence[Result]) -> tuple[Verdict, str] | None:
    """Return why cases were not carried out, if so; a kernel that cannot be built comes first."""
    stopped = [job for job in run.jobs if job.problem and job.applicable]
    of_kernel = [job for job in stopped if job.problem_code is ExitCode.KERNEL]
    # A Job without a kernel explains its own cases.
    explained = {job.name for job in run.jobs if job.problem}
    infra = [case for case in cases if case.is_bad and case.outcome.is_infra and case.job not in explained]
    besides = f"; besides, {count_of(len(infra), 'case')} could not be run" if infra else ""
    for verdict, jobs in ((Verdict.UNTESTABLE, of_kernel), (Verdict.INFRASTRUCTURE, stopped)):
        if jobs:
            return verdict, f"job {jobs[0].name}: {jobs[0].problem}{besides}"
    if infra:
        had = count_of(len(infra), "case")
        return Verdict.INFRASTRUCTURE, f"{had} could not be run, first {infra[0].address}: {infra[0].reason}"
    return None
