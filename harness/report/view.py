# SPDX-License-Identifier: GPL-2.0-only
"""What every report says of a Run, in one place: order, counts, and the sentences they share."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from harness.report import names
from harness.results import (
    FLAKY,
    Address,
    Background,
    Change,
    Comparison,
    JobRecord,
    Judgement,
    LostJob,
    Outcome,
    Past,
    Result,
    Run,
    Slower,
    judgement,
)
from harness.words import count_of, duration

COLUMNS = (
    *(outcome.value for outcome in reversed(Outcome) if outcome.is_failure),
    FLAKY,
    *(outcome.value for outcome in reversed(Outcome) if not outcome.is_failure),
)
"""The labels of cases in the order they are shown: worst first."""

NOTHING = Background()
"""The Background of a Run that is seen by itself."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A Job with its settled cases."""

    job: JobRecord
    cases: tuple[Result, ...]

    @property
    def counts(self) -> Mapping[str, int]:
        return count(self.cases)

    @property
    def worst(self) -> str:
        """The worst label of its cases."""
        return min((case.label for case in self.cases), key=COLUMNS.index, default=Outcome.NOT_RUN.value)

    @property
    def seconds(self) -> float:
        return sum(case.duration for case in self.cases)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One thing that changed, in words: the case, its Job, and how."""

    address: str
    job: str
    how: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """A kind of change, and everything of that kind."""

    title: str
    bad: bool
    """Whether it makes a Run bad."""
    lines: tuple[Line, ...]

    @property
    def counted(self) -> str:
        """`1 new failure`, `2 new failures`."""
        title = self.title if len(self.lines) != 1 else re.sub(r"(failure|change|job)s$", r"\1", self.title)
        return f"{len(self.lines)} {title}"


def judge(run: Run, background: Background) -> Judgement:
    """The Verdict on *run* in the light of *background*."""
    return judgement(run, background.comparison)


def changes(run: Run, comparison: Comparison | None) -> tuple[Heading, ...]:
    """What changed, by kind, what is bad first; kinds without any change are left out."""
    if comparison is None:
        return ()
    lost = not run.accepted
    found = (
        Heading(title="new failures", bad=True, lines=_lines(comparison.new_failures)),
        Heading(title="still failing", bad=True, lines=_lines(comparison.still_failing)),
        Heading(title="lost jobs", bad=lost, lines=tuple(map(_lost_job, comparison.lost_jobs))),
        Heading(title="vanished", bad=lost, lines=_lines(comparison.vanished)),
        Heading(title="skipped now, ran before", bad=lost, lines=_lines(comparison.new_skips)),
        Heading(title="newly flaky", bad=False, lines=_lines(comparison.newly_flaky)),
        Heading(title="slower than before", bad=False, lines=tuple(map(_slower, comparison.slower))),
        Heading(title="fixed", bad=False, lines=_lines(comparison.fixed)),
        Heading(title="other changes", bad=False, lines=_lines(comparison.other)),
    )
    return tuple(heading for heading in found if heading.lines)


def against(comparison: Comparison | None) -> str:
    """What the Run is held against: `compared with X` or why it is not."""
    if comparison is None:
        return "not compared with earlier runs"
    runs = sorted(set(comparison.against.values()), reverse=True)
    if not runs:
        return "no earlier run of these jobs to compare with"
    shown = ", ".join(runs[:3]) + (f" and {len(runs) - 3} more" if len(runs) > 3 else "")
    return f"compared with {shown}"


def summary(run: Run, comparison: Comparison | None) -> str:
    """The changes as numbers: `1 new failure...`; empty when nothing changed."""
    headings = changes(run, comparison)
    return ", ".join(heading.counted for heading in headings)


def _lines(found: Sequence[Change]) -> tuple[Line, ...]:
    return tuple(
        Line(address=names.name(str(one.address)), job=names.name(one.job), how=_how(one)) for one in found
    )


def _how(change: Change) -> str:
    before = change.before.label if change.before is not None else "new"
    if change.after is None:
        return f"{before}, now absent"
    told = f"{before} -> {change.after.label}" if before != change.after.label else before
    said = change.after.reason if change.after.label not in (Outcome.PASS.value, Outcome.XFAIL.value) else ""
    return f"{told}: {names.name(said)}" if said else told


def _lost_job(one: LostJob) -> Line:
    how = f"tested in {names.name(one.since)}, and now {names.name(one.reason)}"
    return Line(address="(job)", job=names.name(one.job), how=how)


def _slower(one: Slower) -> Line:
    how = f"{duration(one.duration)}, median of {one.runs} runs {duration(one.median)}"
    return Line(address=names.name(str(one.address)), job=names.name(one.job), how=how)


def count(cases: Iterable[Result]) -> Mapping[str, int]:
    """How many cases came to each label."""
    return collections.Counter(case.label for case in cases)


def told(counts: Mapping[str, int]) -> str:
    """The *counts* in words, worst first: `1 CRASH, 7 PASS`."""
    return ", ".join(f"{counts[label]} {label}" for label in COLUMNS if counts.get(label))


def by_job(run: Run) -> tuple[JobView, ...]:
    """Every Job in plan order; results of a Job nobody announced get one of that name."""
    cases: dict[str, list[Result]] = {job.name: [] for job in run.jobs}
    for case in run.cases:
        cases.setdefault(case.job, []).append(case)
    records = {job.name: job for job in run.jobs}
    return tuple(
        JobView(job=records.get(job, JobRecord(name=job)), cases=tuple(found)) for job, found in cases.items()
    )


def bad_cases(run: Run) -> tuple[Result, ...]:
    """What needs a human, worst first, in plan order among equals."""
    bad = [case for case in run.cases if case.is_bad]
    return tuple(sorted(bad, key=lambda case: -case.outcome.severity))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Chanceless:
    """Cases of one Job that had no chance for one reason."""

    job: str
    outcome: Outcome
    reason: str
    cases: tuple[Result, ...]


def failures(run: Run) -> tuple[Result, ...]:
    """What speaks against the kernel, worst first."""
    return tuple(case for case in bad_cases(run) if case.is_failure)


def chanceless(run: Run) -> tuple[Chanceless, ...]:
    """What had no chance, by Job and reason: a guest that dies takes many cases with it."""
    found: dict[tuple[str, Outcome, str], list[Result]] = {}
    for case in bad_cases(run):
        if case.outcome.is_infra:
            found.setdefault((case.job, case.outcome, reason(case)), []).append(case)
    return tuple(
        Chanceless(job=job, outcome=outcome, reason=why, cases=tuple(cases))
        for (job, outcome, why), cases in found.items()
    )


def stopped_jobs(run: Run) -> Mapping[tuple[bool, str], Sequence[JobRecord]]:
    """Jobs that could not be carried out, by whether they apply to their tree and by what stopped them."""
    found: dict[tuple[bool, str], list[JobRecord]] = {}
    for job in run.jobs:
        if job.problem:
            found.setdefault((job.applicable, job.problem), []).append(job)
    return found


def flaky_cases(run: Run) -> tuple[Result, ...]:
    """What failed and then passed in a fresh VM, in plan order."""
    return tuple(case for case in run.cases if case.label == FLAKY)


def attempts(run: Run) -> Mapping[tuple[str, Address], Sequence[Result]]:
    """Every attempt at each case that was tried more than once."""
    found: dict[tuple[str, Address], list[Result]] = {}
    for result in run.results:
        found.setdefault((result.job, result.address), []).append(result)
    return {key: tries for key, tries in found.items() if len(tries) > 1}


def retries(run: Run, job: str | None = None) -> str:
    """What was tried again because a guest was lost, in one sentence, of *job* or of all; else empty."""
    lost = [
        next(one for one in tries if one.outcome is Outcome.LOST)
        for (where, _), tries in attempts(run).items()
        if job in (None, where) and any(one.outcome is Outcome.LOST for one in tries[:-1])
    ]
    if not lost:
        return ""
    many = len(lost) > 1
    did = (
        "were tried again after their guests were lost, first"
        if many
        else "was tried again after its guest was lost:"
    )
    first = f"{names.name(str(lost[0].address))} ({names.name(lost[0].job)})"
    return f"{count_of(len(lost), 'case')} {did} {first}: {reason(lost[0])}"


def recent(past: Sequence[Past], most: int = 10) -> str:
    """What a case came to in its last *most* Runs: `failed in 2 of the last 10 runs`; empty without any."""
    if not past:
        return ""
    shown = past[-most:]
    labels = collections.Counter(one.case.label for one in shown if one.case.label != Outcome.PASS.value)
    if not labels:
        return f"passed in the last {count_of(len(shown), 'run') if len(shown) > 1 else 'run'}"
    return f"in the last {len(shown)} runs: " + told(
        {**labels, Outcome.PASS.value: len(shown) - sum(labels.values())}
    )


def acceleration(run: Run) -> str:
    """The first line of every report: whether the figures below are those of emulation."""
    inputs = run.info.inputs
    match inputs.accel:
        case "tcg":
            stretched = f", timeouts x {inputs.timeout_factor:g}" if inputs.timeout_factor != 1.0 else ""
            return f"TCG: emulated without hardware acceleration{stretched}; durations say little"
        case "":
            return "accelerator not recorded"
        case _:
            return f"accelerated by {names.name(inputs.accel).upper()}"


def facts(run: Run) -> tuple[tuple[str, str], ...]:
    """The identity of the Run as name and value, without those that are unknown."""
    info, inputs = run.info, run.info.inputs
    kernels = ", ".join(f"{variant} {digest}" for variant, digest in sorted(inputs.kernels.items()))
    trees = dict.fromkeys(job.tree for job in run.jobs if job.tree)
    rows = (
        ("run", info.id),
        ("started", info.started.isoformat(timespec="seconds")),
        ("harness", info.harness_version),
        ("tree", ", ".join(trees) or inputs.tree),
        ("kernels", kernels),
        ("QEMU", inputs.qemu),
        ("accelerator", inputs.accel),
        ("topologies", ", ".join(inputs.topologies)),
        ("root", inputs.root),
        ("machine", inputs.machine),
        ("suites", ", ".join(inputs.suites)),
        ("cases", ", ".join(inputs.cases)),
        ("seed", "" if inputs.seed is None else str(inputs.seed)),
        ("processor time", processor_time(run)),
        ("accepted", run.accepted),
        *sorted(inputs.extra.items()),
        ("command", shlex.join(info.command)),
    )
    return tuple((names.name(key), names.name(value)) for key, value in rows if value)


def processor_time(run: Run) -> str:
    """What processor time the Run cost, by what took it: `builds 0 s, boots 4 s`; empty when not known."""
    return ", ".join(f"{names.name(what)} {seconds:.0f} s" for what, seconds in run.spent.items())


def log_path(run: Run, case: Result) -> str:
    """Where the case's VM left its logs, from the run directory on; empty without a VM."""
    if not case.vm_dir:
        return ""
    return names.name(str(PurePosixPath(run.directory, case.vm_dir)))


def reason(case: Result) -> str:
    """The case's reason, or what its outcome means when it gave none."""
    said = names.name(case.reason) if case.reason else case.outcome.meaning
    return f"{said} (not again in a fresh VM)" if case.flaky else said


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The matrix of one line: variants down, topologies across."""

    line: str
    variants: tuple[str, ...]
    topologies: tuple[str, ...]
    cells: Mapping[tuple[str, str], JobView]
    """Variant and topology -> the Job there, where there is one."""


def grids(jobs: Iterable[JobView]) -> tuple[Grid, ...]:
    """The *jobs* as one matrix per line, in plan order; Jobs without variant or topology are in none."""
    placed = [job for job in jobs if job.job.variant and job.job.topology]
    found = []
    for line in dict.fromkeys(job.job.line for job in placed):
        mine = [job for job in placed if job.job.line == line]
        found.append(
            Grid(
                line=line,
                variants=tuple(dict.fromkeys(_variant(job.job) for job in mine)),
                topologies=tuple(dict.fromkeys(job.job.topology for job in mine)),
                cells={(_variant(job.job), job.job.topology): job for job in mine},
            )
        )
    return tuple(found)


def _variant(job: JobRecord) -> str:
    return "+".join((job.variant, *job.addons))


def newly(comparison: Comparison | None) -> frozenset[tuple[str, Address]]:
    """The cases that fail, or are flaky, and were not before."""
    if comparison is None or not comparison.against:
        return frozenset()
    found = itertools.chain(comparison.new_failures, comparison.newly_flaky)
    return frozenset((change.job, change.address) for change in found if change.job in comparison.against)
