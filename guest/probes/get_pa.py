# SPDX-License-Identifier: GPL-2.0-only
"""IOMMU_IOAS_NOIOMMU_GET_PA: the address, the contiguous length, and the errors in the kernel's order.

Every address is compared with /proc/self/pagemap.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import time

from guest import brink, forked, libc, memory, pci, vfio
from guest import iommufd as api
from guest.case import Failure, Test, case
from guest.iommufd import LAST_IOVA, NO_SUCH_ID, Iommufd
from guest.memory import HUGE, PAGE, SMALLEST
from guest.opened import CdevUser, through_cdev
from guest.vfio import PCI_COMMAND, PCI_COMMAND_MEMORY

BARE = ("noiommu-cdev", "edu", "!viommu")
BASE = 0x1000_0000
UNTOUCHED = 0x5A5A_5A5A_5A5A_5A5A

"""The smallest page of the page tables of no-IOMMU mode, whatever the size of a page is (hwpt_noiommu.c)."""

STRESS = 1.5
"""Seconds during which callers of GET_PA race with changes."""


def _contiguous(buffer: memory.Buffer, offset: int, limit: int) -> int:
    """Return the number of physically contiguous bytes from *offset* of *buffer*, by the page map."""
    start = buffer.physical(offset)
    length = PAGE - offset % PAGE
    while length < limit and offset + length < buffer.length:
        if buffer.physical(offset + length) != start + length:
            break
        length += PAGE
    return min(length, limit, buffer.length - offset)


def _huge_buffer(t: Test, pages: int) -> memory.Buffer:
    if memory.set_hugepages(pages) < pages:
        t.skip(f"the kernel cannot reserve {pages} pages of 2 MiB")
    buffer = memory.hugetlb(pages * HUGE)
    buffer.touch(HUGE)
    return buffer


@case(needs=BARE, cites="drivers/iommu/iommufd/io_pagetable.c iopt_get_phys(); admin-guide/mm/pagemap.rst")
def page_map_agrees(t: Test) -> None:
    """GET_PA of every page of a scattered mapping returns the address that the page map gives."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(64 * PAGE) as buffer:
        order = list(range(64))
        t.random.shuffle(order)
        for index in order:  # touched out of order, so that the frames are not in order either
            buffer.write(b"\1", index * PAGE)
        user.map(buffer, BASE)
        for index in range(64):
            got, length = user.iommufd.get_pa(user.ioas, BASE + index * PAGE, PAGE)
            t.equal(
                (got, length), (buffer.physical(index * PAGE), PAGE), f"address and length of page {index}"
            )


@case(needs=BARE, cites="drivers/iommu/iommufd/io_pagetable.c iopt_get_phys() (offset_in_page)")
def offset_in_page_is_kept(t: Test) -> None:
    """GET_PA of any byte of a page returns the address of that byte and a length up to the end of the
    page."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous() as page:
        page.touch()
        user.map(page, BASE)
        for offset in (0, 1, 0x123, 0x800, PAGE - 1):
            got = user.iommufd.get_pa(user.ioas, BASE + offset, 1)
            t.equal(got, (page.physical() + offset, 1), f"one byte at {offset:#x}")
            got = user.iommufd.get_pa(user.ioas, BASE + offset, PAGE)
            t.equal(got, (page.physical() + offset, PAGE - offset), f"a page's worth at {offset:#x}")


def _patchwork(t: Test, room: memory.Buffer) -> memory.Buffer:
    """Make up to 64 pages in pieces of random lengths: a huge page's frames with others in between."""
    pages = min(64, HUGE // PAGE)
    start = -(-room.address // HUGE) * HUGE
    buffer = memory.Buffer(start, pages * PAGE)
    try:
        libc.madvise(start, HUGE, memory.MADV_HUGEPAGE)
    except OSError:
        t.skip("this kernel has no transparent huge pages")
    buffer.touch()
    for index in t.random.sample(range(1, pages), min(12, pages // 3)):
        memory.fresh_page(start + index * PAGE)
    pieces = [_contiguous(buffer, index * PAGE, buffer.length) // PAGE for index in range(pages)]
    t.log(f"contiguous pages from each page: {pieces}")
    if max(pieces) == 1 or max(pieces) == pages:
        t.skip("the kernel gave no huge page")
    return buffer


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/io_pagetable.c iopt_get_phys() (max_length, next_paddr)",
    timeout=60,
)
def length_is_the_contiguous_piece(t: Test) -> None:
    """GET_PA's length from any offset is the smaller of the requested length and the contiguous piece."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(2 * HUGE, small=False) as room:
        buffer = _patchwork(t, room)
        user.map(buffer, BASE)
        for _ in range(80):
            offset = t.random.randrange(buffer.length)
            limit = t.random.choice((1, 8, PAGE, 3 * PAGE + 5, buffer.length, 1 << 63))
            want = (buffer.physical(offset), _contiguous(buffer, offset, limit))
            got = user.iommufd.get_pa(user.ioas, BASE + offset, limit)
            t.equal(got, want, f"address and length at {offset:#x}, at most {limit:#x}")


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/io_pagetable.c iopt_get_phys() (next_paddr != tmp_paddr + PAGE_SIZE)",
)
def gap_ends_the_length(t: Test) -> None:
    """GET_PA's length ends where the next page is not contiguous, even within the requested length."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(2 * PAGE) as buffer:
        buffer.touch()
        # One frame mapped twice in a row is never contiguous with itself.
        user.iommufd.map(user.ioas, buffer.address, PAGE, BASE)
        user.iommufd.map(user.ioas, buffer.address, PAGE, BASE + PAGE)
        got = user.iommufd.get_pa(user.ioas, BASE + PAGE - 4, 8)
        t.equal(got, (buffer.physical() + PAGE - 4, 4), "8 bytes across the end of the page")
        fd = memory.memfd(2 * PAGE)
        with memory.shared_file(fd, 2 * PAGE) as view:
            view.touch()
            # Within one area too: two views of a memfd page side by side.
            twice = _same_page_twice(fd)
            with twice:
                user.iommufd.map(user.ioas, twice.address, 2 * PAGE, BASE + HUGE)
                got = user.iommufd.get_pa(user.ioas, BASE + HUGE + PAGE - 4, 8)
                t.equal(got, (view.physical() + PAGE - 4, 4), "8 bytes across the gap inside one mapping")
                got = user.iommufd.get_pa(user.ioas, BASE + HUGE + PAGE, PAGE)
                t.equal(got, (view.physical(), PAGE), "the second view")


@case(
    needs=(*BARE, "64k-pages"),
    cites="drivers/iommu/iommufd/io_pagetable.c iopt_get_phys() (offset_in_page(iova)), iopt_check_iova(); "
    "include/uapi/linux/iommufd.h struct iommu_ioas_noiommu_get_pa",
)
def gap_inside_a_large_page_ends_the_length(t: Test) -> None:
    """If IOVA and memory lie differently in their pages, which MAP may refuse (EINVAL), GET_PA's length still
    ends where the memory is not contiguous."""
    fd = memory.memfd(2 * PAGE)
    with through_cdev(t.device("edu", iommu=False)) as user, _same_page_twice(fd) as twice:
        iommufd, ioas = user.iommufd, user.ioas
        try:
            iommufd.map(ioas, twice.address + PAGE - SMALLEST, PAGE, BASE)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return
        physical = twice.physical()
        for offset in (0, 8, SMALLEST - 8):
            got = iommufd.get_pa(ioas, BASE + offset, PAGE)
            want = (physical + PAGE - SMALLEST + offset, SMALLEST - offset)
            t.equal(got, want, f"from byte {offset} of the end of a page")
        want = (physical, PAGE - SMALLEST)
        t.equal(iommufd.get_pa(ioas, BASE + SMALLEST, PAGE), want, "from the beginning of the next page")


def _same_page_twice(fd: int) -> memory.Buffer:
    """Map the first page of *fd* at two neighbouring addresses."""
    buffer = memory.anonymous(2 * PAGE)
    for index in (0, 1):
        mapped = libc.mmap(
            PAGE,
            memory.READ_WRITE,
            mmap.MAP_SHARED | memory.MAP_FIXED,
            fd,
            0,
            address=buffer.address + index * PAGE,
        )
        assert mapped == buffer.address + index * PAGE
    buffer.touch()
    return buffer


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/io_pagetable.c iopt_get_phys(); hwpt_noiommu.c (AMDv1 page sizes)",
)
def huge_page_is_one_piece(t: Test) -> None:
    """GET_PA reports a 2 MiB page as one piece from any offset, and two such pages as one if their frames
    adjoin."""
    buffer = _huge_buffer(t, 2)
    with through_cdev(t.device("edu", iommu=False)) as user, buffer:
        user.map(buffer, BASE)
        joined = buffer.physical(HUGE) == buffer.physical() + HUGE
        t.log(f"the two huge pages {'adjoin' if joined else 'lie apart'}")
        reach = 2 * HUGE if joined else HUGE
        for offset in (0, 1, 12345, PAGE, HUGE - PAGE, HUGE - 1):
            got = user.iommufd.get_pa(user.ioas, BASE + offset, 1 << 63)
            t.equal(got, (buffer.physical() + offset, reach - offset), f"address and length at {offset:#x}")
        got = user.iommufd.get_pa(user.ioas, BASE + HUGE + 7, PAGE)
        t.equal(got, (buffer.physical(HUGE) + 7, PAGE), "a page's worth in the second huge page")


@case(needs=BARE, cites="drivers/iommu/iommufd/io_pagetable.c iopt_get_phys() (iopt_area_last_iova())")
def length_ends_with_the_mapping(t: Test) -> None:
    """GET_PA's length ends with the mapping, even if the next mapping continues the same huge page."""
    buffer = _huge_buffer(t, 1)
    with through_cdev(t.device("edu", iommu=False)) as user, buffer:
        iommufd, ioas = user.iommufd, user.ioas
        iommufd.map(ioas, buffer.address, 3 * PAGE, BASE)
        iommufd.map(ioas, buffer.address + 3 * PAGE, 5 * PAGE, BASE + 3 * PAGE)
        t.equal(iommufd.get_pa(ioas, BASE, HUGE), (buffer.physical(), 3 * PAGE), "from the first mapping")
        got = iommufd.get_pa(ioas, BASE + 2 * PAGE + 5, HUGE)
        t.equal(got, (buffer.physical() + 2 * PAGE + 5, PAGE - 5), "from its last page")
        got = iommufd.get_pa(ioas, BASE + 3 * PAGE, HUGE)
        t.equal(got, (buffer.physical() + 3 * PAGE, 5 * PAGE), "from the second mapping")


@case(needs=BARE, cites="drivers/iommu/iommufd/io_pagetable.c iopt_get_phys() (check_add_overflow)")
def last_page_does_not_wrap(t: Test) -> None:
    """GET_PA of the last page of the IOVA space answers up to its end; asked for its last byte it is
    EOVERFLOW."""
    last = LAST_IOVA - PAGE + 1
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous() as page:
        page.touch()
        user.map(page, last)
        iommufd, ioas = user.iommufd, user.ioas
        t.equal(iommufd.get_pa(ioas, last, 1 << 63), (page.physical(), PAGE), "from its start")
        got = iommufd.get_pa(ioas, LAST_IOVA - 1, 1 << 63)
        t.equal(got, (page.physical() + PAGE - 2, 2), "from its last byte but one")
        t.errno(errno.EOVERFLOW, iommufd.get_pa, ioas, LAST_IOVA, 1)


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_noiommu_get_pa(); main.c iommufd_fops_ioctl()",
)
def refusals_come_in_order(t: Test) -> None:
    """GET_PA checks in this order: size, flags, length, overflow, address space, mapping, page table."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous() as page:
        page.touch()
        user.map(page, BASE)
        iommufd, ioas = user.iommufd, user.ioas
        none = NO_SUCH_ID

        def ask(**fields: int) -> None:
            iommufd.call(api.IOAS_NOIOMMU_GET_PA, api.NoiommuGetPa(**fields))

        t.errno(errno.EFAULT, iommufd.call, api.IOAS_NOIOMMU_GET_PA)
        t.errno(errno.EINVAL, ask, size=39, flags=1, ioas_id=none)
        t.errno(errno.EOPNOTSUPP, ask, flags=1, length=0, iova=LAST_IOVA, ioas_id=none)
        t.errno(errno.EOPNOTSUPP, ask, reserved=1, length=0, iova=LAST_IOVA, ioas_id=none)
        t.errno(errno.EINVAL, ask, length=0, iova=LAST_IOVA, ioas_id=none)
        t.errno(errno.EOVERFLOW, ask, length=1, iova=LAST_IOVA, ioas_id=none)
        t.errno(errno.ENOENT, ask, length=1, iova=LAST_IOVA - 1, ioas_id=none)
        t.errno(errno.ENOENT, ask, length=1, iova=BASE, ioas_id=user.devid)
        t.errno(errno.ENOENT, ask, length=1, iova=BASE - 1, ioas_id=ioas)
        t.errno(errno.ENOENT, ask, length=1, iova=BASE + PAGE, ioas_id=ioas)
        user.device.detach()
        t.errno(errno.ENOENT, ask, length=1, iova=BASE + PAGE, ioas_id=ioas)
        t.errno(errno.EOPNOTSUPP, ask, length=1, iova=BASE, ioas_id=ioas)
        user.device.attach(ioas)
        ask(length=1, iova=BASE, ioas_id=ioas)


@case(needs=BARE, cites="drivers/iommu/iommufd/main.c iommufd_fops_ioctl() copy_struct_from_user()")
def structure_may_grow(t: Test) -> None:
    """GET_PA accepts a longer structure if its tail is zero, and is E2BIG otherwise."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous() as page:
        page.touch()
        user.map(page, BASE)
        for tail, good in ((0, True), (1, False)):
            longer = bytearray(struct.pack("<IIIIQQQQ", 48, 0, user.ioas, 0, BASE, PAGE, 0, tail))
            if good:
                user.iommufd.call(api.IOAS_NOIOMMU_GET_PA, longer)
                t.equal(struct.unpack_from("<QQ", longer, 24), (PAGE, page.physical()), "length and address")
            else:
                t.errno(errno.E2BIG, user.iommufd.call, api.IOAS_NOIOMMU_GET_PA, longer)


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/main.c iommufd_fops_ioctl(); ioas.c iommufd_ioas_noiommu_get_pa()",
)
def structure_may_end_where_memory_does(t: Test) -> None:
    """GET_PA accepts a structure at the end of memory; one that extends beyond it or is read-only is EFAULT
    and leaves the mapping unaffected."""
    with (
        through_cdev(t.device("edu", iommu=False)) as user,
        memory.anonymous() as page,
        brink.Brink() as edge,
    ):
        page.touch()
        user.map(page, BASE)
        fd, request = user.iommufd.fd, api.IOAS_NOIOMMU_GET_PA
        whole = api.NoiommuGetPa(ioas_id=user.ioas, iova=BASE, length=PAGE)
        for short in (3, 4, 39):
            t.errno(errno.EFAULT, libc.ioctl, fd, request, edge.put(whole, short))
        for size in (0, 4, 39):
            short_one = api.NoiommuGetPa(size=size, ioas_id=user.ioas, iova=BASE, length=PAGE)
            t.errno(errno.EINVAL, libc.ioctl, fd, request, edge.put(short_one, 39))
        for size in (41, PAGE + 1, 0xFFFFFFFF):
            liar = api.NoiommuGetPa(size=size, ioas_id=user.ioas, iova=BASE, length=PAGE)
            t.errno(errno.EFAULT, libc.ioctl, fd, request, edge.put(liar))
        with brink.frozen(whole) as where:
            t.errno(errno.EFAULT, libc.ioctl, fd, request, where)
        libc.ioctl(fd, request, edge.put(whole))
        answer = api.NoiommuGetPa.from_buffer_copy(edge.tail(40))
        t.equal((answer.out_phys, answer.length), (page.physical(), PAGE), "address and length")


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_noiommu_get_pa(); io_pagetable.c iopt_get_phys()",
)
def longest_question_is_answered(t: Test) -> None:
    """GET_PA accepts any length up to 2^64-1 from any byte, with any value in out_phys, and leaves the input
    fields unchanged."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous() as page:
        page.touch()
        user.map(page, BASE)
        for offset in (0, 1, PAGE - 1):
            for length in (PAGE - offset, PAGE + 1, LAST_IOVA - 1, LAST_IOVA):
                ask = api.NoiommuGetPa(
                    ioas_id=user.ioas, iova=BASE + offset, length=length, out_phys=UNTOUCHED
                )
                user.iommufd.call(api.IOAS_NOIOMMU_GET_PA, ask)
                got = (ask.out_phys, ask.length)
                t.equal(
                    got, (page.physical() + offset, PAGE - offset), f"answer for {length:#x} at {offset:#x}"
                )
                kept = (ask.size, ask.flags, ask.ioas_id, ask.reserved, ask.iova)
                t.equal(kept, (40, 0, user.ioas, 0, BASE + offset), "the fields that are only input")


@case(
    needs=BARE, cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_noiommu_get_pa() (respond only on success)"
)
def refusal_writes_nothing(t: Test) -> None:
    """A refused GET_PA leaves the caller's structure unchanged."""
    with through_cdev(t.device("edu", iommu=False)) as user:
        argument = api.NoiommuGetPa(ioas_id=user.ioas, iova=BASE, length=77, out_phys=UNTOUCHED)
        t.errno(errno.ENOENT, user.iommufd.call, api.IOAS_NOIOMMU_GET_PA, argument)
        t.equal((argument.length, argument.out_phys), (77, UNTOUCHED), "length and address after the refusal")


@case(needs=BARE, cites="drivers/iommu/iommufd/io_pagetable.c iopt_get_phys() (iopt_area_iter_first())")
def address_dies_with_the_mapping(t: Test) -> None:
    """After an unmap GET_PA finds no address, and a new mapping at the same IOVA has its own address."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(2 * PAGE) as buffer:
        buffer.touch()
        iommufd, ioas = user.iommufd, user.ioas
        for index in (0, 1, 0):
            t.errno(errno.ENOENT, iommufd.get_pa, ioas, BASE, 1)
            iommufd.map(ioas, buffer.address + index * PAGE, PAGE, BASE)
            t.equal(iommufd.get_pa(ioas, BASE, 1)[0], buffer.physical(index * PAGE), "the address")
            iommufd.unmap(ioas, BASE, PAGE)
        user.map(buffer, BASE)
        iommufd.unmap(ioas, BASE, 2 * PAGE)
        for index in (0, 1):
            t.errno(errno.ENOENT, iommufd.get_pa, ioas, BASE + index * PAGE, 64)


@case(needs=BARE, cites="drivers/iommu/iommufd/io_pagetable.c iopt_get_phys() (storage_domain)")
def address_needs_an_attached_device(t: Test) -> None:
    """GET_PA works while a device is attached, and is EOPNOTSUPP before, between and after attachments."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous() as page:
        page.touch()
        user.device.detach()
        user.map(page, BASE)
        for _ in range(3):
            t.errno(errno.EOPNOTSUPP, user.iommufd.get_pa, user.ioas, BASE, 1)
            user.device.attach(user.ioas)
            t.equal(user.physical(BASE, PAGE), page.physical(), "the address while attached")
            user.device.detach()
        user.device.attach(user.ioas)
        user.device.close()
        t.errno(errno.EOPNOTSUPP, user.iommufd.get_pa, user.ioas, BASE, 1)


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/io_pagetable.c iopt_get_phys() (iova_rwsem, pages->mutex)",
    timeout=40,
)
def concurrent_callers_see_sense(t: Test) -> None:
    """While mappings and attachments change, GET_PA returns the right address, ENOENT or EOPNOTSUPP."""
    # Shared memory: a private page would move when it is pinned after the fork.
    shared = memory.shared_file(memory.memfd(PAGE), PAGE)
    with through_cdev(t.device("edu", iommu=False)) as user, shared as page:
        page.touch()
        physical = page.physical()
        allowed = (errno.ENOENT, errno.EOPNOTSUPP)

        def ask() -> int:
            answers = 0
            end = time.monotonic() + STRESS
            while time.monotonic() < end:
                try:
                    got = user.iommufd.get_pa(user.ioas, BASE, PAGE)
                except OSError as error:
                    if error.errno not in allowed:
                        raise
                else:
                    answers += 1
                    if got != (physical, PAGE):
                        raise Failure(f"want {physical:#x} and a page, got {got[0]:#x} and {got[1]:#x}")
            return answers

        with forked.Child(ask) as one, forked.Child(ask) as other:
            while not (one.ended() and other.ended()):
                _churn(user, page)
            answers = (one.result(), other.result())
        t.log(f"addresses returned: {answers}")
        t.check(any(answers), "no call returned an address")
        t.equal(memory.pinned_pages(), 0, "pages pinned at the end")
        t.check_no_complaint()


def _churn(user: CdevUser, page: memory.Buffer) -> None:
    user.iommufd.map(user.ioas, page.address, PAGE, BASE)
    user.device.detach()
    user.device.attach(user.ioas)
    user.iommufd.unmap(user.ioas, BASE, PAGE)


@case(
    needs=("noiommu-cdev",),
    cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_noiommu_get_pa(); main.c iommufd_ioctl_ops",
)
def kernel_has_the_ioctl(t: Test) -> None:
    """GET_PA on a new iommufd is ENOENT for a missing address space, not ENOTTY or EOPNOTSUPP."""
    with Iommufd() as iommufd:
        t.errno(errno.ENOENT, iommufd.get_pa, NO_SUCH_ID, 0, 1)
        ioas = iommufd.ioas_alloc()
        t.errno(errno.ENOENT, iommufd.get_pa, ioas, 0, 1)


# The add-on has PCI_P2PDMA, without which no BAR can be a dma-buf.
@case(
    needs=(*BARE, "fault-injection"),
    cites="drivers/iommu/iommufd/io_pagetable.c iopt_get_phys(); drivers/vfio/pci/vfio_pci_dmabuf.c "
    "vfio_pci_dma_buf_move()",
)
def dma_buf_has_the_address_of_the_bar(t: Test) -> None:
    """GET_PA of a BAR mapped as a dma-buf returns the BAR's address until memory decoding is switched off,
    and EINVAL from then on."""
    bdf = t.device("edu", iommu=False)
    with through_cdev(bdf) as user:
        fd = user.device.dma_buf(vfio.BAR0, 2 * PAGE)
        try:
            user.iommufd.map_file(user.ioas, fd, 2 * PAGE, BASE)
        finally:
            os.close(fd)
        bar = pci.resource_start(bdf, 0)
        t.equal(
            user.iommufd.get_pa(user.ioas, BASE + 8, 2 * PAGE), (bar + 8, 2 * PAGE - 8), "address and length"
        )
        command = user.device.read_config(PCI_COMMAND, 2)
        for now in (command & ~PCI_COMMAND_MEMORY, command):
            user.device.write_config(PCI_COMMAND, 2, now)
            t.errno(errno.EINVAL, user.iommufd.get_pa, user.ioas, BASE, 1)
