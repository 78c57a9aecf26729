# SPDX-License-Identifier: GPL-2.0-only
"""Run racing processes that act at random, and count what happens.

The case's seed, which is in the log, determines what each process does; the scheduler determines when.
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
"""Duration of a race in seconds."""

DEBUG_STRESS = 5.0
"""The same on a kernel with lockdep and KASAN, where one bind may take a second under emulation."""

ROUNDS = 8
"""Most rounds of a race, which ends when every expected event has happened."""

LATE = 20.0
"""Seconds after a race within which every process ends, also on a busy host."""

T = TypeVar("T")
Act = Callable[[random.Random], None]


class Tally:
    """The counts of a racing process: successes, and refusals by what was tried."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def attempt(self, what: str, allowed: Sequence[int], call: Callable[[], T]) -> Optional[T]:
        """Count *what* and return the result of *call*; None if refused with one of the errnos *allowed*."""
        try:
            result = call()
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, str(error.errno))
            if error.errno not in allowed:
                raise AssertionError(f"{what} failed with {name}, which a race does not explain") from error
            self._count(f"{what} {name}")
            return None
        self._count(f"{what} ok")
        return result

    def _count(self, key: str) -> None:
        self.counts[key] = self.counts.get(key, 0) + 1


def until(seconds: float, seed: int, act: Act) -> None:
    """Repeat *act* for *seconds*, with one source of random choices."""
    choices, end = random.Random(seed), time.monotonic() + seconds
    while time.monotonic() < end:
        act(choices)


def race(
    t: Test,
    makes: Sequence[Callable[[Tally], Act]],
    *met: str,
    meanwhile: Optional[Act] = None,
    stress: float = STRESS,
) -> None:
    """Let processes race for *stress* seconds, and do *meanwhile* in this one, until each of *met* has
    happened; fail if one does not.

    A race in which one of them never happened shows nothing, so a busy host may need another round.
    """
    seconds = DEBUG_STRESS if "debug" in t.features else stress
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
    t.equal(missing, [], f"events that never happened in {ROUNDS} rounds")


def _round(
    makes: Sequence[Callable[[Tally], Act]], meanwhile: Optional[Act], seeds: random.Random, seconds: float
) -> dict[str, int]:
    """Let processes race for *seconds*, and add up their counts."""
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
    """Start a process that waits for *start* and then repeats what *make* returns."""

    def run() -> dict[str, int]:
        tally = Tally()
        act = make(tally)
        start.wait()
        until(seconds, seed, act)
        return tally.counts

    return forked.Child(run)
