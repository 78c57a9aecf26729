# SPDX-License-Identifier: GPL-2.0-only
"""Read the CPU and memory limits of this process's cgroups: of a container, systemd or a batch system.

Every cgroup from the process up to the root may set a limit, and the tightest applies (cgroup-v2.rst,
"Top-down Constraint").  Versions 1 and 2 are read, also mounted side by side.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

_PROC = Path("/proc/self")

_CACHE_V2: tuple[str, ...] = ("inactive_file", "active_file", "slab_reclaimable")
_CACHE_V1: tuple[str, ...] = ("total_inactive_file", "total_active_file")
"""Fields of memory.stat for memory that the kernel reclaims before an allocation fails."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The memory limit of one cgroup, in bytes."""

    limit: int
    available: int
    """Memory left below the limit, counting caches as free."""


def cpu_quota() -> float | None:
    """Return this process's quota in CPUs, such as 1.5; None without a quota."""
    quotas = [quota for directory in _directories("cpu") if (quota := _quota(directory)) is not None]
    return min(quotas, default=None)


def memory_limits() -> list[Memory]:
    """Return the memory limit of each cgroup around this process that has one."""
    return [memory for directory in _directories("memory") if (memory := _memory(directory)) is not None]


def _quota(directory: Path) -> float | None:
    words = _read(directory / "cpu.max").split()
    if not words:
        words = [_read(directory / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    # "max" in version 2 and -1 in version 1 mean no limit.
    if len(words) != 2 or not all(word.isdecimal() and int(word) for word in words):
        return None
    return int(words[0]) / int(words[1])


def _memory(directory: Path) -> Memory | None:
    # Above memory.high the kernel throttles a process until it hardly runs.
    limit = _least(directory, ("memory.max", "memory.high"))
    used, cache = "memory.current", _CACHE_V2
    if limit is None:
        limit = _least(directory, ("memory.limit_in_bytes",))
        used, cache = "memory.usage_in_bytes", _CACHE_V1
    if limit is None:
        return None
    stat = dict(line.split()[:2] for line in _read(directory / "memory.stat").splitlines() if " " in line)
    kept = int(_read(directory / used).strip() or 0) - sum(int(stat.get(name, 0)) for name in cache)
    return Memory(limit=limit, available=max(0, limit - max(0, kept)))


def _least(directory: Path, names: Sequence[str]) -> int | None:
    said = [_read(directory / name).strip() for name in names]
    return min((int(word) for word in said if word.isdecimal()), default=None)


def _directories(controller: str) -> Iterator[Path]:
    """Yield the directories of this process's cgroups for *controller*, innermost first."""
    for line in _read(_PROC / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for top, root in _mounts(controller if controllers else ""):
            inner = PurePosixPath(path)
            # In a container, a path may lie outside the mounted part; use only the mount point then.
            below = inner.relative_to(root) if inner.is_relative_to(root) else PurePosixPath()
            here = top / below if ".." not in below.parts else top
            while here != top:
                yield here
                here = here.parent
            yield top


def _mounts(controller: str) -> Iterator[tuple[Path, str]]:
    """Yield each mount point of *controller*'s hierarchy, and the cgroup that is mounted there.

    *controller* is empty for version 2.  See proc_pid_mountinfo(5).
    """
    for line in _read(_PROC / "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        words, (kind, *_, options) = before.split(), after.split() or ("", "")
        if (kind == "cgroup2" and not controller) or (kind == "cgroup" and controller in options.split(",")):
            yield Path(_plain(words[4])), _plain(words[3])


def _plain(escaped: str) -> str:
    """Decode a path from mountinfo, which writes a blank as \\040."""
    return escaped.replace("\\040", " ")


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""
