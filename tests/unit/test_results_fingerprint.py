# SPDX-License-Identifier: GPL-2.0-only
"""Splat fingerprints: equal for one cause, different for two."""

from __future__ import annotations

import re
from pathlib import Path

from harness.machine.splat import Detector
from harness.results.fingerprint import LENGTH, fingerprint, title

GOLDEN = Path(__file__).parents[1] / "golden"


def splats(name: str) -> list[str]:
    detector = Detector()
    for line in (GOLDEN / name).read_text().splitlines():
        detector.feed(line, 0)
    return ["\n".join(splat.lines) for splat in detector.splats]


def test_what_a_boot_decides_does_not_count() -> None:
    """Times, addresses, offsets, line numbers, pids and the process's name are not the cause."""
    (kasan,) = splats("console-kasan.txt")
    other = re.sub(r"T(\d+)\]", r"T9\1]", kasan.replace("20.", "77.", 5))
    other = other.replace("+0x4c/0x120", "+0x5a/0x130").replace("ffff888004c5a818", "ffff88800badc0de")
    other = other.replace("python3/80", "agent/4711").replace("Read of size 8", "Read of size 8")
    assert other != kasan
    assert fingerprint(other) == fingerprint(kasan)
    (warn,) = splats("console-warn.txt")
    moved = warn.replace("device.c:742", "device.c:751").replace("CPU#0: python3/71", "CPU#3: sh/9")
    moved = "\n".join(re.sub(r"^\[.*?\]\[.*?\] ", "", line) for line in moved.splitlines())
    assert fingerprint(moved) == fingerprint(warn)
    assert title(warn).startswith("WARNING: drivers/iommu/iommufd/device.c:742")


def test_another_cause_is_another_fingerprint() -> None:
    """Every golden console has its own, and another caller makes another."""
    found = [
        fingerprint(splat)
        for name in ("console-kasan.txt", "console-lockdep.txt", "console-oops.txt", "console-warn.txt")
        for splat in splats(name)
    ]
    assert len(set(found)) == len(found)
    assert all(re.fullmatch(f"[0-9a-f]{{{LENGTH}}}", one) for one in found)
    (warn,) = splats("console-warn.txt")
    assert fingerprint(warn.replace("vfio_df_ioctl_detach_pt", "vfio_df_unbind")) != fingerprint(warn)


def test_nothing_has_none() -> None:
    assert fingerprint("") == fingerprint("\n ===== \n") == ""
