# SPDX-License-Identifier: GPL-2.0-only
"""Whether every processor of a VM is alive, seen from outside.

On a busy host a processor that QEMU emulates may be lost for good (10.0.2, TCG), and with it, to the guest,
the tasks that sleep on it; to us that is minutes of waiting for a case that never ends.  Two kinds were met,
both with the processor halted, interrupts on and its timer's vector 236 pending, while the others ran on:

- Nothing in service, and yet no interrupt taken any more, the serial port's included: as if its thread in
  QEMU were not woken (inferred: the thread was not looked at).  A kernel with CONFIG_HZ_PERIODIC interrupts
  every processor CONFIG_HZ times a second, idle or not: a thread not scheduled for seconds is lost.
- Vector 236 stands in the ISR of its local APIC: acknowledged, but its handler never ran, and whatever is of
  the same or a lesser priority waits for its end (Intel SDM, volume 3, "Interrupt Acceptance for Fixed
  Interrupts").
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

STILL_SECONDS = 5.0
"""Some thousand ticks of CONFIG_HZ=250 that did not come."""

_BEATS = 100
"""How often another processor must have been scheduled meanwhile, or the host itself stood still."""

LOOK_SECONDS = 0.8
"""Looks that follow one another faster than this would see one interrupt twice."""

STUCK_LOOKS = 8
"""How often in a row a halted processor must be found serving an interrupt: a handler takes microseconds."""

_SWITCHES = re.compile(r"^(?:non)?voluntary_ctxt_switches:\s+(\d+)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True, slots=True)
class _Seen:
    switches: int
    since: float
    """When it was scheduled last, as far as we know."""
    others: int
    """How often the others had been scheduled by then, all together."""


@dataclasses.dataclass(frozen=True, slots=True)
class Lost:
    """A processor that will do nothing any more."""

    what: str
    """A sentence about it."""
    is_emulators: bool
    """Whether no kernel can have done that: none runs between an interrupt and the start of its handler."""


class Pulse:
    """The processors of one VM."""

    def __init__(
        self,
        threads: Mapping[int, int],
        pid: int,
        lapic: Callable[[int], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*threads* are thread ids of process *pid* by number of processor, as `query-cpus-fast` tells.

        *lapic* gives what the monitor's `info lapic N` prints.
        """
        self._tasks = {cpu: Path(f"/proc/{pid}/task/{thread}") for cpu, thread in threads.items()}
        self._lapic = lapic
        self._clock = clock
        self._seen: dict[int, _Seen] = {}
        self._serving: dict[int, tuple[frozenset[str], int]] = {}
        """Processor -> what it was found to serve each time in the last so many looks."""
        self._looking = threading.Lock()
        self._looked = -math.inf

    def lost(self) -> Lost | None:
        """A processor that is lost; None while there is none.

        What was seen in earlier calls is what it is judged by: ask every second or so.  Where several threads
        do, whoever comes too early is told of none.  Raises QmpError when QEMU does not answer.
        """
        with self._looking:
            now = self._clock()
            if now - self._looked < LOOK_SECONDS:
                return None
            self._looked = now
            return self._look()

    def _look(self) -> Lost | None:
        asleep = self._asleep()
        if asleep is not None:
            return Lost(f"QEMU does not run processor {asleep} of the guest any more", is_emulators=False)
        stuck = self._stuck()
        if stuck is not None:
            what = f"processor {stuck} of the guest is halted in the middle of an interrupt"
            return Lost(what, is_emulators=True)
        return None

    def _stuck(self) -> int | None:
        for cpu, task in self._tasks.items():
            before, looks = self._serving.get(cpu, (frozenset(), 0))
            halted = _state(task) == "S"
            now = _in_service(self._lapic(cpu)) if halted else frozenset()
            same = now & before if looks else now
            self._serving[cpu] = (same, looks + 1) if same else (frozenset(), 0)
            if self._serving[cpu][1] >= STUCK_LOOKS:
                return cpu
        return None

    def _asleep(self) -> int | None:
        now = self._clock()
        switches = {cpu: count for cpu, task in self._tasks.items() if (count := _switches(task)) is not None}
        total = sum(switches.values())
        for cpu, count in switches.items():
            others = total - count
            seen = self._seen.get(cpu)
            if seen is None or seen.switches != count:
                self._seen[cpu] = _Seen(count, now, others)
            elif (
                now - seen.since >= STILL_SECONDS
                and others - seen.others >= _BEATS
                # One that computes all the time is not switched either.
                and _state(self._tasks[cpu]) == "S"
            ):
                return cpu
        return None


def _in_service(lapic: str) -> frozenset[str]:
    """The vectors on the ISR line of `info lapic`."""
    line = next((line for line in lapic.splitlines() if line.startswith("ISR")), "")
    return frozenset(re.findall(r"\d+", line))


def _switches(task: Path) -> int | None:
    """How often a thread has been scheduled; None when it is gone."""
    with contextlib.suppress(OSError):
        return sum(
            map(int, _SWITCHES.findall((task / "status").read_text(encoding="ascii", errors="replace")))
        )
    return None


def describe_threads(pid: int) -> str:
    """The threads of process *pid*, one a line: id, state, times scheduled, where in the kernel it waits."""
    tasks = sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda task: int(task.name))
    return "\n".join(f"{task.name} {_state(task)} {_switches(task)} {_waits_in(task)}" for task in tasks)


def _state(task: Path) -> str:
    """The letter of proc(5), ? when the thread is gone."""
    with contextlib.suppress(OSError):
        stat = (task / "stat").read_text(encoding="ascii", errors="replace")
        return stat.rpartition(")")[2].split()[0]
    return "?"


def _waits_in(task: Path) -> str:
    with contextlib.suppress(OSError):
        call = (task / "syscall").read_text(encoding="ascii", errors="replace").strip()
        return f"{(task / 'wchan').read_text(encoding='ascii', errors='replace')} {call}"
    return "?"
