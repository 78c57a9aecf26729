# SPDX-License-Identifier: GPL-2.0-only
"""What a Run changed: against another Run, or against what its history holds of the same series of Jobs."""

from __future__ import annotations

import dataclasses
import fnmatch
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from harness.results.model import (
    KCONFIG_SUITE,
    KERNEL_SUITE,
    WHOLE_PROGRAM,
    Address,
    Inputs,
    JobRecord,
    Outcome,
    Result,
    Run,
    State,
)

NOISE = 5.0
"""By how many median deviations a case must exceed its median duration to be slower than it was."""

FEWEST = 5
"""Runs on the same accelerator that a median needs to mean something."""

_LEAST_FACTOR, _LEAST_SECONDS = 1.5, 0.5
"""A case slower by less than either is not worth a line, however steady it was before."""

Exists = Callable[[Address], bool]
"""Whether the harness still has a case: one that it dropped has not vanished."""


def everything_exists(address: Address) -> bool:
    """The Exists of one who does not know."""
    return True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One case of one Job that is not as it was; a side is None when the case is not in that Run."""

    job: str
    address: Address
    before: Result | None
    after: Result | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LostJob:
    """A Job that was tested and no longer is, though nothing went wrong with it."""

    job: str
    since: str
    """The last Run in which it was tested."""
    reason: str
    """Half a sentence: what has become of it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Slower:
    """A case that took longer than its history lets one expect."""

    job: str
    address: Address
    duration: float
    """Seconds, now."""
    median: float
    """Of before."""
    limit: float
    """What would still have been noise."""
    runs: int
    """How many Runs the median is of."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Every case that changed, by what the change means, each in the later Run's order."""

    new_failures: tuple[Change, ...] = ()
    """It fails now and did not the time before."""
    still_failing: tuple[Change, ...] = ()
    """It fails now and did the time before; the last good Run did not have that failure."""
    fixed: tuple[Change, ...] = ()
    """It failed the time before and does no longer."""
    vanished: tuple[Change, ...] = ()
    """It ran before and is not there any more, though nothing kept it."""
    new_skips: tuple[Change, ...] = ()
    """It ran before and is skipped."""
    newly_flaky: tuple[Change, ...] = ()
    """It failed, did not in a fresh VM, and was never seen to do that before."""
    slower: tuple[Slower, ...] = ()
    lost_jobs: tuple[LostJob, ...] = ()
    """Whole Jobs: their tree cannot express them any more, or the same matrix has them no more."""
    other: tuple[Change, ...] = ()
    """Any other difference in outcome, and new cases."""
    against: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Job -> the Run that it was held against; a Job without one is not in here."""
    alone: tuple[str, ...] = ()
    """Jobs that have a counterpart in no other Run."""

    @property
    def lost(self) -> tuple[Change, ...]:
        """Coverage that is no longer there, of Jobs that are."""
        return (*self.vanished, *self.new_skips)

    @property
    def loses(self) -> bool:
        """Whether coverage is no longer there, of cases or of whole Jobs."""
        return bool(self.lost or self.lost_jobs)

    @property
    def is_worse(self) -> bool:
        """Whether something was lost; what failed before as well is no worse."""
        return bool(self.new_failures or self.loses)


def join(parts: Iterable[Comparison]) -> Comparison:
    """Several Jobs' Comparisons as one."""
    found = list(parts)
    lists = {
        field.name: tuple(one for part in found for one in getattr(part, field.name))
        for field in dataclasses.fields(Comparison)
        if field.name != "against"
    }
    against = {job: run for part in found for job, run in part.against.items()}
    return Comparison(**lists, against=against)


def compare(before: Run, after: Run, *, exists: Exists = everything_exists) -> Comparison:
    """What changed from *before* to *after*, for every Job that both have.

    Jobs belong together by series; where each Run is about one line only, by their place in the matrix, so
    that two lines can be compared.
    """
    key = _pairing(before, after)
    old = {key(job): job for job in before.jobs}
    new = {key(job): job for job in after.jobs}
    cases_before, cases_after = cases_by_job(before), cases_by_job(after)
    parts = [
        compare_job(
            job,
            cases_after.get(job.name, ()),
            baseline=in_scope(cases_before.get(old[name].name, ()), after.info.inputs.of(job)),
            since=before.info.id,
            complete=_complete(after, job),
            exists=exists,
        )
        for name, job in new.items()
        if name in old
    ]
    alone = [job.name for name, job in new.items() if name not in old]
    alone += [job.name for name, job in old.items() if name not in new]
    against = {job.name: before.info.id for name, job in new.items() if name in old}
    found = join(parts)
    lost = (*found.lost_jobs, *(_left_out(before, after, cases_before) if against else ()))
    return dataclasses.replace(found, alone=tuple(alone), against=against, lost_jobs=lost)


def _left_out(before: Run, after: Run, cases: Mapping[str, Sequence[Result]]) -> Iterator[LostJob]:
    """The Jobs that *before* tested, by its *cases*, and *after* has not, unless it was to have others."""
    if not is_complete(after) or before.info.inputs.matrix != after.info.inputs.matrix:
        return
    lines = {job.line for job in after.jobs}
    across = _is_across_lines(before, after)
    there = {_seat(job, across) for job in after.jobs} | _elsewhere(after, across)
    for job in before.jobs:
        asked_for = across or job.line in lines
        if asked_for and _seat(job, across) not in there and any(map(counts, cases.get(job.name, ()))):
            yield left_out(job, before.info.id)


def left_out(job: JobRecord, since: str) -> LostJob:
    """*job*, which the Run *since* tested, of a Run that was to have it and has it not."""
    return LostJob(job=job.name, since=since, reason="it is not among the jobs of this run")


def _seat(job: JobRecord, across: bool) -> str:
    return dataclasses.replace(job, line="").seat if across else job.seat


def _elsewhere(run: Run, across: bool) -> set[str]:
    """The seats that other shards of the matrix of *run* have."""
    line = f"{run.jobs[0].line} " if across else ""
    return {seat.removeprefix(line) for seat in run.info.inputs.elsewhere}


def _pairing(before: Run, after: Run) -> Callable[[JobRecord], str]:
    if _is_across_lines(before, after):
        return lambda job: job.cell or job.name
    return lambda job: job.series


def _is_across_lines(before: Run, after: Run) -> bool:
    """Whether each is about one line, and not the same."""
    lines = [{job.line for job in run.jobs} for run in (before, after)]
    return all(len(found) == 1 for found in lines) and lines[0] != lines[1]


def cases_by_job(run: Run) -> dict[str, list[Result]]:
    """The settled cases of every Job of *run* that has any."""
    cases: dict[str, list[Result]] = {}
    for case in run.cases:
        cases.setdefault(case.job, []).append(case)
    return cases


def _complete(run: Run, job: JobRecord) -> bool:
    """Whether a case that is absent from *job* had every chance to be there."""
    return is_complete(run) and not job.problem


def is_complete(run: Run) -> bool:
    """Whether *run* ran to its end, and all that its plan holds."""
    return run.state is State.FINISHED and not run.info.inputs.narrowed


_ALWAYS = (KERNEL_SUITE, KCONFIG_SUITE)
"""Suites that nobody asks for: what is said of a kernel, and of one that is never built."""


def in_scope(cases: Iterable[Result], inputs: Inputs) -> tuple[Result, ...]:
    """Those of *cases* that a Job with *inputs* would run as well."""
    suites = (*inputs.suites, *_ALWAYS)
    return tuple(
        case
        for case in cases
        if (not inputs.suites or case.address.suite in suites) and _asked_for(case.address, inputs.cases)
    )


def _asked_for(address: Address, patterns: Sequence[str]) -> bool:
    return not patterns or any(
        fnmatch.fnmatchcase(str(address), one) or fnmatch.fnmatchcase(address.program_path, one)
        for one in patterns
    )


def covers(earlier: Inputs, later: Inputs) -> bool:
    """Whether a Job with the inputs *earlier* ran all that one with *later* does; see Inputs.of()."""
    same = (earlier.machine, earlier.root) == (later.machine, later.root)
    if earlier.narrowed or not same or not set(later.suites) <= {*earlier.suites, *_ALWAYS}:
        return False
    return not earlier.cases or set(earlier.cases) == set(later.cases)


def compare_job(
    job: JobRecord,
    cases: Sequence[Result],
    *,
    baseline: Sequence[Result],
    previous: Sequence[Result] | None = None,
    since: str = "",
    complete: bool = True,
    flaky_before: frozenset[Address] = frozenset(),
    exists: Exists = everything_exists,
) -> Comparison:
    """What changed in one Job.

    *baseline* is what the last good Run, *since*, had of it, *previous* what the one just before had (the
    same, when not given).  Only where the Run is *complete* does it mean something that a case is absent.
    """
    good = {case.address: case for case in baseline}
    last = good if previous is None else {case.address: case for case in previous}
    kinds: dict[str, list[Change]] = {}
    now = {case.address: case for case in cases}
    for address, case in now.items():
        kind, before = _kind(case, last.get(address), good.get(address), flaky_before)
        if kind is not None:
            change = Change(job=job.name, address=address, before=before, after=case)
            kinds.setdefault(kind, []).append(change)
    # Cases of a program that had no chance are not gone; nothing is known of them.
    unreached = {c.address.program_path for c in cases if _is_whole(c) and c.outcome.is_infra}
    for address, case in {**last, **good}.items():
        if complete and address not in now and counts(case) and address.program_path not in unreached:
            change = Change(job=job.name, address=address, before=case, after=None)
            kinds.setdefault("vanished" if exists(address) else "other", []).append(change)

    def of(kind: str) -> tuple[Change, ...]:
        return tuple(kinds.get(kind, ()))

    return Comparison(
        new_failures=of("new_failures"),
        still_failing=of("still_failing"),
        fixed=of("fixed"),
        vanished=of("vanished"),
        new_skips=of("new_skips"),
        newly_flaky=of("newly_flaky"),
        other=of("other"),
        lost_jobs=_no_longer_applicable(job, baseline, since),
    )


def _no_longer_applicable(job: JobRecord, baseline: Sequence[Result], since: str) -> tuple[LostJob, ...]:
    if job.applicable or not any(map(counts, baseline)):
        return ()
    return (LostJob(job=job.name, since=since, reason=f"it does not apply any more: {job.problem}"),)


def counts(case: Result) -> bool:
    """Whether the absence of *case* would be a loss."""
    ran = case.outcome is not Outcome.SKIP and not case.outcome.is_infra
    # What is said of a program as a whole, or of the kernel, is said when something is wrong.
    return ran and not _is_whole(case) and case.address.suite != KERNEL_SUITE


def _is_whole(case: Result) -> bool:
    """Whether *case* is about a program as a whole."""
    return case.address.case == WHOLE_PROGRAM


def _kind(
    now: Result, last: Result | None, good: Result | None, flaky_before: frozenset[Address]
) -> tuple[str | None, Result | None]:
    """What the change of a case means, if it is one, and what it is a change from."""
    failed = last is not None and last.is_failure
    if now.is_failure:
        return ("still_failing" if failed else "new_failures"), (last or good)
    if now.flaky:
        known = now.address in flaky_before or any(one is not None and one.flaky for one in (last, good))
        return (None if known else "newly_flaky"), (last or good)
    ran = next((one for one in (good, last) if one is not None and counts(one)), None)
    if now.outcome is Outcome.SKIP and ran is not None:
        return "new_skips", ran
    if failed and now.outcome in (Outcome.PASS, Outcome.XFAIL):
        return "fixed", last
    before = last or good
    changed = before is None or before.label != now.label
    return ("other" if changed else None), before


def find_slower(
    job: JobRecord, cases: Iterable[Result], durations: Mapping[Address, Sequence[float]]
) -> tuple[Slower, ...]:
    """The *cases* that took longer than their *durations* in earlier Runs on the same accelerator allow."""
    found = []
    for case in cases:
        before = durations.get(case.address, ())
        if case.outcome is not Outcome.PASS or len(before) < FEWEST:
            continue
        median = statistics.median(before)
        # 1.4826 makes the median deviation of a normal distribution its standard deviation.
        deviation = 1.4826 * statistics.median(abs(one - median) for one in before)
        limit = max(median + NOISE * deviation, median * _LEAST_FACTOR, median + _LEAST_SECONDS)
        if case.duration > limit:
            found.append(
                Slower(
                    job=job.name,
                    address=case.address,
                    duration=case.duration,
                    median=median,
                    limit=limit,
                    runs=len(before),
                )
            )
    return tuple(found)
