# SPDX-License-Identifier: GPL-2.0-only
"""Address spaces: what may be mapped where, what gets pinned when, and what differs without an IOMMU."""

from __future__ import annotations

import errno
import mmap
import resource

from guest import caps, memory
from guest import iommufd as api
from guest.case import Test, case
from guest.iommufd import LAST_IOVA, Iommufd
from guest.memory import PAGE
from guest.opened import through_cdev

BARE = ("noiommu-cdev", "edu", "!viommu")
INTEL = ("viommu", "viommu-intel", "cdev", "iommufd", "edu")

MSI_WINDOW = 0xFEE00000
"""Where x86 sends its interrupts (Intel SDM, volume 3, Message Signalled Interrupts)."""


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
        t.errno(errno.ENOENT, iommufd.iova_ranges, 0xDEAD)


@case(needs=BARE, cites="drivers/iommu/iommufd/device.c iommufd_device_do_replace(), hwpt_noiommu.c")
def attached_one_is_boundless_by_pages(t: Test) -> None:
    """With a no-IOMMU device the whole IOVA space stays usable, by pages; without it, by bytes again."""
    with through_cdev(t.device("edu", iommu=False)) as user:
        t.equal(user.iommufd.iova_ranges(user.ioas), ([(0, LAST_IOVA)], PAGE), "ranges and alignment")
        user.device.detach()
        t.equal(user.iommufd.iova_ranges(user.ioas), ([(0, LAST_IOVA)], 1), "ranges and alignment detached")


@case(needs=INTEL, cites="drivers/iommu/iommufd/io_pagetable.c iopt_table_enforce_dev_resv_regions()")
def real_iommu_reserves_the_msi_window(t: Test) -> None:
    """Behind an IOMMU the interrupt window is no IOVA and cannot be mapped."""
    with through_cdev(t.device("edu", iommu=True)) as user, memory.anonymous() as page:
        page.touch()
        ranges, alignment = user.iommufd.iova_ranges(user.ioas)
        t.equal(alignment, PAGE, "the alignment")
        holds = [pair for pair in ranges if pair[0] <= MSI_WINDOW <= pair[1]]
        t.equal(holds, [], "ranges that hold the interrupt window")
        t.check(ranges[-1][1] < LAST_IOVA, "the IOVA space is wider than the page table")
        t.errno(errno.EINVAL, user.map, page, MSI_WINDOW)
        user.map(page, 0x10000)


@case(needs=BARE, cites="drivers/iommu/iommufd/io_pagetable.c iopt_alloc_area_pages(); hwpt_noiommu.c")
def every_page_can_be_mapped(t: Test) -> None:
    """Without an IOMMU nothing is reserved: first page, interrupt window and last page map and resolve."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous() as page:
        page.touch()
        for iova in (0, MSI_WINDOW, 1 << 48, LAST_IOVA - PAGE + 1):
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
        t.errno(errno.ENOENT, iommufd.map, 0xDEAD, va, PAGE, 0x20000)
        t.errno(errno.ENOENT, iommufd.get_pa, ioas, 0x20000, 1)


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/pages.c iopt_area_fill_domains(), io_pagetable.c iopt_fill_domain()",
)
def pages_are_pinned_for_a_domain_only(t: Test) -> None:
    """Memory is pinned while a device is attached, for maps made before and during it, and not otherwise."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(256 * PAGE) as buffer:
        buffer.touch()
        user.device.detach()
        user.map(buffer, 0x100000)
        t.equal(memory.pinned_kib(), 0, "KiB pinned while detached")
        user.device.attach(user.ioas)
        t.equal(memory.pinned_kib(), 1024, "KiB pinned by attaching")
        user.iommufd.map(user.ioas, buffer.address, 4 * PAGE, 0x800000)
        t.equal(memory.pinned_kib(), 1040, "KiB pinned with another map")
        user.iommufd.unmap(user.ioas, 0x100000, buffer.length)
        t.equal(memory.pinned_kib(), 16, "KiB pinned after unmapping the first")
        user.device.detach()
        t.equal(memory.pinned_kib(), 0, "KiB pinned after detaching")


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
        iommufd.allow_iovas(ioas, (MSI_WINDOW, MSI_WINDOW + 2 * PAGE - 1))
        t.equal(iommufd.map(ioas, buffer.address, PAGE), MSI_WINDOW, "the first IOVA chosen")
        t.equal(iommufd.map(ioas, buffer.address, PAGE), MSI_WINDOW + PAGE, "the second IOVA chosen")
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
        t.errno(errno.ENOENT, iommufd.option_get, api.OPTION_HUGE_PAGES, 0xDEAD)


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


@case(needs=BARE, cites="drivers/iommu/iommufd/pages.c iopt_pages_update_pinned(), update_mm_locked_vm()")
def pinning_obeys_the_memory_lock_limit(t: Test) -> None:
    """Without CAP_IPC_LOCK pinned memory counts against RLIMIT_MEMLOCK, and an unmap gives it back."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(32 * PAGE) as buffer:
        buffer.touch()

        def limited() -> None:
            _limit_locked_memory(16 * PAGE)
            user.iommufd.map(user.ioas, buffer.address, 16 * PAGE, 0x100000)
            t.errno(errno.ENOMEM, user.iommufd.map, user.ioas, buffer.address, PAGE, 0x200000)
            user.iommufd.unmap(user.ioas, 0x100000, 16 * PAGE)
            user.iommufd.map(user.ioas, buffer.address, PAGE, 0x200000)
            user.iommufd.unmap(user.ioas, 0, LAST_IOVA)

        t.in_child(limited)
        user.iommufd.map(user.ioas, buffer.address, buffer.length, 0x100000)


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/pages.c iopt_area_fill_domain(), io_pagetable.c iopt_fill_domain()",
)
def attach_over_the_limit_changes_nothing(t: Test) -> None:
    """Attaching an IOAS that would pin more than RLIMIT_MEMLOCK is ENOMEM and leaves its maps."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(32 * PAGE) as buffer:
        buffer.touch()
        user.device.detach()

        def limited() -> None:
            _limit_locked_memory(16 * PAGE)
            user.map(buffer, 0x100000)
            t.errno(errno.ENOMEM, user.device.attach, user.ioas)
            t.equal(memory.pinned_kib(), 0, "KiB pinned after the refusal")
            t.errno(errno.EOPNOTSUPP, user.iommufd.get_pa, user.ioas, 0x100000, 1)
            t.equal(user.iommufd.unmap(user.ioas, 0, LAST_IOVA), buffer.length, "bytes still mapped")
            t.check(user.device.attach(user.ioas) > 0, "attach of the empty IOAS")

        t.in_child(limited)


def _limit_locked_memory(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
    caps.drop(caps.CAP_IPC_LOCK)
