# SPDX-License-Identifier: GPL-2.0-only
"""IOVAs that a real IOMMU reserves: a range that only begins or only ends in one is refused like one
inside."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Sequence

from guest import edu, memory, vfio
from guest.case import Test, case
from guest.iommufd import LAST_IOVA
from guest.memory import HUGE, PAGE
from guest.opened import CdevUser, through_cdev, through_group

CDEV = ("viommu", "cdev", "iommufd", "edu")
GROUP = ("viommu", "group", "edu")

IOVA = 0x40_0000_0000

Range = tuple[int, int]
"""First and last IOVA."""


def _gaps(ranges: Sequence[Range]) -> list[Range]:
    """Return what lies between and behind *ranges*, none of which begins behind the last byte of a page."""
    firsts = [last + 1 for _first, last in ranges if last != LAST_IOVA]
    lasts = [first - 1 for first, _last in ranges[1:]]
    return list(zip(firsts, [*lasts, LAST_IOVA]))  # noqa: B905  Python 3.9 has no strict=


def _touching(gap: Range) -> list[Range]:
    """Return ranges of whole pages, as (first, length), that share a page or more with *gap*: only its
    beginning, only its end, all of it with a page on either side, and single pages in it."""
    first, last = gap
    found = [(first - PAGE, 2 * PAGE), (first, PAGE), (first - HUGE, 2 * HUGE)]
    if last != LAST_IOVA:
        whole = last - first + 1
        found += [(last + 1 - PAGE, 2 * PAGE), (last + 1 - PAGE, PAGE), (first - PAGE, whole + 2 * PAGE)]
    return found


@contextlib.contextmanager
def _attached(t: Test) -> Iterator[tuple[CdevUser, memory.Buffer, list[Range]]]:
    """Yield an attached edu behind an IOMMU, memory, and the gaps in its IOVAs."""
    with through_cdev(t.device("edu", iommu=True)) as user, memory.anonymous(2 * PAGE) as buffer:
        buffer.touch()
        gaps = _gaps(user.iommufd.iova_ranges(user.ioas)[0])
        t.check(gaps, "the IOMMU reserves no IOVA, so this case would prove nothing")
        t.log(f"reserved: {[(hex(first), hex(last)) for first, last in gaps]}")
        yield user, buffer, gaps


@case(needs=CDEV, cites="drivers/iommu/iommufd/io_pagetable.c iopt_check_iova() (iopt_reserved_iter_first())")
def no_part_of_a_mapping_is_reserved(t: Test) -> None:
    """MAP and COPY to a range of which any page is reserved is EINVAL and maps nothing; ranges that end
    before it or begin behind it work."""
    with _attached(t) as (user, buffer, gaps):
        iommufd, ioas, va = user.iommufd, user.ioas, buffer.address
        user.map(buffer, IOVA)
        for gap in gaps:
            for first, length in _touching(gap):
                t.log(f"{length:#x} bytes at {first:#x}")
                t.errno(errno.EINVAL, iommufd.map, ioas, va, length, first)
                if length == 2 * PAGE:
                    t.errno(errno.EINVAL, iommufd.copy, ioas, ioas, length, IOVA, first)
            iommufd.map(ioas, va, 2 * PAGE, gap[0] - 2 * PAGE)
            iommufd.unmap(ioas, gap[0] - 2 * PAGE, 2 * PAGE)
            if gap[1] != LAST_IOVA:
                iommufd.map(ioas, va, 2 * PAGE, gap[1] + 1)
                iommufd.unmap(ioas, gap[1] + 1, 2 * PAGE)
        t.equal(iommufd.unmap(ioas, 0, LAST_IOVA), 2 * PAGE, "bytes mapped at the end")
        t.equal(memory.pinned_pages(), 0, "pages pinned at the end")


@case(needs=CDEV, cites="drivers/iommu/iommufd/io_pagetable.c iopt_alloc_iova() (reserved_itree)")
def chosen_iovas_step_over_reserved_ones(t: Test) -> None:
    """The kernel chooses IOVAs up to the last page before a reserved range and from the first behind it, and
    is out of space (ENOSPC) rather than to touch one."""
    with _attached(t) as (user, buffer, gaps):
        iommufd, ioas, va = user.iommufd, user.ioas, buffer.address
        for first, last in gaps:
            below = (first - 4 * PAGE, first - 1)
            above = (last + 1, last + 4 * PAGE) if last != LAST_IOVA else None
            iommufd.allow_iovas(ioas, *(one for one in (below, above) if one))
            taken = [iommufd.map(ioas, va, 2 * PAGE) for _ in range(4 if above else 2)]
            want = [below[0], below[0] + 2 * PAGE]
            if above:
                want += [above[0], above[0] + 2 * PAGE]
            t.equal(sorted(taken), want, "the IOVAs chosen")
            t.errno(errno.ENOSPC, iommufd.map, ioas, va, PAGE)
            for iova in taken:
                iommufd.unmap(ioas, iova, 2 * PAGE)


@case(
    needs=CDEV,
    cites="drivers/iommu/iommufd/io_pagetable.c iopt_set_allow_iova() (iopt_reserved_iter_first())",
)
def no_part_of_an_allowed_range_is_reserved(t: Test) -> None:
    """ALLOW_IOVAS with a range of which any byte is reserved is EADDRINUSE and keeps the list of before."""
    with _attached(t) as (user, buffer, gaps):
        iommufd, ioas = user.iommufd, user.ioas
        iommufd.allow_iovas(ioas, (IOVA, IOVA + PAGE - 1))
        for gap in gaps:
            for first, length in _touching(gap):
                t.errno(errno.EADDRINUSE, iommufd.allow_iovas, ioas, (first, first + length - 1))
            t.errno(errno.EADDRINUSE, iommufd.allow_iovas, ioas, (gap[0] - 1, gap[0]))
            if gap[1] != LAST_IOVA:
                t.errno(errno.EADDRINUSE, iommufd.allow_iovas, ioas, (gap[1], gap[1] + 1))
        t.equal(iommufd.map(ioas, buffer.address, PAGE), IOVA, "the IOVA chosen")
        t.errno(errno.ENOSPC, iommufd.map, ioas, buffer.address, PAGE)


@case(
    needs=CDEV,
    cites="drivers/iommu/iommufd/io_pagetable.c iopt_reserve_iova() (iopt_area_iter_first(), "
    "iopt_allowed_iter_first()), iopt_table_add_domain() (aperture)",
    timeout=60,
)
def what_touches_a_reserved_range_keeps_the_device_out(t: Test) -> None:
    """A device cannot attach or move to an IOAS (EADDRINUSE) while any page of a mapping or an allowed range
    is one that its IOMMU reserves, stays attached as before, and can once that is gone."""
    with _attached(t) as (user, buffer, gaps):
        iommufd, va = user.iommufd, buffer.address
        user.map(buffer, IOVA)
        for gap in gaps:
            for first, length in _touching(gap):
                if length > 2 * PAGE:
                    continue
                other = iommufd.ioas_alloc()
                iommufd.map(other, va, length, first)
                t.log(f"{length:#x} bytes at {first:#x}")
                t.errno(errno.EADDRINUSE, user.device.attach, other)
                iommufd.unmap(other, first, length)
                iommufd.allow_iovas(other, (first, first + length - 1))
                t.errno(errno.EADDRINUSE, user.device.attach, other)
                user.device.detach()
                t.errno(errno.EADDRINUSE, user.device.attach, other)
                iommufd.allow_iovas(other)
                user.device.attach(other)
                user.device.attach(user.ioas)
                iommufd.destroy(other)
        t.equal(_gaps(iommufd.iova_ranges(user.ioas)[0]), gaps, "the reserved ranges at the end")


@case(needs=CDEV, cites="drivers/iommu/iommufd/io_pagetable.c iopt_remove_reserved_iova(); device.c")
def reserved_ranges_come_and_go_with_the_device(t: Test) -> None:
    """An IOAS reserves a device's ranges exactly while the device is attached, again after each new attach,
    and any IOVA can be mapped in between."""
    with _attached(t) as (user, buffer, gaps):
        iommufd, ioas, other = user.iommufd, user.ioas, user.iommufd.ioas_alloc()
        free = [(0, LAST_IOVA)]
        for _ in range(2):
            user.device.attach(other)
            t.equal(iommufd.iova_ranges(ioas)[0], free, "the ranges of the IOAS that the device left")
            t.equal(_gaps(iommufd.iova_ranges(other)[0]), gaps, "those reserved in the IOAS that it joined")
            for first, _last in gaps:
                iommufd.map(ioas, buffer.address, PAGE, first)
            iommufd.unmap(ioas, 0, LAST_IOVA)
            user.device.detach()
            t.equal(iommufd.iova_ranges(other)[0], free, "the ranges after DETACH")
            user.device.attach(ioas)
            t.equal(_gaps(iommufd.iova_ranges(ioas)[0]), gaps, "those reserved after the next attach")


@case(
    needs=GROUP,
    cites="drivers/vfio/vfio_iommu_type1.c vfio_iommu_iova_dma_valid(); iommufd/vfio_compat.c "
    "iommufd_fill_cap_iova()",
    timeout=60,
)
def container_maps_exactly_what_it_reports(t: Test) -> None:
    """A type1 container maps the first and the last page of every IOVA range that GET_INFO reports, and
    refuses (EINVAL) every mapping with a page outside them."""
    bdf = t.device("edu", iommu=True)
    with through_group(bdf, vfio.TYPE1V2_IOMMU) as user, memory.anonymous(2 * PAGE) as buffer:
        buffer.touch()
        container, va = user.container, buffer.address
        ranges = container.iova_ranges()
        t.log(f"ranges: {[(hex(first), hex(last)) for first, last in ranges]}")
        gaps = _gaps(ranges)
        t.check(gaps, "the container reports no gap, so this case would prove nothing")
        t.check(container.iommu_info().iova_pgsizes & PAGE, "4 KiB pages are not reported")
        for first, last in ranges:
            for iova in (first, last + 1 - PAGE):
                container.map_dma(va, iova, PAGE)
                t.equal(container.unmap_dma(iova, PAGE), PAGE, f"bytes unmapped at {iova:#x}")
        for gap in gaps:
            for first, length in _touching(gap):
                t.log(f"{length:#x} bytes at {first:#x}")
                t.errno(errno.EINVAL, container.map_dma, va, first, length)
        t.equal(container.unmap_dma(0, 0, vfio.UNMAP_ALL), 0, "bytes mapped at the end")
        t.equal(memory.locked_pages(), 0, "pages locked at the end")


@case(
    needs=CDEV,
    cites="drivers/iommu/iommufd/pages.c batch_unpin(), iopt_area_unmap_domain_range(); "
    "drivers/iommu/iommu.c iommu_unmap() (iotlb_sync)",
    timeout=60,
)
def unmap_cuts_off_both_ends_and_no_neighbour(t: Test) -> None:
    """After UNMAP of many pages the device's writes reach neither the first nor the last of them, although it
    had used both, and still reach the pages mapped on either side."""
    bdf = t.device("edu", iommu=True)
    pages = 64
    with (
        through_cdev(bdf) as user,
        user.device.bar() as bar,
        memory.anonymous((pages + 2) * PAGE) as buffer,
    ):
        buffer.fill(0)
        user.device.set_bus_master()
        device, iommufd, ioas = edu.Edu(bar), user.iommufd, user.ioas
        for start, count in ((0, 1), (1, pages), (pages + 1, 1)):
            iommufd.map(ioas, buffer.address + start * PAGE, count * PAGE, IOVA + start * PAGE)
        places = {"before": 0, "first": 1, "last": pages, "behind": pages + 1}
        first, second = memory.pattern(t.random, 16), memory.pattern(t.random, 16)
        buffer.write(first, PAGE // 2)
        device.copy_from_ram(IOVA + PAGE // 2, 16)
        for page in places.values():
            device.copy_to_ram(IOVA + page * PAGE, 16)
        t.equal(
            [buffer.read(page * PAGE, 16) for page in places.values()], [first] * 4, "memory before UNMAP"
        )
        buffer.write(second, PAGE // 2)
        device.copy_from_ram(IOVA + PAGE // 2, 16)
        iommufd.unmap(ioas, IOVA + PAGE, pages * PAGE)
        for page in places.values():
            device.copy_to_ram(IOVA + page * PAGE, 16)
        got = {name: buffer.read(page * PAGE, 16) == second for name, page in places.items()}
        want = {"before": True, "first": False, "last": False, "behind": True}
        t.equal(got, want, "what the device's second write reached")
