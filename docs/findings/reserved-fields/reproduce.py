#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""HWPT_ALLOC, HWPT_SET_DIRTY_TRACKING and VIOMMU_ALLOC ignore a reserved field, which must be 0.

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
BIND_IOMMUFD, IOAS_ALLOC, HWPT_ALLOC = 0x3B76, 0x3B81, 0x3B89
SET_DIRTY_TRACKING, GET_DIRTY_BITMAP, VIOMMU_ALLOC = 0x3B8B, 0x3B8C, 0x3B90
NO_SUCH_ID = 0x7FFFFFFF


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


def main(bdf: str) -> int:
    with bound(bdf):
        device, iommufd = open_cdev(bdf), os.open("/dev/iommu", os.O_RDWR)
        devid, ioas = bind(device, iommufd), new_ioas(iommufd)

        def allocate(reserved: int, reserved2: int) -> int:
            return ioctl(
                iommufd, HWPT_ALLOC, "=8IQ2I", 48, 0, devid, ioas, 0, reserved, 0, 0, 0, 0, reserved2
            )[0]

        print(f"HWPT_ALLOC with 0 in both reserved fields: want 0, got {name(allocate(0, 0))}")
        want = name(-errno.EOPNOTSUPP)
        print(f"with 1 in __reserved: want {want}, got {name(allocate(1, 0))}")
        got = [allocate(0, 1)]
        print(f"with 1 in __reserved2: want {want}, got {name(got[0])}")

        # These look up an object after they have checked their flags: ENOENT is from behind the check.
        none = NO_SUCH_ID
        refused = ioctl(iommufd, GET_DIRTY_BITMAP, "=4I4Q", 48, none, 0, 1, 0, 0, 0, 0)[0]
        print(f"HWPT_GET_DIRTY_BITMAP with 1 in __reserved: want {want}, got {name(refused)}")
        for call, number, form, flagged, wrong in (
            ("HWPT_SET_DIRTY_TRACKING", SET_DIRTY_TRACKING, "=4I", (16, 2, none, 0), (16, 0, none, 1)),
            (
                "VIOMMU_ALLOC",
                VIOMMU_ALLOC,
                "=8IQ",
                (40, 1, 1, none, *[0] * 5),
                (40, 0, 1, none, 0, 0, 0, 1, 0),
            ),
        ):
            refused = ioctl(iommufd, number, form, *flagged)[0]
            print(f"{call} with an unknown flag: want {want}, got {name(refused)}")
            got.append(ioctl(iommufd, number, form, *wrong)[0])
            print(f"with 1 in __reserved: want {want}, got {name(got[-1])}")
        os.close(device)
        os.close(iommufd)
    return int(any(one != -errno.EOPNOTSUPP for one in got))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except (CannotRun, IndexError, OSError) as problem:
        print(f"cannot run: {problem!r}")
        sys.exit(2)
