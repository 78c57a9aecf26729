# SPDX-License-Identifier: GPL-2.0-only
"""What several reports say of a Run, in one place: order, counts, and shared sentences."""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from harness.base.words import count_of, duration
from harness.machine.interrogation import summary_of
from harness.report import names
from harness.results import (
    FLAKY,
    Address,
    Background,
    Change,
    Comparison,
    JobRecord,
    LostJob,
    Outcome,
    Past,
    Result,
    Run,
    Slower,
    cases_by_job,
)
from harness.results.fingerprint import fingerprint
from harness.suites.model import DeclaredCase
from harness.suites.registry import declared_cases

COLUMNS = (
    *(outcome.value for outcome in reversed(Outcome) if outcome.is_failure),
    FLAKY,
    *(outcome.value for outcome in reversed(Outcome) if not outcome.is_failure),
)
"""The labels of cases in the order in which they are shown: worst first."""

NOTHING = Background()
"""The Background of a Run that is reported without history."""

_NAMED = 3
"""How many other cases of one cause are named."""

_RECENT = 10
"""How many Runs before this one are counted."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A Job with its settled cases."""

    job: JobRecord
    cases: tuple[Result, ...]

    @property
    def counts(self) -> Mapping[str, int]:
        """Label -> number of cases."""
        return count(self.cases)

    @property
    def seconds(self) -> float:
        """The time its cases took."""
        return sum(case.duration for case in self.cases)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One change in words: the case, its Job, and how it changed."""

    address: str
    job: str
    how: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """A kind of change with all changes of that kind."""

    kind: str
    """Its field in Comparison, which is its key in JSON."""
    title: str
    tone: str
    """See Look.tone; bad makes a Run bad."""
    lines: tuple[Line, ...]

    @property
    def counted(self) -> str:
        """`1 new failure`, `2 new failures`."""
        title = _SINGULAR.get(self.title, self.title) if len(self.lines) == 1 else self.title
        return f"{len(self.lines)} {title}"


_SINGULAR = {"new failures": "new failure", "lost jobs": "lost job", "other changes": "other change"}


def changes(run: Run, comparison: Comparison | None) -> tuple[Heading, ...]:
    """What changed, by kind, bad kinds first; kinds without any change are left out."""
    if comparison is None:
        return ()
    lost = "known" if run.accepted else "bad"
    found = (
        ("new_failures", "new failures", "bad", map(_line, comparison.new_failures)),
        ("still_failing", "still failing", "bad", map(_line, comparison.still_failing)),
        ("lost_jobs", "lost jobs", lost, map(_lost_job, comparison.lost_jobs)),
        ("vanished", "vanished", lost, map(_line, comparison.vanished)),
        ("new_skips", "skipped now, ran before", lost, map(_line, comparison.new_skips)),
        ("newly_flaky", "newly flaky", "flaky", map(_line, comparison.newly_flaky)),
        ("slower", "slower than before", "flaky", map(_slower, comparison.slower)),
        ("fixed", "fixed", "good", map(_line, comparison.fixed)),
        ("other", "other changes", "known", map(_line, comparison.other)),
    )
    headings = (
        Heading(kind=kind, title=title, tone=tone, lines=tuple(lines)) for kind, title, tone, lines in found
    )
    return tuple(heading for heading in headings if heading.lines)


def against(comparison: Comparison | None) -> str:
    """`compared with X`, or why the Run is not compared."""
    if comparison is None:
        return "not compared with earlier runs"
    runs = sorted(set(comparison.against.values()), reverse=True)
    if not runs:
        return "no earlier run of these jobs to compare with"
    shown = ", ".join(runs[:3]) + (f" and {len(runs) - 3} more" if len(runs) > 3 else "")
    return f"compared with {shown}"


def no_baseline(run: Run, comparison: Comparison | None) -> str:
    """Name the Jobs without an earlier run, whose failures are neither new nor old; empty for none."""
    if comparison is None:
        return ""
    tested = dict.fromkeys(case.job for case in run.cases)
    alone = [names.name(job) for job in tested if job not in comparison.against]
    if not alone:
        return ""
    which = (
        f"job {alone[0]} has" if len(alone) == 1 else f"{len(alone)} of {count_of(len(tested), 'job')} have"
    )
    first = f", first {alone[0]}" if len(alone) > 1 else ""
    return f"no baseline: {which} no earlier run to compare with{first}"


def summary(run: Run, comparison: Comparison | None) -> str:
    """The changes as numbers: `1 new failure, ...`; empty when nothing changed."""
    return ", ".join(heading.counted for heading in changes(run, comparison))


def _line(change: Change) -> Line:
    before = change.before.label if change.before is not None else "new"
    if change.after is None:
        how = f"{before}, now absent"
    else:
        how = f"{before} -> {change.after.label}" if before != change.after.label else before
        if change.after.reason and not change.after.outcome.is_expected:
            how += f": {names.name(change.after.reason)}"
    return Line(address=names.name(str(change.address)), job=names.name(change.job), how=how)


def _lost_job(one: LostJob) -> Line:
    how = f"tested in {names.name(one.since)}, and now {names.name(one.reason)}"
    return Line(address="(job)", job=names.name(one.job), how=how)


def _slower(one: Slower) -> Line:
    how = f"{duration(one.duration)}, median of {one.runs} runs {duration(one.median)}"
    return Line(address=names.name(str(one.address)), job=names.name(one.job), how=how)


def count(cases: Iterable[Result]) -> Mapping[str, int]:
    """Label -> number of *cases* with it."""
    return collections.Counter(case.label for case in cases)


def told(counts: Mapping[str, int]) -> str:
    """The *counts* in words, worst first: `1 CRASH, 7 PASS`."""
    return ", ".join(f"{counts[label]} {label}" for label in COLUMNS if counts.get(label))


def totals(run: Run) -> str:
    """The number of cases, the counts and the time: `8 cases: 1 CRASH, 7 PASS; tests took 2.0 s`."""
    counts = count(run.cases)
    shown = f": {told(counts)}" if counts else ""
    times = f"; {took(run)}" if took(run) else ""
    return f"{count_of(sum(counts.values()), 'case')}{shown}{times}"


def took(run: Run) -> str:
    """How long the tests took, and the run with its builds; empty when not known."""
    tests = f"tests took {duration(run.tested)}" if run.tested else ""
    whole = f"the whole run {'' if tests else 'took '}{duration(run.seconds)}" if run.seconds else ""
    return ", ".join(filter(None, (tests, whole)))


def trees(run: Run) -> str:
    """The source trees of the Run as people call them, each with its commit or release."""
    found = dict.fromkeys(job.tree for job in run.jobs if job.tree) or [run.info.inputs.tree]
    return ", ".join(tree_name(tree) for tree in found if tree)


def tree_name(identity: str) -> str:
    """Return the name for people of the tree, or trees, of *identity*: without the digest of all files."""
    return names.name(_DIGEST.sub("", identity or "tree not recorded"))


_DIGEST = re.compile(r" [0-9a-f]{64}\b")
"""The digest of all files that a build can see, which follows a tree's name."""


def by_job(run: Run) -> tuple[JobView, ...]:
    """Every Job in plan order; results of a Job that was not recorded get a JobRecord of that name."""
    records = {job.name: job for job in run.jobs}
    cases = {**dict.fromkeys(records, ()), **cases_by_job(run)}
    return tuple(
        JobView(job=records.get(job, JobRecord(name=job)), cases=tuple(found)) for job, found in cases.items()
    )


def _worst_first(cases: Iterable[Result]) -> list[Result]:
    return sorted(cases, key=lambda case: -case.outcome.severity)


def failures(run: Run) -> Sequence[Result]:
    """The cases that failed, worst first, in plan order among equals."""
    return _worst_first(case for case in run.cases if case.is_failure)


def failure_groups(
    run: Run, news: frozenset[tuple[str, Address]] = frozenset()
) -> Sequence[Sequence[Result]]:
    """Group the failures by cause, worst first; no group mixes *news* with other failures.

    A cause is a fingerprint of a splat, or else an outcome and its reason.
    """
    found: dict[tuple[object, ...], list[Result]] = {}
    for case in failures(run):
        where = case.job, case.address
        cause = fingerprint(case.splat) or case.reason or where
        found.setdefault((case.outcome, where in news, cause), []).append(case)
    return list(found.values())


def same_cause(group: Sequence[Result]) -> str:
    """Say how many more cases of *group* there are than the first, and name some; empty for no more."""
    others = [f"{names.name(str(case.address))} [{names.name(case.job)}]" for case in group[1:]]
    left = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    return f"{len(group)} times for this cause; also {', '.join(others[:_NAMED])}{left}" if others else ""


def declaration(case: Result) -> DeclaredCase | None:
    """Return the declaration of *case*: its promise, the kernel source it cites, its file and line."""
    return _declared().get(str(case.address))


@functools.cache
def _declared() -> Mapping[str, DeclaredCase]:
    return {case.address: case for case in declared_cases()}


def not_carried_out(run: Run) -> Sequence[Sequence[Result]]:
    """The cases that were not carried out, grouped by Job, outcome and reason, worst first."""
    found: dict[tuple[str, Outcome, str], list[Result]] = {}
    for case in _worst_first(case for case in run.cases if case.outcome.is_infra and case.is_bad):
        found.setdefault((case.job, case.outcome, reason(case)), []).append(case)
    return list(found.values())


def stopped_jobs(run: Run) -> Mapping[tuple[bool, str], Sequence[JobRecord]]:
    """Jobs that could not be carried out, by whether they apply to their tree and by what stopped them."""
    found: dict[tuple[bool, str], list[JobRecord]] = {}
    for job in run.jobs:
        if job.problem:
            found.setdefault((job.applicable, job.problem), []).append(job)
    return found


def flaky_cases(run: Run) -> tuple[Result, ...]:
    """The cases that failed and then passed in a fresh VM, in plan order."""
    return tuple(case for case in run.cases if case.label == FLAKY)


def attempts(run: Run) -> Mapping[tuple[str, Address], Sequence[Result]]:
    """Every attempt at each case that has more than one."""
    found: dict[tuple[str, Address], list[Result]] = {}
    for result in run.results:
        found.setdefault((result.job, result.address), []).append(result)
    return {key: tries for key, tries in found.items() if len(tries) > 1}


def retries(run: Run, job: str | None = None) -> str:
    """Say which cases, of *job* or all, were retried after a lost guest; empty without any."""
    lost = [
        next(one for one in tries if one.outcome is Outcome.LOST)
        for (where, _), tries in attempts(run).items()
        if job in (None, where) and any(one.outcome is Outcome.LOST for one in tries[:-1])
    ]
    if not lost:
        return ""
    did = "was lost and tried again:"
    if len(lost) > 1:
        did = "were lost and tried again, first"
    first = f"{names.name(str(lost[0].address))} ({names.name(lost[0].job)})"
    return f"{count_of(len(lost), 'case')} {did} {first}: {reason(lost[0])}"


def recent(past: Sequence[Past]) -> str:
    """The outcomes of a case in its last Runs: `in the last 10 runs: 2 FAIL, 8 PASS`."""
    if not past:
        return ""
    shown = past[-_RECENT:]
    counts = count(one.case for one in shown)
    if counts.keys() == {Outcome.PASS.value}:
        return f"passed in the last {count_of(len(shown), 'run') if len(shown) > 1 else 'run'}"
    return f"in the last {count_of(len(shown), 'run')}: {told(counts)}"


def acceleration(run: Run) -> str:
    """The first line of every report: whether the run was emulated."""
    inputs = run.info.inputs
    match inputs.accel:
        case "tcg":
            stretched = f", timeouts x {inputs.timeout_factor:g}" if inputs.timeout_factor != 1.0 else ""
            return f"TCG: emulated without hardware acceleration{stretched}; durations say little"
        case "":
            return "accelerator not recorded"
        case "kvm; tcg":
            return "some workers accelerated by KVM, others emulated (TCG); durations say little"
        case _:
            return f"accelerated by {names.name(inputs.accel).upper()}"


def facts(run: Run) -> tuple[tuple[str, str], ...]:
    """The identity of the Run as name and value, without unknown values."""
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
        ("CPU time", processor_time(run)),
        ("accepted", run.accepted),
        *sorted(inputs.extra.items()),
        ("command", shlex.join(info.command)),
    )
    return tuple((names.name(key), names.name(value)) for key, value in rows if value)


def processor_time(run: Run) -> str:
    """The CPU time of the Run by use: `builds 0 s, boots 4 s`; empty when not recorded."""
    return ", ".join(f"{names.name(what)} {seconds:.0f} s" for what, seconds in run.spent.items())


def log_path(run: Run, case: Result) -> str:
    """The directory of the VM's logs; empty without a VM."""
    if not case.vm_dir:
        return ""
    return names.name(str(PurePosixPath(run.directory, case.vm_dir)))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The memory of the guest that a case was lost in, or that crashed under it."""

    what: str
    """Where its dump is and how large, and the command that opens it; or why there is none."""
    summary: tuple[str, ...]
    """What drgn found, in a few lines; else why it found nothing."""
    answers: str
    """What drgn found, whole."""


def memory_of(run: Run, case: Result) -> Memory | None:
    """Return the memory of the guest of *case*; None if it did not die of it."""
    dump = run.dumps.get(case.vm_dir)
    if dump is None or case.outcome not in (Outcome.CRASH, Outcome.TIMEOUT, Outcome.LOST):
        return None
    if not dump.file:
        return Memory(what=f"not dumped: {names.name(dump.reason)}", summary=(), answers="")
    command = shlex.join(["vfio-harness", "debug", run.info.id, str(case.address)])
    what = f"{PurePosixPath(run.directory, dump.file)} ({dump.bytes / 2**20:.0f} MiB); {command}"
    found = tuple(map(names.name, summary_of(dump.answers)))
    unread = (f"not read: {names.name(dump.reason)}",) if dump.reason else ()
    return Memory(what=names.name(what), summary=found or unread, answers=names.text(dump.answers))


def reason(case: Result) -> str:
    """The case's reason, or the meaning of its outcome without one."""
    said = names.name(case.reason) if case.reason else case.outcome.meaning
    return f"{said} (not again in a fresh VM)" if case.flaky else said


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The matrix of one line: variants down, topologies across."""

    line: str
    variants: tuple[str, ...]
    topologies: tuple[str, ...]
    cells: Mapping[tuple[str, str], JobView]
    """Variant and topology -> the Job there."""


def grids(jobs: Iterable[JobView]) -> tuple[Grid, ...]:
    """The *jobs* as one matrix per line, in plan order, without Jobs that have no variant or topology."""
    placed = [job for job in jobs if job.job.variant and job.job.topology]
    found = []
    for line in dict.fromkeys(job.job.line for job in placed):
        mine = [job for job in placed if job.job.line == line]
        found.append(
            Grid(
                line=line,
                variants=tuple(dict.fromkeys(job.job.config for job in mine)),
                topologies=tuple(dict.fromkeys(job.job.topology for job in mine)),
                cells={(job.job.config, job.job.topology): job for job in mine},
            )
        )
    return tuple(found)


def newly(comparison: Comparison | None) -> frozenset[tuple[str, Address]]:
    """Job and address of the cases that newly fail or are newly flaky."""
    if comparison is None or not comparison.against:
        return frozenset()
    found = (*comparison.new_failures, *comparison.newly_flaky)
    return frozenset((change.job, change.address) for change in found if change.job in comparison.against)
