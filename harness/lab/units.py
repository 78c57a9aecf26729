# SPDX-License-Identifier: GPL-2.0-only
"""Units: the work of a plan in portions for several hosts.  Pure."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from harness.base.cause import Cause
from harness.base.outcome import Outcome
from harness.lab.lab import unused
from harness.lab.records import records
from harness.plan import Plan
from harness.results.model import Result
from harness.suites.catalogue import to_do
from harness.suites.model import Work

UNIT_SECONDS = 60.0
"""How long a unit should take: what a killed worker costs at most, against some 10 ms to hand one out."""

_SHARE = 8
"""At least so many units for each worker, so that the last ones end at about the same time."""

_LEAST_SECONDS = 5.0
_CASE_SECONDS, _PROGRAM_SECONDS = 0.3, 10.0
"""What a case and a program take that have no history."""


@dataclasses.dataclass(frozen=True, slots=True)
class Unit:
    """Consecutive work of one job."""

    job: str
    keys: tuple[str, ...]
    """The `key` of each piece of work, in order."""
    seconds: float
    """How long it took lately, or an estimate."""


def units_of(plan: Plan, workers: int) -> tuple[Unit, ...]:
    """Return what is to be done of *plan*, in order, for about *workers* workers; without refused work.

    Work of one group stays together.  Destructive work, which needs a VM of its own, is never behind other
    work of a unit.
    """
    work = [one for one in to_do(plan) if one.refusal is None]
    seconds = _expected(work, plan)
    share = sum(seconds.values()) / (max(workers, 1) * _SHARE)
    most = max(_LEAST_SECONDS, min(UNIT_SECONDS, share))
    found: list[Unit] = []
    for _, portion in itertools.groupby(work, key=lambda one: (one.job, one.destructive)):
        found += _portions(tuple(portion), seconds, most)
    return tuple(found)


def _expected(work: Sequence[Work], plan: Plan) -> dict[str, float]:
    """Return key of work -> seconds."""
    sizes = collections.Counter(one.group for one in work)
    unknown = {True: _PROGRAM_SECONDS, False: _CASE_SECONDS}
    return {
        one.key: plan.seconds[one.group] / sizes[one.group]
        if one.group in plan.seconds
        else unknown[one.case is None]
        for one in work
    }


def _portions(work: Sequence[Work], seconds: dict[str, float], most: float) -> Iterator[Unit]:
    keys: list[str] = []
    total = 0.0
    for _, group in itertools.groupby(work, key=lambda one: one.group):
        mine = [one.key for one in group]
        needs = sum(seconds[key] for key in mine)
        if keys and total + needs > most:
            yield Unit(work[0].job, tuple(keys), total)
            keys, total = [], 0.0
        keys += mine
        total += needs
    if keys:
        yield Unit(work[0].job, tuple(keys), total)


def refused(plan: Plan) -> Iterator[Result]:
    """Yield the Result of all work to be done of *plan* that does not apply in its job."""
    for work in to_do(plan):
        if work.refusal is not None:
            attempt = unused(work, Outcome.SKIP, work.refusal, Cause.NOT_APPLICABLE)
            yield from records(attempt, work.job, plan.reruns.get(work.job, ""))
