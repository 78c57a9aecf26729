# SPDX-License-Identifier: GPL-2.0-only
"""The device node: open, bind to an iommufd, attach, detach, replace, and every refusal on the way."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import uuid
from typing import Callable

from guest import brink, edu, libc, memory, pci, vfio
from guest import iommufd as api
from guest.brink import NOWHERE, Brink
from guest.case import Test, case
from guest.iommufd import NO_SUCH_ID, Iommufd
from guest.opened import Event, through_cdev, unbound
from guest.uapi import errno_of

BARE = ("noiommu-cdev", "edu", "!viommu")


@case(needs=BARE, cites="drivers/vfio/device_cdev.c vfio_df_ioctl_bind_iommufd()")
def bind_gives_an_id(t: Test) -> None:
    """BIND_IOMMUFD succeeds, gives the device an object id, and opens the device's own ioctls."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd):
        devid = device.bind_iommufd(iommufd.fd)
        t.check(devid > 0, f"the device's id is {devid}")
        t.check(device.info().flags & vfio.DEVICE_FLAGS_PCI, "GET_INFO does not say PCI")
        t.equal(device.read_config(vfio.PCI_VENDOR_ID, 4), 0x11E81234, "vendor and device in config space")


@case(needs=BARE, cites="drivers/vfio/vfio_main.c vfio_device_fops_unl_ioctl() (access_granted)")
def nothing_works_before_bind(t: Test) -> None:
    """An open cdev that is not bound answers EINVAL to every ioctl but bind, to read, write and mmap."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd):
        config = vfio.CONFIG << 40
        t.errno(errno.EINVAL, device.info)
        t.errno(errno.EINVAL, device.region_info, 0)
        t.errno(errno.EINVAL, device.reset)
        t.errno(errno.EINVAL, device.attach, iommufd.ioas_alloc())
        t.errno(errno.EINVAL, device.detach)
        t.errno(errno.EINVAL, os.pread, device.fd, 4, config)
        t.errno(errno.EINVAL, os.pwrite, device.fd, bytes(4), config)
        t.errno(errno.EINVAL, vfio.Bar, device.fd, 0, memory.PAGE)


@case(needs=BARE, cites="drivers/vfio/device_cdev.c vfio_df_ioctl_bind_iommufd()")
def bind_refuses_bad_arguments(t: Test) -> None:
    """BIND_IOMMUFD refuses unknown flags, a token that is nowhere, no argument, and then still succeeds."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd):

        def bind(**fields: int) -> None:
            device.call(vfio.DEVICE_BIND_IOMMUFD, vfio.BindIommufd(**fields))

        t.errno(errno.EINVAL, bind, flags=2, iommufd=iommufd.fd)
        t.errno(errno.EFAULT, bind, flags=vfio.BIND_FLAG_TOKEN, iommufd=iommufd.fd)
        t.errno(errno.EFAULT, device.call, vfio.DEVICE_BIND_IOMMUFD)
        bind(argsz=16, iommufd=iommufd.fd)


@case(needs=BARE, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_validate_vf_token()")
def bind_refuses_a_needless_token(t: Test) -> None:
    """A VF token for a device that is neither PF nor VF is EINVAL."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd):
        t.errno(errno.EINVAL, device.bind_iommufd, iommufd.fd, token=uuid.uuid4().bytes)
        device.bind_iommufd(iommufd.fd)


@case(needs=BARE, cites="drivers/vfio/device_cdev.c vfio_df_ioctl_bind_iommufd(), vfio_main.c vfio_df_open()")
def bind_twice_is_refused(t: Test) -> None:
    """A bound device is bound to nobody else, by the same file or a second one, until it is closed."""
    bdf = t.device("edu", iommu=False)
    with unbound(bdf) as (device, iommufd), Iommufd() as other, vfio.open_cdev(bdf) as second:
        device.bind_iommufd(iommufd.fd)
        t.errno(errno.EINVAL, device.bind_iommufd, iommufd.fd)
        t.errno(errno.EINVAL, device.bind_iommufd, other.fd)
        t.errno(errno.EINVAL, second.bind_iommufd, iommufd.fd)
        t.errno(errno.EINVAL, second.bind_iommufd, other.fd)
        device.close()
        t.check(second.bind_iommufd(other.fd) > 0, "no id")


@case(needs=BARE, cites="drivers/iommu/iommufd/device.c iommufd_device_auto_get_domain()")
def attach_makes_a_page_table(t: Test) -> None:
    """Attaching to an IOAS gives back the id of a page table, which lives as long as the attachment."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd):
        device.bind_iommufd(iommufd.fd)
        ioas = iommufd.ioas_alloc()
        hwpt = device.attach(ioas)
        t.check(hwpt not in (0, ioas), f"attach gave {hwpt} for IOAS {ioas}")
        t.errno(errno.EBUSY, iommufd.destroy, hwpt)
        device.detach()
        t.errno(errno.ENOENT, iommufd.destroy, hwpt)


@case(
    needs=BARE, cites="drivers/vfio/iommufd.c vfio_iommufd_physical_attach_ioas(); iommufd_device_replace()"
)
def attach_again_replaces(t: Test) -> None:
    """A second attach moves the device: the old page table is gone, its IOAS unpinned, the new answers."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd), memory.anonymous(8 * 4096) as buffer:
        buffer.touch()
        device.bind_iommufd(iommufd.fd)
        old, new = iommufd.ioas_alloc(), iommufd.ioas_alloc()
        iommufd.map(old, buffer.address, buffer.length, 0)
        iommufd.map(new, buffer.address, 4096, 0)
        first = device.attach(old)
        t.equal(memory.pinned_kib(), 32, "KiB pinned by the old IOAS")
        second = device.attach(new)
        t.check(first != second, "the page table did not change")
        t.errno(errno.ENOENT, iommufd.destroy, first)
        t.equal(memory.pinned_kib(), 4, "KiB pinned by the new IOAS")
        t.errno(errno.EOPNOTSUPP, iommufd.get_pa, old, 0, 1)
        t.equal(iommufd.get_pa(new, 0, 1)[0], buffer.physical(), "the new IOAS's physical address")
        iommufd.destroy(old)


@case(needs=BARE, cites="drivers/vfio/device_cdev.c vfio_df_ioctl_attach_pt(); iommufd_device_change_pt()")
def attach_refuses_bad_arguments(t: Test) -> None:
    """ATTACH refuses ids that are no page table, unknown flags and no argument, and stays detached."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd), memory.anonymous() as page:
        devid = device.bind_iommufd(iommufd.fd)
        ioas = iommufd.ioas_alloc()

        def attach(**fields: int) -> None:
            device.call(vfio.DEVICE_ATTACH_IOMMUFD_PT, vfio.AttachPt(**fields))

        t.errno(errno.ENOENT, device.attach, NO_SUCH_ID)
        t.errno(errno.EINVAL, device.attach, devid)
        t.errno(errno.EINVAL, attach, flags=2, pt_id=ioas)
        t.errno(errno.EINVAL, attach, argsz=12, flags=vfio.PASID_FLAG, pt_id=ioas)
        t.errno(errno.EFAULT, device.call, vfio.DEVICE_ATTACH_IOMMUFD_PT)
        iommufd.map(ioas, page.address, page.length, 0)
        t.errno(errno.EOPNOTSUPP, iommufd.get_pa, ioas, 0, 1)


@case(
    needs=BARE, cites="drivers/vfio/iommufd.c vfio_iommufd_physical_detach_ioas(); vfio_df_ioctl_detach_pt()"
)
def detach_may_be_repeated(t: Test) -> None:
    """DETACH succeeds when attached, again when not, and before any attach; unknown flags are EINVAL."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd):
        device.bind_iommufd(iommufd.fd)
        device.detach()
        device.attach(iommufd.ioas_alloc())
        device.detach()
        device.detach()

        def detach(**fields: int) -> None:
            device.call(vfio.DEVICE_DETACH_IOMMUFD_PT, vfio.DetachPt(**fields))

        t.errno(errno.EINVAL, detach, flags=2)


@case(needs=BARE, cites="drivers/iommu/iommufd/main.c iommufd_object_remove()")
def objects_in_use_cannot_be_destroyed(t: Test) -> None:
    """While a device is attached, destroying it, its page table or its IOAS is EBUSY; no object is ENOENT."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd):
        devid = device.bind_iommufd(iommufd.fd)
        ioas = iommufd.ioas_alloc()
        hwpt = device.attach(ioas)
        for object_id in (devid, hwpt, ioas):
            t.errno(errno.EBUSY, iommufd.destroy, object_id)
        t.errno(errno.ENOENT, iommufd.destroy, 0)
        t.errno(errno.ENOENT, iommufd.destroy, NO_SUCH_ID)
        device.detach()
        iommufd.destroy(ioas)
        t.errno(errno.EBUSY, iommufd.destroy, devid)
        device.close()
        t.errno(errno.ENOENT, iommufd.destroy, devid)


@case(needs=BARE, cites="drivers/iommu/iommufd/device.c iommufd_hw_pagetable_attach() (pasid_compat)")
def other_pasids_are_refused(t: Test) -> None:
    """A no-IOMMU device has no PASIDs: attaching one is EINVAL and does not stand in its way."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd):
        device.bind_iommufd(iommufd.fd)
        ioas = iommufd.ioas_alloc()
        t.errno(errno.EINVAL, device.attach, ioas, pasid=1)
        t.errno(errno.EINVAL, device.attach, ioas, pasid=0xFFFFF)
        t.check(device.attach(ioas) > 0, "plain attach")


@case(
    needs=BARE,
    cites="drivers/vfio/iommufd.c vfio_iommufd_physical_pasid_attach_ioas(); include/uapi/linux/vfio.h",
)
def pasid_zero_is_no_pasid(t: Test) -> None:
    """Attaching PASID 0 is refused or harmless: a plain attach afterwards works."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd):
        device.bind_iommufd(iommufd.fd)
        ioas = iommufd.ioas_alloc()
        refused = errno_of(lambda: device.attach(ioas, pasid=0))
        t.log(f"attaching PASID 0: errno {refused}")
        t.check(refused in (0, errno.EINVAL), f"attaching PASID 0 is refused with {os.strerror(refused)}")
        try:
            device.attach(ioas)
        except OSError as error:
            t.fail(f"a plain attach after one of PASID 0: {error}")


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/io_pagetable.c iopt_table_add_domain(), iopt_check_iova_alignment()",
)
def attach_refuses_unaligned_maps(t: Test) -> None:
    """An IOAS with a mapping finer than a page cannot take a device (EADDRINUSE) until it is unmapped."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd), memory.anonymous() as page:
        device.bind_iommufd(iommufd.fd)
        ioas = iommufd.ioas_alloc()
        iommufd.map(ioas, page.address, 512, 0x10200)
        t.errno(errno.EADDRINUSE, device.attach, ioas)
        iommufd.unmap(ioas, 0x10200, 512)
        t.check(device.attach(ioas) > 0, "attach after the unmap")


@case(needs=BARE, cites="drivers/iommu/iommufd/hw_pagetable.c iommufd_hwpt_paging_alloc(), hwpt_noiommu.c")
def page_table_by_hand(t: Test) -> None:
    """A page table made by HWPT_ALLOC pins and answers by itself, takes the device, outlives its detach."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd), memory.anonymous() as page:
        page.touch()
        devid = device.bind_iommufd(iommufd.fd)
        ioas = iommufd.ioas_alloc()
        iommufd.map(ioas, page.address, page.length, 0x10000)
        hwpt = iommufd.hwpt_alloc(devid, ioas)
        t.equal(memory.pinned_kib(), 4, "KiB pinned by the page table")
        t.equal(iommufd.get_pa(ioas, 0x10000, 1)[0], page.physical(), "the address before any attach")
        t.equal(device.attach(hwpt), hwpt, "the id given back by attach")
        t.errno(errno.EBUSY, iommufd.destroy, hwpt)
        device.detach()
        t.equal(iommufd.get_pa(ioas, 0x10000, 1)[0], page.physical(), "the address after the detach")
        iommufd.destroy(hwpt)
        t.errno(errno.EOPNOTSUPP, iommufd.get_pa, ioas, 0x10000, 1)
        t.equal(memory.pinned_kib(), 0, "KiB pinned after its end")


@case(needs=BARE, cites="drivers/iommu/iommufd/hwpt_noiommu.c noiommu_alloc_paging_flags(), hw_pagetable.c")
def page_table_knows_no_features(t: Test) -> None:
    """HWPT_ALLOC refuses nesting, dirty tracking, PASIDs and unknown flags; wrong objects have errnos."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd):
        devid = device.bind_iommufd(iommufd.fd)
        ioas = iommufd.ioas_alloc()
        for flags in (api.HWPT_NEST_PARENT, api.HWPT_DIRTY_TRACKING, api.HWPT_PASID, 1 << 4):
            t.errno(errno.EOPNOTSUPP, iommufd.hwpt_alloc, devid, ioas, flags=flags)
        t.errno(errno.ENOENT, iommufd.hwpt_alloc, NO_SUCH_ID, ioas)
        t.errno(errno.ENOENT, iommufd.hwpt_alloc, ioas, ioas)
        t.errno(errno.EINVAL, iommufd.hwpt_alloc, devid, devid)
        t.errno(errno.ENOENT, iommufd.hwpt_alloc, devid, ioas, flags=api.HWPT_FAULT_ID_VALID, fault_id=0xBEEF)


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/hw_pagetable.c iommufd_hwpt_set_dirty_tracking(); viommu.c "
    "iommufd_viommu_alloc_ioctl()",
)
def there_is_no_hardware_to_ask(t: Test) -> None:
    """Dirty tracking on a no-IOMMU page table and a virtual IOMMU for its device are EOPNOTSUPP, although no
    IOMMU driver is there to refuse them."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd):
        devid = device.bind_iommufd(iommufd.fd)
        hwpt = iommufd.hwpt_alloc(devid, iommufd.ioas_alloc())
        for flags in (0, api.DIRTY_TRACKING_ENABLE):
            t.errno(errno.EOPNOTSUPP, iommufd.set_dirty_tracking, hwpt, flags)
        t.errno(errno.EOPNOTSUPP, iommufd.viommu_alloc, devid, hwpt, api.VIOMMU_TYPE_ARM_SMMUV3)


@case(needs=BARE, cites="drivers/iommu/iommufd/device.c iommufd_get_hw_info()")
def there_is_no_hardware_to_describe(t: Test) -> None:
    """GET_HW_INFO is EOPNOTSUPP for a no-IOMMU device, ENOENT for no device."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd):
        devid = device.bind_iommufd(iommufd.fd)
        t.errno(errno.EOPNOTSUPP, iommufd.get_hw_info, devid)
        t.errno(errno.ENOENT, iommufd.get_hw_info, NO_SUCH_ID)


@case(
    needs=BARE, cites="drivers/iommu/iommufd/main.c iommufd_fops_release(); device.c iommufd_device_unbind()"
)
def device_survives_its_iommufd(t: Test) -> None:
    """Closing the iommufd first takes nothing from the device: it works, its pages stay pinned."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf), vfio.open_cdev(bdf) as device, memory.anonymous() as page:
        page.touch()
        with Iommufd() as iommufd:
            device.bind_iommufd(iommufd.fd)
            ioas = iommufd.ioas_alloc()
            device.attach(ioas)
            iommufd.map(ioas, page.address, page.length, 0)
        t.check(device.info().flags & vfio.DEVICE_FLAGS_PCI, "the device does not answer")
        t.equal(memory.pinned_kib(), 4, "KiB pinned with the iommufd closed")
        device.close()
        t.equal(memory.pinned_kib(), 0, "KiB pinned with the device closed")


@case(needs=BARE, cites="drivers/vfio/vfio_main.c vfio_device_fops_release(); drivers/iommu/iommufd/main.c")
def either_may_be_closed_first(t: Test) -> None:
    """Device and iommufd can be closed in either order, again and again, and leave nothing pinned or busy."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf), memory.anonymous() as page:
        page.touch()
        for turn in range(10):
            device, iommufd = vfio.open_cdev(bdf), Iommufd()
            device.bind_iommufd(iommufd.fd)
            ioas = iommufd.ioas_alloc()
            device.attach(ioas)
            iommufd.map(ioas, page.address, page.length, 0)
            order: list[Callable[[], None]] = [device.close, iommufd.close]
            for close in reversed(order) if turn % 2 else order:
                close()
            t.equal(memory.pinned_kib(), 0, f"KiB pinned after turn {turn}")
    t.check_no_complaint()


@case(needs=BARE, cites="drivers/vfio/vfio_main.c vfio_device_fops_release() (last reference)")
def duplicates_keep_the_device_open(t: Test) -> None:
    """A dup of a bound device file keeps it bound; the last close frees it for the next."""
    bdf = t.device("edu", iommu=False)
    with unbound(bdf) as (device, iommufd), vfio.open_cdev(bdf) as second:
        device.bind_iommufd(iommufd.fd)
        copy = vfio.Device(os.dup(device.fd))
        device.close()
        t.check(copy.info().flags & vfio.DEVICE_FLAGS_PCI, "the duplicate does not answer")
        t.errno(errno.EINVAL, second.bind_iommufd, iommufd.fd)
        copy.close()
        second.bind_iommufd(iommufd.fd)


@case(
    needs=BARE, cites="drivers/vfio/vfio_main.c vfio_device_fops_mmap(); vfio_pci_core.c vfio_pci_core_mmap()"
)
def mapped_bar_keeps_the_device_bound(t: Test) -> None:
    """A mapped BAR works on after the file is closed, and keeps the device bound until it is unmapped."""
    bdf = t.device("edu", iommu=False)
    with unbound(bdf) as (device, iommufd), vfio.open_cdev(bdf) as second:
        device.bind_iommufd(iommufd.fd)
        bar = device.bar(length=memory.PAGE)
        device.close()
        t.equal(bar.read32(0), edu.IDENTIFIES, "edu's identification register")
        t.errno(errno.EINVAL, second.bind_iommufd, iommufd.fd)
        bar.close()
        second.bind_iommufd(iommufd.fd)
        t.errno(errno.EINVAL, vfio.Bar, second.fd, vfio.CONFIG << 40, memory.PAGE, mmap.PROT_READ)


def _refuses_growth(t: Test, fd: int, request: int, argument: ctypes.Structure) -> None:
    """Fail unless a byte behind *argument* is E2BIG when it is set, and EFAULT when there is no such byte."""
    known = ctypes.sizeof(argument)
    setattr(argument, argument._fields_[0][0], known + 1)
    with Brink() as edge:
        t.errno(errno.E2BIG, libc.ioctl, fd, request, edge.put(bytes(argument) + b"\1"))
        t.errno(errno.EFAULT, libc.ioctl, fd, request, edge.put(argument))


@case(needs=BARE, cites="drivers/vfio/device_cdev.c vfio_df_ioctl_bind_iommufd() (copy_struct_from_user())")
def bind_takes_a_longer_structure(t: Test) -> None:
    """BIND_IOMMUFD ignores zeros behind the structure that it knows and refuses anything else there, memory
    that ends too early, and an argsz that lies about it."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd), Brink() as edge:
        request = vfio.DEVICE_BIND_IOMMUFD
        _refuses_growth(t, device.fd, request, vfio.BindIommufd(iommufd=iommufd.fd))
        whole = vfio.BindIommufd(iommufd=iommufd.fd)
        t.errno(errno.EFAULT, libc.ioctl, device.fd, request, edge.put(whole, 23))
        t.errno(errno.EFAULT, libc.ioctl, device.fd, request, edge.put(vfio.BindIommufd(argsz=0xFFFFFFFF)))
        for size in (0, 4, 12):
            t.errno(errno.EINVAL, libc.ioctl, device.fd, request, edge.put(vfio.BindIommufd(argsz=size), 4))
        t.errno(errno.EINVAL, device.info)
        longer = bytearray(bytes(vfio.BindIommufd(argsz=64, iommufd=iommufd.fd)) + bytes(40))
        device.call(request, longer)
        t.check(struct.unpack_from("<I", longer, 12)[0] > 0, "no device id in the longer structure")


@case(
    needs=BARE,
    cites="drivers/vfio/device_cdev.c vfio_df_ioctl_bind_iommufd(), vfio_df_ioctl_attach_pt(), "
    "vfio_df_ioctl_detach_pt() (minsz)",
)
def structures_may_end_where_memory_does(t: Test) -> None:
    """BIND, ATTACH and DETACH take their shortest structures although no memory follows, with a byte less of
    memory they are EFAULT, and with a byte less of argsz EINVAL."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd), Brink() as edge:
        ioas = iommufd.ioas_alloc()
        shortest: tuple[tuple[int, ctypes.Structure, int], ...] = (
            (vfio.DEVICE_BIND_IOMMUFD, vfio.BindIommufd(argsz=16, iommufd=iommufd.fd), 16),
            (vfio.DEVICE_ATTACH_IOMMUFD_PT, vfio.AttachPt(argsz=12, pt_id=ioas), 12),
            (vfio.DEVICE_DETACH_IOMMUFD_PT, vfio.DetachPt(argsz=8), 8),
        )
        for request, argument, least in shortest:
            t.log(f"ioctl {request:#x} with {least} bytes")
            t.errno(errno.EFAULT, libc.ioctl, device.fd, request, edge.put(argument, least - 1))
            small = struct.pack("<I", least - 1) + bytes(argument)[4:]
            t.errno(errno.EINVAL, libc.ioctl, device.fd, request, edge.put(small))
            libc.ioctl(device.fd, request, edge.put(argument, least))


@case(
    needs=BARE, cites="drivers/vfio/device_cdev.c vfio_df_ioctl_attach_pt(), vfio_df_ioctl_detach_pt() (xend)"
)
def pasid_flag_wants_the_pasid(t: Test) -> None:
    """With the PASID flag ATTACH and DETACH want the structure with the PASID in it, and all of it in
    memory."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd), Brink() as edge:
        device.bind_iommufd(iommufd.fd)
        ioas = iommufd.ioas_alloc()
        longer: tuple[tuple[int, type[ctypes.Structure], int], ...] = (
            (vfio.DEVICE_ATTACH_IOMMUFD_PT, vfio.AttachPt, 16),
            (vfio.DEVICE_DETACH_IOMMUFD_PT, vfio.DetachPt, 12),
        )
        for request, kind, size in longer:
            short = edge.put(kind(argsz=size - 1, flags=vfio.PASID_FLAG))
            t.errno(errno.EINVAL, libc.ioctl, device.fd, request, short)
            cut = edge.put(kind(argsz=size, flags=vfio.PASID_FLAG), size - 1)
            t.errno(errno.EFAULT, libc.ioctl, device.fd, request, cut)
        device.detach(pasid=1)
        t.check(device.attach(ioas) > 0, "a plain attach after a detach of a PASID never attached")


@case(needs=BARE, cites="drivers/vfio/device_cdev.c vfio_df_ioctl_bind_iommufd() (out_close_device)")
def bind_that_cannot_answer_binds_nothing(t: Test) -> None:
    """A BIND whose answer cannot be written is EFAULT and undone: the file is as before, the iommufd holds no
    device, and the next bind has its way."""
    bdf = t.device("edu", iommu=False)
    with unbound(bdf) as (device, iommufd), vfio.open_cdev(bdf) as second:
        for _ in range(2):
            with brink.frozen(vfio.BindIommufd(iommufd=iommufd.fd)) as where:
                t.errno(errno.EFAULT, libc.ioctl, device.fd, vfio.DEVICE_BIND_IOMMUFD, where)
        t.errno(errno.EINVAL, device.info)
        iommufd.option_set(api.OPTION_RLIMIT_MODE, 1)  # EBUSY if a device were there
        if "noiommu-group" in t.features:
            vfio.open_group(bdf).close()
        second.bind_iommufd(iommufd.fd)
        second.close()
        devid = device.bind_iommufd(iommufd.fd)
        t.check(iommufd.hwpt_alloc(devid, iommufd.ioas_alloc()) > 0, "no page table for the device")


@case(needs=BARE, cites="drivers/vfio/device_cdev.c vfio_df_ioctl_attach_pt() (out_detach)")
def attach_that_cannot_answer_attaches_nothing(t: Test) -> None:
    """An ATTACH whose answer cannot be written is EFAULT and leaves the device detached: nothing is pinned,
    its IOAS can be destroyed, and the next attach has its way."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd), memory.anonymous() as page:
        page.touch()
        device.bind_iommufd(iommufd.fd)
        ioas, other = iommufd.ioas_alloc(), iommufd.ioas_alloc()
        iommufd.map(ioas, page.address, page.length, 0x10000)
        with brink.frozen(vfio.AttachPt(pt_id=ioas)) as where:
            t.errno(errno.EFAULT, libc.ioctl, device.fd, vfio.DEVICE_ATTACH_IOMMUFD_PT, where)
        t.equal(memory.pinned_kib(), 0, "KiB pinned after the refusal")
        t.errno(errno.EOPNOTSUPP, iommufd.get_pa, ioas, 0x10000, 1)
        iommufd.destroy(ioas)
        iommufd.map(other, page.address, page.length, 0x10000)
        t.check(device.attach(other) > 0, "attach afterwards")
        t.equal(iommufd.get_pa(other, 0x10000, 1)[0], page.physical(), "the address after an attach")


@case(needs=BARE, cites="drivers/iommu/iommufd/main.c iommufd_ctx_from_fd()")
def only_an_iommufd_is_an_iommufd(t: Test) -> None:
    """BIND takes no device file, eventfd, memfd or directory for an iommufd (EBADFD), no closed one (EBADF),
    and after all that still the real one."""
    bdf = t.device("edu", iommu=False)
    with unbound(bdf) as (device, iommufd), vfio.open_cdev(bdf) as second, Iommufd() as closed:
        number = closed.fd
        closed.close()
        t.errno(errno.EBADF, device.bind_iommufd, number)
        for number in (999, (1 << 31) - 1):
            t.errno(errno.EBADF, device.bind_iommufd, number)
        for number in (-1, -(1 << 31)):
            t.errno(errno.EINVAL, device.bind_iommufd, number)
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        directory = os.open("/dev", os.O_RDONLY | os.O_CLOEXEC)
        path = os.open("/dev/iommu", os.O_PATH | os.O_CLOEXEC)
        for fd in (device.fd, second.fd, Event().fd, memory.memfd(), null, directory):
            t.errno(errno.EBADFD, device.bind_iommufd, fd)
        t.errno(errno.EBADF, device.bind_iommufd, path)
        device.bind_iommufd(iommufd.fd)


@case(needs=BARE, cites="drivers/iommu/iommufd/hw_pagetable.c iommufd_hwpt_alloc()")
def page_table_refuses_user_data(t: Test) -> None:
    """HWPT_ALLOC wants data type and length both or neither, takes neither for a no-IOMMU device, nests
    nothing in a no-IOMMU page table, and reports what it made or makes nothing."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd), memory.anonymous() as page:
        page.touch()
        devid, ioas = device.bind_iommufd(iommufd.fd), iommufd.ioas_alloc()
        iommufd.map(ioas, page.address, page.length, 0)

        def alloc(pt_id: int = ioas, **fields: int) -> None:
            iommufd.call(api.HWPT_ALLOC, api.HwptAlloc(dev_id=devid, pt_id=pt_id, **fields))

        t.errno(errno.EINVAL, alloc, data_type=1)
        t.errno(errno.EINVAL, alloc, data_len=16)
        t.errno(errno.EOPNOTSUPP, alloc, data_type=1, data_len=16, data_uptr=page.address)
        t.errno(errno.EOPNOTSUPP, alloc, data_type=0xFFFF, data_len=1, data_uptr=NOWHERE)
        t.errno(errno.EINVAL, alloc, pt_id=NO_SUCH_ID)
        hwpt = iommufd.hwpt_alloc(devid, ioas)
        t.errno(errno.EOPNOTSUPP, alloc, pt_id=hwpt)
        t.errno(errno.EOPNOTSUPP, alloc, pt_id=hwpt, data_type=1, data_len=16, data_uptr=page.address)
        iommufd.destroy(hwpt)
        with brink.frozen(api.HwptAlloc(dev_id=devid, pt_id=ioas)) as where:
            t.errno(errno.EFAULT, libc.ioctl, iommufd.fd, api.HWPT_ALLOC, where)
        t.equal(memory.pinned_kib(), 0, "KiB pinned in the end")
        iommufd.destroy(ioas)


@case(
    needs=BARE,
    cites="include/uapi/linux/iommufd.h struct iommu_hwpt_alloc (__reserved2, must be 0); hw_pagetable.c",
)
def second_reserved_field_is_refused(t: Test) -> None:
    """HWPT_ALLOC with anything in its second reserved field, which must be 0, is EOPNOTSUPP."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd):
        devid, ioas = device.bind_iommufd(iommufd.fd), iommufd.ioas_alloc()
        wrong = api.HwptAlloc(dev_id=devid, pt_id=ioas, reserved2=0xFFFFFFFF)
        t.errno(errno.EOPNOTSUPP, iommufd.call, api.HWPT_ALLOC, wrong)


@case(needs=BARE, cites="drivers/iommu/iommufd/hw_pagetable.c iommufd_hwpt_paging_destroy(); device.c")
def page_table_by_hand_outlives_its_device(t: Test) -> None:
    """A page table made by HWPT_ALLOC keeps its pages pinned and answers after its device is closed; it keeps
    its IOAS, and takes the device when that comes back."""
    bdf = t.device("edu", iommu=False)
    with unbound(bdf) as (device, iommufd), memory.anonymous() as page:
        page.touch()
        devid, ioas = device.bind_iommufd(iommufd.fd), iommufd.ioas_alloc()
        iommufd.map(ioas, page.address, page.length, 0)
        hwpt = iommufd.hwpt_alloc(devid, ioas)
        device.attach(hwpt)
        device.close()
        t.errno(errno.ENOENT, iommufd.destroy, devid)
        t.equal(memory.pinned_kib(), 4, "KiB pinned without the device")
        t.equal(iommufd.get_pa(ioas, 0, 1)[0], page.physical(), "the address without the device")
        t.errno(errno.EBUSY, iommufd.destroy, ioas)
        with vfio.open_cdev(bdf) as again:
            again.bind_iommufd(iommufd.fd)
            t.equal(again.attach(hwpt), hwpt, "the id given back by attach")
            t.errno(errno.EBUSY, iommufd.destroy, hwpt)
        iommufd.destroy(hwpt)
        t.equal(memory.pinned_kib(), 0, "KiB pinned in the end")
        iommufd.destroy(ioas)


@case(
    needs=BARE, cites="drivers/iommu/iommufd/device.c iommufd_device_do_replace(), iommufd_device_change_pt()"
)
def refused_replacement_leaves_the_device_attached(t: Test) -> None:
    """An attach to something else that fails, for whatever reason, leaves the device where it was."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(2 * 4096) as buffer:
        buffer.touch()
        iommufd = user.iommufd
        user.map(buffer, 0x10000)
        hwpt = user.device.attach(user.ioas)
        bad = iommufd.ioas_alloc()
        user.device.detach()
        iommufd.map(bad, buffer.address, 512, 0)
        user.device.attach(user.ioas)
        unmapped = iommufd.ioas_alloc()
        iommufd.map(unmapped, NOWHERE, 4096, 0)
        t.errno(errno.EADDRINUSE, user.device.attach, bad)
        t.errno(errno.EFAULT, user.device.attach, unmapped)
        t.errno(errno.ENOENT, user.device.attach, NO_SUCH_ID)
        t.errno(errno.EINVAL, user.device.attach, user.devid)
        t.equal(user.physical(0x10000, 1), buffer.physical(), "the address after refused replacements")
        t.equal(memory.pinned_kib(), 8, "KiB pinned after refused replacements")
        t.equal(user.device.attach(user.ioas), hwpt, "the page table in the end")
        iommufd.destroy(bad)
        iommufd.destroy(unmapped)


@case(needs=BARE, cites="drivers/iommu/iommufd/device.c iommufd_device_do_replace() (same hwpt)")
def replacing_by_the_same_changes_nothing(t: Test) -> None:
    """Attaching again to the same IOAS or page table gives back the same id and neither pins twice nor needs
    a second detach."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous() as page:
        page.touch()
        user.map(page, 0x10000)
        hwpt = user.device.attach(user.ioas)
        for target in (user.ioas, hwpt, hwpt, user.ioas):
            t.equal(user.device.attach(target), hwpt, f"the page table by attaching to {target}")
        t.equal(memory.pinned_kib(), 4, "KiB pinned after attaching five times")
        user.device.detach()
        t.equal(memory.pinned_kib(), 0, "KiB pinned after one detach")
        t.errno(errno.ENOENT, user.device.attach, hwpt)
