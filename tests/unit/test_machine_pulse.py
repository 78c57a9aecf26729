# SPDX-License-Identifier: GPL-2.0-only
"""harness.machine.pulse, on threads of this process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.base.cause import Cause
from harness.kernel.arch import ARCHES
from harness.machine import pulse
from harness.machine.pulse import Pulse


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Thread:
    """A thread that is scheduled on request."""

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
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Thread, Thread]]:
    """Two threads that always have a CPU, however busy the host of the tests is."""
    monkeypatch.setattr(pulse, "run_delay", lambda _: 0.0)
    both = Thread(), Thread()
    yield both
    for thread in both:
        thread.end()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _pulse(threads: tuple[Thread, ...], clock: Clock) -> Pulse:
    return Pulse(
        {cpu: thread.id for cpu, thread in enumerate(threads)}, os.getpid(), lambda _: frozenset(), clock
    )


def test_processor_that_is_never_scheduled_while_another_is_stands_still(
    threads: tuple[Thread, Thread], clock: Clock
) -> None:
    watched = _pulse(threads, clock)
    assert watched.lost() is None
    threads[0].schedule(150)
    clock.now = pulse.STILL_SECONDS
    lost = watched.lost()
    assert lost is not None
    assert (lost.what, lost.cause) == ("QEMU no longer runs vCPU 1 of the guest", Cause.STOOD_STILL)


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
    watched = Pulse({0: 2**22 + 1, 1: 2**22 + 2}, os.getpid(), lambda _: frozenset(), clock)
    assert watched.lost() is None


IDLE = "SPIV\t 0x000001ff APIC enabled\nISR\t (none)\nIRR\t 236 \n"
SERVING = "SPIV\t 0x000001ff APIC enabled\nISR\t 236 \nIRR\t 37 236 \n"
"""As QEMU 10 prints a local APIC, abridged; the second of a vCPU that was lost."""

LAPIC = ARCHES["x86_64"].interrupts
assert LAPIC is not None
parse = LAPIC.parse


def looks(threads: tuple[Thread, Thread], clock: Clock, *seen: str) -> str:
    """Return the message after one look at vCPU 1 per item of *seen*, while both vCPUs are scheduled."""
    left = list(seen)
    watched = Pulse(
        {cpu: thread.id for cpu, thread in enumerate(threads)},
        os.getpid(),
        lambda cpu: parse(left.pop(0) if cpu == 1 else IDLE),
        clock,
    )
    said = ""
    while left and not said:
        for thread in threads:
            thread.schedule(1)
        clock.now += 1
        lost = watched.lost()
        said = lost.what if lost is not None else ""
        assert lost is None or lost.cause is Cause.LOST_VCPU
    return said


def test_processor_that_is_halted_while_it_serves_an_interrupt_is_lost(
    threads: tuple[Thread, Thread], clock: Clock
) -> None:
    said = looks(threads, clock, *[SERVING] * pulse.STUCK_LOOKS)
    assert said == "vCPU 1 of the guest is halted in the middle of an interrupt"


def test_interrupt_that_is_served_now_and_then_is_none(threads: tuple[Thread, Thread], clock: Clock) -> None:
    most = pulse.STUCK_LOOKS - 1
    assert looks(threads, clock, *[SERVING] * most, IDLE, *[SERVING] * most) == ""


def test_interrupts_that_change_are_served(threads: tuple[Thread, Thread], clock: Clock) -> None:
    seen = [SERVING.replace("ISR\t 236", f"ISR\t {vector}") for vector in range(32, 52)]
    assert looks(threads, clock, *seen) == ""


def test_looks_of_several_threads_are_no_more_looks(threads: tuple[Thread, Thread], clock: Clock) -> None:
    """Looks of several threads in quick succession count as one."""
    watched = Pulse(
        {cpu: thread.id for cpu, thread in enumerate(threads)}, os.getpid(), lambda _: parse(SERVING), clock
    )
    assert not any(watched.lost() for _ in range(2 * pulse.STUCK_LOOKS))
    clock.now += pulse.STUCK_LOOKS / 2
    assert watched.lost() is None


class Procfs:
    """QEMU 7 in procfs, with vCPUs 0 and 1 as threads 70 and 71."""

    def __init__(self, top: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
        self._tasks = top / "7" / "task"
        monkeypatch.setattr(pulse, "_PROC", top)
        for thread in (7, 70, 71):
            (self._tasks / str(thread)).mkdir(parents=True)
            self.set(thread)
        self.clock = clock
        self.seen = [IDLE]
        self.watched = Pulse({0: 70, 1: 71}, 7, lambda cpu: parse(self.seen[-1] if cpu else IDLE), clock)
        assert self.watched.lost() is None

    def set(self, thread: int, *, switches: int = 1, delay: float = 0.0) -> None:
        """Let a thread that sleeps have been scheduled so often, and have got no CPU for so long."""
        task = self._tasks / str(thread)
        (task / "status").write_text(f"voluntary_ctxt_switches:\t{switches}\n", encoding="ascii")
        (task / "stat").write_text(f"{thread} (qemu) S 1\n", encoding="ascii")
        (task / "schedstat").write_text(f"1 {delay * 1e9:.0f} {switches}\n", encoding="ascii")

    def look(self, seconds: float) -> Cause | None:
        """Look after *seconds*; return the cause of a loss."""
        self.clock.now += seconds
        lost = self.watched.lost()
        return lost.cause if lost is not None else None


@pytest.fixture
def procfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Procfs:
    return Procfs(tmp_path, monkeypatch, clock)


@pytest.mark.parametrize("starved", [7, 71])
def test_a_processor_that_the_host_does_not_run_is_only_slow(procfs: Procfs, starved: int) -> None:
    """Neither its own thread nor the main thread, which wakes it, got a CPU: it is lost only beyond that."""
    procfs.set(70, switches=500)
    procfs.set(starved, delay=20)
    assert procfs.look(pulse.STILL_SECONDS + 19) is None
    assert procfs.look(1) is Cause.STOOD_STILL


def test_a_busy_host_does_not_hide_a_lost_processor(procfs: Procfs) -> None:
    """That another vCPU waits for a CPU explains nothing."""
    procfs.set(70, switches=500, delay=20)
    assert procfs.look(pulse.STILL_SECONDS) is Cause.STOOD_STILL


def test_looks_at_a_machine_that_could_not_run_do_not_count(procfs: Procfs) -> None:
    """A slow handler is found in service again and again; a stuck one is so as well once QEMU runs."""
    procfs.seen = [SERVING]
    for look in range(1, 3 * pulse.STUCK_LOOKS):
        procfs.set(7, delay=0.6 * look)
        procfs.set(71, switches=look)
        assert procfs.look(1) is None
    found = [procfs.look(1) for _ in range(pulse.STUCK_LOOKS)]
    assert found[-1] is Cause.LOST_VCPU
    assert not any(found[:-1])
