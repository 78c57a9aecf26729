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
    return Pulse({cpu: thread.id for cpu, thread in enumerate(threads)}, os.getpid(), clock)


def test_processor_that_is_never_scheduled_while_another_is_stands_still(
    threads: tuple[Thread, Thread], clock: Clock
) -> None:
    watched = _pulse(threads, clock)
    assert watched.still() is None
    threads[0].schedule(150)
    clock.now = pulse.STILL_SECONDS
    assert watched.still() == 1


def test_both_are_alive_while_both_are_scheduled(threads: tuple[Thread, Thread], clock: Clock) -> None:
    watched = _pulse(threads, clock)
    for _ in range(3):
        assert watched.still() is None
        threads[0].schedule(150)
        threads[1].schedule(1)
        clock.now += pulse.STILL_SECONDS


def test_host_that_stands_still_as_a_whole_says_nothing(threads: tuple[Thread, Thread], clock: Clock) -> None:
    watched = _pulse(threads, clock)
    assert watched.still() is None
    clock.now = 100 * pulse.STILL_SECONDS
    assert watched.still() is None


def test_time_must_pass_first(threads: tuple[Thread, Thread], clock: Clock) -> None:
    watched = _pulse(threads, clock)
    assert watched.still() is None
    threads[0].schedule(150)
    clock.now = pulse.STILL_SECONDS - 0.1
    assert watched.still() is None


def test_one_processor_alone_is_never_judged(threads: tuple[Thread, Thread], clock: Clock) -> None:
    watched = _pulse(threads[:1], clock)
    assert watched.still() is None
    clock.now = 100 * pulse.STILL_SECONDS
    assert watched.still() is None


def test_processors_that_are_gone_are_not_alarming(clock: Clock) -> None:
    watched = Pulse({0: 2**22 + 1, 1: 2**22 + 2}, os.getpid(), clock)
    assert watched.still() is None
