# SPDX-License-Identifier: GPL-2.0-only
"""Page tables made by HWPT_ALLOC, and the features that those of no-IOMMU devices lack."""

from __future__ import annotations

import errno
import os

from guest import brink, libc, memory, vfio
from guest import iommufd as api
from guest.brink import NOWHERE
from guest.case import Test, case
from guest.iommufd import NO_SUCH_ID
from guest.opened import unbound

BARE = ("noiommu-cdev", "edu", "!viommu")


@case(needs=BARE, cites="drivers/iommu/iommufd/hw_pagetable.c iommufd_hwpt_paging_alloc(), hwpt_noiommu.c")
def page_table_by_hand(t: Test) -> None:
    """A page table from HWPT_ALLOC pins pages and answers GET_PA without an attachment, accepts the device,
    and outlives its detach."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd), memory.anonymous() as page:
        page.touch()
        devid = device.bind_iommufd(iommufd.fd)
        ioas = iommufd.ioas_alloc()
        iommufd.map(ioas, page.address, page.length, 0x10000)
        hwpt = iommufd.hwpt_alloc(devid, ioas)
        t.equal(memory.pinned_pages(), 1, "pages pinned by the page table")
        t.equal(iommufd.get_pa(ioas, 0x10000, 1)[0], page.physical(), "the address before any attach")
        t.equal(device.attach(hwpt), hwpt, "the id given back by attach")
        t.errno(errno.EBUSY, iommufd.destroy, hwpt)
        device.detach()
        t.equal(iommufd.get_pa(ioas, 0x10000, 1)[0], page.physical(), "the address after the detach")
        iommufd.destroy(hwpt)
        t.errno(errno.EOPNOTSUPP, iommufd.get_pa, ioas, 0x10000, 1)
        t.equal(memory.pinned_pages(), 0, "pages pinned after it is destroyed")


@case(needs=BARE, cites="drivers/iommu/iommufd/device.c iommufd_device_auto_get_domain() (auto_domain)")
def attach_leaves_page_tables_by_hand_alone(t: Test) -> None:
    """Attaching to an IOAS makes a separate page table and uses none from HWPT_ALLOC, so that those can be
    destroyed while the device is attached."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd), memory.anonymous() as page:
        page.touch()
        devid, ioas = device.bind_iommufd(iommufd.fd), iommufd.ioas_alloc()
        iommufd.map(ioas, page.address, page.length, 0x10000)
        by_hand = iommufd.hwpt_alloc(devid, ioas)
        own = device.attach(ioas)
        t.check(own != by_hand, "attaching to the IOAS used the page table from HWPT_ALLOC")
        t.errno(errno.EBUSY, iommufd.destroy, own)
        iommufd.destroy(by_hand)
        t.equal(iommufd.get_pa(ioas, 0x10000, 1)[0], page.physical(), "the address by the remaining table")
        t.equal(memory.pinned_pages(), 1, "pages pinned by the remaining table")


@case(needs=BARE, cites="drivers/iommu/iommufd/hwpt_noiommu.c noiommu_alloc_paging_flags(), hw_pagetable.c")
def page_table_knows_no_features(t: Test) -> None:
    """HWPT_ALLOC refuses nesting, dirty tracking, PASIDs and unknown flags (EOPNOTSUPP), and ids of unknown
    or wrong objects (ENOENT or EINVAL)."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd):
        devid = device.bind_iommufd(iommufd.fd)
        ioas = iommufd.ioas_alloc()
        for flags in (api.HWPT_NEST_PARENT, api.HWPT_DIRTY_TRACKING, api.HWPT_PASID, 1 << 4):
            t.errno(errno.EOPNOTSUPP, iommufd.hwpt_alloc, devid, ioas, flags=flags)
        t.errno(errno.ENOENT, iommufd.hwpt_alloc, NO_SUCH_ID, ioas)
        t.errno(errno.ENOENT, iommufd.hwpt_alloc, ioas, ioas)
        t.errno(errno.EINVAL, iommufd.hwpt_alloc, devid, devid)
        t.errno(errno.ENOENT, iommufd.hwpt_alloc, devid, ioas, flags=api.HWPT_FAULT_ID_VALID, fault_id=0xBEEF)


@case(needs=BARE, cites="drivers/iommu/iommufd/hw_pagetable.c iommufd_hwpt_alloc()")
def page_table_refuses_user_data(t: Test) -> None:
    """HWPT_ALLOC of a no-IOMMU device refuses user data, a data type without a length or the reverse, and
    nesting, and makes nothing if its result cannot be written."""
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
        t.equal(memory.pinned_pages(), 0, "pages pinned at the end")
        iommufd.destroy(ioas)


@case(
    needs=BARE,
    cites="include/uapi/linux/iommufd.h struct iommu_hwpt_alloc (__reserved2, must be 0); hw_pagetable.c",
)
def second_reserved_field_is_refused(t: Test) -> None:
    """HWPT_ALLOC with a nonzero second reserved field is EOPNOTSUPP."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd):
        devid, ioas = device.bind_iommufd(iommufd.fd), iommufd.ioas_alloc()
        wrong = api.HwptAlloc(dev_id=devid, pt_id=ioas, reserved2=0xFFFFFFFF)
        t.errno(errno.EOPNOTSUPP, iommufd.call, api.HWPT_ALLOC, wrong)


@case(needs=BARE, cites="drivers/iommu/iommufd/hw_pagetable.c iommufd_hwpt_paging_destroy(); device.c")
def page_table_by_hand_outlives_its_device(t: Test) -> None:
    """A page table from HWPT_ALLOC keeps its pages pinned, answers GET_PA and holds its IOAS after its device
    is closed, and accepts the device again later."""
    bdf = t.device("edu", iommu=False)
    with unbound(bdf) as (device, iommufd), memory.anonymous() as page:
        page.touch()
        devid, ioas = device.bind_iommufd(iommufd.fd), iommufd.ioas_alloc()
        iommufd.map(ioas, page.address, page.length, 0)
        hwpt = iommufd.hwpt_alloc(devid, ioas)
        device.attach(hwpt)
        device.close()
        t.errno(errno.ENOENT, iommufd.destroy, devid)
        t.equal(memory.pinned_pages(), 1, "pages pinned without the device")
        t.equal(iommufd.get_pa(ioas, 0, 1)[0], page.physical(), "the address without the device")
        t.errno(errno.EBUSY, iommufd.destroy, ioas)
        with vfio.open_cdev(bdf) as again:
            again.bind_iommufd(iommufd.fd)
            t.equal(again.attach(hwpt), hwpt, "the id given back by attach")
            t.errno(errno.EBUSY, iommufd.destroy, hwpt)
        iommufd.destroy(hwpt)
        t.equal(memory.pinned_pages(), 0, "pages pinned at the end")
        iommufd.destroy(ioas)


@case(needs=BARE, cites="drivers/iommu/iommufd/hw_pagetable.c __iommufd_hwpt_destroy(); eventq.c")
def fault_queue_lasts_as_long_as_its_page_table(t: Test) -> None:
    """A fault queue of a page table cannot be destroyed (EBUSY) until both that page table and its own file
    are gone, in either order."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd):
        devid, ioas = device.bind_iommufd(iommufd.fd), iommufd.ioas_alloc()
        for file_first in (True, False):
            queue, fd = iommufd.fault_queue_alloc()
            hwpt = iommufd.hwpt_alloc(devid, ioas, flags=api.HWPT_FAULT_ID_VALID, fault_id=queue)
            t.errno(errno.EBUSY, iommufd.destroy, queue)
            if file_first:
                os.close(fd)
            else:
                iommufd.destroy(hwpt)
            t.errno(errno.EBUSY, iommufd.destroy, queue)
            if file_first:
                iommufd.destroy(hwpt)
            else:
                os.close(fd)
            iommufd.destroy(queue)
            t.errno(errno.ENOENT, iommufd.destroy, queue)
        iommufd.destroy(ioas)


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/hw_pagetable.c iommufd_hwpt_set_dirty_tracking(); viommu.c "
    "iommufd_viommu_alloc_ioctl()",
)
def there_is_no_hardware_to_ask(t: Test) -> None:
    """Dirty tracking on a no-IOMMU page table and a virtual IOMMU for its device are EOPNOTSUPP."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd):
        devid = device.bind_iommufd(iommufd.fd)
        hwpt = iommufd.hwpt_alloc(devid, iommufd.ioas_alloc())
        for flags in (0, api.DIRTY_TRACKING_ENABLE):
            t.errno(errno.EOPNOTSUPP, iommufd.set_dirty_tracking, hwpt, flags)
        t.errno(errno.EOPNOTSUPP, iommufd.viommu_alloc, devid, hwpt, api.VIOMMU_TYPE_ARM_SMMUV3)


@case(needs=BARE, cites="drivers/iommu/iommufd/device.c iommufd_get_hw_info()")
def there_is_no_hardware_to_describe(t: Test) -> None:
    """GET_HW_INFO is EOPNOTSUPP for a no-IOMMU device and ENOENT for an unknown one."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd):
        devid = device.bind_iommufd(iommufd.fd)
        t.errno(errno.EOPNOTSUPP, iommufd.get_hw_info, devid)
        t.errno(errno.ENOENT, iommufd.get_hw_info, NO_SUCH_ID)
