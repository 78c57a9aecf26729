# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's taint flag and its log messages about no-IOMMU devices."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from guest import caps, pci, taint, vfio
from guest.case import Test, case
from guest.iommufd import Iommufd
from guest.opened import through_cdev, through_group

GROUP_LINE = "Adding kernel taint for vfio-noiommu group on device"
CDEV_LINE = "Adding kernel taint for vfio-noiommu cdev"
OPENED = "vfio-noiommu device opened by user"


def _taint_lines(t: Test) -> list[str]:
    return [line.partition(": ")[2] for line in t.dmesg() if "kernel taint for vfio-noiommu" in line]


@case(
    needs=("noiommu", "edu", "!viommu"),
    fresh=True,
    cites="drivers/vfio/group.c vfio_group_find_or_alloc() (vfio_noiommu), vfio_main.c __vfio_register_dev()",
)
def refused_binding_does_not_taint(t: Test) -> None:
    """A bind that is refused because the mode is off neither taints the kernel nor logs a warning."""
    bdf = t.device("edu", iommu=False)
    t.equal(taint.mask(), 0, "the taint after boot")
    pci.set_parameter(True)
    t.equal(taint.mask(), 0, "the taint after turning the mode on")
    pci.set_parameter(False)
    t.errno(errno.EINVAL, pci.bind, bdf)
    t.equal(taint.mask(), 0, "the taint after the refused bind")
    t.equal(_taint_lines(t), [], "warnings")
    pci.release(bdf)


@case(
    needs=("viommu", "noiommu", "edu"),
    fresh=True,
    cites="drivers/vfio/vfio.h vfio_device_is_noiommu(); group.c vfio_group_find_or_alloc()",
)
def real_iommu_does_not_taint(t: Test) -> None:
    """Binding a device behind an IOMMU does not taint the kernel, even with the unsafe mode on."""
    with pci.bound(t.device("edu", iommu=True), noiommu=True):
        t.equal(taint.mask(), 0, "the taint while bound")
    t.equal(_taint_lines(t), [], "warnings")


@case(
    needs=("noiommu", "edu", "!viommu"),
    fresh=True,
    cites="drivers/vfio/group.c vfio_group_find_or_alloc(), vfio_main.c __vfio_register_dev() (add_taint())",
)
def binding_taints_for_good(t: Test) -> None:
    """Binding a no-IOMMU device sets only taint flag U, and unbinding does not clear it."""
    t.equal(taint.mask(), 0, "the taint after boot")
    with pci.bound(t.device("edu", iommu=False)):
        t.equal(taint.mask(), taint.USER, "the taint while bound")
    t.equal(taint.mask(), taint.USER, "the taint after unbinding")


@case(
    needs=("noiommu-group", "noiommu-cdev", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_group_find_or_alloc(), vfio_main.c __vfio_register_dev()",
)
def both_paths_warn(t: Test) -> None:
    """With group and cdev, each bind logs one warning for the group and one for the cdev."""
    bdf = t.device("edu", iommu=False)
    for turn in (1, 2):
        with pci.bound(bdf):
            t.equal(_taint_lines(t), [GROUP_LINE, CDEV_LINE] * turn, f"warnings after binding {turn}")
    t.check(
        any(bdf in line and CDEV_LINE in line for line in t.dmesg()), "the warning does not name the device"
    )


@case(
    needs=("noiommu-cdev", "!noiommu-group", "edu", "!viommu"),
    cites="drivers/vfio/vfio_main.c __vfio_register_dev()",
)
def cdev_alone_warns_once(t: Test) -> None:
    """Without no-IOMMU groups each bind logs one warning, for the cdev."""
    with pci.bound(t.device("edu", iommu=False)):
        t.equal(_taint_lines(t), [CDEV_LINE], "warnings")


@case(
    needs=("noiommu-group", "!noiommu-cdev", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_group_find_or_alloc()",
)
def group_alone_warns_once(t: Test) -> None:
    """Without cdevs each bind logs one warning, for the group."""
    with pci.bound(t.device("edu", iommu=False)):
        t.equal(_taint_lines(t), [GROUP_LINE], "warnings")


@case(
    needs=("noiommu-group", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_device_open_file() (after vfio_df_group_open())",
)
def refused_openers_are_not_logged(t: Test) -> None:
    """A task that is refused a device, for lack of CAP_SYS_RAWIO, container or name, is not logged as its
    opener."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf), vfio.open_container() as container, vfio.open_group(bdf) as group:
        t.errno(errno.EINVAL, group.device, bdf)
        group.set_container(container)
        container.set_iommu(vfio.NOIOMMU_IOMMU)
        t.errno(errno.ENODEV, group.device, f"{bdf}0")

        def without() -> None:
            caps.drop(caps.CAP_SYS_RAWIO)
            t.errno(errno.EPERM, group.device, bdf)

        t.in_child(without)
        t.equal(
            [line for line in t.dmesg() if OPENED in line],
            [],
            "log lines about openers after three refused calls",
        )
        group.device(bdf).close()
        t.equal(
            len([line for line in t.dmesg() if OPENED in line]),
            1,
            "log lines about openers after a successful open",
        )


@case(needs=("noiommu", "edu", "!viommu"), cites="drivers/vfio/vfio_main.c, group.c: at registration only")
def using_adds_no_warning(t: Test) -> None:
    """The warnings come only from the bind: opening and closing a bound device, or refusing an open, adds
    none."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf) as nodes:
        before = _taint_lines(t)
        t.check(before, "the bind logged no warning")
        for _ in range(2):
            if nodes.group is not None:
                vfio.open_group(bdf).close()
            if nodes.cdev is not None:
                with Iommufd() as iommufd, vfio.open_cdev(bdf) as device:
                    device.bind_iommufd(iommufd.fd)
    t.equal(_taint_lines(t), before, "warnings after opening, closing and unbinding")


@case(
    needs=("noiommu-group", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_noiommu_group_alloc(), vfio_device_remove_group(); iommu/iommu.c",
)
def joining_and_leaving_the_group_is_logged(t: Test) -> None:
    """The log names the IOMMU group that the device joins, before the warning, and says when it leaves that
    group."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf):
        number = pci.iommu_group(bdf)
        lines = [line for line in t.dmesg() if bdf in line]
        joins = [at for at, line in enumerate(lines) if line.endswith(f"Adding to iommu group {number}")]
        warns = [at for at, line in enumerate(lines) if GROUP_LINE in line]
        t.equal((len(joins), len(warns)), (1, 1), "log lines about joining, and warnings")
        t.check(joins[0] < warns[0], "the warning comes before the line about joining the group")
    leaves = [line for line in t.dmesg() if f"Removing from iommu group {number}" in line]
    t.equal(len(leaves), 1, "log lines about leaving the group")


@case(
    needs=("mixed", "noiommu", "edu2"),
    fresh=True,
    cites="drivers/vfio/group.c vfio_group_find_or_alloc(), vfio.h vfio_device_is_noiommu()",
)
def only_the_bare_device_taints(t: Test) -> None:
    """In a machine with both kinds and the mode on, binding and using the device behind the IOMMU does not
    taint the kernel, and binding the other device does."""
    real, bare = t.device("edu", iommu=True), t.device("edu", iommu=False)
    pci.set_parameter(True)
    with pci.bound(real):
        t.equal(
            (taint.mask(), _taint_lines(t)),
            (0, []),
            "taint and warnings with the device behind the IOMMU bound",
        )
        with pci.bound(bare):
            t.equal(taint.mask(), taint.USER, "the taint with the other device bound")
            t.check(
                all(bare in line for line in t.dmesg() if "kernel taint for vfio-noiommu" in line),
                "a warning names another device",
            )
    pci.set_parameter(False)


@case(needs=("noiommu-group", "edu", "!viommu"), cites="drivers/vfio/group.c vfio_device_open_file()")
def every_opener_is_logged(t: Test) -> None:
    """For each device file that a no-IOMMU group returns, the kernel logs device, command and pid."""
    bdf = t.device("edu", iommu=False)
    comm = Path("/proc/self/comm").read_text(encoding="utf-8").strip()
    want = f"{OPENED} ({comm}:{os.getpid()})"
    with through_group(bdf) as user:
        lines = [line for line in t.dmesg() if OPENED in line]
        t.equal(len(lines), 1, "log lines for one device file")
        t.check(bdf in lines[0], f"the line does not name the device: {lines[0]}")
        t.check(lines[0].endswith(want), f"want {want!r}, got {lines[0]}")
        with user.group.device(bdf):
            lines = [line for line in t.dmesg() if OPENED in line]
            t.equal(len(lines), 2, "log lines for two device files")


@case(
    needs=("noiommu-cdev", "edu", "!viommu"),
    cites="drivers/vfio/device_cdev.c vfio_device_fops_cdev_open(), vfio_df_ioctl_bind_iommufd(); group.c "
    "vfio_device_open_file() (opened by user)",
)
def opening_by_the_device_node_is_logged(t: Test) -> None:
    """The kernel logs every task that opens a no-IOMMU device, through the cdev as through the group."""
    with through_cdev(t.device("edu", iommu=False)):
        said = t.dmesg()
    who = f":{os.getpid()})"
    t.check(any("opened by user" in line and who in line for line in said), f"no line names {who}: {said}")
