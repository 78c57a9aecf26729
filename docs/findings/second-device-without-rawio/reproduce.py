#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""A group gives an unprivileged task its no-IOMMU device, if that is open already.

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
from collections.abc import Iterator
from pathlib import Path

PCI = Path("/sys/bus/pci")
PARAMETER = Path("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode")
SET_CONTAINER, GET_DEVICE_FD, SET_IOMMU = 0x3B68, 0x3B6A, 0x3B66
NOIOMMU_IOMMU = 8


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


def get_device(group: int, bdf: str) -> int:
    """GET_DEVICE_FD; return the descriptor or -errno."""
    try:
        return int(fcntl.ioctl(group, GET_DEVICE_FD, bytearray(bdf.encode() + b"\0"), True))
    except OSError as error:
        return -(error.errno or 0)


def as_nobody(group: int, bdf: str) -> int:
    """Try to get the device in a child without privileges; return the descriptor it got or -errno."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return 0 if code == 0 else -code
    code = errno.EPROTO
    try:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        code = max(0, -get_device(group, bdf))
    finally:
        os._exit(code)


def main(bdf: str) -> int:
    with bound(bdf):
        node = Path(f"/dev/vfio/noiommu-{(PCI / 'devices' / bdf / 'iommu_group').resolve().name}")
        group, container = os.open(node, os.O_RDWR), os.open("/dev/vfio/vfio", os.O_RDWR)
        fcntl.ioctl(group, SET_CONTAINER, struct.pack("=i", container))
        fcntl.ioctl(container, SET_IOMMU, NOIOMMU_IOMMU)
        closed = as_nobody(group, bdf)
        print(f"GET_DEVICE_FD without CAP_SYS_RAWIO, the device not open: want EPERM, got {name(closed)}")
        device = get_device(group, bdf)
        opened = as_nobody(group, bdf)
        print(f"the same with the device open in another task: want EPERM, got {name(opened)}")
        os.close(device)
        os.close(group)
    return int(device >= 0 and opened == 0)


def name(result: int) -> str:
    """The errno's name, or what it is when there is none."""
    return errno.errorcode.get(-result, str(result)) if result < 0 else "the device"


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except (CannotRun, IndexError, OSError) as problem:
        print(f"cannot run: {problem!r}")
        sys.exit(2)
