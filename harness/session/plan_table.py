# SPDX-License-Identifier: GPL-2.0-only
"""A plan as a person reads it: kernels, jobs, how long they took lately, what they ask of the host."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TextIO

from harness.admission import most_vms
from harness.host import available_mib
from harness.plan import Job, Plan
from harness.suites.catalogue import key_of, selected, work_of
from harness.words import count_of, duration


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlannedKernel:
    """A kernel of the plan."""

    name: str
    tree: str
    fate: str
    """In the store, to be built, or why it will not be."""


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
    console.print(_table(("kernel", "tree", ""), [(k.name, k.tree, k.fate) for k in kernels]))
    rows = [
        (
            job.name,
            str(job.applicable),
            str(job.not_applicable),
            duration(job.seconds) if job.seconds is not None else "no history",
            f"{job.memory_mib} MiB",
        )
        for job in jobs
    ]
    console.print(_table(("job", "to run", "not applicable", "took lately", "guest memory"), rows))
    console.print(_sum(jobs, workers))


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


def _sum(jobs: Sequence[PlannedJob], workers: int) -> str:
    known = [job.seconds for job in jobs if job.seconds is not None]
    words = [f"{count_of(len(jobs), 'job')} with {sum(job.applicable for job in jobs)} cases and programs"]
    if known:
        more = (
            ""
            if len(known) == len(jobs)
            else f", and {count_of(len(jobs) - len(known), 'job')} without history"
        )
        words.append(f"about {duration(sum(known) / workers)} on {count_of(workers, 'worker')}{more}")
    most = max((job.memory_mib for job in jobs), default=0)
    words.append(
        f"at most {count_of(min(workers, most_vms()), 'VM')} at once, {most} MiB the largest, "
        f"of {available_mib()} MiB that are free"
    )
    return "; ".join(words)
