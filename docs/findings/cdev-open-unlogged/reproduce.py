#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Opening a no-IOMMU device by its device node leaves no line in the log; by the group it does.

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
BIND_IOMMUFD = 0x3B76


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


def name(result: int) -> str:
    """The errno's name, or the number."""
    return errno.errorcode.get(-result, str(result)) if result < 0 else str(result)


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


def named(log: int) -> bool:
    """Whether the kernel has named this process as the user of a device since the last look."""
    found = False
    with contextlib.suppress(BlockingIOError):
        while True:
            text = os.read(log, 8192).decode(errors="replace")
            found |= "opened by user" in text and f":{os.getpid()})" in text
    return found


def main(bdf: str) -> int:
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    os.lseek(log, 0, os.SEEK_END)
    with bound(bdf):
        device, iommufd = open_cdev(bdf), os.open("/dev/iommu", os.O_RDWR)
        bind(device, iommufd)
        by_node = named(log)
        print(f"a log line after open and BIND_IOMMUFD of the device node: want one, got {by_node or 'none'}")
        os.close(device)
    return int(not by_node)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except (CannotRun, IndexError, OSError) as problem:
        print(f"cannot run: {problem!r}")
        sys.exit(2)
