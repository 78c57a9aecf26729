#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""A group file loses a reference that nobody took, and is freed while it is open.

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
SET_CONTAINER, UNSET_CONTAINER, GET_DEVICE_FD, SET_IOMMU = 0x3B68, 0x3B69, 0x3B6A, 0x3B66
NOIOMMU_IOMMU = 8
COMPLAINTS = ("WARNING:", "file count is 0", "imbalanced put", "BUG:")


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


def complaints(log: int) -> list[str]:
    """What the kernel said since the log was opened, WARNINGs and bad file counts only."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            text = os.read(log, 8192).decode(errors="replace").partition(";")[2].splitlines()[0]
            if any(word in text for word in COMPLAINTS):
                found.append(text)
    return found


def open_group(bdf: str) -> int:
    """Open the group of a device without an IOMMU."""
    node = Path(f"/dev/vfio/noiommu-{(PCI / 'devices' / bdf / 'iommu_group').resolve().name}")
    if not node.exists():
        raise CannotRun("the device has no no-IOMMU group node")
    return os.open(node, os.O_RDWR | os.O_CLOEXEC)


def damage(bdf: str, group: int, iommufd: int, container: int) -> bool:
    """Move the group under an open device; return whether the kernel let that happen."""
    fcntl.ioctl(group, SET_CONTAINER, struct.pack("=i", iommufd))
    first = fcntl.ioctl(group, GET_DEVICE_FD, bytearray(bdf.encode() + b"\0"), True)
    print("UNSET_CONTAINER with a device open: want EBUSY, got", end=" ")
    try:
        fcntl.ioctl(group, UNSET_CONTAINER)
    except OSError as error:
        print(errno.errorcode.get(error.errno or 0))
        return False
    print("0")
    fcntl.ioctl(group, SET_CONTAINER, struct.pack("=i", container))
    fcntl.ioctl(container, SET_IOMMU, NOIOMMU_IOMMU)
    second = fcntl.ioctl(group, GET_DEVICE_FD, bytearray(bdf.encode() + b"\0"), True)
    os.close(first)
    os.close(second)
    return True


def main(bdf: str) -> int:
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    os.lseek(log, 0, os.SEEK_END)
    with bound(bdf):
        group = open_group(bdf)
        iommufd = os.open("/dev/iommu", os.O_RDWR)
        container = os.open("/dev/vfio/vfio", os.O_RDWR)
        if not damage(bdf, group, iommufd, container):
            os.close(group)
            return 0
        os.close(group)
        said = complaints(log)
        print("complaints of the kernel: want none, got", "".join(f"\n  {line}" for line in said) or "none")
        if said:
            print("the kernel is damaged: reboot", flush=True)
            os._exit(1)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except (CannotRun, IndexError, OSError) as problem:
        print(f"cannot run: {problem!r}")
        sys.exit(2)
