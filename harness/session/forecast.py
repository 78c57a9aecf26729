# SPDX-License-Identifier: GPL-2.0-only
"""Estimate how long a plan takes, from earlier runs, and how many workers it gets; as a table and as JSON."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TextIO

from harness.base.errors import HarnessError, NotApplicable
from harness.base.host import available_mib, usable_cpus
from harness.base.words import count_of, duration
from harness.kernel.plan import KernelPlan
from harness.kernel.provide import seconds_lately
from harness.lab.admission import most_vms, room_for
from harness.plan import Job, Plan
from harness.results import JobRecord
from harness.results.history import History
from harness.session.planning import PlannedKernel
from harness.session.reporting import ask
from harness.session.wishes import JobWish, KernelWish, PytestOptions
from harness.suites.catalogue import is_asked_for, to_do, work_of

FEWEST_CASES = 20
"""With fewer cases, starting workers takes longer than they save."""


def expected_seconds(jobs: Mapping[str, tuple[Job, JobRecord]], accel: str) -> dict[str, float]:
    """Return group of work -> seconds: the sum of the medians of its cases in their last runs.

    *jobs* are those of a plan by name, each with its record in the results; *accel* is the
    accelerator.  Empty when the history cannot be
    used, which is no reason not to run.
    """
    try:
        return ask(lambda history: _expected(history, jobs, accel))
    except HarnessError:
        return {}


def _expected(history: History, jobs: Mapping[str, tuple[Job, JobRecord]], accel: str) -> dict[str, float]:
    seconds: collections.defaultdict[str, float] = collections.defaultdict(float)
    for job, record in jobs.values():
        groups = {work.address: work.group for work in work_of(job)}
        for address, past in history.case_seconds(record.series, accel).items():
            # A probe is known by its own address, a case of a selftest by its program's.
            group = groups.get(str(address)) or groups.get(address.program_path)
            if group is not None:
                seconds[group] += statistics.median(past)
    return dict(seconds)


def job_seconds(job: Job, seconds: Mapping[str, float]) -> float:
    """Return how long *job* takes, from the *seconds* of its groups of work; infinity without history.

    An unknown job may be the longest, so it starts first and no deadline always cuts it off.
    """
    known = [value for group, value in seconds.items() if group.startswith(f"{job.name}/")]
    return sum(known) if known else math.inf


def ordered(
    jobs: Mapping[JobWish, Job],
    builds: Mapping[KernelWish, int],
    seconds: Mapping[str, float],
    options: PytestOptions,
) -> tuple[Job, ...]:
    """Return *jobs* by the order of *builds*, then the longest first, which ends the run soonest.

    With `-x` the shortest first: the first failure ends the run.
    """
    sign = 1 if options.exit_first else -1

    def key(wish: JobWish) -> tuple[int, float]:
        return builds.get(wish.kernel, 0), sign * job_seconds(jobs[wish], seconds)

    return tuple(jobs[wish] for wish in sorted(jobs, key=key))


def workers_for(plan: Plan, options: PytestOptions) -> int:
    """Return the number of workers for *plan*; 0: it runs in this process."""
    if options.workers is not None:
        return min(options.workers, most_vms())  # Another worker would only wait for a VM.
    # What an edit affects may be much.
    narrowed = dataclasses.replace(options, affected=False).narrowed
    return 0 if narrowed or options.collect_only else default_workers(plan)


def default_workers(plan: Plan) -> int:
    """Return the number of workers for what is left of *plan*, by this host's CPUs and memory."""
    work = [one for one in to_do(plan) if not one.refusal]
    groups = len({one.group for one in work})
    if len(work) < FEWEST_CASES or groups < 2:
        return 0
    jobs = [plan.job(name) for name in {one.job for one in work}]
    room = room_for(max(job.memory_mib for job in jobs), max(job.cpus for job in jobs))
    wanted = min(room, groups)
    return wanted if wanted > 1 else 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KernelRow:
    """A kernel of the plan."""

    name: str
    tree: str
    fate: str
    """Whether it is in the store or to be built, or why it will not be built."""
    to_build: bool = False
    seconds: float | None = None
    """Seconds of its last build; None when it is not to be built or there is no history."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """A job of the plan; it counts pieces of work: cases of probes and selftest programs."""

    name: str
    applicable: int
    not_applicable: int
    done: int
    seconds: float | None
    """Seconds that it took in earlier runs; None without history."""
    memory_mib: int
    cpus: int


def kernel_row(kernel: PlannedKernel) -> KernelRow:
    """Return the row of *kernel*."""
    to_build = kernel.plan is not None and not kernel.is_built
    fate = "to be built" if to_build else "in the store"
    seconds = seconds_lately(kernel.plan) if isinstance(kernel.plan, KernelPlan) and to_build else None
    if kernel.uncounted:
        fate += "; its selftests are not built yet and not counted"
    if kernel.proof is not None:
        fate = f"never built: {kernel.proof.outcome.value}, by its configuration"
    elif isinstance(kernel.problem, NotApplicable):
        fate = f"not applicable: {kernel.problem.message}"
    elif kernel.problem is not None:
        fate = str(kernel.problem)
    return KernelRow(
        name=kernel.wish.name, tree=kernel.tree_label, fate=fate, to_build=to_build, seconds=seconds
    )


def job_row(job: Job, plan: Plan) -> JobRow:
    """Return the row of *job* in *plan*."""
    work = [one for one in work_of(job) if is_asked_for(one, plan)]
    done = [one for one in work if one.key in plan.done]
    left = [one for one in work if one.key not in plan.done and not one.refusal]
    groups = {one.group for one in left}
    known = [plan.seconds[group] for group in groups if group in plan.seconds]
    return JobRow(
        name=job.name,
        applicable=len(left),
        not_applicable=sum(1 for one in work if one.refusal),
        done=len(done),
        seconds=sum(known) if known else None,
        memory_mib=job.memory_mib,
        cpus=job.cpus,
    )


def rows_as_json(kernels: Sequence[KernelRow], jobs: Sequence[JobRow], workers: int) -> str:
    """Return the plan for other programs: its kernels, its jobs and the number of workers."""
    plain = {
        "kernels": [dataclasses.asdict(kernel) for kernel in kernels],
        "jobs": [dataclasses.asdict(job) for job in jobs],
        "workers": workers,
    }
    return json.dumps(plain, indent=2)


def show_rows(stream: TextIO, kernels: Sequence[KernelRow], jobs: Sequence[JobRow], workers: int) -> None:
    """Print the plan on *stream*."""
    from rich.console import Console

    # A file has no width; a terminal's own is taken.
    console = Console(file=stream, highlight=False, width=None if stream.isatty() else 160)
    fates = [(k.name, k.tree, k.fate, _lately(k.seconds) if k.to_build else "") for k in kernels]
    console.print(_table(("kernel", "tree", "", "took lately"), fates))
    rows = [
        (j.name, str(j.applicable), str(j.not_applicable), _lately(j.seconds), f"{j.memory_mib} MiB")
        for j in jobs
    ]
    console.print(_table(("job", "to run", "not applicable", "took lately", "guest memory"), rows))
    console.print(_sum(kernels, jobs, workers))


def _lately(seconds: float | None) -> str:
    return duration(seconds) if seconds is not None else "no history"


_NUMBERS = ("to run", "not applicable", "took lately", "guest memory")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> object:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold", justify="right" if head in _NUMBERS else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _sum(kernels: Sequence[KernelRow], jobs: Sequence[JobRow], workers: int) -> str:
    known = [job.seconds for job in jobs if job.seconds is not None]
    words = [f"{count_of(len(jobs), 'job')} with {sum(job.applicable for job in jobs)} cases and programs"]
    if known:
        unknown = len(jobs) - len(known)
        more = f", and {count_of(unknown, 'job')} without history" if unknown else ""
        words.append(f"about {duration(sum(known) / workers)} on {count_of(workers, 'worker')}{more}")
    builds = [kernel.seconds for kernel in kernels if kernel.seconds is not None]
    if builds:
        words.append(f"about {duration(sum(builds))} of builds, most of them while tests run")
    memory = max((job.memory_mib for job in jobs), default=0)
    cpus = max((job.cpus for job in jobs), default=0)
    most = min(workers, room_for(memory, cpus)) if jobs else 0
    words.append(
        f"at most {count_of(most, 'VM')} at once, each with up to {memory} MiB and "
        f"{count_of(cpus, 'vCPU')}; this host has {available_mib()} MiB available and "
        f"{count_of(usable_cpus(), 'CPU')}"
    )
    return "; ".join(words)
