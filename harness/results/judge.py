# SPDX-License-Identifier: GPL-2.0-only
"""What a Run means: requirements turned into results, results into a Verdict, a Verdict into an exit code."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence

from harness.errors import ExitCode
from harness.results.compare import Comparison
from harness.results.model import FLAKY, WHOLE_PROGRAM, Address, Outcome, Result, Run, State, Verdict, settle
from harness.words import count_of

VANISHED = "vanished"
"""How the reason of a case begins that its manifest lists and its program did not report."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """What one program must show in one Job."""

    job: str
    suite: str
    program: str
    fewest: int = 1
    """The fewest cases that must PASS; 0 for a program that may skip altogether here."""
    cases: tuple[str, ...] = ()
    """The manifest: every case name that must appear, with whatever outcome."""
    rerun: str = ""


def check(results: Iterable[Result], requirements: Iterable[Requirement]) -> tuple[Result, ...]:
    """The results that are missing from *results* for the *requirements* to be met, to be added to them.

    A listed case that did not appear is NOT_RUN where something stopped its program, and an ERROR where
    nothing explains its absence; a program that shows too few passes, with nothing else to blame for it, is
    an ERROR too.
    """
    by_program: dict[tuple[str, str], list[Result]] = collections.defaultdict(list)
    for result in settle(results):
        by_program[result.job, result.address.program_path].append(result)
    missing: list[Result] = []
    for requirement in requirements:
        found = by_program[requirement.job, f"{requirement.suite}/{requirement.program}"]
        vanished = _vanished(requirement, found)
        missing.extend(vanished)
        if not any(result.outcome.is_bad for result in (*found, *vanished)):
            missing.extend(_shortfall(requirement, found))
    return tuple(missing)


def _vanished(requirement: Requirement, found: Sequence[Result]) -> list[Result]:
    names = {result.address.case for result in found}
    cause = next((result for result in found if _stops_a_program(result)), None)
    if cause is None:
        outcome = Outcome.ERROR
        reason = f"{VANISHED}: the manifest lists this case and the program did not report it"
    else:
        outcome = Outcome.NOT_RUN
        reason = f"not reached: {cause.address.case} was {cause.outcome.value}"
    return [
        Result(
            address=Address(suite=requirement.suite, program=requirement.program, case=name),
            job=requirement.job,
            outcome=outcome,
            reason=reason,
            rerun=requirement.rerun,
        )
        for name in requirement.cases
        if name not in names
    ]


def _stops_a_program(result: Result) -> bool:
    whole = result.address.case == WHOLE_PROGRAM
    return (whole and result.outcome is not Outcome.PASS) or result.outcome in (Outcome.CRASH, Outcome.LOST)


def _shortfall(requirement: Requirement, found: Sequence[Result]) -> list[Result]:
    passes = sum(1 for result in found if result.outcome is Outcome.PASS)
    if passes >= requirement.fewest:
        return []
    counts = collections.Counter(result.outcome for result in found)
    shown = ", ".join(f"{counts[outcome]} {outcome.value}" for outcome in Outcome if counts[outcome])
    first = next((result.reason for result in found if result.reason), "")
    return [
        Result(
            address=Address.of_program(requirement.suite, requirement.program),
            job=requirement.job,
            outcome=Outcome.ERROR,
            reason=f"{passes} passes where at least {requirement.fewest} must be: {shown or 'no results'}"
            + (f"; the first reason given: {first}" if first else ""),
            rerun=requirement.rerun,
        )
    ]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A Verdict with its grounds."""

    verdict: Verdict
    why: str
    """One sentence."""
    exit_code: ExitCode


def judge(run: Run, comparison: Comparison | None = None) -> Verdict:
    """What *run* means to its caller."""
    return judgement(run, comparison).verdict


def exit_code(run: Run, comparison: Comparison | None = None) -> ExitCode:
    """What a command that made *run* exits with."""
    return judgement(run, comparison).exit_code


def judgement(run: Run, comparison: Comparison | None = None) -> Judgement:
    """The Verdict on *run*, why, and the exit code.

    A failure outranks everything, because it is knowledge; then coverage that was lost, as the *comparison*
    with the last good Run tells, unless it was accepted; then a kernel that could not be built; then our own
    trouble.  Only a finished Run in which something passed is good.  A flaky case is no failure, and is
    named.
    """
    verdict, why = _verdict(run, comparison)
    code = verdict.exit_code
    if run.state is State.INTERRUPTED:
        code = ExitCode.INTERRUPTED
    return Judgement(verdict=verdict, why=why, exit_code=code)


def _verdict(run: Run, comparison: Comparison | None) -> tuple[Verdict, str]:
    cases = run.cases
    failures = [case for case in cases if case.is_failure]
    if failures:
        return Verdict.BAD, _about_failures(failures, comparison)
    if run.state is State.INTERRUPTED:
        return Verdict.OUR_FAULT, "the run was interrupted"
    if comparison is not None and comparison.loses and not run.accepted:
        return Verdict.BAD, f"coverage was lost: {_about_losses(comparison)}"
    trouble = _trouble(run, cases)
    if trouble is not None:
        return trouble
    if run.state is State.RUNNING:
        return Verdict.OUR_FAULT, "the run was cut off before it finished"
    if not cases and all(job.applicable for job in run.jobs):
        return Verdict.OUR_FAULT, "nothing was run"
    passes = sum(1 for case in cases if case.outcome is Outcome.PASS)
    if not passes:
        absent = next((f"job {job.name}: {job.problem}" for job in run.jobs if not job.applicable), None)
        return (
            Verdict.UNTESTABLE,
            absent or f"nothing was proven: none of {count_of(len(cases), 'case')} passed",
        )
    flaky = [case for case in cases if case.label == FLAKY]
    if flaky:
        told = f"failed and then passed in a fresh VM, first {flaky[0].address}"
        return (
            Verdict.GOOD,
            f"{count_of(passes, 'case')} passed; flaky: {count_of(len(flaky), 'case')} {told}",
        )
    return Verdict.GOOD, f"{count_of(passes, 'case')} passed; no failure, no crash, no lost guest"


def _about_failures(failures: Sequence[Result], comparison: Comparison | None) -> str:
    worst = max(failures, key=lambda case: case.outcome.severity)
    had = f"{count_of(len(failures), 'case')} failed"
    if comparison is not None and comparison.against:
        had += f" ({len(comparison.new_failures)} of them newly)"
    told = f"{had}, the worst: {worst.outcome.value} {worst.address}"
    return f"{told}; coverage was lost: {_losses(comparison)}" if comparison and comparison.loses else told


def _about_losses(comparison: Comparison) -> str:
    if comparison.lost_jobs:
        job = comparison.lost_jobs[0]
        return f"{_losses(comparison)} since {job.since}, first {job.job}: {job.reason}"
    first = comparison.lost[0]
    since = comparison.against.get(first.job, "")
    return f"{_losses(comparison)} since {since}, first {first.address} of {first.job}"


def _losses(comparison: Comparison) -> str:
    parts = []
    if comparison.lost_jobs:
        are = "is" if len(comparison.lost_jobs) == 1 else "are"
        parts.append(f"{count_of(len(comparison.lost_jobs), 'job')} {are} no longer tested")
    if comparison.vanished:
        parts.append(f"{count_of(len(comparison.vanished), 'case')} vanished")
    if comparison.new_skips:
        are = "is" if len(comparison.new_skips) == 1 else "are"
        parts.append(f"{count_of(len(comparison.new_skips), 'case')} that ran before {are} skipped")
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _trouble(run: Run, cases: Sequence[Result]) -> tuple[Verdict, str] | None:
    """What kept cases from having their chance, if anything did; of a kernel first, for that is knowledge."""
    stopped = [job for job in run.jobs if job.problem and job.applicable]
    of_kernel = [job for job in stopped if job.problem_code is ExitCode.KERNEL]
    # The cases of a Job that had no kernel are explained by the Job.
    explained = {job.name for job in run.jobs if job.problem}
    infra = [case for case in cases if case.outcome.is_infra and case.job not in explained]
    besides = f"; besides, {count_of(len(infra), 'case')} could not be run" if infra else ""
    for verdict, jobs in ((Verdict.UNTESTABLE, of_kernel), (Verdict.OUR_FAULT, stopped)):
        if jobs:
            return verdict, f"job {jobs[0].name}: {jobs[0].problem}{besides}"
    if infra:
        had = count_of(len(infra), "case")
        return Verdict.OUR_FAULT, f"{had} could not be run, first {infra[0].address}: {infra[0].reason}"
    return None
