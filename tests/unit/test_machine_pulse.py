# SPDX-License-Identifier: GPL-2.0-only
"""harness.machine.pulse, on threads of this process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from harness.machine import pulse
from harness.machine.pulse import Pulse


class Clock:
    """A clock that is put forward by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Thread:
    """A thread that is scheduled when it is told to be."""

    def __init__(self) -> None:
        self._wake, self._done, self._end = threading.Semaphore(0), threading.Semaphore(0), False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.schedule(1)
        assert self._thread.native_id is not None
        self.id = self._thread.native_id

    def _run(self) -> None:
        while not self._end:
            self._wake.acquire()
            self._done.release()

    def schedule(self, times: int) -> None:
        for _ in range(times):
            self._wake.release()
            self._done.acquire()
            time.sleep(0.0005)

    def end(self) -> None:
        self._end = True
        self._wake.release()
        self._thread.join()


@pytest.fixture
def threads() -> Iterator[tuple[Thread, Thread]]:
    both = Thread(), Thread()
    yield both
    for thread in both:
        thread.end()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _pulse(threads: tuple[Thread, ...], clock: Clock) -> Pulse:
    return Pulse({cpu: thread.id for cpu, thread in enumerate(threads)}, os.getpid(), lambda _: "", clock)


def test_processor_that_is_never_scheduled_while_another_is_stands_still(
    threads: tuple[Thread, Thread], clock: Clock
) -> None:
    watched = _pulse(threads, clock)
    assert watched.lost() is None
    threads[0].schedule(150)
    clock.now = pulse.STILL_SECONDS
    lost = watched.lost()
    assert lost is not None
    assert ("does not run processor 1" in lost.what, lost.is_emulators) == (True, False)


def test_both_are_alive_while_both_are_scheduled(threads: tuple[Thread, Thread], clock: Clock) -> None:
    watched = _pulse(threads, clock)
    for _ in range(3):
        assert watched.lost() is None
        threads[0].schedule(150)
        threads[1].schedule(1)
        clock.now += pulse.STILL_SECONDS


def test_host_that_stands_still_as_a_whole_says_nothing(threads: tuple[Thread, Thread], clock: Clock) -> None:
    watched = _pulse(threads, clock)
    assert watched.lost() is None
    clock.now = 100 * pulse.STILL_SECONDS
    assert watched.lost() is None


def test_time_must_pass_first(threads: tuple[Thread, Thread], clock: Clock) -> None:
    watched = _pulse(threads, clock)
    assert watched.lost() is None
    threads[0].schedule(150)
    clock.now = pulse.STILL_SECONDS - 0.1
    assert watched.lost() is None


def test_one_processor_alone_is_never_judged(threads: tuple[Thread, Thread], clock: Clock) -> None:
    watched = _pulse(threads[:1], clock)
    assert watched.lost() is None
    clock.now = 100 * pulse.STILL_SECONDS
    assert watched.lost() is None


def test_processors_that_are_gone_are_not_alarming(clock: Clock) -> None:
    watched = Pulse({0: 2**22 + 1, 1: 2**22 + 2}, os.getpid(), lambda _: "", clock)
    assert watched.lost() is None


IDLE = "SPIV\t 0x000001ff APIC enabled\nISR\t (none)\nIRR\t 236 \n"
SERVING = "SPIV\t 0x000001ff APIC enabled\nISR\t 236 \nIRR\t 37 236 \n"
"""As QEMU 10 prints a local APIC, abridged; the second of a processor that was lost."""


def looks(threads: tuple[Thread, Thread], clock: Clock, *seen: str) -> str:
    """What comes of looking at processor 1 as often as there is something to see, both being scheduled."""
    left = list(seen)
    watched = Pulse(
        {cpu: thread.id for cpu, thread in enumerate(threads)},
        os.getpid(),
        lambda cpu: left.pop(0) if cpu == 1 else IDLE,
        clock,
    )
    said = ""
    while left and not said:
        for thread in threads:
            thread.schedule(1)
        clock.now += 1
        lost = watched.lost()
        said = lost.what if lost is not None else ""
        assert lost is None or lost.is_emulators
    return said


def test_processor_that_is_halted_while_it_serves_an_interrupt_is_lost(
    threads: tuple[Thread, Thread], clock: Clock
) -> None:
    said = looks(threads, clock, *[SERVING] * pulse.STUCK_LOOKS)
    assert said == "processor 1 of the guest is halted in the middle of an interrupt"


def test_interrupt_that_is_served_now_and_then_is_none(threads: tuple[Thread, Thread], clock: Clock) -> None:
    most = pulse.STUCK_LOOKS - 1
    assert looks(threads, clock, *[SERVING] * most, IDLE, *[SERVING] * most) == ""


def test_interrupts_that_change_are_served(threads: tuple[Thread, Thread], clock: Clock) -> None:
    seen = [SERVING.replace("ISR\t 236", f"ISR\t {vector}") for vector in range(32, 52)]
    assert looks(threads, clock, *seen) == ""


def test_looks_of_several_threads_are_no_more_looks(threads: tuple[Thread, Thread], clock: Clock) -> None:
    """One interrupt that is being served is not one that always is, however many wait for its guest."""
    watched = Pulse(
        {cpu: thread.id for cpu, thread in enumerate(threads)}, os.getpid(), lambda _: SERVING, clock
    )
    assert not any(watched.lost() for _ in range(2 * pulse.STUCK_LOOKS))
    clock.now += pulse.STUCK_LOOKS / 2
    assert watched.lost() is None
