# SPDX-License-Identifier: GPL-2.0-only
"""Processes that race each other for a while, each with choices of its own, and what they met.

Each draws what it does from the case's seed, which is in the log; when they meet is the scheduler's choice.
"""

from __future__ import annotations

import contextlib
import errno
import random
import time
from collections.abc import Callable, Sequence
from typing import Optional, TypeVar

from guest import forked, whereabouts
from guest.case import Test

STRESS = 1.2
"""Seconds for which processes race each other."""

DEBUG_STRESS = 5.0
"""The same on a kernel with lockdep and KASAN, where one bind may take a second of an emulated processor."""

ROUNDS = 8
"""How often they race at most, until everything has happened that should."""

LATE = 20.0
"""Seconds after the end of a race in which every process is back, also on a busy host."""

T = TypeVar("T")
Act = Callable[[random.Random], None]


class Tally:
    """What a racing process has met: successes, and refusals by what was tried."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def attempt(self, what: str, allowed: Sequence[int], call: Callable[[], T]) -> Optional[T]:
        """Count *what* and return what *call* does; None when refused with one of the errnos *allowed*."""
        try:
            result = call()
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, str(error.errno))
            if error.errno not in allowed:
                raise AssertionError(f"{what} is refused with {name}, which no race explains") from error
            self._count(f"{what} {name}")
            return None
        self._count(f"{what} ok")
        return result

    def _count(self, key: str) -> None:
        self.counts[key] = self.counts.get(key, 0) + 1


def until(seconds: float, seed: int, act: Act) -> None:
    """Do *act* again and again with one source of choices."""
    choices, end = random.Random(seed), time.monotonic() + seconds
    while time.monotonic() < end:
        act(choices)


def race(
    t: Test, makes: Sequence[Callable[[Tally], Act]], *met: str, meanwhile: Optional[Act] = None
) -> None:
    """Let processes race, and do *meanwhile* in this one, till each of *met* has happened, or it fails.

    A race in which nobody got anywhere shows nothing; on a busy host that may need another round.
    """
    seconds = DEBUG_STRESS if "debug" in t.features else STRESS
    t.log(f"seed {t.seed}")
    total: dict[str, int] = {}
    missing = list(met)
    for number in range(ROUNDS):
        seeds = random.Random(t.seed * ROUNDS + number)
        for key, count in _round(makes, meanwhile, seeds, seconds).items():
            total[key] = total.get(key, 0) + count
        missing = [key for key in met if key not in total]
        if not missing:
            break
    t.log(", ".join(f"{key} {total[key]}" for key in sorted(total)))
    t.equal(missing, [], f"what never happened in {ROUNDS} rounds")


def _round(
    makes: Sequence[Callable[[Tally], Act]], meanwhile: Optional[Act], seeds: random.Random, seconds: float
) -> dict[str, int]:
    """Let processes race for so many *seconds*, and add up what they met."""
    start = forked.Gate()
    total: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        racers = [stack.enter_context(_racer(make, start, seeds.getrandbits(32), seconds)) for make in makes]
        start.open()
        if meanwhile is not None:
            until(seconds, seeds.getrandbits(32), meanwhile)
        for racer in racers:
            if not racer.ended() and not forked.wait_for_end(racer.pid, seconds + LATE):
                raise AssertionError(f"a racer did not come back: {whereabouts.of_process(racer.pid)}")
            counts = racer.result()
            assert isinstance(counts, dict)
            for key, count in counts.items():
                total[key] = total.get(key, 0) + count
    start.close()
    return total


def _racer(make: Callable[[Tally], Act], start: forked.Gate, seed: int, seconds: float) -> forked.Child:
    """A process that does what *make* makes, from when *start* opens."""

    def run() -> dict[str, int]:
        tally = Tally()
        act = make(tally)
        start.wait()
        until(seconds, seed, act)
        return tally.counts

    return forked.Child(run)
