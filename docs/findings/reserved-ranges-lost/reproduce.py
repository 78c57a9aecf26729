#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""A replacement that fails takes the reserved ranges of the attached device away.

Usage: reproduce.py BARE REAL   (as root; two PCI devices without drivers: BARE has no IOMMU before it,
REAL has one)
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
BIND_IOMMUFD, ATTACH = 0x3B76, 0x3B77
IOAS_ALLOC, IOVA_RANGES, IOAS_MAP, HWPT_ALLOC = 0x3B81, 0x3B84, 0x3B85, 0x3B89
MAP_FIXED_READ_WRITE, MSI_WINDOW = 7, 0xFEE00000


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


def usable(iommufd: int, ioas: int) -> list[str]:
    """The ranges of an address space that can be mapped."""
    room = (ctypes.c_uint64 * 32)()
    answer = must(iommufd, IOVA_RANGES, "=IIIIQQ", 32, ioas, 16, 0, ctypes.addressof(room), 0)
    return [f"{room[2 * i]:#x}-{room[2 * i + 1]:#x}" for i in range(answer[2])]


def main(bare: str, real: str) -> int:
    page = mmap.mmap(-1, 4096)
    page[0] = 1
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    with bound(bare), bound(real):
        iommufd = os.open("/dev/iommu", os.O_RDWR)
        with_iommu, without = open_cdev(real), open_cdev(bare)
        bind(with_iommu, iommufd)
        devid = bind(without, iommufd)
        ioas = new_ioas(iommufd)
        must(with_iommu, ATTACH, "=IIII", 16, 0, ioas, 0)
        before = usable(iommufd, ioas)
        foreign = must(iommufd, HWPT_ALLOC, "=IIIIIIIIQ", 40, 0, devid, ioas, 0, 0, 0, 0, 0)[4]
        result, _ = ioctl(with_iommu, ATTACH, "=IIII", 16, 0, foreign, 0)
        print(f"ATTACH to the page table of a no-IOMMU device: want EINVAL, got {name(result)}")
        after = usable(iommufd, ioas)
        print(f"usable ranges after it: want {before}, got {after}")
        window = (40, MAP_FIXED_READ_WRITE, ioas, 0, address, 4096, MSI_WINDOW)
        mapped, _ = ioctl(iommufd, IOAS_MAP, "=IIIIQQQ", *window)
        print(f"mapping memory over the interrupt window: want EINVAL, got {name(mapped)}")
        os.close(without)
        os.close(with_iommu)
    return int(after != before)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1], sys.argv[2]))
    except (CannotRun, IndexError, OSError) as problem:
        print(f"cannot run: {problem!r}")
        sys.exit(2)
