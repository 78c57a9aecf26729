# SPDX-License-Identifier: GPL-2.0-only
"""The work of a plan: all work of its jobs, the selected part of it, and the part still to do.

Collection in every xdist worker and the controller's list of expected results both come from here.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from harness.base.errors import NoCase, UsageError, nearest
from harness.plan import Job, Plan
from harness.suites.model import Work
from harness.suites.registry import chosen_suites, declared_cases


def work_of(job: Job) -> tuple[Work, ...]:
    """Return all the work of *job*, in order.

    Work that needs a fresh VM comes first, so that one boot serves all of it; work that damages the kernel
    comes last.
    """
    work = (one for suite in chosen_suites(job.suites) for one in suite.work(job))
    return tuple(sorted(work, key=lambda one: one.turn))


def selected(work: Work, patterns: Sequence[str]) -> bool:
    """Whether *work* is asked for: no patterns, or one that matches its address or the cases below it."""
    return not patterns or any(
        fnmatch.fnmatchcase(work.address, p) or p.startswith(f"{work.address}/") for p in patterns
    )


def is_asked_for(work: Work, plan: Plan) -> bool:
    """Whether *plan* asks for *work*, done or not."""
    return selected(work, plan.cases) and (not plan.only or work.key in plan.only)


def to_do(plan: Plan) -> tuple[Work, ...]:
    """Return the work of *plan* that is asked for and not done, in the order in which it should begin.

    Job by job, so that the cases of one VM follow one another; in a job the longest first.
    """
    done = frozenset(plan.done)
    asked = [
        work
        for job in plan.jobs
        for work in work_of(job)
        if is_asked_for(work, plan) and work.key not in done
    ]
    order = {job.name: number for number, job in enumerate(plan.jobs)}
    return tuple(
        sorted(asked, key=lambda work: (order[work.job], work.turn, -plan.seconds.get(work.group, 0.0)))
    )


def work_by_source(plan: Plan) -> dict[Path, list[Work]]:
    """Return what to_do() returns, grouped by the file that declares it."""
    grouped: dict[Path, list[Work]] = {}
    for work in to_do(plan):
        grouped.setdefault(work.path, []).append(work)
    return grouped


def check_patterns(patterns: Iterable[str], suites: Sequence[str]) -> None:
    """Refuse, before anything is built, a case pattern that none of *suites* can ever match."""
    for pattern in patterns:
        suite, _, rest = pattern.partition("/")
        declared = {case.address for case in declared_cases({suite} & set(suites))}
        if declared:
            if not any(fnmatch.fnmatchcase(address, pattern) for address in declared):
                raise _no_match(pattern, declared)
        elif not rest or not any(fnmatch.fnmatchcase(name, suite) for name in suites):
            raise UsageError(
                f"no case matches {pattern!r}", hint=f"here addresses begin with {'/ or '.join(suites)}/"
            )


def check_cases(plan: Plan) -> None:
    """Refuse a case pattern that matches nothing in *plan*; the error names the nearest address.

    The cases of a suite that did not compile may be asked for: that it did not is their result.
    """
    everything = [work for job in plan.jobs for work in work_of(job)]
    found = {(work.job, work.suite) for work in everything}
    broken = [suite for job in plan.jobs for suite in job.suites if (job.name, suite) not in found]
    for pattern in plan.cases:
        head = pattern.partition("/")[0]
        if not any(selected(work, (pattern,)) for work in everything) and not fnmatch.filter(broken, head):
            raise _no_match(pattern, {work.address for work in everything})


def _no_match(pattern: str, addresses: Collection[str]) -> NoCase:
    programs = {f"{address.rpartition('/')[0]}/*" for address in addresses if address.count("/") == 2}
    hint = nearest(pattern, {*addresses, *programs}, otherwise="see: vfio-harness list cases")
    return NoCase(f"no case matches {pattern!r}", hint=hint)
