# SPDX-License-Identifier: GPL-2.0-only
"""Mappings: what MAP, MAP_FILE and COPY accept and refuse, and what UNMAP removes."""

from __future__ import annotations

import errno
import mmap
import os

from guest import iommufd as api
from guest import memory
from guest.case import Test, case
from guest.iommufd import LAST_IOVA, NO_SUCH_ID
from guest.memory import PAGE
from guest.opened import through_cdev

BARE = ("noiommu-cdev", "edu", "!viommu")

LAST_PAGE = LAST_IOVA - PAGE + 1

FIRST, SECOND, THIRD, FOURTH = (number * 16 * PAGE for number in range(1, 5))
SIXTEENTH = 256 * PAGE
"""IOVAs, 16 pages apart."""


@case(needs=BARE, cites="drivers/iommu/iommufd/io_pagetable.c iopt_alloc_area_pages(); hwpt_noiommu.c")
def every_page_can_be_mapped(t: Test) -> None:
    """Without an IOMMU no IOVA is reserved: the first page, all interrupt windows and the last page map and
    resolve."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous() as page:
        page.touch()
        for iova in (0, memory.MSI_WINDOW, memory.ARM_MSI_WINDOW, 1 << 48, LAST_IOVA - PAGE + 1):
            user.map(page, iova)
            t.equal(user.physical(iova, PAGE), page.physical(), f"the physical address of IOVA {iova:#x}")


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_map(); io_pagetable.c iopt_alloc_area_pages()",
)
def map_refuses_nonsense(t: Test) -> None:
    """MAP refuses unaligned, empty, occupied and overflowing ranges, unmapped memory, missing permissions,
    unknown flags and an unknown IOAS."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(4 * PAGE) as buffer:
        buffer.touch()
        iommufd, ioas, va = user.iommufd, user.ioas, buffer.address
        iommufd.map(ioas, va, PAGE, FIRST)
        t.errno(errno.EEXIST, iommufd.map, ioas, va, PAGE, FIRST)
        t.errno(errno.EEXIST, iommufd.map, ioas, va, 2 * PAGE, FIRST - PAGE)
        t.errno(errno.EINVAL, iommufd.map, ioas, va, 0, SECOND)
        t.errno(errno.EINVAL, iommufd.map, ioas, va, PAGE - 1, SECOND)
        t.errno(errno.EINVAL, iommufd.map, ioas, va, PAGE, SECOND + 1)
        t.errno(errno.EINVAL, iommufd.map, ioas, va + 1, PAGE, SECOND)
        t.errno(errno.EINVAL, iommufd.map, ioas, va, PAGE, SECOND, flags=0)
        t.errno(errno.EOPNOTSUPP, iommufd.map, ioas, va, PAGE, SECOND, flags=api.READ_WRITE | 8)
        t.errno(errno.EOVERFLOW, iommufd.map, ioas, va, PAGE, LAST_IOVA)
        t.errno(errno.EFAULT, iommufd.map, ioas, 0, PAGE, SECOND)
        t.errno(errno.ENOENT, iommufd.map, NO_SUCH_ID, va, PAGE, SECOND)
        t.errno(errno.ENOENT, iommufd.get_pa, ioas, SECOND, 1)


@case(needs=BARE, cites="drivers/iommu/iommufd/pages.c pfn_reader_user_pin() (FOLL_WRITE)")
def read_only_memory_is_mapped_read_only(t: Test) -> None:
    """Read-only memory can be mapped for reading and resolves; mapping it for writing is EFAULT."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous() as page:
        page.touch()
        page.protect(mmap.PROT_READ)
        iommufd, ioas = user.iommufd, user.ioas
        t.errno(errno.EFAULT, iommufd.map, ioas, page.address, PAGE, FIRST)
        iommufd.map(ioas, page.address, PAGE, FIRST, flags=api.MAP_READABLE)
        t.equal(user.physical(FIRST, PAGE), page.physical(), "the physical address")


@case(needs=BARE, cites="drivers/iommu/iommufd/pages.c pfn_reader_user_pin(); mm/gup.c (VM_PFNMAP)")
def bar_is_no_memory(t: Test) -> None:
    """The address of a mapped BAR cannot be mapped into an IOAS (EFAULT)."""
    with through_cdev(t.device("edu", iommu=False)) as user, user.device.bar(length=PAGE) as bar:
        t.errno(errno.EFAULT, user.iommufd.map, user.ioas, bar.address, PAGE, FIRST)


@case(needs=BARE, cites="drivers/iommu/iommufd/io_pagetable.c iopt_check_iova() (check_add_overflow)")
def map_stops_at_the_end_of_all_iovas(t: Test) -> None:
    """A mapping past the end of the IOVA space, or of the address space, is EOVERFLOW and leaves the last
    page free."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(2 * PAGE) as buffer:
        buffer.touch()
        iommufd, ioas, va = user.iommufd, user.ioas, buffer.address
        t.errno(errno.EOVERFLOW, iommufd.map, ioas, va, 2 * PAGE, LAST_PAGE)
        t.errno(errno.EOVERFLOW, iommufd.map, ioas, va, LAST_IOVA, FIRST)
        t.errno(errno.EOVERFLOW, iommufd.map, ioas, va, LAST_PAGE, FIRST)
        t.errno(errno.EOVERFLOW, iommufd.map, ioas, LAST_PAGE, 2 * PAGE, FIRST)
        t.errno(errno.EINVAL, iommufd.map, ioas, 0, LAST_PAGE, FIRST)
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
    """Without a device, MAP and UNMAP of 2^62 bytes of unmapped memory succeed at once; attaching them is
    EFAULT and leaves the IOAS unchanged."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous() as page:
        page.touch()
        iommufd, ioas = user.iommufd, user.ioas
        user.device.detach()
        user.map(page, 0)
        iommufd.map(ioas, 0, 1 << 62, 1 << 62)
        t.errno(errno.EEXIST, iommufd.map, ioas, page.address, PAGE, (1 << 63) - PAGE)
        t.errno(errno.EFAULT, user.device.attach, ioas)
        t.equal(memory.pinned_pages(), 0, "pages pinned after the refused attach")
        t.equal(iommufd.unmap(ioas, 1 << 62, 1 << 62), 1 << 62, "bytes unmapped")
        user.device.attach(ioas)
        t.equal(user.physical(0, PAGE), page.physical(), "the address of the page mapped beside it")


@case(needs=BARE, cites="drivers/iommu/iommufd/io_pagetable.c iopt_map_pages() (iopt_abort_area())")
def refused_map_leaves_the_iova_free(t: Test) -> None:
    """A MAP that fails half way, where the memory ends, pins nothing and leaves its IOVA free."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(8 * PAGE) as buffer:
        buffer.touch()
        iommufd, ioas = user.iommufd, user.ioas
        last = memory.Buffer(buffer.address + 7 * PAGE, PAGE)
        last.protect(memory.PROT_NONE)
        t.errno(errno.EFAULT, user.map, buffer, FIRST)
        t.equal(memory.pinned_pages(), 0, "pages pinned after the refusal")
        t.errno(errno.ENOENT, iommufd.get_pa, ioas, FIRST, 1)
        t.errno(errno.ENOENT, iommufd.unmap, ioas, FIRST, 8 * PAGE)
        last.protect(memory.READ_WRITE)
        user.map(buffer, FIRST)
        for index in (0, 7):
            got = user.physical(FIRST + index * PAGE, PAGE)
            t.equal(got, buffer.physical(index * PAGE), f"the address of page {index}")


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_unmap(); io_pagetable.c iopt_unmap_iova_range()",
)
def unmap_takes_whole_areas(t: Test) -> None:
    """UNMAP removes whole mappings, one or many, returns the number of bytes removed, and refuses to split a
    mapping."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(4 * PAGE) as buffer:
        buffer.touch()
        iommufd, ioas = user.iommufd, user.ioas
        for iova in (FIRST, SECOND, THIRD):
            user.map(buffer, iova)
        t.errno(errno.ENOENT, iommufd.unmap, ioas, FIRST, PAGE)
        t.errno(errno.ENOENT, iommufd.unmap, ioas, FIRST + PAGE, 3 * PAGE)
        t.equal(user.physical(FIRST, 1), buffer.physical(), "the address after refused UNMAPs")
        t.equal(
            iommufd.unmap(ioas, FIRST, 4 * PAGE),
            4 * PAGE,
            "bytes removed by an UNMAP of exactly one mapping",
        )
        t.errno(errno.ENOENT, iommufd.unmap, ioas, FIRST, 4 * PAGE)
        t.errno(errno.EINVAL, iommufd.unmap, ioas, SECOND, 0)
        t.errno(errno.EOVERFLOW, iommufd.unmap, ioas, SECOND, LAST_IOVA)
        t.equal(iommufd.unmap(ioas, 0, LAST_IOVA), 8 * PAGE, "bytes removed by an UNMAP of everything")
        t.equal(iommufd.unmap(ioas, 0, LAST_IOVA), 0, "bytes removed when nothing is mapped")


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/io_pagetable.c iopt_unmap_iova_range()",
)
def refused_unmap_takes_nothing(t: Test) -> None:
    """An UNMAP refused because it would split the last mapping in its range removes no mapping."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(2 * PAGE) as buffer:
        buffer.touch()
        user.map(buffer, FIRST)
        user.map(buffer, FIRST + 2 * PAGE)
        t.errno(errno.ENOENT, user.iommufd.unmap, user.ioas, FIRST, 3 * PAGE)
        t.equal(
            user.physical(FIRST + 2 * PAGE, 1),
            buffer.physical(),
            "the address in the mapping that UNMAP would have split",
        )
        left = user.iommufd.unmap(user.ioas, 0, LAST_IOVA)
        t.equal(left, 4 * PAGE, "bytes still mapped after the refused UNMAP")


@case(needs=BARE, cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_copy(); io_pagetable.c iopt_get_pages()")
def copy_shares_the_pages(t: Test) -> None:
    """COPY maps the same pages in another IOAS at another IOVA, and they stay after the first IOAS is
    gone."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(8 * PAGE) as buffer:
        buffer.touch()
        iommufd, source = user.iommufd, user.ioas
        user.map(buffer, SIXTEENTH)
        target = iommufd.ioas_alloc()
        iommufd.copy(target, source, 2 * PAGE, SIXTEENTH + 2 * PAGE, FOURTH)
        t.errno(errno.EOPNOTSUPP, iommufd.get_pa, target, FOURTH, 1)
        t.errno(errno.ENOENT, iommufd.copy, target, source, PAGE, 2 * SIXTEENTH)
        t.errno(errno.EEXIST, iommufd.copy, target, source, PAGE, SIXTEENTH, FOURTH)
        t.errno(errno.EINVAL, iommufd.copy, target, source, 0, SIXTEENTH)
        user.device.attach(target)
        iommufd.unmap(source, SIXTEENTH, buffer.length)
        for index in (0, 1):
            got = iommufd.get_pa(target, FOURTH + index * PAGE, 1)[0]
            t.equal(got, buffer.physical((index + 2) * PAGE), f"the address of page {index} in the copy")


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_copy(); io_pagetable.c iopt_get_pages(), "
    "iopt_insert_area() (writable)",
)
def copy_refuses_nonsense(t: Test) -> None:
    """COPY refuses overflow, missing permissions, more permissions than the source has, gaps, unaligned
    ranges and unknown IOASes, and keeps no reference to either IOAS."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(2 * PAGE) as buffer:
        buffer.touch()
        iommufd, source, target = user.iommufd, user.ioas, user.iommufd.ioas_alloc()
        iommufd.map(source, buffer.address, PAGE, FIRST, flags=api.MAP_READABLE)
        iommufd.map(source, buffer.address, PAGE, FIRST + 2 * PAGE)
        for field in ("length", "src_iova", "dst_iova"):
            over = api.IoasCopy(dst_ioas_id=target, src_ioas_id=source, flags=api.READ_WRITE)
            setattr(over, field, LAST_IOVA)
            t.errno(errno.EOVERFLOW, iommufd.call, api.IOAS_COPY, over)
        t.errno(errno.EINVAL, iommufd.copy, target, source, PAGE, FIRST + 2 * PAGE, flags=0)
        t.errno(errno.EPERM, iommufd.copy, target, source, PAGE, FIRST)
        t.errno(errno.ENOENT, iommufd.copy, target, source, 3 * PAGE, FIRST, flags=api.MAP_READABLE)
        t.errno(errno.ENOENT, iommufd.copy, target, source, 2 * PAGE, FIRST + 2 * PAGE)
        t.errno(errno.ENOENT, iommufd.copy, target, NO_SUCH_ID, PAGE, FIRST + 2 * PAGE)
        t.errno(errno.ENOENT, iommufd.copy, NO_SUCH_ID, source, PAGE, FIRST + 2 * PAGE)
        t.errno(errno.EINVAL, iommufd.copy, source, source, PAGE, FIRST + 2 * PAGE, SECOND + 1)
        t.errno(errno.EINVAL, iommufd.copy, source, source, 1, FIRST + 2 * PAGE, SECOND)
        t.errno(errno.EOVERFLOW, iommufd.copy, source, source, PAGE, FIRST + 2 * PAGE, LAST_IOVA)
        t.equal(iommufd.unmap(source, 0, LAST_IOVA), 2 * PAGE, "bytes mapped in the source")
        iommufd.destroy(target)
        user.device.detach()
        iommufd.destroy(source)


@case(needs=BARE, cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_copy(); io_pagetable.c iopt_get_pages()")
def copy_crosses_mappings_that_adjoin(t: Test) -> None:
    """COPY copies one range out of several adjoining mappings, also within one IOAS, and the copy has the
    same boundaries as they have."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(4 * PAGE) as buffer:
        buffer.touch()
        iommufd, ioas = user.iommufd, user.ioas
        iommufd.map(ioas, buffer.address, 2 * PAGE, FIRST)
        iommufd.map(ioas, buffer.address + 3 * PAGE, PAGE, FIRST + 2 * PAGE)
        t.equal(iommufd.copy(ioas, ioas, 2 * PAGE, FIRST + PAGE, FOURTH), FOURTH, "the IOVA of the copy")
        for index, original in ((0, 1), (1, 3)):
            got = user.physical(FOURTH + index * PAGE, PAGE)
            t.equal(got, buffer.physical(original * PAGE), f"the address of page {index} of the copy")
        iommufd.unmap(ioas, FIRST, 3 * PAGE)
        t.equal(
            user.physical(FOURTH + PAGE, 1), buffer.physical(3 * PAGE), "the address without the originals"
        )
        t.equal(iommufd.unmap(ioas, FOURTH, PAGE), PAGE, "bytes of the copy's first part")
        t.equal(iommufd.unmap(ioas, 0, LAST_IOVA), PAGE, "bytes of the copy's second part")


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_map_file(); io_pagetable.c iopt_map_file_pages()",
)
def memfd_is_mapped_by_file(t: Test) -> None:
    """MAP_FILE maps a memfd that is not mapped in the process and resolves to its pages; other files are
    refused."""
    fd = memory.memfd(4 * PAGE)
    with through_cdev(t.device("edu", iommu=False)) as user, memory.shared_file(fd, 4 * PAGE) as view:
        view.touch()
        iommufd, ioas = user.iommufd, user.ioas
        iommufd.map_file(ioas, fd, 2 * PAGE, FIRST, start=PAGE)
        for index in (0, 1):
            got = iommufd.get_pa(ioas, FIRST + index * PAGE, 1)[0]
            t.equal(got, view.physical((index + 1) * PAGE), f"the address of page {index}")
        t.errno(errno.EBADF, iommufd.map_file, ioas, 999, PAGE, SECOND)
        with open(__file__, "rb") as regular:
            refused = (iommufd.map_file, ioas, regular.fileno(), PAGE, SECOND)
            t.errno(errno.EINVAL, *refused, flags=api.MAP_READABLE)


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/io_pagetable.c iopt_map_file_pages(); mm/gup.c memfd_pin_folios()",
)
def map_file_refuses_nonsense(t: Test) -> None:
    """MAP_FILE refuses bad files, empty, unaligned and overflowing ranges, and ranges past the end of the
    file, and then maps the file's last page."""
    fd = memory.memfd(4 * PAGE)
    with through_cdev(t.device("edu", iommu=False)) as user, memory.shared_file(fd, 4 * PAGE) as view:
        view.touch()
        iommufd, ioas = user.iommufd, user.ioas
        t.errno(errno.EBADF, iommufd.map_file, ioas, -1, PAGE, FIRST)
        t.errno(errno.EINVAL, iommufd.map_file, ioas, fd, 0, FIRST)
        t.errno(errno.EINVAL, iommufd.map_file, ioas, fd, PAGE, FIRST, flags=0)
        t.errno(errno.EOPNOTSUPP, iommufd.map_file, ioas, fd, PAGE, FIRST, flags=8 | api.READ_WRITE)
        t.errno(errno.EINVAL, iommufd.map_file, ioas, fd, PAGE, FIRST + 1)
        t.errno(errno.EINVAL, iommufd.map_file, ioas, fd, PAGE, FIRST, start=1)
        t.errno(errno.EINVAL, iommufd.map_file, ioas, fd, PAGE - 1, FIRST)
        t.errno(errno.EINVAL, iommufd.map_file, ioas, fd, PAGE, FIRST, start=4 * PAGE)
        t.errno(errno.EINVAL, iommufd.map_file, ioas, fd, 2 * PAGE, FIRST, start=3 * PAGE)
        t.errno(errno.EINVAL, iommufd.map_file, ioas, fd, PAGE, FIRST, start=1 << 63)
        t.errno(errno.EOVERFLOW, iommufd.map_file, ioas, fd, 2 * PAGE, FIRST, start=LAST_PAGE)
        t.errno(errno.EOVERFLOW, iommufd.map_file, ioas, fd, LAST_IOVA, FIRST)
        t.errno(errno.EOVERFLOW, iommufd.map_file, ioas, fd, PAGE, LAST_IOVA)
        t.errno(errno.EOVERFLOW, iommufd.map_file, ioas, fd, 2 * PAGE, LAST_PAGE)
        t.errno(errno.ENOENT, iommufd.map_file, NO_SUCH_ID, fd, PAGE, FIRST)
        t.equal(memory.pinned_pages(), 0, "pages pinned by refused maps")
        iommufd.map_file(ioas, fd, PAGE, FIRST, start=3 * PAGE)
        t.errno(errno.EEXIST, iommufd.map_file, ioas, fd, PAGE, FIRST)
        t.equal(user.physical(FIRST, PAGE), view.physical(3 * PAGE), "the address of the last page")


@case(
    needs=BARE,
    cites="mm/gup.c memfd_pin_folios(); drivers/iommu/iommufd/io_pagetable.c iopt_map_file_pages()",
)
def read_only_file_is_not_mapped_for_writing(t: Test) -> None:
    """MAP_FILE maps a memfd that is open for reading only for reading, and not for writing."""
    whole = memory.memfd(PAGE)
    readable = os.open(f"/proc/self/fd/{whole}", os.O_RDONLY | os.O_CLOEXEC)
    with through_cdev(t.device("edu", iommu=False)) as user:
        user.iommufd.map_file(user.ioas, readable, PAGE, FIRST, flags=api.MAP_READABLE)
        refused = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.EFAULT, errno.EBADF)
        t.errno(refused, user.iommufd.map_file, user.ioas, readable, PAGE, SECOND)


@case(needs=BARE, cites="drivers/iommu/iommufd/pages.c iopt_alloc_file_pages() (get_file())")
def mapped_file_needs_no_descriptor(t: Test) -> None:
    """The memory of a memfd mapped by MAP_FILE stays, with its contents, after its descriptor is closed and
    through a detach and an attach."""
    fd = memory.memfd(PAGE)
    os.pwrite(fd, b"kept", 0)
    with through_cdev(t.device("edu", iommu=False)) as user:
        user.iommufd.map_file(user.ioas, fd, PAGE, FIRST)
        before = user.physical(FIRST, PAGE)
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        os.close(fd)
        user.device.detach()
        user.device.attach(user.ioas)
        t.equal(user.physical(FIRST, PAGE), before, "the address after the descriptor was closed")
        with memory.shared_file(again, PAGE) as view:
            t.equal(view.read(0, 4), b"kept", "the contents of the file")
            t.equal(before, view.physical(), "the address according to the page map")
        os.close(again)
