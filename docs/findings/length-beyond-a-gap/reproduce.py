#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""IOMMU_IOAS_NOIOMMU_GET_PA returns a length that reaches beyond the contiguous memory, with large pages.

Usage: reproduce.py BDF   (as root; a PCI device without an IOMMU and without a driver)
Exit status: 0 the kernel behaves, 1 the defect shows, 2 it cannot be tried here.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

PCI = Path("/sys/bus/pci")
PARAMETER = Path("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode")
BIND_IOMMUFD, ATTACH, IOAS_ALLOC, IOAS_MAP, GET_PA = 0x3B76, 0x3B77, 0x3B81, 0x3B85, 0x3B95
FIXED, WRITEABLE, READABLE = 1, 2, 4
PAGE, SMALLEST, BASE = mmap.PAGESIZE, 4096, 1 << 28


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


def new_ioas(iommufd: int) -> int:
    """Make an address space."""
    return must(iommufd, IOAS_ALLOC, "=III", 12, 0, 0)[2]


def same_page_twice() -> int:
    """Map one page of memory at two neighbouring addresses; return the first."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    file = os.memfd_create("page")
    os.write(file, bytes(PAGE))
    start = libc.mmap(None, 2 * PAGE, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    for index in (0, 1):
        libc.mmap(start + index * PAGE, PAGE, 3, mmap.MAP_SHARED | 0x10, file, 0)  # MAP_FIXED
    return int(start)


def main(bdf: str) -> int:
    if PAGE == SMALLEST:
        raise CannotRun("this kernel has pages of 4 KiB")
    with bound(bdf):
        device, iommufd = open_cdev(bdf), os.open("/dev/iommu", os.O_RDWR)
        bind(device, iommufd)
        ioas = new_ioas(iommufd)
        must(device, ATTACH, "=IIII", 16, 0, ioas, 0)
        # The last 4 KiB of the page, then the page from its beginning: a gap after 4 KiB.
        start = same_page_twice() + PAGE - SMALLEST
        flags = FIXED | WRITEABLE | READABLE
        result, _ = ioctl(iommufd, IOAS_MAP, "=IIIIQQQ", 40, flags, ioas, 0, start, PAGE, BASE)
        if result == -errno.EINVAL:
            print("MAP refuses an IOVA and memory with different offsets in their pages")
            return 0
        length = must(iommufd, GET_PA, "=IIIIQQQ", 40, 0, ioas, 0, BASE, PAGE, 0)[5]
        print(f"contiguous bytes from the beginning of the mapping: want {SMALLEST}, got {length}")
        os.close(device)
    return int(length != SMALLEST)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except (CannotRun, IndexError, OSError) as problem:
        print(f"cannot run: {problem!r}")
        sys.exit(2)
