#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""A device without an IOMMU gets the name of one that has an IOMMU.

Usage: reproduce.py BDF   (as root; a PCI device without an IOMMU and without a driver)
Exit status: 0 the kernel behaves, 1 the defect shows, 2 it cannot be tried here.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PCI = Path("/sys/bus/pci")
PARAMETER = Path("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode")
SECONDS = 60.0


class CannotRun(Exception):
    """This machine cannot show it."""


def toggle() -> None:
    """Switch no-IOMMU mode on and off, for ever."""
    fd = os.open(PARAMETER, os.O_WRONLY)
    while True:
        os.pwrite(fd, b"Y", 0)
        os.pwrite(fd, b"N", 0)


def names(bdf: str) -> Iterator[tuple[str, str]]:
    """Bind and unbind until the time is up; yield class device and group of every bind that worked."""
    device = PCI / "devices" / bdf
    bind = os.open(PCI / "drivers/vfio-pci/bind", os.O_WRONLY)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        try:
            os.write(bind, bdf.encode())
        except OSError:
            continue  # the mode was off
        yield next((device / "vfio-dev").iterdir()).name, (device / "iommu_group/name").read_text().strip()
        (device / "driver/unbind").write_text(bdf)


def main(bdf: str) -> int:
    device = PCI / "devices" / bdf
    if (device / "driver").exists() or (device / "iommu_group").exists():
        raise CannotRun(f"{bdf} has a driver or an IOMMU")
    if not PARAMETER.exists() or not Path("/sys/class/vfio").exists():
        raise CannotRun("the kernel needs no-IOMMU mode, CONFIG_VFIO_GROUP and CONFIG_VFIO_DEVICE_CDEV")
    (device / "driver_override").write_text("vfio-pci")
    child = os.fork()
    if child == 0:
        toggle()
    binds, wrong = 0, ""
    try:
        for name, group in names(bdf):
            binds += 1
            if not name.startswith("noiommu-"):
                wrong = f"{name} in the group {group!r}"
                (device / "driver/unbind").write_text(bdf)
                break
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        (device / "driver_override").write_text("\n")
    print(f"name of a device without an IOMMU, {binds} binds: want noiommu-vfioN, got {wrong or 'it'}")
    return int(bool(wrong))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except (CannotRun, IndexError, OSError) as problem:
        print(f"cannot run: {problem!r}")
        sys.exit(2)
