#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""An unprivileged task that is handed a no-IOMMU group gets a device from it that somebody has open.

Usage: reproduce.py BDF   (as root; a PCI device without an IOMMU and without a driver)
Exit status: 0 the kernel behaves, 1 the defect shows, 2 it cannot be tried here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

PCI = Path("/sys/bus/pci")
PARAMETER = Path("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode")
SET_IOMMU, SET_CONTAINER, GET_DEVICE_FD = 0x3B66, 0x3B68, 0x3B6A
NOIOMMU_IOMMU = 8
CONFIG, COMMAND, BUS_MASTER = 7 << 40, 4, 4


class CannotRun(Exception):
    """This machine cannot show it."""


@contextlib.contextmanager
def bound(bdf: str) -> Iterator[None]:
    """Have the device on vfio-pci; it must have no other driver."""
    device = PCI / "devices" / bdf
    driver = device / "driver"
    if not device.exists():
        raise CannotRun(f"there is no device {bdf}")
    if driver.exists() and driver.resolve().name != "vfio-pci":
        raise CannotRun(f"{bdf} is in use by {driver.resolve().name}: unbind it first")
    if not PARAMETER.exists():
        raise CannotRun("this kernel has no no-IOMMU mode (or vfio is not loaded)")
    PARAMETER.write_text("Y")
    if not driver.exists():
        (device / "driver_override").write_text("vfio-pci")
        (PCI / "drivers/vfio-pci/bind").write_text(bdf)
    try:
        yield
    finally:
        (driver / "unbind").write_text(bdf)
        (device / "driver_override").write_text("\n")


def name(result: int) -> str:
    """The errno's name, or the number."""
    return errno.errorcode.get(-result, str(result)) if result < 0 else str(result)


def as_nobody(function: Callable[[], int]) -> int:
    """Run it in a child that has given up every privilege; return what it returns."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 2
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            code = function()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def open_group(bdf: str) -> int:
    """Open the group of the device and put it into a container; return it."""
    number = (PCI / "devices" / bdf / "iommu_group").resolve().name
    node = Path("/dev/vfio") / f"noiommu-{number}"
    if not node.exists():
        raise CannotRun("this kernel has no groups (CONFIG_VFIO_GROUP), or the device has an IOMMU")
    group, container = os.open(node, os.O_RDWR), os.open("/dev/vfio/vfio", os.O_RDWR)
    fcntl.ioctl(group, SET_CONTAINER, struct.pack("i", container))
    fcntl.ioctl(container, SET_IOMMU, NOIOMMU_IOMMU)
    return group


def get_device(group: int, bdf: str) -> int:
    """GET_DEVICE_FD: return the descriptor or -errno."""
    try:
        return int(fcntl.ioctl(group, GET_DEVICE_FD, bytearray(bdf.encode() + b"\0"), True))
    except OSError as error:
        return -(error.errno or 0)


def try_it(group: int, bdf: str, when: str) -> int:
    """Ask for the device without privileges; return 1 when it is given."""
    device = get_device(group, bdf)
    got = name(device) if device < 0 else "a descriptor"
    print(f"GET_DEVICE_FD without CAP_SYS_RAWIO, {when}: want EPERM, got {got}")
    if device < 0:
        return 0
    before = int.from_bytes(os.pread(device, 2, CONFIG + COMMAND), "little")
    os.pwrite(device, (before | BUS_MASTER).to_bytes(2, "little"), CONFIG + COMMAND)
    after = int.from_bytes(os.pread(device, 2, CONFIG + COMMAND), "little")
    print(f"bus mastering, that is DMA to any physical address: got {'on' if after & BUS_MASTER else 'off'}")
    return 1


def main(bdf: str) -> int:
    with bound(bdf):
        group = open_group(bdf)
        first = as_nobody(lambda: try_it(group, bdf, "nobody has the device"))
        device = get_device(group, bdf)
        if device < 0:
            raise CannotRun(f"GET_DEVICE_FD as root: {name(device)}")
        second = as_nobody(lambda: try_it(group, bdf, "the device open already"))
        os.close(device)
        os.close(group)
    return max(first, second)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except (CannotRun, IndexError, OSError) as problem:
        print(f"cannot run: {problem!r}")
        sys.exit(2)
