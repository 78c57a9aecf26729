# SPDX-License-Identifier: GPL-2.0-only
"""A plan as a person reads it: kernels, jobs, how long they took lately, what they ask of the host."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import TextIO

from harness.admission import room_for
from harness.errors import NotApplicable
from harness.host import available_mib
from harness.kernel.store import seconds_lately
from harness.plan import Job, Plan
from harness.session.planning import Planned
from harness.suites.catalogue import key_of, selected, work_of
from harness.words import count_of, duration

TO_BUILD = "to be built"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlannedKernel:
    """A kernel of the plan."""

    name: str
    tree: str
    fate: str
    """In the store, to be built, or why it will not be."""
    seconds: float | None = None
    """What such a kernel took to build lately; None where there is nothing to build, or none to go by."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlannedJob:
    """A job of the plan, counted."""

    name: str
    applicable: int
    """Pieces of work: cases of probes and selftest programs."""
    not_applicable: int
    done: int
    seconds: float | None
    """What it took lately, None where no run tells."""
    memory_mib: int
    cpus: int


def plan_of_kernel(planned: Planned) -> PlannedKernel:
    """What is to become of *planned*."""
    fate, seconds = "in the store", None
    if planned.plan is not None and not planned.is_built:
        fate, seconds = TO_BUILD, seconds_lately(planned.plan)
    if planned.uncounted:
        fate += "; so are its selftests, which are not counted yet"
    if planned.proof is not None:
        fate = f"never built: {planned.proof.outcome.value}, by its configuration"
    elif isinstance(planned.problem, NotApplicable):
        fate = f"not applicable: {planned.problem.message}"
    elif planned.problem is not None:
        fate = str(planned.problem)
    return PlannedKernel(name=planned.wish.name, tree=planned.tree_label, fate=fate, seconds=seconds)


def plan_of_job(job: Job, plan: Plan) -> PlannedJob:
    """What *job* comes to in *plan*."""
    work = [one for one in work_of(job) if selected(one, plan.cases)]
    done = [one for one in work if key_of(one) in plan.done]
    left = [one for one in work if key_of(one) not in plan.done and not one.refusal]
    groups = {one.group for one in left}
    known = [plan.seconds[group] for group in groups if group in plan.seconds]
    return PlannedJob(
        name=job.name,
        applicable=len(left),
        not_applicable=sum(1 for one in work if one.refusal),
        done=len(done),
        seconds=sum(known) if known else None,
        memory_mib=job.memory_mib,
        cpus=job.cpus,
    )


def plan_as_json(kernels: Sequence[PlannedKernel], jobs: Sequence[PlannedJob], workers: int) -> str:
    """The plan for other programs: its kernels and jobs, field by field, and how many workers share them."""
    plain = {
        "kernels": [dataclasses.asdict(kernel) for kernel in kernels],
        "jobs": [dataclasses.asdict(job) for job in jobs],
        "workers": workers,
    }
    return json.dumps(plain, indent=2)


def show_plan(
    stream: TextIO, kernels: Sequence[PlannedKernel], jobs: Sequence[PlannedJob], workers: int
) -> None:
    """Print the plan on *stream*."""
    from rich.console import Console

    # A file has no width; a terminal's own is taken.
    console = Console(file=stream, highlight=False, width=None if stream.isatty() else 160)
    fates = [
        (k.name, k.tree, k.fate, _lately(k.seconds) if k.fate.startswith(TO_BUILD) else "") for k in kernels
    ]
    console.print(_table(("kernel", "tree", "", "took lately"), fates))
    rows = [
        (
            job.name,
            str(job.applicable),
            str(job.not_applicable),
            _lately(job.seconds),
            f"{job.memory_mib} MiB",
        )
        for job in jobs
    ]
    console.print(_table(("job", "to run", "not applicable", "took lately", "guest memory"), rows))
    console.print(_sum(kernels, jobs, workers))


def _lately(seconds: float | None) -> str:
    return duration(seconds) if seconds is not None else "no history"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> object:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold", justify="right" if head in _NUMBERS else "left")
    for row in rows:
        table.add_row(*row)
    return table


_NUMBERS = ("to run", "not applicable", "took lately", "guest memory")


def _sum(kernels: Sequence[PlannedKernel], jobs: Sequence[PlannedJob], workers: int) -> str:
    known = [job.seconds for job in jobs if job.seconds is not None]
    words = [f"{count_of(len(jobs), 'job')} with {sum(job.applicable for job in jobs)} cases and programs"]
    if known:
        more = (
            ""
            if len(known) == len(jobs)
            else f", and {count_of(len(jobs) - len(known), 'job')} without history"
        )
        words.append(f"about {duration(sum(known) / workers)} on {count_of(workers, 'worker')}{more}")
    builds = [kernel.seconds for kernel in kernels if kernel.seconds is not None]
    if builds:
        words.append(f"builds of about {duration(sum(builds))}, most of them meanwhile")
    memory = max((job.memory_mib for job in jobs), default=0)
    cpus = max((job.cpus for job in jobs), default=0)
    most = min(workers, room_for(memory, cpus)) if jobs else 0
    words.append(
        f"at most {count_of(most, 'VM')} at once, of up to {memory} MiB and "
        f"{count_of(cpus, 'processor')}, on {available_mib()} MiB that are free and "
        f"{count_of(len(os.sched_getaffinity(0)), 'processor')}"
    )
    return "; ".join(words)
