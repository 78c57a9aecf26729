# SPDX-License-Identifier: GPL-2.0-only
"""IOASes: their IOVA ranges and allocation, their options, their destruction, and sharing by two devices."""

from __future__ import annotations

import contextlib
import ctypes
import errno
from collections.abc import Iterator

from guest import iommufd as api
from guest import libc, memory, pci, vfio
from guest.brink import NOWHERE, Brink
from guest.case import Test, case
from guest.iommufd import LAST_IOVA, NO_SUCH_ID, Iommufd
from guest.memory import PAGE, SMALLEST
from guest.opened import CdevUser, through_cdev

BARE = ("noiommu-cdev", "edu", "!viommu")
TWO = ("noiommu-cdev", "edu", "igb", "!viommu")
INTEL = ("viommu", "viommu-intel", "cdev", "iommufd", "edu")

IOVA = 0x40_0000_0000


@case(
    needs=("iommufd",),
    cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_iova_ranges(); io_pagetable.c iopt_init_table()",
)
def fresh_one_is_boundless(t: Test) -> None:
    """An IOAS without devices offers every IOVA with byte alignment; a list too short for its ranges is
    EMSGSIZE."""
    with Iommufd() as iommufd:
        ioas = iommufd.ioas_alloc()
        t.equal(iommufd.iova_ranges(ioas), ([(0, LAST_IOVA)], 1), "ranges and alignment")
        t.errno(errno.EMSGSIZE, iommufd.call, api.IOAS_IOVA_RANGES, api.IovaRanges(ioas_id=ioas))
        t.errno(errno.ENOENT, iommufd.iova_ranges, NO_SUCH_ID)


@case(needs=BARE, cites="drivers/iommu/iommufd/device.c iommufd_device_do_replace(), hwpt_noiommu.c")
def attached_one_is_boundless_by_pages(t: Test) -> None:
    """With a no-IOMMU device attached, every IOVA stays usable, aligned to the smallest page of its table;
    after detach, with byte alignment again."""
    with through_cdev(t.device("edu", iommu=False)) as user:
        t.equal(user.iommufd.iova_ranges(user.ioas), ([(0, LAST_IOVA)], SMALLEST), "ranges and alignment")
        user.device.detach()
        t.equal(
            user.iommufd.iova_ranges(user.ioas), ([(0, LAST_IOVA)], 1), "ranges and alignment after detach"
        )


@case(needs=BARE, cites="drivers/iommu/iommufd/io_pagetable.c iopt_alloc_iova()")
def kernel_chooses_free_iovas(t: Test) -> None:
    """IOVAs chosen by the kernel are page aligned, never 0, never overlap, and reuse a hole that an unmap
    leaves."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(4 * PAGE) as buffer:
        buffer.touch()
        iommufd, ioas = user.iommufd, user.ioas
        taken: list[int] = []
        for _ in range(8):
            iova = iommufd.map(ioas, buffer.address, 2 * PAGE)
            t.check(iova and iova % PAGE == 0, f"the kernel chose {iova:#x}")
            overlaps = [other for other in taken if abs(other - iova) < 2 * PAGE]
            t.equal(overlaps, [], f"mappings that overlap {iova:#x}")
            taken.append(iova)
        iommufd.unmap(ioas, taken[3], 2 * PAGE)
        # The same length again: a shorter one may fit before the first, where alignment left a gap.
        t.equal(iommufd.map(ioas, buffer.address, 2 * PAGE), taken[3], "the IOVA chosen after an unmap")


@case(
    needs=("iommufd",),
    cites="drivers/iommu/iommufd/io_pagetable.c iopt_alloc_iova() (HPAGE_SIZE)",
)
def huge_memory_gets_an_iova_that_suits_it(t: Test) -> None:
    """The kernel chooses an IOVA aligned to 2 MiB for memory aligned to 2 MiB, whatever was mapped before."""
    with Iommufd() as iommufd, memory.anonymous(2 * memory.HUGE) as buffer:
        ioas = iommufd.ioas_alloc()
        aligned = -(-buffer.address // memory.HUGE) * memory.HUGE
        for _ in range(3):
            iommufd.map(ioas, aligned, PAGE)
            iova = iommufd.map(ioas, aligned, memory.HUGE)
            t.equal(iova % memory.HUGE, 0, f"offset of {iova:#x} in 2 MiB")


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_allow_iovas(); io_pagetable.c iopt_alloc_iova()",
)
def allowed_iovas_bind_the_kernel(t: Test) -> None:
    """ALLOW_IOVAS limits the IOVAs that the kernel chooses to the listed ranges, and refuses empty or
    overlapping ranges."""
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
    """Large pages can be disabled only for an empty IOAS, and GET_PA gives the same answers without them."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous() as page:
        page.touch()
        iommufd, ioas = user.iommufd, user.ioas
        t.equal(iommufd.option_get(api.OPTION_HUGE_PAGES, ioas), 1, "the initial option")
        user.map(page, 0)
        t.errno(errno.EINVAL, iommufd.option_set, api.OPTION_HUGE_PAGES, 0, ioas)
        iommufd.unmap(ioas, 0, PAGE)
        iommufd.option_set(api.OPTION_HUGE_PAGES, 0, ioas)
        t.equal(iommufd.option_get(api.OPTION_HUGE_PAGES, ioas), 0, "the option after clearing it")
        user.map(page, 0)
        t.equal(user.physical(0, PAGE), page.physical(), "the physical address")
        t.errno(errno.EINVAL, iommufd.option_set, api.OPTION_HUGE_PAGES, 2, ioas)
        t.errno(errno.ENOENT, iommufd.option_get, api.OPTION_HUGE_PAGES, NO_SUCH_ID)


@case(
    needs=("iommufd",),
    cites="drivers/iommu/iommufd/main.c iommufd_destroy(), iommufd_object_remove()",
)
def destroyed_ioas_is_gone(t: Test) -> None:
    """DESTROY removes an IOAS with all its mappings, once: afterwards every call for it is ENOENT, and
    another IOAS is untouched."""
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
        t.equal(iommufd.unmap(other, 0, LAST_IOVA), PAGE, "bytes mapped in the other IOAS")


@case(needs=BARE, cites="drivers/iommu/iommufd/main.c iommufd_get_object() (type)")
def other_objects_are_no_ioas(t: Test) -> None:
    """Every call that needs an IOAS answers ENOENT for the ID of a device or a page table."""
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
        t.equal(user.physical(0x10000, PAGE), page.physical(), "the address after all refused calls")


@case(
    needs=("iommufd",),
    cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_iova_ranges() (max_iovas)",
)
def ranges_say_how_many_there_are(t: Test) -> None:
    """IOVA_RANGES with too short a list is EMSGSIZE and still returns count and alignment; a bad pointer is
    EFAULT only when there is something to write."""
    with Iommufd() as iommufd, Brink() as edge:
        ioas = iommufd.ioas_alloc()
        for pointer in (0, NOWHERE):
            where = edge.put(api.IovaRanges(ioas_id=ioas, num_iovas=0, allowed_iovas=pointer))
            t.errno(errno.EMSGSIZE, libc.ioctl, iommufd.fd, api.IOAS_IOVA_RANGES, where)
            told = api.IovaRanges.from_buffer_copy(edge.tail(ctypes.sizeof(api.IovaRanges)))
            t.equal((told.num_iovas, told.out_iova_alignment), (1, 1), "count and alignment returned")
            full = api.IovaRanges(ioas_id=ioas, num_iovas=1, allowed_iovas=pointer)
            t.errno(errno.EFAULT, iommufd.call, api.IOAS_IOVA_RANGES, full)
        room = edge.put(bytes(16))
        exact = api.IovaRanges(ioas_id=ioas, num_iovas=0xFFFFFFFF, allowed_iovas=room)
        iommufd.call(api.IOAS_IOVA_RANGES, exact)
        t.equal(exact.num_iovas, 1, "ranges returned for a list claimed to be long")
        t.equal(edge.tail(16), bytes(8) + b"\xff" * 8, "the range")


@case(needs=INTEL, cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_iova_ranges() (EMSGSIZE)")
def ranges_fill_what_room_there_is(t: Test) -> None:
    """Behind an IOMMU, given a list of one range, IOVA_RANGES writes the first range and counts them all."""
    with through_cdev(t.device("edu", iommu=True)) as user, Brink() as edge, Brink() as room:
        ranges, _alignment = user.iommufd.iova_ranges(user.ioas)
        t.check(len(ranges) > 1, f"the IOMMU has {len(ranges)} ranges; this case needs two")
        one = room.put(bytes(16))
        where = edge.put(api.IovaRanges(ioas_id=user.ioas, num_iovas=1, allowed_iovas=one))
        t.errno(errno.EMSGSIZE, libc.ioctl, user.iommufd.fd, api.IOAS_IOVA_RANGES, where)
        told = api.IovaRanges.from_buffer_copy(edge.tail(ctypes.sizeof(api.IovaRanges)))
        t.equal(told.num_iovas, len(ranges), "the number of ranges returned")
        first = api.IovaRange.from_buffer_copy(room.tail(16))
        t.equal((first.start, first.last), ranges[0], "the first range")


@case(needs=INTEL, cites="drivers/iommu/iommufd/io_pagetable.c iopt_set_allow_iova(), iopt_reserve_iova()")
def allowed_iovas_keep_a_translated_device_out(t: Test) -> None:
    """IOVAs that an IOMMU reserves cannot be allowed (EADDRINUSE), and while they are allowed, a device whose
    IOMMU would reserve them cannot attach."""
    with through_cdev(t.device("edu", iommu=True)) as user:
        iommufd, window = user.iommufd, (memory.MSI_WINDOW, memory.MSI_WINDOW + PAGE - 1)
        t.errno(errno.EADDRINUSE, iommufd.allow_iovas, user.ioas, (PAGE, 2 * PAGE - 1), window)
        iommufd.allow_iovas(user.ioas, (PAGE, 2 * PAGE - 1))
        other = iommufd.ioas_alloc()
        iommufd.allow_iovas(other, window)
        user.device.detach()
        t.errno(errno.EADDRINUSE, user.device.attach, other)
        iommufd.allow_iovas(other)
        t.check(user.device.attach(other) > 0, "attach with an empty ALLOW_IOVAS list returned no page table")


@case(needs=BARE, cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_allow_iovas() (the update is atomic)")
def refused_allow_changes_nothing(t: Test) -> None:
    """A refused ALLOW_IOVAS leaves the list unchanged, a successful one replaces it, an empty one removes it,
    and fixed IOVAs are not checked against it."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(4 * PAGE) as buffer:
        buffer.touch()
        iommufd, ioas, va = user.iommufd, user.ioas, buffer.address
        iommufd.allow_iovas(ioas, (0x100000, 0x100000 + PAGE - 1))
        refused = api.AllowIovas(ioas_id=ioas, num_iovas=1, allowed_iovas=NOWHERE)
        t.errno(errno.EFAULT, iommufd.call, api.IOAS_ALLOW_IOVAS, refused)
        t.errno(errno.EINVAL, iommufd.allow_iovas, ioas, (0x200000, 0x2FFFFF), (0x5000, 0x4000))
        t.errno(errno.EINVAL, iommufd.allow_iovas, ioas, (0x200000, 0x2FFFFF), (0x2FFFFF, 0x300000))
        iommufd.map(ioas, va, PAGE, 0x900000)
        t.equal(iommufd.map(ioas, va, PAGE), 0x100000, "the IOVA chosen after refused calls")
        t.errno(errno.ENOSPC, iommufd.map, ioas, va, PAGE)
        iommufd.allow_iovas(ioas, (0x400000, 0x400000 + PAGE - 1), (0x300000, 0x300000 + PAGE - 1))
        t.errno(errno.ENOSPC, iommufd.map, ioas, va, 2 * PAGE)
        chosen = [iommufd.map(ioas, va, PAGE) for _ in range(2)]
        t.equal(chosen, [0x300000, 0x400000], "the IOVAs chosen from the new list")
        t.errno(errno.ENOSPC, iommufd.map, ioas, va, PAGE)
        lifted = api.AllowIovas(ioas_id=ioas, num_iovas=0, allowed_iovas=NOWHERE)
        iommufd.call(api.IOAS_ALLOW_IOVAS, lifted)
        t.equal(iommufd.iova_ranges(ioas)[0], [(0, LAST_IOVA)], "the ranges afterwards")
        t.check(
            iommufd.map(ioas, va, 2 * PAGE) < 0x100000, "the IOVA chosen without a list is not the lowest"
        )


@contextlib.contextmanager
def _two(t: Test) -> Iterator[tuple[CdevUser, vfio.Device, int, memory.Buffer, memory.Buffer]]:
    """Yield an attached edu, an igb bound to the same iommufd but not attached, the igb's ID, and two
    pages."""
    first, second = t.device("edu", iommu=False), t.device("igb", iommu=False)
    with (
        through_cdev(first) as user,
        pci.bound(second),
        vfio.open_cdev(second) as other,
        memory.anonymous() as one,
        memory.anonymous() as two,
    ):
        one.touch()
        two.touch()
        yield user, other, other.bind_iommufd(user.iommufd.fd), one, two


@case(needs=TWO, cites="drivers/iommu/iommufd/device.c iommufd_device_auto_get_domain(); io_pagetable.c")
def address_spaces_keep_apart(t: Test) -> None:
    """With two devices in two IOASes of one iommufd, one IOVA is a different page in each, and UNMAP or
    DETACH in one does not affect the other."""
    with _two(t) as (user, other, _devid, one, two):
        iommufd = user.iommufd
        ioas = iommufd.ioas_alloc()
        other.attach(ioas)
        iommufd.map(user.ioas, one.address, PAGE, IOVA)
        iommufd.map(ioas, two.address, PAGE, IOVA)
        t.equal(iommufd.get_pa(user.ioas, IOVA, PAGE), (one.physical(), PAGE), "the first device's page")
        t.equal(iommufd.get_pa(ioas, IOVA, PAGE), (two.physical(), PAGE), "the second device's page")
        iommufd.unmap(user.ioas, IOVA, PAGE)
        t.errno(errno.ENOENT, iommufd.get_pa, user.ioas, IOVA, PAGE)
        t.equal(iommufd.get_pa(ioas, IOVA, PAGE), (two.physical(), PAGE), "the second page after UNMAP")
        user.device.detach()
        t.equal(iommufd.get_pa(ioas, IOVA, PAGE), (two.physical(), PAGE), "the second page after DETACH")
        t.equal(memory.pinned_pages(), 1, "pages pinned for the second device")


@case(needs=TWO, cites="drivers/iommu/iommufd/device.c iommufd_hwpt_detach_device()")
def shared_space_lasts_as_long_as_either_device(t: Test) -> None:
    """Two devices in one IOAS share one page table, which keeps addresses valid and pages pinned until the
    second of them leaves, whichever leaves first."""
    with _two(t) as (user, other, devid, one, _spare):
        t.check(devid not in (0, user.devid), "both devices have the same ID")
        user.map(one, IOVA)
        table = user.device.attach(user.ioas)
        t.equal(other.attach(user.ioas), table, "the second device's page table")
        pair = (user.device, other)
        for first, last in (pair, pair[::-1]):
            first.detach()
            t.equal(user.physical(IOVA, PAGE), one.physical(), "the address after one device left")
            t.equal(memory.pinned_pages(), 1, "pages pinned after one device left")
            last.detach()
            t.errno(errno.EOPNOTSUPP, user.iommufd.get_pa, user.ioas, IOVA, PAGE)
            t.equal(memory.pinned_pages(), 0, "pages pinned after both left")
            first.attach(user.ioas)
            last.attach(user.ioas)
        user.device.close()
        t.equal(user.physical(IOVA, PAGE), one.physical(), "the address after the first device was closed")


@case(needs=TWO, cites="drivers/iommu/iommufd/io_pagetable.c iopt_table_remove_domain(); pages.c")
def addresses_move_to_the_next_page_table(t: Test) -> None:
    """If an IOAS has two page tables, removing the first keeps addresses and pins through the second."""
    with _two(t) as (user, _other, devid, one, _spare):
        iommufd = user.iommufd
        user.device.detach()
        first, second = (iommufd.hwpt_alloc(device, user.ioas) for device in (user.devid, devid))
        user.map(one, IOVA)
        for table in (first, second):
            t.equal(user.physical(IOVA, PAGE), one.physical(), "the address")
            t.equal(memory.pinned_pages(), 1, "pages pinned")
            iommufd.destroy(table)
        t.errno(errno.EOPNOTSUPP, iommufd.get_pa, user.ioas, IOVA, PAGE)
        t.equal(memory.pinned_pages(), 0, "pages pinned without a page table")
