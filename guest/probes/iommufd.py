# SPDX-License-Identifier: GPL-2.0-only
"""/dev/iommu itself: the sizes of its structures, its options, and objects that belong to one file."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

from guest import brink, libc, memory
from guest import iommufd as api
from guest.brink import Brink
from guest.case import Test, case
from guest.iommufd import LAST_IOVA, NO_SUCH_ID, Iommufd
from guest.memory import PAGE
from guest.opened import through_cdev, unbound
from guest.uapi import Struct, errno_of

TWO = ("noiommu-cdev", "edu", "igb", "!viommu")
IOVA = 0x40_0000_0000

CALLS: tuple[tuple[int, type[Struct], int], ...] = (
    (api.DESTROY, api.Destroy, 8),
    (api.IOAS_ALLOC, api.IoasAlloc, 12),
    (api.IOAS_ALLOW_IOVAS, api.AllowIovas, 24),
    (api.IOAS_COPY, api.IoasCopy, 40),
    (api.IOAS_IOVA_RANGES, api.IovaRanges, 32),
    (api.IOAS_MAP, api.IoasMap, 40),
    (api.IOAS_MAP_FILE, api.IoasMapFile, 40),
    (api.IOAS_UNMAP, api.IoasUnmap, 24),
    (api.OPTION, api.Option, 24),
    (api.VFIO_IOAS, api.VfioIoas, 12),
    (api.HWPT_ALLOC, api.HwptAlloc, 24),
    (api.GET_HW_INFO, api.HwInfo, 32),
    (api.HWPT_SET_DIRTY_TRACKING, api.HwptSetDirtyTracking, 16),
    (api.HWPT_GET_DIRTY_BITMAP, api.HwptGetDirtyBitmap, 48),
    (api.HWPT_INVALIDATE, api.HwptInvalidate, 32),
    (api.FAULT_QUEUE_ALLOC, api.FaultAlloc, 16),
    (api.VIOMMU_ALLOC, api.ViommuAlloc, 24),
    (api.VDEVICE_ALLOC, api.VdeviceAlloc, 24),
    (api.IOAS_CHANGE_PROCESS, api.ChangeProcess, 8),
    (api.VEVENTQ_ALLOC, api.VeventqAlloc, 28),
    (api.HW_QUEUE_ALLOC, api.HwQueueAlloc, 40),
)
"""Each ioctl with its structure and minimum size: the size of its first version."""

YOUNG = (
    api.IOAS_MAP_FILE,
    api.HWPT_ALLOC,
    api.GET_HW_INFO,
    api.HWPT_SET_DIRTY_TRACKING,
    api.HWPT_GET_DIRTY_BITMAP,
    api.HWPT_INVALIDATE,
    api.FAULT_QUEUE_ALLOC,
    api.VIOMMU_ALLOC,
    api.VDEVICE_ALLOC,
    api.IOAS_CHANGE_PROCESS,
    api.VEVENTQ_ALLOC,
    api.HW_QUEUE_ALLOC,
)
"""Ioctls that the first release of iommufd did not have."""


@case(needs=("iommufd",), cites="drivers/iommu/iommufd/main.c iommufd_fops_ioctl() (min_size)")
def every_structure_has_a_least_size(t: Test) -> None:
    """Every ioctl accepts a structure of its first version's size, even at the end of mapped memory, and
    refuses one a byte shorter (EINVAL) and one that reaches into unmapped memory (EFAULT)."""
    with Iommufd() as iommufd, Brink() as edge:
        for request, kind, least in CALLS:
            whole, own = kind(size=least), errno_of(iommufd.call, request, kind())
            t.log(f"ioctl {request:#x}, at least {least} bytes: errno {own}")
            if own == errno.ENOTTY and request in YOUNG:
                continue
            got = errno_of(libc.ioctl, iommufd.fd, request, edge.put(whole, least))
            t.equal(got, own, f"errno of {request:#x} with its minimum size")
            t.errno(errno.EFAULT, libc.ioctl, iommufd.fd, request, edge.put(whole, least - 1))
            t.errno(errno.EFAULT, libc.ioctl, iommufd.fd, request, edge.put(whole, 3))
            short = kind(size=least - 1)
            t.errno(errno.EINVAL, libc.ioctl, iommufd.fd, request, edge.put(short, least - 1))
            t.errno(errno.EFAULT, iommufd.call, request)
            t.errno(errno.EINVAL, iommufd.call, request, kind(size=0))


@case(
    needs=("iommufd",),
    cites="drivers/iommu/iommufd/main.c iommufd_fops_ioctl(); copy_struct_from_user()",
)
def every_structure_may_grow(t: Test) -> None:
    """Every ioctl ignores zeros after the structure that it knows, refuses nonzero bytes there with E2BIG,
    and does not read past the end of memory when the size is too large."""
    with Iommufd() as iommufd, Brink() as edge:
        for request, kind, _least in CALLS:
            known = ctypes.sizeof(kind)
            own = errno_of(iommufd.call, request, kind())
            if own == errno.ENOTTY and request in YOUNG:
                continue
            for more in (1, 8, 4000):
                grown = bytearray(bytes(kind(size=known + more)) + bytes(more))
                got = errno_of(iommufd.call, request, grown)
                t.equal(got, own, f"errno of {request:#x} with {more} more zero bytes")
                grown[-1] = 1
                t.errno(errno.E2BIG, iommufd.call, request, grown)
            liar = edge.put(kind(size=0xFFFFFFFF))
            t.errno(errno.EFAULT, libc.ioctl, iommufd.fd, request, liar)


@case(
    needs=("iommufd",),
    cites="drivers/iommu/iommufd/main.c iommufd_fops_ioctl() (ENOIOCTLCMD)",
)
def unknown_requests_are_enotty(t: Test) -> None:
    """An ioctl number that no request has, and one with size and direction bits, is ENOTTY."""
    with Iommufd() as iommufd:
        for request in (0x3BFF, 0xC0003B00 | api.IOAS_ALLOC & 0xFF):
            t.errno(errno.ENOTTY, iommufd.call, request, api.IoasAlloc())


@case(
    needs=("iommufd",),
    cites="include/uapi/linux/iommufd.h (__reserved, must be 0); drivers/iommu/iommufd/ioas.c, main.c",
)
def reserved_fields_are_refused(t: Test) -> None:
    """Undefined flags, operations and options, and nonzero reserved fields, are EOPNOTSUPP before any object
    is looked up."""
    none = NO_SUCH_ID
    wrong: tuple[tuple[int, Struct], ...] = (
        (api.IOAS_ALLOC, api.IoasAlloc(flags=1)),
        (api.IOAS_ALLOC, api.IoasAlloc(flags=1 << 31)),
        (api.IOAS_IOVA_RANGES, api.IovaRanges(ioas_id=none, reserved=1)),
        (api.IOAS_ALLOW_IOVAS, api.AllowIovas(ioas_id=none, reserved=1)),
        (api.IOAS_MAP, api.IoasMap(ioas_id=none, flags=api.READ_WRITE, length=PAGE, reserved=1)),
        (api.IOAS_MAP, api.IoasMap(ioas_id=none, flags=1 << 31 | api.READ_WRITE, length=PAGE)),
        (api.IOAS_MAP_FILE, api.IoasMapFile(ioas_id=none, flags=8 | api.READ_WRITE, length=PAGE)),
        (api.IOAS_CHANGE_PROCESS, api.ChangeProcess(reserved=1)),
        (api.IOAS_COPY, api.IoasCopy(dst_ioas_id=none, flags=8 | api.READ_WRITE, length=PAGE)),
        (api.OPTION, api.Option(option_id=api.OPTION_RLIMIT_MODE, op=api.OPTION_GET, reserved=1)),
        (api.OPTION, api.Option(option_id=api.OPTION_HUGE_PAGES, object_id=none, reserved=1)),
        (api.OPTION, api.Option(option_id=2, op=api.OPTION_GET, object_id=none)),
        (api.OPTION, api.Option(option_id=api.OPTION_RLIMIT_MODE, op=2)),
        (api.VFIO_IOAS, api.VfioIoas(ioas_id=none, op=api.VFIO_IOAS_SET, reserved=1)),
        (api.VFIO_IOAS, api.VfioIoas(ioas_id=none, op=3)),
        (api.HWPT_ALLOC, api.HwptAlloc(dev_id=none, reserved=1)),
        (api.GET_HW_INFO, api.HwInfo(dev_id=none, flags=2)),
        (api.HWPT_SET_DIRTY_TRACKING, api.HwptSetDirtyTracking(hwpt_id=none, flags=2)),
        (api.HWPT_GET_DIRTY_BITMAP, api.HwptGetDirtyBitmap(hwpt_id=none, flags=2)),
        (api.HWPT_GET_DIRTY_BITMAP, api.HwptGetDirtyBitmap(hwpt_id=none, reserved=1)),
        (api.HWPT_INVALIDATE, api.HwptInvalidate(hwpt_id=none, reserved=1)),
        (api.VIOMMU_ALLOC, api.ViommuAlloc(dev_id=none, type=1, flags=1)),
        (api.VIOMMU_ALLOC, api.ViommuAlloc(dev_id=none, type=0)),
        (api.VEVENTQ_ALLOC, api.VeventqAlloc(viommu_id=none, type=1, veventq_depth=1, flags=1)),
        (api.VEVENTQ_ALLOC, api.VeventqAlloc(viommu_id=none, type=1, veventq_depth=1, reserved=1)),
        (api.VEVENTQ_ALLOC, api.VeventqAlloc(viommu_id=none, type=0, veventq_depth=1)),
        (api.HW_QUEUE_ALLOC, api.HwQueueAlloc(viommu_id=none, type=1, length=PAGE, flags=1)),
        (api.HW_QUEUE_ALLOC, api.HwQueueAlloc(viommu_id=none, type=0, length=PAGE)),
    )
    with Iommufd() as iommufd:
        for request, argument in wrong:
            t.log(f"ioctl {request:#x}")
            if request in YOUNG and errno_of(iommufd.call, request, type(argument)()) == errno.ENOTTY:
                continue
            t.errno(errno.EOPNOTSUPP, iommufd.call, request, argument)
        for index in range(3):
            info = api.HwInfo(dev_id=none)
            info.reserved[index] = 1
            t.errno(errno.EOPNOTSUPP, iommufd.call, api.GET_HW_INFO, info)
        iommufd.option_set(api.OPTION_RLIMIT_MODE, 1)  # EBUSY if any object exists


@case(
    needs=("iommufd",),
    cites="include/uapi/linux/iommufd.h struct iommu_hwpt_set_dirty_tracking (__reserved, must be 0)",
)
def reserved_field_of_set_dirty_tracking_is_refused(t: Test) -> None:
    """SET_DIRTY_TRACKING with a nonzero reserved field is EOPNOTSUPP before any object is looked up."""
    with Iommufd() as iommufd:
        wrong = api.HwptSetDirtyTracking(hwpt_id=NO_SUCH_ID, reserved=1)
        t.errno(errno.EOPNOTSUPP, iommufd.call, api.HWPT_SET_DIRTY_TRACKING, wrong)


@case(
    needs=("iommufd",),
    cites="include/uapi/linux/iommufd.h struct iommu_viommu_alloc (__reserved, must be 0)",
)
def reserved_field_of_viommu_alloc_is_refused(t: Test) -> None:
    """VIOMMU_ALLOC with a nonzero reserved field is EOPNOTSUPP before any object is looked up."""
    with Iommufd() as iommufd:
        if errno_of(iommufd.call, api.VIOMMU_ALLOC, api.ViommuAlloc()) == errno.ENOTTY:
            t.skip("this kernel has no VIOMMU_ALLOC")
        wrong = api.ViommuAlloc(type=1, dev_id=NO_SUCH_ID, reserved=1)
        # Before 6.17 the field was behind the structure that the kernel knew.
        t.errno((errno.EOPNOTSUPP, errno.E2BIG), iommufd.call, api.VIOMMU_ALLOC, wrong)


@case(
    needs=("iommufd",),
    cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_alloc_ioctl() (out_table)",
)
def unreported_ioas_is_not_made(t: Test) -> None:
    """An IOAS_ALLOC that cannot write its answer is EFAULT and leaves no object behind."""
    with Iommufd() as iommufd:
        with brink.frozen(api.IoasAlloc()) as where:
            t.errno(errno.EFAULT, libc.ioctl, iommufd.fd, api.IOAS_ALLOC, where)
        iommufd.option_set(api.OPTION_RLIMIT_MODE, 1)  # EBUSY if an object exists
        t.errno(errno.ENOENT, iommufd.destroy, 1)


@case(needs=("iommufd",), cites="drivers/iommu/iommufd/ioas.c iommufd_option_rlimit_mode()")
def rlimit_mode_is_set_before_anything(t: Test) -> None:
    """The accounting mode accepts 0 and 1, for the whole iommufd, and only before the iommufd holds any
    object."""
    with Iommufd() as iommufd:
        t.equal(iommufd.option_get(api.OPTION_RLIMIT_MODE), 0, "the initial mode")
        t.errno(errno.EINVAL, iommufd.option_set, api.OPTION_RLIMIT_MODE, 2)
        t.errno(errno.EOPNOTSUPP, iommufd.option_set, api.OPTION_RLIMIT_MODE, 1, 5)
        iommufd.option_set(api.OPTION_RLIMIT_MODE, 1)
        iommufd.ioas_alloc()
        t.errno(errno.EBUSY, iommufd.option_set, api.OPTION_RLIMIT_MODE, 0)
        t.equal(iommufd.option_get(api.OPTION_RLIMIT_MODE), 1, "the mode after a refused change")


@case(
    needs=("iommufd",),
    cites="drivers/iommu/iommufd/main.c iommufd_option(), ioas.c iommufd_ioas_option()",
)
def options_know_their_operations(t: Test) -> None:
    """OPTION accepts two operations; any other, and a refused SET, changes nothing and returns no value."""
    with Iommufd() as iommufd:
        ioas = iommufd.ioas_alloc()
        unknown = api.Option(option_id=api.OPTION_HUGE_PAGES, op=2, object_id=ioas, val64=77)
        t.errno(errno.EOPNOTSUPP, iommufd.call, api.OPTION, unknown)
        t.equal(unknown.val64, 77, "the value after the refused operation")
        for value in (2, LAST_IOVA, 1 << 32):
            t.errno(errno.EINVAL, iommufd.option_set, api.OPTION_HUGE_PAGES, value, ioas)
        t.equal(iommufd.option_get(api.OPTION_HUGE_PAGES, ioas), 1, "the option after refused values")
        iommufd.option_set(api.OPTION_HUGE_PAGES, 0, ioas)
        iommufd.option_set(api.OPTION_HUGE_PAGES, 0, ioas)
        other = iommufd.ioas_alloc()
        t.equal(iommufd.option_get(api.OPTION_HUGE_PAGES, other), 1, "the option of another IOAS")
        iommufd.option_set(api.OPTION_HUGE_PAGES, 1, ioas)
        t.equal(iommufd.option_get(api.OPTION_HUGE_PAGES, ioas), 1, "the option set again")
        with Iommufd() as fresh:
            for value in (2, 1 << 32, LAST_IOVA):
                t.errno(errno.EINVAL, fresh.option_set, api.OPTION_RLIMIT_MODE, value)
            t.equal(fresh.option_get(api.OPTION_RLIMIT_MODE), 0, "the accounting mode after refused values")


@case(
    needs=("iommufd",),
    cites="drivers/iommu/iommufd/vfio_compat.c iommufd_vfio_ioas(), get_compat_ioas()",
)
def emulated_container_names_its_ioas(t: Test) -> None:
    """VFIO_IOAS returns the IOAS that was set and ENODEV when there is none, forgets a destroyed one, and
    keeps the old one when a change is refused."""
    with Iommufd() as iommufd:
        t.errno(errno.ENODEV, iommufd.vfio_ioas, api.VFIO_IOAS_GET)
        t.errno(errno.ENOENT, iommufd.vfio_ioas, api.VFIO_IOAS_SET, NO_SUCH_ID)
        one, other = iommufd.ioas_alloc(), iommufd.ioas_alloc()
        iommufd.vfio_ioas(api.VFIO_IOAS_SET, one)
        t.errno(errno.ENOENT, iommufd.vfio_ioas, api.VFIO_IOAS_SET, NO_SUCH_ID)
        t.equal(iommufd.vfio_ioas(api.VFIO_IOAS_GET), one, "the IOAS after a refused change")
        iommufd.vfio_ioas(api.VFIO_IOAS_SET, other)
        iommufd.destroy(one)
        t.equal(iommufd.vfio_ioas(api.VFIO_IOAS_GET), other, "the IOAS after a change")
        iommufd.destroy(other)
        t.errno(errno.ENODEV, iommufd.vfio_ioas, api.VFIO_IOAS_GET)
        third = iommufd.ioas_alloc()
        iommufd.vfio_ioas(api.VFIO_IOAS_SET, third)
        for _ in range(2):
            iommufd.vfio_ioas(api.VFIO_IOAS_CLEAR)
            t.errno(errno.ENODEV, iommufd.vfio_ioas, api.VFIO_IOAS_GET)
        iommufd.destroy(third)


@case(
    needs=TWO, cites="drivers/iommu/iommufd/device.c iommufd_device_change_pt(); main.c iommufd_get_object()"
)
def ids_belong_to_one_iommufd(t: Test) -> None:
    """Object IDs are valid in their own iommufd only: a device attaches only to objects of the iommufd that
    it is bound to, and closing that device does not affect the addresses of another iommufd."""
    with (
        unbound(t.device("igb", iommu=False)) as (other, strange),
        through_cdev(t.device("edu", iommu=False)) as user,
        memory.anonymous() as page,
    ):
        page.touch()
        user.map(page, IOVA)
        strange.ioas_alloc()
        devid = other.bind_iommufd(strange.fd)
        foreign = [strange.ioas_alloc() for _ in range(8)][-1]
        t.errno(errno.ENOENT, user.device.attach, foreign)
        t.errno(errno.ENOENT, user.iommufd.hwpt_alloc, foreign, user.ioas)
        t.errno(errno.EINVAL, user.iommufd.hwpt_alloc, user.devid, foreign)
        t.errno(errno.ENOENT, user.iommufd.get_hw_info, foreign)
        t.errno(errno.ENOENT, user.iommufd.destroy, foreign)
        t.errno(errno.EBUSY, strange.destroy, devid)
        t.check(other.attach(foreign) > 0, "attach to the object in its own iommufd returned no page table")
        t.errno(errno.ENOENT, strange.get_pa, foreign, IOVA, PAGE)
        other.close()
        t.equal(user.physical(IOVA, PAGE), page.physical(), "the first device's page")


@case(needs=("iommufd",), cites="drivers/iommu/iommufd/main.c iommufd_fops_mmap(), iommufd_fops")
def iommufd_is_no_memory(t: Test) -> None:
    """An iommufd with nothing to map refuses mmap at every offset (ENXIO), private and executable mappings,
    and read and write."""
    with Iommufd() as iommufd:

        def attempt(flags: int, prot: int, offset: int = 0) -> None:
            libc.mmap(PAGE, prot, flags, iommufd.fd, offset)

        for offset in (0, PAGE, 1 << 40, (1 << 63) - PAGE):
            t.errno(errno.ENXIO, attempt, mmap.MAP_SHARED, memory.READ_WRITE, offset)
        t.errno(errno.EINVAL, attempt, mmap.MAP_PRIVATE, memory.READ_WRITE)
        t.errno(errno.EPERM, attempt, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_EXEC)
        t.errno(errno.EINVAL, os.read, iommufd.fd, 8)
        t.errno(errno.EINVAL, os.write, iommufd.fd, bytes(8))
