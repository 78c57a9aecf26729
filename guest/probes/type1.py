# SPDX-License-Identifier: GPL-2.0-only
"""VFIO's own type1 container, in which devices behind an IOMMU are used: its maps, limits and dirty pages."""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Iterator
from pathlib import Path

from guest import brink, edu, libc, memory, pci, vfio
from guest.brink import NOWHERE
from guest.case import Test, case
from guest.iommufd import LAST_IOVA
from guest.memory import HUGE, PAGE
from guest.opened import GroupUser, round_trip, through_group
from guest.uapi import errno_of

NATIVE = ("viommu", "group", "container", "edu")
TWO = (*NATIVE, "igb")

IOVA = 0x40_0000_0000

# include/uapi/linux/vfio.h
DIRTY_PAGES = 0x3B75
DIRTY_START, DIRTY_STOP, DIRTY_GET = 1, 2, 4
MAP_VADDR = 4
UNMAP_GET_DIRTY, UNMAP_VADDR = 1, 4

ENTRY_LIMIT = Path("/sys/module/vfio_iommu_type1/parameters/dma_entry_limit")


@contextlib.contextmanager
def _container(
    t: Test, kind: int = vfio.TYPE1V2_IOMMU, pages: int = 4
) -> Iterator[tuple[GroupUser, memory.Buffer]]:
    with through_group(t.device("edu", iommu=True), kind) as user, memory.anonymous(pages * PAGE) as buffer:
        buffer.touch()
        yield user, buffer


@case(needs=NATIVE, cites="drivers/vfio/vfio_iommu_type1.c vfio_dma_do_unmap() (v2)")
def second_version_never_splits_a_mapping(t: Test) -> None:
    """UNMAP_DMA of a type1v2 container that would split the first or last mapping of its range is EINVAL and
    unmaps nothing; any range that does not, at either end of a mapping, works and returns the bytes."""
    with _container(t, pages=8) as (user, buffer):
        container = user.container
        for start in (0, 4):
            container.map_dma(buffer.address + start * PAGE, IOVA + start * PAGE, 4 * PAGE)
        for first, count in (
            (0, 1),
            (0, 3),
            (0, 5),
            (1, 3),
            (1, 7),
            (3, 1),
            (3, 2),
            (4, 1),
            (7, 1),
            (5, 9),
            (-3, 4),
        ):
            t.errno(errno.EINVAL, container.unmap_dma, IOVA + first * PAGE, count * PAGE)
        t.equal(container.unmap_dma(IOVA + 8 * PAGE, 8 * PAGE), 0, "bytes behind the mappings")
        t.equal(container.unmap_dma(IOVA - 8 * PAGE, 8 * PAGE), 0, "bytes before the mappings")
        t.equal(memory.locked_pages(), 8, "pages locked by both mappings")
        t.equal(container.unmap_dma(IOVA - PAGE, 5 * PAGE), 4 * PAGE, "bytes of the first and a page before")
        t.equal(container.unmap_dma(IOVA, 9 * PAGE), 4 * PAGE, "bytes of the second and a page behind")
        t.equal(memory.locked_pages(), 0, "pages locked without mappings")


@case(needs=NATIVE, cites="drivers/vfio/vfio_iommu_type1.c vfio_dma_do_unmap() (the comment about v1)")
def first_version_unmaps_whole_mappings(t: Test) -> None:
    """UNMAP_DMA of a type1 container that covers the first byte of a mapping unmaps all of it, and one that
    begins inside a mapping succeeds with zero bytes."""
    with _container(t, vfio.TYPE1_IOMMU, 8) as (user, buffer):
        container = user.container
        for start in (0, 4):
            container.map_dma(buffer.address + start * PAGE, IOVA + start * PAGE, 4 * PAGE)
        t.equal(container.unmap_dma(IOVA + PAGE, PAGE), 0, "bytes unmapped from inside a mapping")
        t.equal(container.unmap_dma(IOVA + 3 * PAGE, 2 * PAGE), 0, "bytes from inside one into the next")
        t.equal(memory.locked_pages(), 8, "pages locked by both mappings")
        t.equal(container.unmap_dma(IOVA, PAGE), 4 * PAGE, "bytes unmapped by the first page")
        t.equal(
            container.unmap_dma(IOVA - PAGE, 6 * PAGE), 4 * PAGE, "bytes of the second mapping by its start"
        )
        t.equal(memory.locked_pages(), 0, "pages locked without mappings")


@case(needs=NATIVE, cites="drivers/vfio/vfio_iommu_type1.c vfio_dma_do_map(), vfio_iommu_type1_map_dma()")
def refused_map_costs_nothing(t: Test) -> None:
    """A refused MAP_DMA, whatever the reason and however far it got, leaves no pin, no locked page and no
    used entry, and the same IOVA can be mapped afterwards."""
    with _container(t) as (user, buffer):
        container, va = user.container, buffer.address
        container.map_dma(va, IOVA, 2 * PAGE)
        left, pins = container.maps_left(), memory.held_pins()
        hole = memory.Buffer(va + 3 * PAGE, PAGE)
        hole.protect(memory.PROT_NONE)
        flags, end = vfio.REGION_READ | vfio.REGION_WRITE, IOVA + 2 * PAGE
        for code, arguments in (
            (errno.EFAULT, (va, end, 4 * PAGE)),
            (errno.EFAULT, (NOWHERE, end, PAGE)),
            (errno.EEXIST, (va, IOVA, 2 * PAGE)),
            (errno.EEXIST, (va, IOVA - PAGE, 2 * PAGE)),
            (errno.EEXIST, (va, IOVA + PAGE, 2 * PAGE)),
            (errno.EEXIST, (va, IOVA - PAGE, 4 * PAGE)),
            (errno.EINVAL, (va, end, 0)),
            (errno.EINVAL, (va, end, PAGE - 1)),
            (errno.EINVAL, (va + 1, end, PAGE)),
            (errno.EINVAL, (va, end + 1, PAGE)),
            (errno.EINVAL, (va, end, PAGE, 0)),
            (errno.EINVAL, (va, end, PAGE, flags | 8)),
            (errno.EINVAL, (va, end, PAGE, flags | MAP_VADDR)),
            (errno.ENOENT, (va, end, PAGE, MAP_VADDR)),
            (errno.EINVAL, (va, IOVA, 2 * PAGE, MAP_VADDR)),
            (errno.EOVERFLOW, (va, LAST_IOVA - PAGE + 1, 2 * PAGE)),
            (errno.EOVERFLOW, (LAST_IOVA - PAGE + 1, end, 2 * PAGE)),
        ):
            t.log(f"{[hex(one) for one in arguments]}")
            t.errno(code, container.map_dma, *arguments)
        for _first, last in container.iova_ranges()[:-1]:
            t.errno(errno.EINVAL, container.map_dma, va, last + 1, PAGE)
        short = vfio.DmaMap(argsz=31, vaddr=va, iova=end, size=PAGE, flags=flags)
        t.errno(errno.EINVAL, container.call, vfio.IOMMU_MAP_DMA, short)
        t.equal((container.maps_left(), memory.held_pins()), (left, pins), "entries left and pins")
        t.equal(memory.locked_pages(), 2, "pages locked")
        hole.protect(memory.READ_WRITE)
        container.map_dma(va, end, 4 * PAGE)
        t.equal(container.unmap_dma(end, 4 * PAGE), 4 * PAGE, "bytes of the last mapping")


@case(needs=NATIVE, cites="drivers/vfio/vfio_iommu_type1.c vfio_iommu_type1_unmap_dma(), vfio_dma_do_unmap()")
def refused_unmap_takes_nothing(t: Test) -> None:
    """A refused UNMAP_DMA, for its size, alignment, flags or overflow, unmaps nothing."""
    with _container(t) as (user, buffer):
        container = user.container
        container.map_dma(buffer.address, IOVA, 4 * PAGE)
        for code, arguments in (
            (errno.EINVAL, (IOVA, 0)),
            (errno.EINVAL, (IOVA, 4 * PAGE + 1)),
            (errno.EINVAL, (IOVA + 1, 4 * PAGE)),
            (errno.EINVAL, (IOVA, 4 * PAGE, 8)),
            (errno.EINVAL, (IOVA, 4 * PAGE, UNMAP_GET_DIRTY | vfio.UNMAP_ALL)),
            (errno.EINVAL, (0, 0, UNMAP_GET_DIRTY | vfio.UNMAP_ALL)),
            (errno.EINVAL, (IOVA, 4 * PAGE, UNMAP_GET_DIRTY)),
            (errno.EOVERFLOW, (LAST_IOVA - PAGE + 1, 2 * PAGE)),
            (errno.EINVAL, (PAGE, LAST_IOVA)),
        ):
            t.log(f"{[hex(one) for one in arguments]}")
            t.errno(code, container.unmap_dma, *arguments)
        short = vfio.DmaUnmap(argsz=23, iova=IOVA, size=4 * PAGE)
        t.errno(errno.EINVAL, container.call, vfio.IOMMU_UNMAP_DMA, short)
        t.equal(memory.locked_pages(), 4, "pages locked")
        with brink.Brink() as edge:
            where = edge.put(vfio.DmaUnmap(iova=IOVA, size=4 * PAGE))
            libc.ioctl(container.fd, vfio.IOMMU_UNMAP_DMA, where)
        t.equal(memory.locked_pages(), 0, "pages locked after the unmap")


@case(needs=NATIVE, cites="drivers/vfio/vfio_iommu_type1.c vfio_dma_do_map() (dma_avail), dma_entry_limit")
def number_of_maps_is_limited(t: Test) -> None:
    """A container opened while dma_entry_limit is three takes three mappings and refuses a fourth (ENOSPC);
    each unmap and no refused map makes room, and a container opened later has its own limit."""
    before = ENTRY_LIMIT.read_text(encoding="ascii")
    try:
        ENTRY_LIMIT.write_text("3", encoding="ascii")
        with _container(t) as (user, buffer):
            ENTRY_LIMIT.write_text(before, encoding="ascii")
            container = user.container
            for turn in range(2):
                for number in range(3):
                    t.equal(container.maps_left(), 3 - number, "maps left")
                    container.map_dma(buffer.address, IOVA + number * HUGE, PAGE)
                for _ in range(2):
                    t.errno(errno.ENOSPC, container.map_dma, buffer.address, IOVA + 3 * HUGE, PAGE)
                    t.errno(errno.EEXIST, container.map_dma, buffer.address, IOVA, PAGE)
                if turn == 0:
                    t.equal(container.unmap_dma(IOVA, 3 * HUGE), 3 * PAGE, "bytes of all mappings")
            t.equal(container.unmap_dma(0, 0, vfio.UNMAP_ALL), 3 * PAGE, "bytes of all mappings again")
    finally:
        ENTRY_LIMIT.write_text(before, encoding="ascii")
    with _container(t) as (user, _buffer):
        t.equal(user.container.maps_left(), int(before), "maps left in a later container")


def _dirty(container: vfio.Container, flags: int) -> None:
    container.call(DIRTY_PAGES, bytearray(struct.pack("=II", 8, flags)))


def _bitmap(
    container: vfio.Container, iova: int, size: int, *, room: int = 8, page: int = PAGE, where: int = 0
) -> bytes:
    """Return the dirty bitmap of a range."""
    with memory.anonymous() as answer:
        request = struct.pack("=II5Q", 8 + 40, DIRTY_GET, iova, size, page, room, where or answer.address)
        container.call(DIRTY_PAGES, bytearray(request))
        return answer.read(0, room)


@case(
    needs=NATIVE,
    cites="drivers/vfio/vfio_iommu_type1.c vfio_iommu_type1_dirty_pages(), vfio_iova_dirty_bitmap(), "
    "update_user_bitmap(); include/uapi/linux/vfio.h VFIO_IOMMU_DIRTY_PAGES",
)
def every_mapped_page_is_dirty(t: Test) -> None:
    """While dirty pages are tracked, the bits of all mapped pages are set, for mappings made before and after
    the start, at any distance from the range's first page, as often as one asks; at first those alone."""
    with _container(t, pages=8) as (user, buffer):
        container, va = user.container, buffer.address
        container.map_dma(va, IOVA, 2 * PAGE)
        t.errno(errno.EINVAL, _bitmap, container, IOVA, 2 * PAGE)
        for _ in range(2):
            _dirty(container, DIRTY_START)
        container.map_dma(va + 2 * PAGE, IOVA + 5 * PAGE, 3 * PAGE)
        container.map_dma(va + 5 * PAGE, IOVA + 66 * PAGE, PAGE)
        mapped = sum(1 << page for page in (0, 1, 5, 6, 7, 66))
        got = int.from_bytes(_bitmap(container, IOVA, 128 * PAGE, room=16), "little")
        t.equal(hex(got), hex(mapped), "the first bitmap of the whole range")
        for _ in range(2):
            # Bits of holes are the matter of hole_is_never_dirty().
            for first, count, want in ((0, 128, mapped), (5, 3, 0b111), (2, 64, 0b111 << 3)):
                answer = _bitmap(container, IOVA + first * PAGE, count * PAGE, room=16)
                got = int.from_bytes(answer, "little") & want
                t.equal(hex(got), hex(want), f"the bits of mapped pages from page {first} on")
        for first, count in ((1, 1), (0, 1), (5, 2), (6, 2), (0, 7)):
            t.errno(errno.EINVAL, _bitmap, container, IOVA + first * PAGE, count * PAGE)
        for wrong in (
            {"room": 0},
            {"page": 2 * PAGE},
            {"page": HUGE},
        ):
            t.errno(errno.EINVAL, _bitmap, container, IOVA, 2 * PAGE, **wrong)
        t.errno(errno.EINVAL, _bitmap, container, IOVA, 128 * PAGE, room=8)
        t.errno(errno.EINVAL, _bitmap, container, IOVA, 0)
        t.errno(errno.EINVAL, _bitmap, container, IOVA + 1, PAGE)
        t.errno(errno.EOVERFLOW, _bitmap, container, LAST_IOVA - PAGE + 1, 2 * PAGE)
        t.errno(errno.EFAULT, _bitmap, container, IOVA, 2 * PAGE, where=NOWHERE)
        for flags in (3, 5, 6, 8):
            t.errno(errno.EINVAL, _dirty, container, flags)
        for _ in range(2):
            _dirty(container, DIRTY_STOP)
        t.errno(errno.EINVAL, _bitmap, container, IOVA, 2 * PAGE)
        _dirty(container, DIRTY_START)
        t.equal(_bitmap(container, IOVA, 2 * PAGE), b"\3" + bytes(7), "the bitmap after the second start")


@case(
    needs=NATIVE,
    cites="include/uapi/linux/vfio.h VFIO_IOMMU_DIRTY_PAGES; drivers/vfio/vfio_iommu_type1.c "
    "update_user_bitmap(), vfio_iova_dirty_bitmap()",
)
def hole_is_never_dirty(t: Test) -> None:
    """No dirty bitmap has the bit of a page that nothing maps, however often and from which page on one
    asks."""
    with _container(t, pages=5) as (user, buffer):
        container = user.container
        container.map_dma(buffer.address, IOVA, 2 * PAGE)
        container.map_dma(buffer.address + 2 * PAGE, IOVA + 5 * PAGE, 3 * PAGE)
        _dirty(container, DIRTY_START)
        for first in (5, 0, 5, 0, 0):
            got = int.from_bytes(_bitmap(container, IOVA + first * PAGE, (64 - first) * PAGE), "little")
            t.equal(hex(got), hex(0b11100011 >> first), f"the bitmap from page {first} on")


@case(
    needs=NATIVE,
    cites="drivers/vfio/vfio_iommu_type1.c vfio_dma_do_unmap() (VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP)",
)
def unmap_reports_dirty_pages(t: Test) -> None:
    """UNMAP_DMA that asks for the dirty bitmap returns that of the mappings that it removes, and is EINVAL
    without tracking, with another page size or too little room."""
    with _container(t) as (user, buffer), memory.anonymous() as answer:
        container = user.container

        def unmap(page: int = PAGE, room: int = 8) -> int:
            argument = bytearray(
                bytes(vfio.DmaUnmap(argsz=48, flags=UNMAP_GET_DIRTY, iova=IOVA, size=8 * PAGE))
            )
            argument += struct.pack("=3Q", page, room, answer.address)
            container.call(vfio.IOMMU_UNMAP_DMA, argument)
            return vfio.DmaUnmap.from_buffer_copy(argument[:24]).size

        for _ in range(2):
            for first in (0, 5):
                container.map_dma(buffer.address, IOVA + first * PAGE, 2 * PAGE)
            t.errno(errno.EINVAL, unmap)
            _dirty(container, DIRTY_START)
            t.errno(errno.EINVAL, unmap, 2 * PAGE)
            t.errno(errno.EINVAL, unmap, PAGE, 0)
            answer.fill(0)
            t.equal(unmap(), 4 * PAGE, "bytes unmapped")
            t.equal(hex(answer.read(0, 1)[0]), hex(0b1100011), "the bitmap")
            t.equal(memory.locked_pages(), 0, "pages locked")
            _dirty(container, DIRTY_STOP)


@case(needs=NATIVE, cites="drivers/vfio/vfio_iommu_type1.c vfio_iommu_type1_dirty_pages() (v2)")
def first_version_tracks_nothing(t: Test) -> None:
    """A type1 container of the first version refuses to track dirty pages (EACCES)."""
    with _container(t, vfio.TYPE1_IOMMU) as (user, _buffer):
        for flags in (DIRTY_START, DIRTY_STOP):
            t.errno(errno.EACCES, _dirty, user.container, flags)


@case(
    needs=NATIVE,
    cites="drivers/vfio/vfio_iommu_type1.c vfio_dma_do_unmap(), vfio_dma_do_map() (UNMAP_FLAG_VADDR)",
    timeout=60,
)
def addresses_of_mappings_can_be_renewed(t: Test) -> None:
    """UNMAP_DMA of the virtual addresses leaves the mappings to the device and can be undone once per mapping
    by a MAP_DMA of exactly its range; twice in a row it is EINVAL and changes nothing."""
    with _container(t) as (user, buffer):
        container, va = user.container, buffer.address
        t.equal(container.check_extension(vfio.UPDATE_VADDR), 1, "CHECK_EXTENSION(UPDATE_VADDR)")
        for first in (0, 2):
            container.map_dma(va + first * PAGE, IOVA + first * PAGE, 2 * PAGE)
        for _ in range(2):
            t.equal(container.unmap_dma(IOVA, 2 * PAGE, UNMAP_VADDR), 2 * PAGE, "bytes of the first")
            t.errno(errno.EINVAL, container.unmap_dma, IOVA, 4 * PAGE, UNMAP_VADDR)
            t.errno(errno.EINVAL, container.unmap_dma, 0, 0, UNMAP_VADDR | vfio.UNMAP_ALL)
            t.errno(errno.EINVAL, container.map_dma, va + 2 * PAGE, IOVA + 2 * PAGE, 2 * PAGE, MAP_VADDR)
            t.errno(errno.EINVAL, container.map_dma, va, IOVA, PAGE, MAP_VADDR)
            t.errno(errno.EINVAL, container.map_dma, va, IOVA + PAGE, PAGE, MAP_VADDR)
            t.errno(errno.EEXIST, container.map_dma, va, IOVA, 2 * PAGE)
            container.map_dma(va, IOVA, 2 * PAGE, MAP_VADDR)
            t.errno(errno.EINVAL, container.map_dma, va, IOVA, 2 * PAGE, MAP_VADDR)
            got = container.unmap_dma(IOVA + 2 * PAGE, 2 * PAGE, UNMAP_VADDR)
            t.equal(got, 2 * PAGE, "bytes of the second")
            t.errno(errno.EINVAL, container.unmap_dma, IOVA, 4 * PAGE, UNMAP_VADDR)
            t.errno(errno.EINVAL, container.map_dma, va, IOVA, 2 * PAGE, MAP_VADDR)
            container.map_dma(va + 2 * PAGE, IOVA + 2 * PAGE, 2 * PAGE, MAP_VADDR)
        user.device.set_bus_master()
        with user.device.bar() as bar:
            round_trip(t, edu.Edu(bar), buffer, IOVA)
        t.equal(container.unmap_dma(0, 0, UNMAP_VADDR | vfio.UNMAP_ALL), 4 * PAGE, "bytes of all")
        t.equal(container.unmap_dma(0, 0, vfio.UNMAP_ALL), 4 * PAGE, "bytes unmapped without addresses")
        t.equal(memory.locked_pages(), 0, "pages locked")


@case(
    needs=TWO,
    cites="drivers/vfio/vfio_iommu_type1.c vfio_iommu_type1_attach_group(), vfio_iommu_replay(), "
    "vfio_iommu_type1_detach_group()",
    timeout=60,
)
def group_that_joins_later_finds_every_mapping(t: Test) -> None:
    """A group that joins a container reaches what was mapped before, keeps reaching it when the first group
    leaves, and joins and leaves any number of times."""
    first, second = t.device("igb", iommu=True), t.device("edu", iommu=True)
    with (
        through_group(first, vfio.TYPE1V2_IOMMU) as user,
        pci.bound(second),
        memory.anonymous(3 * PAGE) as buffer,
    ):
        container = user.container
        buffer.touch()
        container.map_dma(buffer.address, IOVA, 2 * PAGE)
        container.map_dma(buffer.address + 2 * PAGE, IOVA + HUGE, PAGE)
        for _ in range(2):
            with vfio.open_group(second) as group:
                group.set_container(container)
                with group.device(second) as device, device.bar() as bar:
                    device.set_bus_master()
                    round_trip(t, edu.Edu(bar), buffer, IOVA)
                t.equal(memory.locked_pages(), 3, "pages locked with both groups")
        with vfio.open_group(second) as group:
            group.set_container(container)
            user.device.close()
            user.group.unset_container()
            with group.device(second) as device, device.bar() as bar:
                device.set_bus_master()
                round_trip(t, edu.Edu(bar), buffer, IOVA)
                t.equal(container.unmap_dma(IOVA, 2 * PAGE), 2 * PAGE, "bytes unmapped")
            t.equal(memory.locked_pages(), 1, "pages locked by what is left")
        t.equal(memory.locked_pages(), 0, "pages locked after the last group has left")
        t.check(errno_of(container.unmap_dma, 0, 0, vfio.UNMAP_ALL), "a container without a group unmaps")


@case(
    needs=NATIVE,
    cites="drivers/vfio/vfio_iommu_type1.c vfio_pin_pages_remote(), vfio_lock_acct() (RLIMIT_MEMLOCK)",
)
def maps_of_one_page_twice_count_twice(t: Test) -> None:
    """Memory mapped at two IOVAs is locked twice, and unmapping one leaves the other for the device."""
    with _container(t, pages=2) as (user, buffer):
        container = user.container
        container.map_dma(buffer.address, IOVA, 2 * PAGE)
        container.map_dma(buffer.address, IOVA + HUGE, 2 * PAGE)
        t.equal(memory.locked_pages(), 4, "pages locked by two mappings")
        container.unmap_dma(IOVA, 2 * PAGE)
        t.equal(memory.locked_pages(), 2, "pages locked by the second")
        user.device.set_bus_master()
        with user.device.bar() as bar:
            round_trip(t, edu.Edu(bar), buffer, IOVA + HUGE)
