#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The second dirty bitmap of a type1 container has bits of pages that are not mapped.

Usage: reproduce.py BDF   (as root; a PCI device behind an IOMMU, alone in its group, without a driver)
Exit status: 0 the kernel behaves, 1 the defect shows, 2 it cannot be tried here.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

PCI = Path("/sys/bus/pci")
SET_IOMMU, SET_CONTAINER, GET_DEVICE_FD = 0x3B66, 0x3B68, 0x3B6A
MAP_DMA, UNMAP_DMA, DIRTY_PAGES = 0x3B71, 0x3B72, 0x3B75
TYPE1V2_IOMMU = 3
READ_WRITE, UNMAP_GET_DIRTY = 3, 1
START, GET_BITMAP = 1, 4
PAGE, IOVA = 4096, 0x40_0000_0000
PAGES = 64
"""Pages in the range that is asked for: one word of the bitmap."""

MAPPED = 0b11100011
"""The pages that are mapped: two at the beginning of the range, and three from its sixth page on."""


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
    if not driver.exists():
        (device / "driver_override").write_text("vfio-pci")
        (PCI / "drivers/vfio-pci/bind").write_text(bdf)
    try:
        yield
    finally:
        (driver / "unbind").write_text(bdf)
        (device / "driver_override").write_text("\n")


@contextlib.contextmanager
def opened(bdf: str) -> Iterator[int]:
    """Have the device open in a type1 container; yield the container."""
    node = Path("/dev/vfio") / (PCI / "devices" / bdf / "iommu_group").resolve().name
    if not node.exists():
        raise CannotRun(f"there is no {node}: the device has no IOMMU, or the kernel no groups")
    group, container = os.open(node, os.O_RDWR), os.open("/dev/vfio/vfio", os.O_RDWR)
    fcntl.ioctl(group, SET_CONTAINER, struct.pack("=i", container))
    fcntl.ioctl(container, SET_IOMMU, TYPE1V2_IOMMU)
    device = int(fcntl.ioctl(group, GET_DEVICE_FD, bytearray(bdf.encode() + b"\0"), True))
    try:
        yield container
    finally:
        for fd in (device, group, container):
            os.close(fd)


def main(bdf: str) -> int:
    memory = mmap.mmap(-1, 8 * PAGE)
    memory[:] = bytes([1]) * len(memory)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    bitmap = mmap.mmap(-1, PAGE)
    where = ctypes.addressof(ctypes.c_char.from_buffer(bitmap))

    def bits() -> int:
        """Return the bitmap, and zero it, as the kernel asks for zeroed memory."""
        found = int.from_bytes(bitmap[:8], "little")
        bitmap[:8] = bytes(8)
        return found

    def get(first: int) -> int:
        """Return the dirty bitmap of the range that begins with the page *first*."""
        start, size = IOVA + first * PAGE, (PAGES - first) * PAGE
        fcntl.ioctl(container, DIRTY_PAGES, struct.pack("=2I5Q", 48, GET_BITMAP, start, size, PAGE, 8, where))
        return bits()

    got = []
    with bound(bdf), opened(bdf) as container:
        for first, count in ((0, 2), (5, 3)):
            iova = IOVA + first * PAGE
            fcntl.ioctl(container, MAP_DMA, struct.pack("=2I3Q", 32, READ_WRITE, address, iova, count * PAGE))
        fcntl.ioctl(container, DIRTY_PAGES, struct.pack("=2I", 8, START))
        for turn, first in enumerate((0, 0, 0, 5), 1):
            got.append((get(first), MAPPED >> first))
            print(f"bitmap {turn}, from page {first} on: want {got[-1][1]:#x}, got {got[-1][0]:#x}")
        fcntl.ioctl(
            container,
            UNMAP_DMA,
            struct.pack("=2I5Q", 48, UNMAP_GET_DIRTY, IOVA, PAGES * PAGE, PAGE, 8, where),
        )
        got.append((bits(), MAPPED))
        print(f"the bitmap of the UNMAP_DMA: want {MAPPED:#x}, got {got[-1][0]:#x}")
    if got[0][0] != MAPPED:
        raise CannotRun("the first bitmap is wrong already: this is something else")
    return int(any(found != want for found, want in got))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except (CannotRun, IndexError, OSError) as problem:
        print(f"cannot run: {problem!r}")
        sys.exit(2)
