# SPDX-License-Identifier: GPL-2.0-only
"""What changed in a Run: compared with another Run, or with the history of the same series of Jobs."""

from __future__ import annotations

import dataclasses
import fnmatch
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from harness.base.cause import Cause
from harness.base.outcome import Outcome
from harness.results.model import (
    KCONFIG_SUITE,
    KERNEL_SUITE,
    WHOLE_PROGRAM,
    Address,
    Inputs,
    JobRecord,
    Result,
    Run,
    RunState,
    without_content,
)

NOISE = 5.0
"""By how many median deviations a case must exceed its median duration to count as slower."""

FEWEST = 5
"""The fewest Runs on the same accelerator for a median."""

_LEAST_FACTOR, _LEAST_SECONDS = 1.5, 0.5
"""A case that is slower by less than either is never reported."""

Exists = Callable[[Address], bool]
"""Whether the harness still has a case; a case that it dropped has not vanished."""


def everything_exists(address: Address) -> bool:
    """Return True for every case."""
    return True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One case of one Job that changed; *before* or *after* is None when that Run has no such case."""

    job: str
    address: Address
    before: Result | None
    after: Result | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LostJob:
    """A Job that was tested and no longer is, although no error explains that."""

    job: str
    since: str
    """The last Run in which it was tested."""
    reason: str
    """The end of a sentence, after `and now`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Slower:
    """A case that took longer than in earlier Runs."""

    job: str
    address: Address
    duration: float
    """Seconds in this Run."""
    median: float
    """Seconds in earlier Runs."""
    runs: int
    """The number of Runs of the median."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Every case that changed, by kind of change, each in the later Run's order."""

    new_failures: tuple[Change, ...] = ()
    """It fails now and did not in the Run before."""
    still_failing: tuple[Change, ...] = ()
    """It fails now and in the Run before; it did not in the last good Run."""
    fixed: tuple[Change, ...] = ()
    """It failed in the Run before and passes now."""
    vanished: tuple[Change, ...] = ()
    """It ran before and is missing now, although no error explains that."""
    new_skips: tuple[Change, ...] = ()
    """It ran before and is skipped."""
    newly_flaky: tuple[Change, ...] = ()
    """It failed, then passed in a fresh VM, for the first time."""
    slower: tuple[Slower, ...] = ()
    lost_jobs: tuple[LostJob, ...] = ()
    """Whole Jobs: their tree can no longer express them, or the same matrix no longer has them."""
    other: tuple[Change, ...] = ()
    """Other changes of outcome, and new cases."""
    against: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Job -> the Run that it was compared with; Jobs without one are not in here."""
    alone: tuple[str, ...] = ()
    """Jobs that have a counterpart in no other Run."""

    @property
    def lost(self) -> tuple[Change, ...]:
        """Lost coverage in Jobs that are still there."""
        return (*self.vanished, *self.new_skips)

    @property
    def loses(self) -> bool:
        """Whether cases or whole Jobs are no longer covered."""
        return bool(self.lost or self.lost_jobs)

    @property
    def is_worse(self) -> bool:
        """Whether there are new failures or lost coverage."""
        return bool(self.new_failures or self.loses)


def join(parts: Iterable[Comparison]) -> Comparison:
    """Return the Comparisons of several Jobs as one."""
    found = list(parts)
    lists = {
        field.name: tuple(one for part in found for one in getattr(part, field.name))
        for field in dataclasses.fields(Comparison)
        if field.name != "against"
    }
    against = {job: run for part in found for job, run in part.against.items()}
    return Comparison(**lists, against=against)


def compare(before: Run, after: Run, *, exists: Exists = everything_exists) -> Comparison:
    """Return what changed from *before* to *after*, in every Job that both have.

    Jobs are paired by series; where each Run has one line, without the line, so that two lines can be
    compared, and likewise two toolchains.
    """
    for field in ("line", "toolchain"):
        own, other = ({getattr(job, field) for job in run.jobs} for run in (before, after))
        if own != other and len(own) == len(other) == 1:
            before, after = _without(field, before), _without(field, after)
    old = {job.series: job for job in before.jobs}
    new = {job.series: job for job in after.jobs}
    cases_before, cases_after = cases_by_job(before), cases_by_job(after)
    parts = [
        compare_job(
            job,
            cases_after.get(job.name, ()),
            baseline=in_scope(cases_before.get(old[name].name, ()), after.info.inputs.of(job)),
            since=before.info.id,
            complete=is_complete(after) and not job.problem,
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
    """Return the Jobs that *before* tested, according to its *cases*, and that *after*, a Run of the same
    matrix, lacks."""
    if not is_complete(after) or before.info.inputs.matrix != after.info.inputs.matrix:
        return
    lines = {job.line for job in after.jobs}
    cells = {*(job.cell for job in after.jobs), *after.info.inputs.elsewhere}
    for job in before.jobs:
        is_lost = job.line in lines and job.cell not in cells
        if is_lost and any(map(counts, cases.get(job.name, ()))):
            yield left_out(job, before.info.id)


def left_out(job: JobRecord, since: str) -> LostJob:
    """Return the LostJob for *job*, which the Run *since* tested and a later Run of the matrix lacks."""
    return LostJob(job=job.name, since=since, reason="it is not among the jobs of this run")


def _without(field: str, run: Run) -> Run:
    """Return *run*, whose Jobs all have one value of *field*, `line` or `toolchain`, without that."""
    prefix = f"{run.jobs[0].line} " if field == "line" else ""
    elsewhere = tuple(cell.removeprefix(prefix) for cell in run.info.inputs.elsewhere)
    inputs = dataclasses.replace(run.info.inputs, elsewhere=elsewhere)
    plain: dict[str, Any] = {field: ""}
    jobs = tuple(dataclasses.replace(job, **plain) for job in run.jobs)
    return dataclasses.replace(run, info=dataclasses.replace(run.info, inputs=inputs), jobs=jobs)


def cases_by_job(run: Run) -> dict[str, list[Result]]:
    """The settled cases of every Job of *run* that has any."""
    cases: dict[str, list[Result]] = {}
    for case in run.cases:
        cases.setdefault(case.job, []).append(case)
    return cases


def is_complete(run: Run) -> bool:
    """Whether *run* ended and ran all of its plan."""
    return run.state is RunState.FINISHED and not run.info.inputs.narrowed


_ALWAYS = (KERNEL_SUITE, KCONFIG_SUITE)
"""Suites that every Job covers: results about its kernel, and about a configuration that is never built."""


def in_scope(cases: Iterable[Result], inputs: Inputs) -> tuple[Result, ...]:
    """The *cases* that a Job with *inputs* would run as well."""
    suites = {*map(without_content, inputs.suites), *_ALWAYS}
    return tuple(
        case
        for case in cases
        if (not inputs.suites or suites & {case.address.suite, case.address.program_path})
        and _asked_for(case.address, inputs.cases)
    )


def _asked_for(address: Address, patterns: Sequence[str]) -> bool:
    return not patterns or any(
        fnmatch.fnmatchcase(str(address), one) or fnmatch.fnmatchcase(address.program_path, one)
        for one in patterns
    )


def covers(earlier: Inputs, later: Inputs) -> bool:
    """Whether a Job with the inputs *earlier* ran every case that one with *later* runs; see Inputs.of()."""
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
    """Return what changed in one Job.

    *baseline* is its cases in the last good Run, *since*; *previous* those in the Run just before, by default
    the same.  Only in a *complete* Run a missing case has vanished.
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
    # Nothing is known of the cases of a program that was not carried out.
    unreached = {c.address.program_path for c in cases if _is_whole(c) and c.outcome.is_infra}
    for address, case in {**last, **good}.items():
        if complete and address not in now and counts(case) and address.program_path not in unreached:
            change = Change(job=job.name, address=address, before=case, after=None)
            kinds.setdefault("vanished" if exists(address) else "other", []).append(change)

    lost: tuple[LostJob, ...] = ()
    if not job.applicable and any(map(counts, baseline)):
        reason = f"it does not apply any more: {job.problem}"
        lost = (LostJob(job=job.name, since=since, reason=reason),)
    found: dict[str, Any] = {kind: tuple(changes) for kind, changes in kinds.items()}
    return Comparison(**found, lost_jobs=lost)


def counts(case: Result) -> bool:
    """Whether *case* counts as coverage: missing, it would be a loss."""
    ran = case.outcome is not Outcome.SKIP and not case.outcome.is_infra
    # Results about a whole program, or about the kernel, exist only when something is wrong.
    return ran and not _is_whole(case) and case.address.suite != KERNEL_SUITE


def _is_whole(case: Result) -> bool:
    """Whether *case* is about a program as a whole."""
    return case.address.case == WHOLE_PROGRAM


def _kind(
    now: Result, last: Result | None, good: Result | None, flaky_before: frozenset[Address]
) -> tuple[str | None, Result | None]:
    """Return the kind of change (None: no change) and the earlier result that it is a change from."""
    failed = last is not None and last.is_failure
    if now.cause is Cause.BY_WISH:
        return None, last or good
    if now.is_failure:
        return ("still_failing" if failed else "new_failures"), (last or good)
    if now.flaky:
        known = now.address in flaky_before or any(one is not None and one.flaky for one in (last, good))
        return (None if known else "newly_flaky"), (last or good)
    ran = next((one for one in (good, last) if one is not None and counts(one)), None)
    if now.outcome is Outcome.SKIP and ran is not None:
        return "new_skips", ran
    if failed and now.outcome.is_expected:
        return "fixed", last
    before = last or good
    changed = before is None or before.label != now.label
    return ("other" if changed else None), before


def find_slower(
    job: JobRecord, cases: Iterable[Result], durations: Mapping[Address, Sequence[float]]
) -> tuple[Slower, ...]:
    """The *cases* that are slower than their *durations* in earlier Runs on the same accelerator."""
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
                    runs=len(before),
                )
            )
    return tuple(found)
