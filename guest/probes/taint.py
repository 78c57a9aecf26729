# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's warning that it gave away an unprotected device: the taint bit, and the lines in the log."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from guest import pci, taint
from guest.case import Test, case
from guest.opened import through_group

GROUP_LINE = "Adding kernel taint for vfio-noiommu group on device"
CDEV_LINE = "Adding kernel taint for vfio-noiommu cdev"


def _taint_lines(t: Test) -> list[str]:
    return [line.partition(": ")[2] for line in t.dmesg() if "kernel taint for vfio-noiommu" in line]


@case(
    needs=("noiommu", "edu", "!viommu"),
    fresh=True,
    cites="drivers/vfio/group.c vfio_group_find_or_alloc() (vfio_noiommu), vfio_main.c __vfio_register_dev()",
)
def refused_binding_does_not_taint(t: Test) -> None:
    """A bind that is refused because the mode is off taints nothing and warns of nothing."""
    bdf = t.device("edu", iommu=False)
    t.equal(taint.mask(), 0, "the taint after boot")
    pci.set_parameter(True)
    t.equal(taint.mask(), 0, "the taint after switching the mode on")
    pci.set_parameter(False)
    t.errno(errno.EINVAL, pci.bind, bdf)
    t.equal(taint.mask(), 0, "the taint after the refused bind")
    t.equal(_taint_lines(t), [], "warnings")
    pci.release(bdf)


@case(
    needs=("viommu", "noiommu", "edu"),
    fresh=True,
    cites="drivers/vfio/vfio_main.c vfio_device_is_noiommu(); group.c vfio_group_find_or_alloc()",
)
def real_iommu_does_not_taint(t: Test) -> None:
    """Binding a device behind an IOMMU taints nothing, even with the unsafe mode on."""
    with pci.bound(t.device("edu", iommu=True), noiommu=True):
        t.equal(taint.mask(), 0, "the taint while bound")
    t.equal(_taint_lines(t), [], "warnings")


@case(
    needs=("noiommu", "edu", "!viommu"),
    fresh=True,
    cites="drivers/vfio/group.c vfio_group_find_or_alloc(), vfio_main.c __vfio_register_dev() add_taint()",
)
def binding_taints_for_good(t: Test) -> None:
    """Binding a no-IOMMU device taints the kernel with U alone, and unbinding does not take that back."""
    t.equal(taint.mask(), 0, "the taint after boot")
    with pci.bound(t.device("edu", iommu=False)):
        t.equal(taint.mask(), taint.USER, "the taint while bound")
    t.equal(taint.mask(), taint.USER, "the taint after unbinding")


@case(
    needs=("noiommu-group", "noiommu-cdev", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_group_find_or_alloc(), vfio_main.c __vfio_register_dev()",
)
def both_paths_warn(t: Test) -> None:
    """With group and cdev the log names the device twice, once for each, at every binding."""
    bdf = t.device("edu", iommu=False)
    for turn in (1, 2):
        with pci.bound(bdf):
            t.equal(_taint_lines(t), [GROUP_LINE, CDEV_LINE] * turn, f"warnings after binding {turn}")
    t.check(
        any(bdf in line and CDEV_LINE in line for line in t.dmesg()), "the warning does not name the device"
    )


@case(
    needs=("noiommu-cdev", "!group", "edu", "!viommu"),
    cites="drivers/vfio/vfio_main.c __vfio_register_dev()",
)
def cdev_alone_warns_once(t: Test) -> None:
    """Without groups the one warning is about the cdev."""
    with pci.bound(t.device("edu", iommu=False)):
        t.equal(_taint_lines(t), [CDEV_LINE], "warnings")


@case(
    needs=("noiommu-group", "!noiommu-cdev", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_group_find_or_alloc()",
)
def group_alone_warns_once(t: Test) -> None:
    """Without cdevs the one warning is about the group."""
    with pci.bound(t.device("edu", iommu=False)):
        t.equal(_taint_lines(t), [GROUP_LINE], "warnings")


@case(
    needs=("noiommu-group", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_device_open_file()",
)
def group_device_open_is_logged(t: Test) -> None:
    """Whoever gets a device out of a no-IOMMU group is named in the log, with command and pid."""
    with through_group(t.device("edu", iommu=False)):
        comm = Path("/proc/self/comm").read_text(encoding="utf-8").strip()
        want = f"vfio-noiommu device opened by user ({comm}:{os.getpid()})"
        t.check(any(line.endswith(want) for line in t.dmesg()), f"no line {want!r}")
