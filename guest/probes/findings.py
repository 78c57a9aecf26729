# SPDX-License-Identifier: GPL-2.0-only
"""What breaks where no-IOMMU meets the rest: containers that change, page tables of others, answers that
cannot be written.  Each defect is described in docs/findings.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from guest import brink, libc, memory, pci, vfio
from guest.case import Test, case
from guest.iommufd import Iommufd
from guest.memory import PAGE
from guest.opened import CdevUser, through_cdev
from guest.uapi import errno_of

BARE = ("noiommu-cdev", "edu", "!viommu")
MIXED = ("mixed", "noiommu-cdev", "edu2")


def _attach_unanswered(t: Test, device: vfio.Device, argument: vfio.AttachPt) -> None:
    with brink.frozen(argument) as address:
        t.errno(errno.EFAULT, libc.ioctl, device.fd, vfio.DEVICE_ATTACH_IOMMUFD_PT, address)


@contextlib.contextmanager
def _bound_cdev(bdf: str) -> Iterator[tuple[vfio.Device, Iommufd, int]]:
    with pci.bound(bdf), Iommufd() as iommufd, vfio.open_cdev(bdf) as device:
        device.bind_iommufd(iommufd.fd)
        yield device, iommufd, iommufd.ioas_alloc()


@case(
    needs=BARE,
    cites="drivers/vfio/device_cdev.c vfio_df_ioctl_attach_pt() (out_detach); iommufd/device.c "
    "iommufd_device_replace()",
)
def replacement_without_an_answer_changes_nothing(t: Test) -> None:
    """A replacing ATTACH whose answer cannot be written is EFAULT and leaves the device where it was."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous() as page:
        page.touch()
        user.map(page, PAGE)
        _attach_unanswered(t, user.device, vfio.AttachPt(pt_id=user.iommufd.ioas_alloc()))
        t.equal(memory.pinned_kib(), PAGE // 1024, "KiB pinned by the IOAS that was attached")
        t.equal(user.physical(PAGE, PAGE), page.physical(), "the address in it")


@case(
    needs=BARE,
    cites="drivers/vfio/device_cdev.c vfio_df_ioctl_attach_pt() (out_detach: detach_ioas())",
)
def pasid_attach_without_an_answer_attaches_nothing(t: Test) -> None:
    """An ATTACH with the PASID flag whose answer cannot be written leaves nothing attached."""
    with _bound_cdev(t.device("edu", iommu=False)) as (device, iommufd, ioas), memory.anonymous() as page:
        page.touch()
        iommufd.map(ioas, page.address, PAGE, PAGE)
        argument = vfio.AttachPt(flags=vfio.PASID_FLAG, pasid=0, pt_id=ioas)
        with brink.frozen(argument) as address:
            t.errno(
                (errno.EFAULT, errno.EINVAL), libc.ioctl, device.fd, vfio.DEVICE_ATTACH_IOMMUFD_PT, address
            )
        t.equal(memory.pinned_kib(), 0, "KiB pinned after the failed ATTACH")


@contextlib.contextmanager
def _mixed(t: Test) -> Iterator[tuple[CdevUser, vfio.Device, int]]:
    """A translated device in use, and beside it one without an IOMMU bound to the same iommufd."""
    bare, real = t.device("edu", iommu=False), t.device("edu", iommu=True)
    with through_cdev(real) as user, pci.bound(bare), vfio.open_cdev(bare) as device:
        yield user, device, device.bind_iommufd(user.iommufd.fd)


@case(
    needs=MIXED,
    cites="drivers/iommu/iommufd/device.c iommufd_device_auto_get_domain(); drivers/iommu/iommu.c "
    "iommu_replace_group_handle()",
)
def attached_device_moves_to_an_ioas_in_noiommu_use(t: Test) -> None:
    """A translated device joins the IOAS of a no-IOMMU device also when it is attached elsewhere already."""
    with _mixed(t) as (user, bare, _):
        shared = user.iommufd.ioas_alloc()
        table = bare.attach(shared)
        try:
            t.check(user.device.attach(shared) != table, "both devices share one page table")
        except OSError as error:
            t.fail(f"a replacing ATTACH to an IOAS that a no-IOMMU device uses: {error}")


@case(
    needs=MIXED,
    cites="drivers/iommu/iommufd/device.c iommufd_device_do_replace() (err_unresv)",
)
def failed_replacement_keeps_reserved_ranges(t: Test) -> None:
    """A device whose replacement fails keeps the ranges reserved that it must not use for memory."""
    with _mixed(t) as (user, _, devid), memory.anonymous() as page:
        page.touch()
        t.errno(errno.EINVAL, user.map, page, memory.MSI_WINDOW)
        before = user.iommufd.iova_ranges(user.ioas)[0]
        foreign = user.iommufd.hwpt_alloc(devid, user.ioas)
        t.errno((errno.EINVAL, errno.ENODEV), user.device.attach, foreign)
        t.equal(user.iommufd.iova_ranges(user.ioas)[0], before, "usable ranges after the failed ATTACH")
        t.errno(errno.EINVAL, user.map, page, memory.MSI_WINDOW)


@case(
    needs=BARE,
    cites="drivers/vfio/device_cdev.c vfio_device_fops_cdev_open(), vfio_df_ioctl_bind_iommufd(); group.c "
    "vfio_device_open_file() (opened by user)",
)
def opening_by_the_device_node_is_logged(t: Test) -> None:
    """Whoever opens a no-IOMMU device is named in the kernel's log, by the device node as by the group."""
    with through_cdev(t.device("edu", iommu=False)):
        said = t.dmesg()
    who = f":{os.getpid()})"
    t.check(any("opened by user" in line and who in line for line in said), f"no line names {who}: {said}")


@case(
    needs=("noiommu-group", "iommufd", "container", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_group_ioctl_unset_container(); container.c vfio_group_unuse_container()",
    destructive=True,
)
def group_file_lives_as_long_as_its_users(t: Test) -> None:
    """However a group changes containers, closing its devices leaves it open and takes no reference too
    many."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf), Iommufd() as iommufd, vfio.open_container() as container:
        group = vfio.open_group(bdf)
        group.set_container(iommufd.fd)
        first = group.device(bdf)
        refused = errno_of(group.unset_container)
        t.check(refused in (0, errno.EBUSY), f"UNSET_CONTAINER is refused with {os.strerror(refused)}")
        if not refused:  # a kernel that keeps its promise refuses
            group.set_container(container)
            container.set_iommu(vfio.NOIOMMU_IOMMU)
        second = group.device(bdf)
        first.close()
        second.close()
        t.check_no_complaint()
        os.fstat(group.fd)
        group.close()
