# SPDX-License-Identifier: GPL-2.0-only
"""What this host has to give."""

from __future__ import annotations

import os
from pathlib import Path


def default_compilers() -> int:
    """How many compilers to run at once: one more than the processors that this process may use."""
    return len(os.sched_getaffinity(0)) + 1


def available_mib() -> int:
    """Memory that can be had without swapping (proc_meminfo(5) MemAvailable), in MiB; 0 when nobody says."""
    return _meminfo_mib("MemAvailable")


def total_mib() -> int:
    """All memory there is (proc_meminfo(5) MemTotal), in MiB; 0 when nobody says."""
    return _meminfo_mib("MemTotal")


def free_mib(directory: Path) -> int:
    """Room on the file system of *directory* for one without privileges (statvfs(3) f_bavail), in MiB."""
    room = os.statvfs(directory)
    return room.f_bavail * room.f_frsize >> 20


def _meminfo_mib(wanted: str) -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == wanted:
            return int(value.split()[0]) // 1024
    return 0
