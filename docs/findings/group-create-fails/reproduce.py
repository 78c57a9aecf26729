#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""A bind during which an allocation fails makes vfio_group_release() warn.

Usage: reproduce.py BDF   (as root; a PCI device without an IOMMU and without a driver; a kernel with
CONFIG_FAULT_INJECTION, CONFIG_FAILSLAB and CONFIG_FAULT_INJECTION_DEBUG_FS)
Exit status: 0 the kernel behaves, 1 the defect shows, 2 it cannot be tried here.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

PCI = Path("/sys/bus/pci")
PARAMETER = Path("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode")
FAILSLAB = Path("/sys/kernel/debug/failslab")
FAIL_NTH = Path("/proc/thread-self/fail-nth")
MOST = 400


class CannotRun(Exception):
    """This machine cannot show it."""


def check(bdf: str) -> Path:
    """The device's directory; CannotRun when something is missing."""
    device = PCI / "devices" / bdf
    if not device.exists():
        raise CannotRun(f"there is no device {bdf}")
    if (device / "driver").exists():
        raise CannotRun(f"{bdf} is in use by {(device / 'driver').resolve().name}: unbind it first")
    if not PARAMETER.exists():
        raise CannotRun("this kernel has no no-IOMMU mode (or vfio is not loaded)")
    if not FAIL_NTH.exists() or not FAILSLAB.exists():
        raise CannotRun("this kernel injects no failing allocations, or debugfs is not mounted")
    return device


def bind(bdf: str, fail: int, nth: int) -> tuple[bool, bool]:
    """Bind with the nth allocation failing: whether it was bound, and whether there were so many."""
    file = os.open(PCI / "drivers/vfio-pci/bind", os.O_WRONLY)
    done = True
    try:
        os.pwrite(fail, str(nth).encode(), 0)
        os.write(file, bdf.encode())
    except OSError:
        done = False
    try:
        failed = os.pread(fail, 16, 0).strip(b"\0\n ") == b"0"
    except OSError:
        failed = False
    os.pwrite(fail, b"0", 0)
    os.close(file)
    return done, failed


def complaints() -> list[str]:
    """The WARNINGs in the kernel's log."""
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    found = []
    try:
        while True:
            line = os.read(log, 8192).decode(errors="replace")
            if "WARNING:" in line:
                found.append(line.partition(";")[2].splitlines()[0])
    except BlockingIOError:
        return found
    finally:
        os.close(log)


def main(bdf: str) -> int:
    device = check(bdf)
    PARAMETER.write_text("Y")
    (FAILSLAB / "ignore-gfp-wait").write_text("N")
    (FAILSLAB / "verbose").write_text("0")
    (device / "driver_override").write_text("vfio-pci")
    before = len(complaints())
    fail = os.open(FAIL_NTH, os.O_RDWR)
    for nth in range(1, MOST):
        done, failed = bind(bdf, fail, nth)
        if done:
            (device / "driver/unbind").write_text(bdf)
            if not failed:
                break
    os.close(fail)
    (device / "driver_override").write_text("\n")
    found = complaints()[before:]
    print(f"complaints of the kernel: want none, got {len(found)}")
    for line in sorted(set(found)):
        print(f"  {line}")
    return 1 if found else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    try:
        sys.exit(main(sys.argv[1]))
    except (CannotRun, PermissionError) as error:
        print(f"cannot be tried here: {error}", file=sys.stderr)
        sys.exit(2)
