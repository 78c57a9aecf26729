#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""An ATTACH that cannot write its answer undoes the wrong thing.

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
BIND_IOMMUFD, ATTACH = 0x3B76, 0x3B77
IOAS_ALLOC, IOAS_MAP = 0x3B81, 0x3B85
ATTACH_PASID, MAP_FIXED_READ_WRITE = 1, 7


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


def unanswered(device: int, flags: int, ioas: int) -> int:
    """ATTACH with its argument in a page that the kernel can read and not write; return -errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
    page = mmap.mmap(-1, 4096)
    page[:16] = struct.pack("=IIII", 16, flags, ioas, 0)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(4096), mmap.PROT_READ)
    return 0 if libc.ioctl(device, ATTACH, address) == 0 else -ctypes.get_errno()


def pinned() -> int:
    """KiB of this process that are pinned: the page tables that are in use hold what is mapped."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmPin:")[2].split()[0])


def try_one(bdf: str, *, pasid: bool) -> int:
    """Attach without an answer, a replacement or PASID 0; return 1 when the outcome is wrong."""
    memory = mmap.mmap(-1, 4096)
    memory[0] = 1
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    with bound(bdf):
        device, iommufd = open_cdev(bdf), os.open("/dev/iommu", os.O_RDWR)
        bind(device, iommufd)
        ioas = new_ioas(iommufd)
        must(iommufd, IOAS_MAP, "=IIIIQQQ", 40, MAP_FIXED_READ_WRITE, ioas, 0, address, 4096, 0x10000)
        if pasid:
            result, want = unanswered(device, ATTACH_PASID, ioas), 0
        else:
            must(device, ATTACH, "=IIII", 16, 0, ioas, 0)
            result, want = unanswered(device, 0, new_ioas(iommufd)), 4
        got = pinned()
        print(f"{'ATTACH of PASID 0' if pasid else 'ATTACH that replaces'}: got {name(result)};", end=" ")
        print(f"attached as before, KiB pinned: want {want}, got {got}")
        os.close(device)
        os.close(iommufd)
    return int(result == -errno.EFAULT and got != want)


def main(bdf: str) -> int:
    wrong = [try_one(bdf, pasid=pasid) for pasid in (False, True)]
    return int(any(wrong))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except (CannotRun, IndexError, OSError) as problem:
        print(f"cannot run: {problem!r}")
        sys.exit(2)
