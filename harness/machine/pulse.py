# SPDX-License-Identifier: GPL-2.0-only
"""Detect lost vCPUs of a VM from outside.

On a busy host QEMU 10.0.2 with TCG may lose a vCPU for good, and the guest with it the tasks that sleep on
that vCPU; a case would then run into its timeout.  Two kinds were seen, both with the vCPU halted, interrupts
on and its timer's vector 236 pending, while the other vCPUs ran:

- Nothing is in service, yet the vCPU takes no interrupt, as if its thread in QEMU were not woken (inferred:
  nobody looked at the thread).  A kernel with CONFIG_HZ_PERIODIC interrupts every vCPU CONFIG_HZ times a
  second, idle or not: a thread that is not scheduled for seconds is lost.
- Vector 236 stays in service: acknowledged, but its handler never ran, and all interrupts of the same or a
  lower priority wait for its end (Intel SDM, volume 3, "Interrupt Acceptance for Fixed Interrupts").

A vCPU that is only slow is not lost.  Time in which the host had no CPU for its thread, or for QEMU's main
thread, which wakes it, counts for neither kind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from harness.base.cause import Cause
from harness.base.host import run_delay

STILL_SECONDS = 5.0
"""How long a lost vCPU is not scheduled: 500 ticks of CONFIG_HZ=100."""

_BEATS = 100
"""How often the other vCPUs must have been scheduled meanwhile; otherwise the host itself stood still."""

LOOK_SECONDS = 0.8
"""Minimum time between two looks: closer ones would see one interrupt twice."""

STUCK_LOOKS = 8
"""How often in a row a halted vCPU must be found serving an interrupt: a handler takes microseconds."""

_PROC = Path("/proc")

_BROUGHT_UP = re.compile(r"smp: Brought up \d+ nodes?, (\d+) CPU")
"""The message of kernel/smp.c smp_init()."""

_SWITCHES = re.compile(r"^(?:non)?voluntary_ctxt_switches:\s+(\d+)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True, slots=True)
class _Seen:
    switches: int
    since: float
    """When it was last seen to have been scheduled."""
    others: int
    """How often the other vCPUs had been scheduled by then, in sum."""
    delayed: float
    """How long its thread or QEMU's main thread had been ready to run without a CPU by then."""


@dataclasses.dataclass(frozen=True, slots=True)
class Lost:
    """A vCPU that is lost."""

    cause: Cause
    """LOST_VCPU when no kernel can have caused it: none runs between an interrupt and its handler's start."""
    what: str
    """The message for people."""


class Pulse:
    """The vCPUs of one VM."""

    def __init__(
        self,
        threads: Mapping[int, int],
        pid: int,
        in_service: Callable[[int], frozenset[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*threads* maps vCPU numbers to thread ids of process *pid*, from `query-cpus-fast`.

        *in_service* returns the interrupts that a vCPU has in service.
        """
        tasks = _PROC / str(pid) / "task"
        self._tasks = {cpu: tasks / str(thread) for cpu, thread in threads.items()}
        self._main = tasks / str(pid)
        self._in_service = in_service
        self._clock = clock
        self._seen: dict[int, _Seen] = {}
        self._serving: dict[int, tuple[frozenset[str], int]] = {}
        """vCPU -> the vectors in service at each of its last looks, and the number of those looks."""
        self._delays: dict[int, float] = {}
        """vCPU -> _delayed() at its last look."""
        self._looking = threading.Lock()
        self._looked = -math.inf

    def lost(self) -> Lost | None:
        """Return a vCPU that is lost, None if there is none.

        It compares with earlier calls: call it every second or so.  A call within LOOK_SECONDS of the last
        one, from whichever thread, returns None.  Raises QmpError when QEMU does not answer.
        """
        with self._looking:
            now = self._clock()
            passed = now - self._looked
            if passed < LOOK_SECONDS:
                return None
            self._looked = now
            if (cpu := self._asleep(now)) is not None:
                return Lost(Cause.STOOD_STILL, f"QEMU no longer runs vCPU {cpu} of the guest")
            if (cpu := self._stuck(passed)) is not None:
                what = f"vCPU {cpu} of the guest is halted in the middle of an interrupt"
                return Lost(Cause.LOST_VCPU, what)
            return None

    def _delayed(self, cpu: int) -> float:
        """Return how long the thread of *cpu* and QEMU's main thread, in sum, were runnable without a CPU."""
        return sum(map(run_delay, {self._main, self._tasks[cpu]}))

    def _stuck(self, passed: float) -> int | None:
        for cpu, task in self._tasks.items():
            delayed = self._delayed(cpu)
            starved = delayed - self._delays.get(cpu, delayed)
            self._delays[cpu] = delayed
            # QEMU had hardly a chance to run since the last look.
            if starved * 2 > passed:
                continue
            before, looks = self._serving.get(cpu, (frozenset(), 0))
            halted = _state(task) == "S"
            now = self._in_service(cpu) if halted else frozenset()
            same = now & before if looks else now
            self._serving[cpu] = (same, looks + 1) if same else (frozenset(), 0)
            if self._serving[cpu][1] >= STUCK_LOOKS:
                return cpu
        return None

    def _asleep(self, now: float) -> int | None:
        switches = {cpu: count for cpu, task in self._tasks.items() if (count := _switches(task)) is not None}
        total = sum(switches.values())
        for cpu, count in switches.items():
            others = total - count
            seen = self._seen.get(cpu)
            if seen is None or seen.switches != count:
                self._seen[cpu] = _Seen(count, now, others, self._delayed(cpu))
            elif (
                now - seen.since - (self._delayed(cpu) - seen.delayed) >= STILL_SECONDS
                and others - seen.others >= _BEATS
                # A thread that runs all the time is not switched either.
                and _state(self._tasks[cpu]) == "S"
            ):
                return cpu
        return None


def all_tick(console: str, cpus: int) -> bool:
    """Whether a kernel that boots has said on the *console* that it runs all *cpus* vCPUs."""
    found = _BROUGHT_UP.search(console)
    return found is not None and int(found[1]) == cpus


def describe_threads(pid: int) -> str:
    """Describe the threads of process *pid*, one a line: id, state, times scheduled, where it waits."""
    tasks = sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda task: int(task.name))
    return "\n".join(f"{task.name} {_state(task)} {_switches(task)} {_waits_in(task)}" for task in tasks)


def _switches(task: Path) -> int | None:
    """Return how often a thread has been scheduled, None when it is gone."""
    counts = _SWITCHES.findall(_read(task / "status"))
    return sum(map(int, counts)) if counts else None


def _state(task: Path) -> str:
    """Return the state letter of proc(5), ? when the thread is gone."""
    stat = _read(task / "stat")
    return stat.rpartition(")")[2].split()[0] if stat else "?"


def _waits_in(task: Path) -> str:
    return f"{_read(task / 'wchan')} {_read(task / 'syscall').strip()}"


def _read(path: Path) -> str:
    """Return the text of a file of procfs, empty when the thread is gone."""
    with contextlib.suppress(OSError):
        return path.read_text(encoding="ascii", errors="replace")
    return ""
