# SPDX-License-Identifier: GPL-2.0-only
"""Whether every processor of a VM is alive, seen from outside: by the threads in which QEMU runs them.

On a busy host an emulated processor may fall asleep for good: its timer interrupt is pending, interrupts are
on, the others run, and its thread is not woken (QEMU 10.0.2, TCG; `info lapic` and `info registers` of such
VMs).  To the guest that is a task that never comes back, and to us minutes of waiting.  A kernel with
CONFIG_HZ_PERIODIC interrupts every processor CONFIG_HZ times a second, idle or not, so that a thread that is
not scheduled at all for seconds, while its sister is, can be nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

STILL_SECONDS = 5.0
"""Some thousand ticks of CONFIG_HZ=250 that did not come."""

_BEATS = 100
"""How often another processor must have been scheduled meanwhile, or the host itself stood still."""

_SWITCHES = re.compile(r"^(?:non)?voluntary_ctxt_switches:\s+(\d+)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True, slots=True)
class _Seen:
    switches: int
    since: float
    """When it was scheduled last, as far as we know."""
    others: int
    """How often the others had been scheduled by then, all together."""


class Pulse:
    """The threads of one VM's processors."""

    def __init__(
        self, threads: Mapping[int, int], pid: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """*threads* are thread ids of process *pid* by number of processor, as `query-cpus-fast` tells."""
        self._tasks = {cpu: Path(f"/proc/{pid}/task/{thread}") for cpu, thread in threads.items()}
        self._clock = clock
        self._seen: dict[int, _Seen] = {}

    def still(self) -> int | None:
        """The number of a processor that has stood still for STILL_SECONDS; None while there is none.

        What was seen in earlier calls is what it is judged by: ask every second or so.
        """
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
