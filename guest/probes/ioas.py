# SPDX-License-Identifier: GPL-2.0-only
"""Address spaces: what may be mapped where, what gets pinned when, and what differs without an IOMMU."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

from guest import brink, libc, memory
from guest import iommufd as api
from guest.brink import NOWHERE, Brink
from guest.case import Test, case
from guest.iommufd import LAST_IOVA, NO_SUCH_ID, Iommufd
from guest.memory import PAGE
from guest.opened import through_cdev
from guest.uapi import Struct, errno_of

BARE = ("noiommu-cdev", "edu", "!viommu")
INTEL = ("viommu", "viommu-intel", "cdev", "iommufd", "edu")


LAST_PAGE = LAST_IOVA - PAGE + 1

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
)
"""Each ioctl with its structure and the least size that it was born with."""

YOUNG = (api.IOAS_MAP_FILE, api.HWPT_ALLOC, api.GET_HW_INFO, api.HWPT_SET_DIRTY_TRACKING)
"""Those that the first release of iommufd did not have."""


@case(
    needs=("iommufd",),
    cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_iova_ranges(); io_pagetable.c iopt_init_table()",
)
def fresh_one_is_boundless(t: Test) -> None:
    """An IOAS without devices offers every IOVA, byte by byte, and EMSGSIZE tells of a list too short."""
    with Iommufd() as iommufd:
        ioas = iommufd.ioas_alloc()
        t.equal(iommufd.iova_ranges(ioas), ([(0, LAST_IOVA)], 1), "ranges and alignment")
        t.errno(errno.EMSGSIZE, iommufd.call, api.IOAS_IOVA_RANGES, api.IovaRanges(ioas_id=ioas))
        t.errno(errno.ENOENT, iommufd.iova_ranges, NO_SUCH_ID)


@case(needs=BARE, cites="drivers/iommu/iommufd/device.c iommufd_device_do_replace(), hwpt_noiommu.c")
def attached_one_is_boundless_by_pages(t: Test) -> None:
    """With a no-IOMMU device the whole IOVA space stays usable, by pages; without it, by bytes again."""
    with through_cdev(t.device("edu", iommu=False)) as user:
        t.equal(user.iommufd.iova_ranges(user.ioas), ([(0, LAST_IOVA)], PAGE), "ranges and alignment")
        user.device.detach()
        t.equal(user.iommufd.iova_ranges(user.ioas), ([(0, LAST_IOVA)], 1), "ranges and alignment detached")


@case(needs=BARE, cites="drivers/iommu/iommufd/io_pagetable.c iopt_alloc_area_pages(); hwpt_noiommu.c")
def every_page_can_be_mapped(t: Test) -> None:
    """Without an IOMMU nothing is reserved: first page, interrupt window and last page map and resolve."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous() as page:
        page.touch()
        for iova in (0, memory.MSI_WINDOW, 1 << 48, LAST_IOVA - PAGE + 1):
            user.map(page, iova)
            t.equal(user.physical(iova, PAGE), page.physical(), f"the physical address of IOVA {iova:#x}")


@case(needs=BARE, cites="drivers/iommu/iommufd/io_pagetable.c iopt_alloc_iova()")
def kernel_chooses_free_iovas(t: Test) -> None:
    """IOVAs chosen by the kernel are page aligned, never 0, never overlap, and fill a hole that opens."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(4 * PAGE) as buffer:
        buffer.touch()
        iommufd, ioas = user.iommufd, user.ioas
        taken: list[int] = []
        for _ in range(8):
            iova = iommufd.map(ioas, buffer.address, 2 * PAGE)
            t.check(iova and iova % PAGE == 0, f"the kernel chose {iova:#x}")
            overlaps = [other for other in taken if abs(other - iova) < 2 * PAGE]
            t.equal(overlaps, [], f"mappings that {iova:#x} overlaps")
            taken.append(iova)
        iommufd.unmap(ioas, taken[3], 2 * PAGE)
        # The same length again: a shorter one may fit before the first, where alignment left a gap.
        t.equal(iommufd.map(ioas, buffer.address, 2 * PAGE), taken[3], "the IOVA chosen after an unmap")


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_map(); io_pagetable.c iopt_alloc_area_pages()",
)
def map_refuses_nonsense(t: Test) -> None:
    """MAP refuses what is unaligned, empty, occupied, without permission, unknown or beyond the end."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(4 * PAGE) as buffer:
        buffer.touch()
        iommufd, ioas, va = user.iommufd, user.ioas, buffer.address
        iommufd.map(ioas, va, PAGE, 0x10000)
        t.errno(errno.EEXIST, iommufd.map, ioas, va, PAGE, 0x10000)
        t.errno(errno.EEXIST, iommufd.map, ioas, va, 2 * PAGE, 0xF000)
        t.errno(errno.EINVAL, iommufd.map, ioas, va, 0, 0x20000)
        t.errno(errno.EINVAL, iommufd.map, ioas, va, PAGE - 1, 0x20000)
        t.errno(errno.EINVAL, iommufd.map, ioas, va, PAGE, 0x20001)
        t.errno(errno.EINVAL, iommufd.map, ioas, va + 1, PAGE, 0x20000)
        t.errno(errno.EINVAL, iommufd.map, ioas, va, PAGE, 0x20000, flags=0)
        t.errno(errno.EOPNOTSUPP, iommufd.map, ioas, va, PAGE, 0x20000, flags=api.READ_WRITE | 8)
        t.errno(errno.EOVERFLOW, iommufd.map, ioas, va, PAGE, LAST_IOVA)
        t.errno(errno.EFAULT, iommufd.map, ioas, 0, PAGE, 0x20000)
        t.errno(errno.ENOENT, iommufd.map, NO_SUCH_ID, va, PAGE, 0x20000)
        t.errno(errno.ENOENT, iommufd.get_pa, ioas, 0x20000, 1)


@case(needs=BARE, cites="drivers/iommu/iommufd/pages.c pfn_reader_user_pin() (FOLL_WRITE)")
def read_only_memory_is_mapped_read_only(t: Test) -> None:
    """Read-only memory maps for reading and resolves; mapping it for writing is EFAULT."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous() as page:
        page.touch()
        page.protect(mmap.PROT_READ)
        iommufd, ioas = user.iommufd, user.ioas
        t.errno(errno.EFAULT, iommufd.map, ioas, page.address, PAGE, 0x10000)
        iommufd.map(ioas, page.address, PAGE, 0x10000, flags=api.MAP_READABLE)
        t.equal(user.physical(0x10000, PAGE), page.physical(), "the physical address")


@case(needs=BARE, cites="drivers/iommu/iommufd/pages.c pfn_reader_user_pin(); mm/gup.c (VM_PFNMAP)")
def bar_is_no_memory(t: Test) -> None:
    """The address of a mapped BAR cannot be mapped into an IOAS (EFAULT)."""
    with through_cdev(t.device("edu", iommu=False)) as user, user.device.bar(length=PAGE) as bar:
        t.errno(errno.EFAULT, user.iommufd.map, user.ioas, bar.address, PAGE, 0x10000)


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_unmap(); io_pagetable.c iopt_unmap_iova_range()",
)
def unmap_takes_whole_areas(t: Test) -> None:
    """UNMAP takes whole mappings, one or many, says how much it took, and leaves a split one alone."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(4 * PAGE) as buffer:
        buffer.touch()
        iommufd, ioas = user.iommufd, user.ioas
        for iova in (0x10000, 0x20000, 0x30000):
            user.map(buffer, iova)
        t.errno(errno.ENOENT, iommufd.unmap, ioas, 0x10000, PAGE)
        t.errno(errno.ENOENT, iommufd.unmap, ioas, 0x11000, 3 * PAGE)
        t.equal(user.physical(0x10000, 1), buffer.physical(), "the address after refused unmaps")
        t.equal(iommufd.unmap(ioas, 0x10000, 4 * PAGE), 4 * PAGE, "bytes of an exact unmap")
        t.errno(errno.ENOENT, iommufd.unmap, ioas, 0x10000, 4 * PAGE)
        t.errno(errno.EINVAL, iommufd.unmap, ioas, 0x20000, 0)
        t.errno(errno.EOVERFLOW, iommufd.unmap, ioas, 0x20000, LAST_IOVA)
        t.equal(iommufd.unmap(ioas, 0, LAST_IOVA), 8 * PAGE, "bytes of an unmap of everything")
        t.equal(iommufd.unmap(ioas, 0, LAST_IOVA), 0, "bytes when nothing is left")


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_map_file(); io_pagetable.c iopt_map_file_pages()",
)
def memfd_is_mapped_by_file(t: Test) -> None:
    """MAP_FILE takes a memfd without any mapping of it and resolves to its pages; other files are refused."""
    fd = memory.memfd(4 * PAGE)
    with through_cdev(t.device("edu", iommu=False)) as user, memory.shared_file(fd, 4 * PAGE) as view:
        view.touch()
        iommufd, ioas = user.iommufd, user.ioas
        iommufd.map_file(ioas, fd, 2 * PAGE, 0x10000, start=PAGE)
        for index in (0, 1):
            got = iommufd.get_pa(ioas, 0x10000 + index * PAGE, 1)[0]
            t.equal(got, view.physical((index + 1) * PAGE), f"the address of page {index}")
        t.errno(errno.EBADF, iommufd.map_file, ioas, 999, PAGE, 0x20000)
        with open(__file__, "rb") as regular:
            refused = (iommufd.map_file, ioas, regular.fileno(), PAGE, 0x20000)
            t.errno(errno.EINVAL, *refused, flags=api.MAP_READABLE)


@case(needs=BARE, cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_copy(); io_pagetable.c iopt_get_pages()")
def copy_shares_the_pages(t: Test) -> None:
    """COPY gives another IOAS the same pages, at another IOVA, even after the first is gone."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(8 * PAGE) as buffer:
        buffer.touch()
        iommufd, source = user.iommufd, user.ioas
        user.map(buffer, 0x100000)
        target = iommufd.ioas_alloc()
        iommufd.copy(target, source, 2 * PAGE, 0x102000, 0x40000)
        t.errno(errno.EOPNOTSUPP, iommufd.get_pa, target, 0x40000, 1)
        t.errno(errno.ENOENT, iommufd.copy, target, source, PAGE, 0x200000)
        t.errno(errno.EEXIST, iommufd.copy, target, source, PAGE, 0x100000, 0x40000)
        t.errno(errno.EINVAL, iommufd.copy, target, source, 0, 0x100000)
        user.device.attach(target)
        iommufd.unmap(source, 0x100000, buffer.length)
        for index in (0, 1):
            got = iommufd.get_pa(target, 0x40000 + index * PAGE, 1)[0]
            t.equal(got, buffer.physical((index + 2) * PAGE), f"the address of page {index} in the copy")


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_allow_iovas(); io_pagetable.c iopt_alloc_iova()",
)
def allowed_iovas_bind_the_kernel(t: Test) -> None:
    """ALLOW_IOVAS confines the kernel's choices to the list, and refuses empty or overlapping ranges."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(2 * PAGE) as buffer:
        buffer.touch()
        iommufd, ioas = user.iommufd, user.ioas
        t.errno(errno.EINVAL, iommufd.allow_iovas, ioas, (0x2000, 0x2000))
        t.errno(errno.EINVAL, iommufd.allow_iovas, ioas, (0x1000, 0x8FFF), (0x5000, 0xFFFF))
        iommufd.allow_iovas(ioas, (memory.MSI_WINDOW, memory.MSI_WINDOW + 2 * PAGE - 1))
        t.equal(iommufd.map(ioas, buffer.address, PAGE), memory.MSI_WINDOW, "the first IOVA chosen")
        t.equal(iommufd.map(ioas, buffer.address, PAGE), memory.MSI_WINDOW + PAGE, "the second IOVA chosen")
        t.errno(errno.ENOSPC, iommufd.map, ioas, buffer.address, PAGE)


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_option(); io_pagetable.c iopt_disable_large_pages()",
)
def huge_pages_option_is_set_while_empty(t: Test) -> None:
    """Large pages can be switched off for an empty IOAS alone, and GET_PA answers the same without them."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous() as page:
        page.touch()
        iommufd, ioas = user.iommufd, user.ioas
        t.equal(iommufd.option_get(api.OPTION_HUGE_PAGES, ioas), 1, "the option at first")
        user.map(page, 0)
        t.errno(errno.EINVAL, iommufd.option_set, api.OPTION_HUGE_PAGES, 0, ioas)
        iommufd.unmap(ioas, 0, PAGE)
        iommufd.option_set(api.OPTION_HUGE_PAGES, 0, ioas)
        t.equal(iommufd.option_get(api.OPTION_HUGE_PAGES, ioas), 0, "the option after clearing it")
        user.map(page, 0)
        t.equal(user.physical(0, PAGE), page.physical(), "the physical address")
        t.errno(errno.EINVAL, iommufd.option_set, api.OPTION_HUGE_PAGES, 2, ioas)
        t.errno(errno.ENOENT, iommufd.option_get, api.OPTION_HUGE_PAGES, NO_SUCH_ID)


@case(needs=("iommufd",), cites="drivers/iommu/iommufd/ioas.c iommufd_option_rlimit_mode()")
def rlimit_mode_is_set_before_anything(t: Test) -> None:
    """The accounting mode takes 0 and 1, for the whole iommufd, and only before it holds any object."""
    with Iommufd() as iommufd:
        t.equal(iommufd.option_get(api.OPTION_RLIMIT_MODE), 0, "the mode at first")
        t.errno(errno.EINVAL, iommufd.option_set, api.OPTION_RLIMIT_MODE, 2)
        t.errno(errno.EOPNOTSUPP, iommufd.option_set, api.OPTION_RLIMIT_MODE, 1, 5)
        iommufd.option_set(api.OPTION_RLIMIT_MODE, 1)
        iommufd.ioas_alloc()
        t.errno(errno.EBUSY, iommufd.option_set, api.OPTION_RLIMIT_MODE, 0)
        t.equal(iommufd.option_get(api.OPTION_RLIMIT_MODE), 1, "the mode after a refused change")


@case(needs=("iommufd",), cites="drivers/iommu/iommufd/main.c iommufd_fops_ioctl() (min_size)")
def every_structure_has_a_least_size(t: Test) -> None:
    """Every ioctl takes a structure of the size it was born with, when no more memory is there at all, and
    refuses one a byte shorter (EINVAL) and one that memory cuts short (EFAULT)."""
    with Iommufd() as iommufd, Brink() as edge:
        for request, kind, least in CALLS:
            whole, own = kind(size=least), errno_of(iommufd.call, request, kind())
            t.log(f"ioctl {request:#x}, at least {least} bytes: errno {own}")
            if own == errno.ENOTTY and request in YOUNG:
                continue
            got = errno_of(libc.ioctl, iommufd.fd, request, edge.put(whole, least))
            t.equal(got, own, f"errno of {request:#x} with its least size")
            t.errno(errno.EFAULT, libc.ioctl, iommufd.fd, request, edge.put(whole, least - 1))
            t.errno(errno.EFAULT, libc.ioctl, iommufd.fd, request, edge.put(whole, 3))
            short = kind(size=least - 1)
            t.errno(errno.EINVAL, libc.ioctl, iommufd.fd, request, edge.put(short, least - 1))
            t.errno(errno.EFAULT, iommufd.call, request)
            t.errno(errno.EINVAL, iommufd.call, request, kind(size=0))


@case(needs=("iommufd",), cites="drivers/iommu/iommufd/main.c iommufd_fops_ioctl(); copy_struct_from_user()")
def every_structure_may_grow(t: Test) -> None:
    """Every ioctl ignores zeros behind the structure that it knows, refuses anything else there with E2BIG,
    and does not read beyond the end of memory for a size that lies."""
    with Iommufd() as iommufd, Brink() as edge:
        for request, kind, _least in CALLS:
            known = ctypes.sizeof(kind)
            own = errno_of(iommufd.call, request, kind())
            if own == errno.ENOTTY and request in YOUNG:
                continue
            for more in (1, 8, 4000):
                grown = bytearray(bytes(kind(size=known + more)) + bytes(more))
                got = errno_of(iommufd.call, request, grown)
                t.equal(got, own, f"errno of {request:#x} with {more} more bytes of zero")
                grown[-1] = 1
                t.errno(errno.E2BIG, iommufd.call, request, grown)
            liar = edge.put(kind(size=0xFFFFFFFF))
            t.errno(errno.EFAULT, libc.ioctl, iommufd.fd, request, liar)


@case(needs=("iommufd",), cites="drivers/iommu/iommufd/main.c iommufd_fops_ioctl() (ENOIOCTLCMD)")
def unknown_requests_are_enotty(t: Test) -> None:
    """A number that no request has, and one with the bits of a size and a direction, is ENOTTY."""
    with Iommufd() as iommufd:
        for request in (0x3BFF, 0xC0003B00 | api.IOAS_ALLOC & 0xFF):
            t.errno(errno.ENOTTY, iommufd.call, request, api.IoasAlloc())


@case(
    needs=("iommufd",),
    cites="include/uapi/linux/iommufd.h (__reserved, must be 0); drivers/iommu/iommufd/ioas.c, main.c",
)
def reserved_fields_are_refused(t: Test) -> None:
    """Flags, operations and options that nobody defined, and anything in a reserved field, are EOPNOTSUPP
    before any object is looked for."""
    none = NO_SUCH_ID
    wrong: tuple[tuple[int, Struct], ...] = (
        (api.IOAS_ALLOC, api.IoasAlloc(flags=1)),
        (api.IOAS_ALLOC, api.IoasAlloc(flags=1 << 31)),
        (api.IOAS_IOVA_RANGES, api.IovaRanges(ioas_id=none, reserved=1)),
        (api.IOAS_ALLOW_IOVAS, api.AllowIovas(ioas_id=none, reserved=1)),
        (api.IOAS_MAP, api.IoasMap(ioas_id=none, flags=api.READ_WRITE, length=PAGE, reserved=1)),
        (api.IOAS_MAP, api.IoasMap(ioas_id=none, flags=1 << 31 | api.READ_WRITE, length=PAGE)),
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
    )
    with Iommufd() as iommufd:
        for request, argument in wrong:
            t.log(f"ioctl {request:#x}")
            t.errno(errno.EOPNOTSUPP, iommufd.call, request, argument)
        for index in range(3):
            info = api.HwInfo(dev_id=none)
            info.reserved[index] = 1
            t.errno(errno.EOPNOTSUPP, iommufd.call, api.GET_HW_INFO, info)
        iommufd.option_set(api.OPTION_RLIMIT_MODE, 1)  # refused as soon as there is any object


@case(needs=("iommufd",), cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_alloc_ioctl() (out_table)")
def unreported_ioas_is_not_made(t: Test) -> None:
    """An IOAS_ALLOC that cannot write its answer is EFAULT and leaves no object behind."""
    with Iommufd() as iommufd:
        with brink.frozen(api.IoasAlloc()) as where:
            t.errno(errno.EFAULT, libc.ioctl, iommufd.fd, api.IOAS_ALLOC, where)
        iommufd.option_set(api.OPTION_RLIMIT_MODE, 1)  # EBUSY if there were one
        t.errno(errno.ENOENT, iommufd.destroy, 1)


@case(needs=("iommufd",), cites="drivers/iommu/iommufd/main.c iommufd_destroy(), iommufd_object_remove()")
def destroyed_ioas_is_gone(t: Test) -> None:
    """DESTROY takes an IOAS with all its mappings, once: afterwards every call for it is ENOENT, and its
    neighbour is untouched."""
    with Iommufd() as iommufd, memory.anonymous() as page:
        ioas, other = iommufd.ioas_alloc(), iommufd.ioas_alloc()
        iommufd.map(ioas, page.address, PAGE, 0x10000)
        iommufd.map(other, page.address, PAGE, 0x10000)
        iommufd.destroy(ioas)
        t.errno(errno.ENOENT, iommufd.destroy, ioas)
        t.errno(errno.ENOENT, iommufd.destroy, LAST_IOVA & 0xFFFFFFFF)
        t.errno(errno.ENOENT, iommufd.map, ioas, page.address, PAGE, 0x20000)
        t.errno(errno.ENOENT, iommufd.unmap, ioas, 0, LAST_IOVA)
        t.errno(errno.ENOENT, iommufd.copy, ioas, other, PAGE, 0x10000)
        t.errno(errno.ENOENT, iommufd.copy, other, ioas, PAGE, 0x10000)
        t.errno(errno.ENOENT, iommufd.iova_ranges, ioas)
        t.errno(errno.ENOENT, iommufd.allow_iovas, ioas, (0, PAGE))
        t.errno(errno.ENOENT, iommufd.vfio_ioas, api.VFIO_IOAS_SET, ioas)
        t.equal(iommufd.unmap(other, 0, LAST_IOVA), PAGE, "bytes mapped in the neighbour")


@case(needs=BARE, cites="drivers/iommu/iommufd/main.c iommufd_get_object() (type)")
def other_objects_are_no_ioas(t: Test) -> None:
    """A device and a page table are no address space: every call that wants one answers ENOENT."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous() as page:
        iommufd, ioas = user.iommufd, user.ioas
        page.touch()
        user.map(page, 0x10000)
        hwpt = user.device.attach(ioas)
        for wrong in (user.devid, hwpt, 0):
            t.errno(errno.ENOENT, iommufd.map, wrong, page.address, PAGE, 0x20000)
            t.errno(errno.ENOENT, iommufd.map_file, wrong, 0, PAGE, 0x20000)
            t.errno(errno.ENOENT, iommufd.unmap, wrong, 0x10000, PAGE)
            t.errno(errno.ENOENT, iommufd.copy, wrong, ioas, PAGE, 0x10000)
            t.errno(errno.ENOENT, iommufd.copy, ioas, wrong, PAGE, 0x10000)
            t.errno(errno.ENOENT, iommufd.iova_ranges, wrong)
            t.errno(errno.ENOENT, iommufd.allow_iovas, wrong, (0, PAGE))
            t.errno(errno.ENOENT, iommufd.option_get, api.OPTION_HUGE_PAGES, wrong)
            t.errno(errno.ENOENT, iommufd.vfio_ioas, api.VFIO_IOAS_SET, wrong)
            t.errno(errno.ENOENT, iommufd.get_pa, wrong, 0x10000, 1)
        t.equal(user.physical(0x10000, PAGE), page.physical(), "the address after all refusals")


@case(needs=BARE, cites="drivers/iommu/iommufd/io_pagetable.c iopt_check_iova() (check_add_overflow)")
def map_stops_at_the_end_of_all_iovas(t: Test) -> None:
    """A mapping that would run over the end of the IOVA space, or of the address space, is EOVERFLOW and
    leaves the last page free."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(2 * PAGE) as buffer:
        buffer.touch()
        iommufd, ioas, va = user.iommufd, user.ioas, buffer.address
        t.errno(errno.EOVERFLOW, iommufd.map, ioas, va, 2 * PAGE, LAST_PAGE)
        t.errno(errno.EOVERFLOW, iommufd.map, ioas, va, LAST_IOVA, 0x10000)
        t.errno(errno.EOVERFLOW, iommufd.map, ioas, va, LAST_PAGE, 0x10000)
        t.errno(errno.EOVERFLOW, iommufd.map, ioas, LAST_PAGE, 2 * PAGE, 0x10000)
        t.errno(errno.EINVAL, iommufd.map, ioas, 0, LAST_PAGE, 0x10000)
        t.errno(errno.EOVERFLOW, iommufd.map, ioas, 0, 1 << 63)
        t.equal(iommufd.map(ioas, va, PAGE, LAST_PAGE), LAST_PAGE, "the IOVA of the last page")
        t.errno(errno.EOVERFLOW, iommufd.unmap, ioas, LAST_PAGE, 2 * PAGE)
        t.errno(errno.EOVERFLOW, iommufd.unmap, ioas, LAST_IOVA, 1)
        t.errno(errno.EOVERFLOW, iommufd.copy, ioas, ioas, 2 * PAGE, LAST_PAGE)
        t.equal(iommufd.unmap(ioas, LAST_PAGE, PAGE), PAGE, "bytes unmapped at the end")


@case(
    needs=BARE, cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_map(); io_pagetable.c iopt_map_user_pages()"
)
def vast_mapping_costs_nothing_until_attached(t: Test) -> None:
    """Without a device 2^62 bytes of nothing map and unmap at once; attaching them is EFAULT and leaves the
    IOAS as it was."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous() as page:
        page.touch()
        iommufd, ioas = user.iommufd, user.ioas
        user.device.detach()
        user.map(page, 0)
        iommufd.map(ioas, 0, 1 << 62, 1 << 62)
        t.errno(errno.EEXIST, iommufd.map, ioas, page.address, PAGE, (1 << 63) - PAGE)
        t.errno(errno.EFAULT, user.device.attach, ioas)
        t.equal(memory.pinned_kib(), 0, "KiB pinned after the refused attach")
        t.equal(iommufd.unmap(ioas, 1 << 62, 1 << 62), 1 << 62, "bytes unmapped")
        user.device.attach(ioas)
        t.equal(user.physical(0, PAGE), page.physical(), "the address of what was mapped beside it")


@case(needs=BARE, cites="drivers/iommu/iommufd/io_pagetable.c iopt_map_pages() (iopt_abort_area())")
def refused_map_leaves_the_iova_free(t: Test) -> None:
    """A MAP that fails half way, where the memory ends, pins nothing and takes no IOVA."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(8 * PAGE) as buffer:
        buffer.touch()
        iommufd, ioas = user.iommufd, user.ioas
        last = memory.Buffer(buffer.address + 7 * PAGE, PAGE)
        last.protect(memory.PROT_NONE)
        t.errno(errno.EFAULT, user.map, buffer, 0x10000)
        t.equal(memory.pinned_kib(), 0, "KiB pinned after the refusal")
        t.errno(errno.ENOENT, iommufd.get_pa, ioas, 0x10000, 1)
        t.errno(errno.ENOENT, iommufd.unmap, ioas, 0x10000, 8 * PAGE)
        last.protect(memory.READ_WRITE)
        user.map(buffer, 0x10000)
        for index in (0, 7):
            got = user.physical(0x10000 + index * PAGE, PAGE)
            t.equal(got, buffer.physical(index * PAGE), f"the address of page {index}")


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/io_pagetable.c iopt_unmap_iova_range()",
)
def refused_unmap_takes_nothing(t: Test) -> None:
    """An UNMAP that is refused, because it would split the last mapping it meets, leaves all others."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(2 * PAGE) as buffer:
        buffer.touch()
        user.map(buffer, 0x10000)
        user.map(buffer, 0x12000)
        t.errno(errno.ENOENT, user.iommufd.unmap, user.ioas, 0x10000, 3 * PAGE)
        t.equal(
            user.physical(0x12000, 1), buffer.physical(), "the address in the mapping that would be split"
        )
        left = user.iommufd.unmap(user.ioas, 0, LAST_IOVA)
        t.equal(left, 4 * PAGE, "bytes that are mapped after the refusal")


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_copy(); io_pagetable.c iopt_get_pages(), "
    "iopt_insert_area() (writable)",
)
def copy_refuses_nonsense(t: Test) -> None:
    """COPY refuses overflow, no permissions, more permissions than the source, gaps, unaligned and wrong
    places, and holds on to neither IOAS afterwards."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(2 * PAGE) as buffer:
        buffer.touch()
        iommufd, source, target = user.iommufd, user.ioas, user.iommufd.ioas_alloc()
        iommufd.map(source, buffer.address, PAGE, 0x10000, flags=api.MAP_READABLE)
        iommufd.map(source, buffer.address, PAGE, 0x12000)
        for field in ("length", "src_iova", "dst_iova"):
            over = api.IoasCopy(dst_ioas_id=target, src_ioas_id=source, flags=api.READ_WRITE)
            setattr(over, field, LAST_IOVA)
            t.errno(errno.EOVERFLOW, iommufd.call, api.IOAS_COPY, over)
        t.errno(errno.EINVAL, iommufd.copy, target, source, PAGE, 0x12000, flags=0)
        t.errno(errno.EPERM, iommufd.copy, target, source, PAGE, 0x10000)
        t.errno(errno.ENOENT, iommufd.copy, target, source, 3 * PAGE, 0x10000, flags=api.MAP_READABLE)
        t.errno(errno.ENOENT, iommufd.copy, target, source, 2 * PAGE, 0x12000)
        t.errno(errno.ENOENT, iommufd.copy, target, NO_SUCH_ID, PAGE, 0x12000)
        t.errno(errno.ENOENT, iommufd.copy, NO_SUCH_ID, source, PAGE, 0x12000)
        t.errno(errno.EINVAL, iommufd.copy, source, source, PAGE, 0x12000, 0x20001)
        t.errno(errno.EINVAL, iommufd.copy, source, source, 1, 0x12000, 0x20000)
        t.errno(errno.EOVERFLOW, iommufd.copy, source, source, PAGE, 0x12000, LAST_IOVA)
        t.equal(iommufd.unmap(source, 0, LAST_IOVA), 2 * PAGE, "bytes mapped in the source")
        iommufd.destroy(target)
        user.device.detach()
        iommufd.destroy(source)


@case(needs=BARE, cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_copy(); io_pagetable.c iopt_get_pages()")
def copy_crosses_mappings_that_adjoin(t: Test) -> None:
    """COPY takes one range out of several mappings without a gap, also within one IOAS, and the result ends
    where each of them did."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(4 * PAGE) as buffer:
        buffer.touch()
        iommufd, ioas = user.iommufd, user.ioas
        iommufd.map(ioas, buffer.address, 2 * PAGE, 0x10000)
        iommufd.map(ioas, buffer.address + 3 * PAGE, PAGE, 0x12000)
        t.equal(iommufd.copy(ioas, ioas, 2 * PAGE, 0x11000, 0x40000), 0x40000, "the IOVA of the copy")
        for index, original in ((0, 1), (1, 3)):
            got = user.physical(0x40000 + index * PAGE, PAGE)
            t.equal(got, buffer.physical(original * PAGE), f"the address of page {index} of the copy")
        iommufd.unmap(ioas, 0x10000, 3 * PAGE)
        t.equal(user.physical(0x41000, 1), buffer.physical(3 * PAGE), "the address without the originals")
        t.equal(iommufd.unmap(ioas, 0x40000, PAGE), PAGE, "bytes of the copy's first part")
        t.equal(iommufd.unmap(ioas, 0, LAST_IOVA), PAGE, "bytes of its second part")


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/io_pagetable.c iopt_map_file_pages(); mm/gup.c memfd_pin_folios()",
)
def map_file_refuses_nonsense(t: Test) -> None:
    """MAP_FILE refuses bad files, empty, unaligned and overflowing ranges, and what lies beyond the end of
    the file, and then maps the last page of it."""
    fd = memory.memfd(4 * PAGE)
    with through_cdev(t.device("edu", iommu=False)) as user, memory.shared_file(fd, 4 * PAGE) as view:
        view.touch()
        iommufd, ioas = user.iommufd, user.ioas
        t.errno(errno.EBADF, iommufd.map_file, ioas, -1, PAGE, 0x10000)
        t.errno(errno.EINVAL, iommufd.map_file, ioas, fd, 0, 0x10000)
        t.errno(errno.EINVAL, iommufd.map_file, ioas, fd, PAGE, 0x10000, flags=0)
        t.errno(errno.EOPNOTSUPP, iommufd.map_file, ioas, fd, PAGE, 0x10000, flags=8 | api.READ_WRITE)
        t.errno(errno.EINVAL, iommufd.map_file, ioas, fd, PAGE, 0x10001)
        t.errno(errno.EINVAL, iommufd.map_file, ioas, fd, PAGE, 0x10000, start=1)
        t.errno(errno.EINVAL, iommufd.map_file, ioas, fd, PAGE - 1, 0x10000)
        t.errno(errno.EINVAL, iommufd.map_file, ioas, fd, PAGE, 0x10000, start=4 * PAGE)
        t.errno(errno.EINVAL, iommufd.map_file, ioas, fd, 2 * PAGE, 0x10000, start=3 * PAGE)
        t.errno(errno.EINVAL, iommufd.map_file, ioas, fd, PAGE, 0x10000, start=1 << 63)
        t.errno(errno.EOVERFLOW, iommufd.map_file, ioas, fd, 2 * PAGE, 0x10000, start=LAST_PAGE)
        t.errno(errno.EOVERFLOW, iommufd.map_file, ioas, fd, LAST_IOVA, 0x10000)
        t.errno(errno.EOVERFLOW, iommufd.map_file, ioas, fd, PAGE, LAST_IOVA)
        t.errno(errno.EOVERFLOW, iommufd.map_file, ioas, fd, 2 * PAGE, LAST_PAGE)
        t.errno(errno.ENOENT, iommufd.map_file, NO_SUCH_ID, fd, PAGE, 0x10000)
        t.equal(memory.pinned_kib(), 0, "KiB pinned by refused maps")
        iommufd.map_file(ioas, fd, PAGE, 0x10000, start=3 * PAGE)
        t.errno(errno.EEXIST, iommufd.map_file, ioas, fd, PAGE, 0x10000)
        t.equal(user.physical(0x10000, PAGE), view.physical(3 * PAGE), "the address of the last page")


@case(
    needs=BARE,
    cites="mm/gup.c memfd_pin_folios(); drivers/iommu/iommufd/io_pagetable.c iopt_map_file_pages()",
)
def read_only_file_is_not_mapped_for_writing(t: Test) -> None:
    """A memfd open for reading only maps by MAP_FILE for reading, and not for writing."""
    whole = memory.memfd(PAGE)
    readable = os.open(f"/proc/self/fd/{whole}", os.O_RDONLY | os.O_CLOEXEC)
    with through_cdev(t.device("edu", iommu=False)) as user:
        user.iommufd.map_file(user.ioas, readable, PAGE, 0x10000, flags=api.MAP_READABLE)
        refused = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.EFAULT, errno.EBADF)
        t.errno(refused, user.iommufd.map_file, user.ioas, readable, PAGE, 0x20000)


@case(needs=BARE, cites="drivers/iommu/iommufd/pages.c iopt_alloc_file_pages() (get_file())")
def mapped_file_needs_no_descriptor(t: Test) -> None:
    """The memory of a memfd mapped by MAP_FILE stays when its descriptor is closed, through a detach and an
    attach, with its contents."""
    fd = memory.memfd(PAGE)
    os.pwrite(fd, b"kept", 0)
    with through_cdev(t.device("edu", iommu=False)) as user:
        user.iommufd.map_file(user.ioas, fd, PAGE, 0x10000)
        before = user.physical(0x10000, PAGE)
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        os.close(fd)
        user.device.detach()
        user.device.attach(user.ioas)
        t.equal(user.physical(0x10000, PAGE), before, "the address with the descriptor closed")
        with memory.shared_file(again, PAGE) as view:
            t.equal(view.read(0, 4), b"kept", "the contents of the file")
            t.equal(before, view.physical(), "the address by the page map")
        os.close(again)


@case(needs=("iommufd",), cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_iova_ranges() (max_iovas)")
def ranges_say_how_many_there_are(t: Test) -> None:
    """IOVA_RANGES with too little room is EMSGSIZE and still tells count and alignment, and a bad pointer is
    EFAULT only when there is something to write."""
    with Iommufd() as iommufd, Brink() as edge:
        ioas = iommufd.ioas_alloc()
        for pointer in (0, NOWHERE):
            where = edge.put(api.IovaRanges(ioas_id=ioas, num_iovas=0, allowed_iovas=pointer))
            t.errno(errno.EMSGSIZE, libc.ioctl, iommufd.fd, api.IOAS_IOVA_RANGES, where)
            told = api.IovaRanges.from_buffer_copy(edge.tail(ctypes.sizeof(api.IovaRanges)))
            t.equal((told.num_iovas, told.out_iova_alignment), (1, 1), "count and alignment told")
            full = api.IovaRanges(ioas_id=ioas, num_iovas=1, allowed_iovas=pointer)
            t.errno(errno.EFAULT, iommufd.call, api.IOAS_IOVA_RANGES, full)
        room = edge.put(bytes(16))
        exact = api.IovaRanges(ioas_id=ioas, num_iovas=0xFFFFFFFF, allowed_iovas=room)
        iommufd.call(api.IOAS_IOVA_RANGES, exact)
        t.equal(exact.num_iovas, 1, "ranges told with much room claimed")
        t.equal(edge.tail(16), bytes(8) + b"\xff" * 8, "the range")


@case(needs=INTEL, cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_iova_ranges() (EMSGSIZE)")
def ranges_fill_what_room_there_is(t: Test) -> None:
    """Behind an IOMMU, with room for one of its ranges, IOVA_RANGES writes the first and counts them all."""
    with through_cdev(t.device("edu", iommu=True)) as user, Brink() as edge, Brink() as room:
        ranges, _alignment = user.iommufd.iova_ranges(user.ioas)
        t.check(len(ranges) > 1, f"the IOMMU has {len(ranges)} range, and the case needs two")
        one = room.put(bytes(16))
        where = edge.put(api.IovaRanges(ioas_id=user.ioas, num_iovas=1, allowed_iovas=one))
        t.errno(errno.EMSGSIZE, libc.ioctl, user.iommufd.fd, api.IOAS_IOVA_RANGES, where)
        told = api.IovaRanges.from_buffer_copy(edge.tail(ctypes.sizeof(api.IovaRanges)))
        t.equal(told.num_iovas, len(ranges), "the number of ranges told")
        first = api.IovaRange.from_buffer_copy(room.tail(16))
        t.equal((first.start, first.last), ranges[0], "the first range")


@case(needs=INTEL, cites="drivers/iommu/iommufd/io_pagetable.c iopt_set_allow_iova(), iopt_reserve_iova()")
def allowed_iovas_keep_a_translated_device_out(t: Test) -> None:
    """What an IOMMU reserves cannot be allowed (EADDRINUSE), and what was allowed keeps out a device whose
    IOMMU would reserve it, until it is allowed no more."""
    with through_cdev(t.device("edu", iommu=True)) as user:
        iommufd, window = user.iommufd, (memory.MSI_WINDOW, memory.MSI_WINDOW + PAGE - 1)
        t.errno(errno.EADDRINUSE, iommufd.allow_iovas, user.ioas, (PAGE, 2 * PAGE - 1), window)
        iommufd.allow_iovas(user.ioas, (PAGE, 2 * PAGE - 1))
        other = iommufd.ioas_alloc()
        iommufd.allow_iovas(other, window)
        user.device.detach()
        t.errno(errno.EADDRINUSE, user.device.attach, other)
        iommufd.allow_iovas(other)
        t.check(user.device.attach(other) > 0, "attach with nothing allowed in particular")


@case(needs=BARE, cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_allow_iovas() (the update is atomic)")
def refused_allow_changes_nothing(t: Test) -> None:
    """An ALLOW_IOVAS that is refused leaves the list as it was, one that succeeds replaces it, an empty one
    lifts it, and a fixed IOVA never asks for it."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(4 * PAGE) as buffer:
        buffer.touch()
        iommufd, ioas, va = user.iommufd, user.ioas, buffer.address
        iommufd.allow_iovas(ioas, (0x100000, 0x100000 + PAGE - 1))
        refused = api.AllowIovas(ioas_id=ioas, num_iovas=1, allowed_iovas=NOWHERE)
        t.errno(errno.EFAULT, iommufd.call, api.IOAS_ALLOW_IOVAS, refused)
        t.errno(errno.EINVAL, iommufd.allow_iovas, ioas, (0x200000, 0x2FFFFF), (0x5000, 0x4000))
        t.errno(errno.EINVAL, iommufd.allow_iovas, ioas, (0x200000, 0x2FFFFF), (0x2FFFFF, 0x300000))
        iommufd.map(ioas, va, PAGE, 0x900000)
        t.equal(iommufd.map(ioas, va, PAGE), 0x100000, "the IOVA chosen after refusals")
        t.errno(errno.ENOSPC, iommufd.map, ioas, va, PAGE)
        iommufd.allow_iovas(ioas, (0x400000, 0x400000 + PAGE - 1), (0x300000, 0x300000 + PAGE - 1))
        t.errno(errno.ENOSPC, iommufd.map, ioas, va, 2 * PAGE)
        chosen = [iommufd.map(ioas, va, PAGE) for _ in range(2)]
        t.equal(chosen, [0x300000, 0x400000], "the IOVAs chosen from the new list")
        t.errno(errno.ENOSPC, iommufd.map, ioas, va, PAGE)
        lifted = api.AllowIovas(ioas_id=ioas, num_iovas=0, allowed_iovas=NOWHERE)
        iommufd.call(api.IOAS_ALLOW_IOVAS, lifted)
        t.equal(iommufd.iova_ranges(ioas)[0], [(0, LAST_IOVA)], "the ranges in the end")
        t.check(
            iommufd.map(ioas, va, 2 * PAGE) < 0x100000, "the IOVA chosen without a list is not the lowest"
        )


@case(needs=("iommufd",), cites="drivers/iommu/iommufd/main.c iommufd_option(), ioas.c iommufd_ioas_option()")
def options_know_their_operations(t: Test) -> None:
    """OPTION knows two operations; anything else, and a refused SET, changes nothing and reports nothing."""
    with Iommufd() as iommufd:
        ioas = iommufd.ioas_alloc()
        unknown = api.Option(option_id=api.OPTION_HUGE_PAGES, op=2, object_id=ioas, val64=77)
        t.errno(errno.EOPNOTSUPP, iommufd.call, api.OPTION, unknown)
        t.equal(unknown.val64, 77, "the value after the refusal")
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


@case(needs=("iommufd",), cites="drivers/iommu/iommufd/vfio_compat.c iommufd_vfio_ioas(), get_compat_ioas()")
def emulated_container_names_its_ioas(t: Test) -> None:
    """VFIO_IOAS gives back the IOAS that was set, ENODEV when there is none, forgets one that is destroyed,
    and keeps the old one when the new is refused."""
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
