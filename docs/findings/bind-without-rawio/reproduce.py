#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""An unprivileged task that is handed an open no-IOMMU device node has the device.

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
BIND_IOMMUFD, ATTACH, IOAS_ALLOC = 0x3B76, 0x3B77, 0x3B81
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


def new_ioas(iommufd: int) -> int:
    """Make an address space."""
    return must(iommufd, IOAS_ALLOC, "=III", 12, 0, 0)[2]


def as_nobody(device: int, iommufd: int) -> int:
    """Give up every privilege and use the descriptors; return 1 when that works."""
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    result, _ = ioctl(device, BIND_IOMMUFD, "=IIiIQ", 24, 0, iommufd, 0, 0)
    print(f"BIND_IOMMUFD without CAP_SYS_RAWIO: want EPERM, got {name(result)}")
    if result < 0:
        return 0
    attached, _ = ioctl(device, ATTACH, "=IIII", 16, 0, new_ioas(iommufd), 0)
    print(f"ATTACH_IOMMUFD_PT: got {name(attached)}")
    before = int.from_bytes(os.pread(device, 2, CONFIG + COMMAND), "little")
    os.pwrite(device, (before | BUS_MASTER).to_bytes(2, "little"), CONFIG + COMMAND)
    after = int.from_bytes(os.pread(device, 2, CONFIG + COMMAND), "little")
    print(f"bus mastering, that is DMA to any physical address: got {'on' if after & BUS_MASTER else 'off'}")
    return 1


def main(bdf: str) -> int:
    with bound(bdf):
        device, iommufd = open_cdev(bdf), os.open("/dev/iommu", os.O_RDWR)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            code = 2
            try:
                code = as_nobody(device, iommufd)
            finally:
                sys.stdout.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.close(device)
    return code


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except (CannotRun, IndexError, OSError) as problem:
        print(f"cannot run: {problem!r}")
        sys.exit(2)
