# SPDX-License-Identifier: GPL-2.0-only
"""CPUs, memory and disk space that this process may use on this host, and how long it waits for a CPU."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from harness.base import cgroup

_BEAT_SECONDS = 1.0
_STOPPED_SECONDS = 3.0
"""A beat that comes later than this means that the process was stopped: a busy host delays it less."""

_MEMINFO = Path("/proc/meminfo")


def usable_cpus() -> int:
    """Return how many CPUs this process may use, by its affinity and its cgroups' quotas; at least 1."""
    allowed = len(os.sched_getaffinity(0))
    quota = cgroup.cpu_quota()
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def default_compilers() -> int:
    """Return how many compilers to run at once: one more than the CPUs that this process may use."""
    return usable_cpus() + 1


def available_mib() -> int:
    """Return the memory available without swapping, in MiB; 0 if unknown.

    It is proc_meminfo(5) MemAvailable, or less where a cgroup's limit leaves less.
    """
    return min([_meminfo_mib("MemAvailable"), *(one.available >> 20 for one in cgroup.memory_limits())])


def total_mib() -> int:
    """Return the total memory (proc_meminfo(5) MemTotal, or the limit of a cgroup), in MiB; 0 if unknown."""
    return min([_meminfo_mib("MemTotal"), *(one.limit >> 20 for one in cgroup.memory_limits())])


def starvation(pid: int) -> Callable[[], float]:
    """Return a function that returns for how many seconds since now process *pid* was runnable without a CPU.

    That of the thread that waited longest: another one may have waited longer before.  It is 0 when the
    process is gone, or when the kernel does not count this (sched-stats.rst, /proc/<pid>/schedstat), but at
    least the time for which this process was stopped: what stops it (the freezer of a container) most likely
    stops *pid* as well, which then waits for nothing.
    """
    grown, pulse = _schedstats_since(pid), _own_pulse()
    stopped = pulse.missed()
    return lambda: max([*(waited for _, waited in grown()), pulse.missed() - stopped])


def processor_use(pid: int) -> Callable[[], tuple[float, float]]:
    """Return a function that returns the seconds since now for which the threads of *pid* ran, and waited to.

    In sum: what they do one after the other, as when a guest moves its only busy task between its vCPUs,
    counts once.  Both are 0 when the process is gone, or when the kernel does not count this.
    """
    grown = _schedstats_since(pid)

    def since() -> tuple[float, float]:
        now = grown()
        return sum(ran for ran, _ in now), sum(waited for _, waited in now)

    return since


class _OwnPulse(threading.Thread):
    """Notices when this process has not run at all."""

    def __init__(self) -> None:
        super().__init__(name="pulse", daemon=True)
        self._last = (time.monotonic(), 0.0)
        """When the last beat was, and what had been missed by then: one value, as others read it."""

    def missed(self) -> float:
        """Return for how many seconds in sum this process has not run."""
        return self._now()[1]

    def run(self) -> None:
        while True:
            time.sleep(_BEAT_SECONDS)
            self._last = self._now()

    def _now(self) -> tuple[float, float]:
        now, (beat, missed) = time.monotonic(), self._last
        late = now - beat - _BEAT_SECONDS
        return now, missed + (late if late > _STOPPED_SECONDS else 0.0)


@functools.cache
def _own_pulse() -> _OwnPulse:
    pulse = _OwnPulse()
    pulse.start()
    return pulse


def run_delay(task: Path) -> float:
    """Return the seconds for which the thread with procfs directory *task* was runnable without a CPU."""
    return _schedstat(task)[1]


def _schedstat(task: Path) -> tuple[float, float]:
    """Return the seconds for which a thread ran, and waited to (sched-stats.rst, /proc/<pid>/schedstat)."""
    with contextlib.suppress(OSError, ValueError):
        ran, waited, _ = (task / "schedstat").read_text(encoding="ascii").split()
        return int(ran) / 1e9, int(waited) / 1e9
    return 0.0, 0.0


def _schedstats(pid: int) -> dict[str, tuple[float, float]]:
    """Return _schedstat() of each thread of process *pid*; empty when it is gone."""
    with contextlib.suppress(OSError):
        return {task.name: _schedstat(task) for task in Path(f"/proc/{pid}/task").iterdir()}
    return {}


def free_mib(directory: Path) -> int:
    """Return the space of *directory*'s file system for unprivileged users (statvfs(3) f_bavail), in MiB."""
    facts = os.statvfs(directory)
    return facts.f_bavail * facts.f_frsize >> 20


def _meminfo_mib(wanted: str) -> int:
    for line in _MEMINFO.read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == wanted:
            return int(value.split()[0]) // 1024
    return 0


def _schedstats_since(pid: int) -> Callable[[], list[tuple[float, float]]]:
    """Return a function that returns by how much _schedstat() of each thread of *pid* has grown since now."""
    before = _schedstats(pid)

    def grown() -> list[tuple[float, float]]:
        found = [(now, before.get(task, (0.0, 0.0))) for task, now in _schedstats(pid).items()]
        return [
            (ran - ran_before, waited - waited_before) for (ran, waited), (ran_before, waited_before) in found
        ]

    return grown
