#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The read-only bits of a device's MSI capability can be written, and stay as written.

Usage: reproduce.py BDF   (as root; a PCI device without a driver that has the MSI capability)
Exit status: 0 the kernel behaves, 1 the defect shows, 2 it cannot be tried here.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

PCI = Path("/sys/bus/pci")
PARAMETER = Path("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode")
BIND_IOMMUFD = 0x3B76
CONFIG, STATUS, CAPABILITIES, MSI = 7 << 40, 6, 0x34, 5
MULTIPLE_CAPABLE, ADDRESS_64 = 0x0E, 0x80


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


def ioctl(fd: int, number: int, form: str, *values: int) -> tuple[int, tuple[int, ...]]:
    """Return (0 or more, or -errno) and the structure as the kernel left it."""
    data = bytearray(struct.pack(form, *values))
    try:
        result = fcntl.ioctl(fd, number, data, True)
    except OSError as error:
        return -(error.errno or 0), values
    return result, struct.unpack(form, data)


def must(fd: int, number: int, form: str, *values: int) -> tuple[int, ...]:
    """Make an ioctl that has to work; return the structure."""
    result, answer = ioctl(fd, number, form, *values)
    if result < 0:
        raise CannotRun(f"ioctl {number:#x}: {os.strerror(-result)}")
    return answer


def open_cdev(bdf: str) -> int:
    """Open the device node; it is /dev/vfio/devices/noiommu-vfioN for a device without an IOMMU."""
    found = list((PCI / "devices" / bdf / "vfio-dev").iterdir())
    node = Path("/dev/vfio/devices") / found[0].name
    if not node.exists():
        raise CannotRun("this kernel has no device nodes (CONFIG_VFIO_DEVICE_CDEV)")
    return os.open(node, os.O_RDWR | os.O_CLOEXEC)


def bind(device: int, iommufd: int) -> int:
    """Bind an open device to an iommufd; return its id there."""
    return must(device, BIND_IOMMUFD, "=IIiIQ", 24, 0, iommufd, 0, 0)[3]


def read(device: int, where: int, size: int) -> int:
    """Read configuration space through VFIO."""
    return int.from_bytes(os.pread(device, size, CONFIG + where), "little")


def find_msi(device: int) -> int:
    """The position of the MSI capability."""
    where = read(device, CAPABILITIES, 1) if read(device, STATUS, 2) & 0x10 else 0
    while where and read(device, where, 1) != MSI:
        where = read(device, where + 1, 1)
    if not where:
        raise CannotRun("the device has no MSI")
    return where


def main(bdf: str) -> int:
    with bound(bdf):
        device, iommufd = open_cdev(bdf), os.open("/dev/iommu", os.O_RDWR)
        bind(device, iommufd)
        flags = find_msi(device) + 2
        before = read(device, flags, 2)
        wrong = before ^ (MULTIPLE_CAPABLE | ADDRESS_64)
        os.pwrite(device, wrong.to_bytes(2, "little"), CONFIG + flags)
        after = read(device, flags, 2)
        real = int.from_bytes((PCI / "devices" / bdf / "config").read_bytes()[flags : flags + 2], "little")
        print(f"MSI message control: {before:#06x}; written: {wrong:#06x}; in the device: {real:#06x}")
        changed = 0
        for what, mask in (("multiple message capable", MULTIPLE_CAPABLE), ("64-bit address", ADDRESS_64)):
            print(f"{what}, read again: want {before & mask:#x}, got {after & mask:#x}")
            changed |= (before ^ after) & mask
        os.close(device)
        os.close(iommufd)
    return int(changed != 0)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except (CannotRun, IndexError, OSError) as problem:
        print(f"cannot run: {problem!r}")
        sys.exit(2)
