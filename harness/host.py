# SPDX-License-Identifier: GPL-2.0-only
"""What this host has to give."""

from __future__ import annotations

from pathlib import Path


def available_mib() -> int:
    """Memory that can be had without swapping (proc_meminfo(5) MemAvailable), in MiB; 0 when nobody says."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) // 1024
    return 0
