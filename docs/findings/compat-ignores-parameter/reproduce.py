#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""An iommufd that plays the container offers no-IOMMU mode also while it is switched off.

Usage: reproduce.py   (as root; it needs no device)
Exit status: 0 the kernel behaves, 1 the defect shows, 2 it cannot be tried here.
"""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

PCI = Path("/sys/bus/pci")
PARAMETER = Path("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode")
CHECK_EXTENSION, NOIOMMU_IOMMU = 0x3B65, 8


class CannotRun(Exception):
    """This machine cannot show it."""


def main() -> int:
    if not PARAMETER.exists() or not Path("/dev/iommu").exists():
        raise CannotRun("the kernel needs no-IOMMU mode and iommufd")
    iommufd = os.open("/dev/iommu", os.O_RDWR)
    before = PARAMETER.read_text()
    wrong = 0
    for value, want in (("Y", 1), ("N", 0)):
        PARAMETER.write_text(value)
        got = fcntl.ioctl(iommufd, CHECK_EXTENSION, NOIOMMU_IOMMU)
        print(f"CHECK_EXTENSION(VFIO_NOIOMMU_IOMMU) with the parameter {value}: want {want}, got {got}")
        wrong += got != want
    PARAMETER.write_text(before)
    return int(wrong > 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (CannotRun, IndexError, OSError) as problem:
        print(f"cannot run: {problem!r}")
        sys.exit(2)
