# SPDX-License-Identifier: GPL-2.0-only
"""The IOAS that an iommufd used as a container works on: assigned, destroyed, made anew, and reported."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator

from guest import iommufd as api
from guest import libc, memory, pci, vfio
from guest.brink import Brink
from guest.case import Test, case
from guest.iommufd import LAST_IOVA, Iommufd
from guest.memory import PAGE
from guest.opened import through_cdev, unbound
from guest.vfio import NOIOMMU_IOMMU, TYPE1_IOMMU, TYPE1V2_IOMMU

ANY = ("iommufd",)
BARE = ("noiommu-cdev", "edu", "!viommu")
REAL = ("viommu", "group", "iommufd", "edu")

IOVA = 0x40_0000_0000

# include/uapi/linux/vfio.h
DMA_CC_IOMMU = 4
INFO_PGSIZES, INFO_CAPS = 1, 2
INFO_SIZE = 24
"""The size of struct vfio_iommu_type1_info."""


def _container(iommufd: Iommufd) -> vfio.Container:
    """Return *iommufd* as a container; the caller closes either."""
    return vfio.Container(iommufd.fd)


def _is_nobodys(t: Test, iommufd: Iommufd, what: str) -> None:
    """Fail unless every call of a container finds no IOAS."""
    container = _container(iommufd)
    t.log(f"{what}: no IOAS is assigned")
    t.errno(errno.ENODEV, iommufd.vfio_ioas, api.VFIO_IOAS_GET)
    with memory.anonymous() as page:
        t.errno(errno.ENODEV, container.map_dma, page.address, IOVA, PAGE)
    t.errno(errno.ENODEV, container.unmap_dma, IOVA, PAGE)
    t.errno(errno.ENODEV, container.unmap_dma, 0, 0, vfio.UNMAP_ALL)
    t.errno(errno.ENODEV, container.iommu_info)
    t.errno(errno.ENODEV, container.check_extension, DMA_CC_IOMMU)
    for kind in (TYPE1_IOMMU, TYPE1V2_IOMMU):
        t.errno(errno.ENODEV, container.set_iommu, kind)


@case(needs=ANY, cites="drivers/iommu/iommufd/main.c iommufd_object_remove() (ictx->vfio_ioas = NULL)")
def destroyed_ioas_is_not_followed_by_another(t: Test) -> None:
    """After the assigned IOAS is destroyed no IOAS is assigned, however many are allocated afterwards, with
    its ID or at its place in memory."""
    with Iommufd() as iommufd, memory.anonymous() as page:
        for _ in range(3):
            ioas = iommufd.ioas_alloc()
            iommufd.vfio_ioas(api.VFIO_IOAS_SET, ioas)
            _container(iommufd).map_dma(page.address, IOVA, PAGE)
            iommufd.destroy(ioas)
            _is_nobodys(t, iommufd, "after the destroy")
            fresh = [iommufd.ioas_alloc() for _ in range(8)]
            t.check(ioas in fresh, "the ID was not used again, so this case would prove nothing")
            _is_nobodys(t, iommufd, "after others were allocated")
            for one in fresh:
                t.equal(iommufd.unmap(one, 0, LAST_IOVA), 0, "bytes mapped in a fresh IOAS")
                iommufd.destroy(one)
            _is_nobodys(t, iommufd, "after those were destroyed")


@case(needs=BARE, cites="drivers/iommu/iommufd/main.c iommufd_object_remove() (vfio_ioas), vfio_compat.c")
def assigned_ioas_stays_while_others_go(t: Test) -> None:
    """Destroying another IOAS, a page table or a fault queue, or a refused destroy, leaves the assigned IOAS
    assigned and its mappings in place; assigning another one, or none, does not touch them either."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd), memory.anonymous() as page:
        page.touch()
        devid = device.bind_iommufd(iommufd.fd)
        ioas, other = iommufd.ioas_alloc(), iommufd.ioas_alloc()
        container = _container(iommufd)
        iommufd.vfio_ioas(api.VFIO_IOAS_SET, ioas)
        container.map_dma(page.address, IOVA, PAGE)

        def still(what: str) -> None:
            t.equal(iommufd.vfio_ioas(api.VFIO_IOAS_GET), ioas, f"the assigned IOAS after {what}")
            t.errno(errno.EEXIST, container.map_dma, page.address, IOVA, PAGE)

        hwpt = iommufd.hwpt_alloc(devid, other)
        queue, fd = iommufd.fault_queue_alloc()
        os.close(fd)
        t.errno(errno.EBUSY, iommufd.destroy, other)
        still("a refused destroy of another")
        for name, one in (("page table", hwpt), ("fault queue", queue), ("IOAS", other)):
            iommufd.destroy(one)
            still(f"the destroy of another {name}")
        device.attach(ioas)
        t.errno(errno.EBUSY, iommufd.destroy, ioas)
        still("its own refused destroy")
        t.equal(iommufd.get_pa(ioas, IOVA, PAGE), (page.physical(), PAGE), "the address")
        second = iommufd.ioas_alloc()
        for operation, argument in ((api.VFIO_IOAS_SET, second), (api.VFIO_IOAS_CLEAR, 0)):
            iommufd.vfio_ioas(operation, argument)
            t.equal(iommufd.get_pa(ioas, IOVA, PAGE), (page.physical(), PAGE), "the address in the first")
        iommufd.destroy(second)
        _is_nobodys(t, iommufd, "after the assignment was cleared")
        iommufd.vfio_ioas(api.VFIO_IOAS_SET, ioas)
        t.equal(container.unmap_dma(IOVA, PAGE), PAGE, "bytes unmapped after it was assigned again")
        device.detach()
        iommufd.destroy(ioas)
        _is_nobodys(t, iommufd, "at the end")


@case(
    needs=("noiommu-group", "iommufd", "edu", "!viommu"),
    cites="drivers/iommu/iommufd/vfio_compat.c iommufd_vfio_compat_set_no_iommu() (vfio_ioas), main.c",
)
def destroyed_ioas_lets_a_noiommu_group_in(t: Test) -> None:
    """A no-IOMMU group is refused (EINVAL) by an iommufd with an assigned IOAS, and accepted as soon as that
    IOAS is destroyed or its assignment cleared, also if others exist."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf), vfio.open_group(bdf) as group:
        for way in ("destroy", "clear"):
            with Iommufd() as iommufd:
                ioas = iommufd.ioas_alloc()
                iommufd.vfio_ioas(api.VFIO_IOAS_SET, ioas)
                t.errno(errno.EINVAL, group.set_container, iommufd.fd)
                if way == "destroy":
                    iommufd.destroy(ioas)
                    iommufd.ioas_alloc()
                else:
                    iommufd.vfio_ioas(api.VFIO_IOAS_CLEAR)
                group.set_container(iommufd.fd)
                _container(iommufd).set_iommu(NOIOMMU_IOMMU)
                with group.device(bdf) as device:
                    t.equal(device.read_config(vfio.PCI_VENDOR_ID, 2), 0x1234, "the vendor")
                group.unset_container()


@contextlib.contextmanager
def _translating(bdf: str) -> Iterator[tuple[Iommufd, vfio.Container, vfio.Group]]:
    with pci.bound(bdf), Iommufd() as iommufd, vfio.open_group(bdf) as group:
        group.set_container(iommufd.fd)
        yield iommufd, _container(iommufd), group


@case(
    needs=REAL, cites="drivers/iommu/iommufd/vfio_compat.c iommufd_vfio_compat_ioas_create(); vfio/iommufd.c"
)
def containers_own_ioas_can_be_destroyed_and_made_again(t: Test) -> None:
    """The IOAS that a group's joining makes cannot be destroyed while its device is open; without it no
    device is handed out (ENODEV), and the next join makes another one, which works."""
    bdf = t.device("edu", iommu=True)
    with _translating(bdf) as (iommufd, container, group), memory.anonymous() as page:
        for _ in range(2):
            ioas = iommufd.vfio_ioas(api.VFIO_IOAS_GET)
            container.set_iommu(TYPE1V2_IOMMU)
            with group.device(bdf):
                container.map_dma(page.address, IOVA, PAGE)
                t.errno(errno.EBUSY, iommufd.destroy, ioas)
                t.equal(iommufd.vfio_ioas(api.VFIO_IOAS_GET), ioas, "the assigned IOAS")
            iommufd.destroy(ioas)
            iommufd.ioas_alloc()
            t.errno(errno.ENODEV, group.device, bdf)
            _is_nobodys(t, iommufd, "after the destroy")
            group.unset_container()
            group.set_container(iommufd.fd)
        again = iommufd.vfio_ioas(api.VFIO_IOAS_GET)
        group.unset_container()
        group.set_container(iommufd.fd)
        t.equal(iommufd.vfio_ioas(api.VFIO_IOAS_GET), again, "the IOAS after the group came back")
        t.equal(container.unmap_dma(0, 0, vfio.UNMAP_ALL), 0, "bytes mapped in the new IOAS")


@case(
    needs=ANY,
    cites="drivers/iommu/iommufd/vfio_compat.c iommufd_vfio_iommu_get_info(); include/uapi/linux/vfio.h",
)
def info_tells_the_room_it_needs(t: Test) -> None:
    """GET_INFO of an iommufd returns the room that its capabilities need, a place for them only if there is
    that room, and writes nothing behind argsz."""
    with Iommufd() as iommufd, Brink() as edge:
        iommufd.vfio_ioas(api.VFIO_IOAS_SET, iommufd.ioas_alloc())
        container = _container(iommufd)
        need = _info(iommufd, edge, INFO_SIZE)[0].argsz
        t.check(need > INFO_SIZE, f"argsz {need} has no room for capabilities")
        for room in (16, 20, INFO_SIZE, INFO_SIZE + 8, need - 1, need, need + 8):
            info, behind = _info(iommufd, edge, room)
            t.equal(info.argsz, need, f"argsz returned for {room} bytes")
            if room >= INFO_SIZE:
                t.equal(info.cap_offset, INFO_SIZE if room >= need else 0, f"cap_offset with {room} bytes")
            t.equal(info.flags, INFO_PGSIZES | INFO_CAPS, "flags")
            if room >= need:
                t.equal(
                    behind[need - INFO_SIZE :], b"\xa5" * (room - need), "the bytes after the capabilities"
                )
        short = vfio.Type1Info(argsz=15)
        t.errno(errno.EINVAL, container.call, vfio.IOMMU_GET_INFO, short)
        t.equal(container.iova_ranges(), [(0, LAST_IOVA)], "the IOVA ranges")
        t.equal(container.maps_left(), 0xFFFFFFFF, "the maps left")
        t.equal(container.iommu_info().iova_pgsizes & (PAGE | 0xFFF), PAGE, "page sizes up to 4 KiB")


def _info(iommufd: Iommufd, edge: Brink, room: int) -> tuple[vfio.Type1Info, bytes]:
    """Return GET_INFO's structure for an argsz of *room*, and what is behind the structure, up to the end of
    memory."""
    size = ctypes.sizeof(vfio.Type1Info)
    where = edge.put((bytes(vfio.Type1Info(argsz=room)) + b"\xa5" * max(room - size, 0))[:room])
    libc.ioctl(iommufd.fd, vfio.IOMMU_GET_INFO, where)
    told = edge.tail(room)
    return vfio.Type1Info.from_buffer_copy(told[:size].ljust(size, b"\0")), told[size:]


@case(
    needs=ANY,
    cites="drivers/iommu/iommufd/vfio_compat.c iommufd_vfio_map_dma(), iommufd_vfio_unmap_dma()",
)
def container_calls_check_like_type1(t: Test) -> None:
    """MAP_DMA and UNMAP_DMA of an iommufd check size, flags, alignment and overflow before they change
    anything, and UNMAP_ALL takes no range."""
    with Iommufd() as iommufd, memory.anonymous(4 * PAGE) as buffer:
        iommufd.vfio_ioas(api.VFIO_IOAS_SET, iommufd.ioas_alloc())
        container, va = _container(iommufd), buffer.address
        container.map_dma(va, IOVA, 2 * PAGE)
        both = vfio.REGION_READ | vfio.REGION_WRITE
        for code, arguments in (
            (errno.EINVAL, (va, 0, 0)),
            (errno.EINVAL, (va, 0, PAGE, both | 4)),
            (errno.EEXIST, (va, IOVA, 2 * PAGE)),
            (errno.EEXIST, (va, IOVA - PAGE, 2 * PAGE)),
            (errno.EEXIST, (va, IOVA + PAGE, 2 * PAGE)),
            (errno.EOVERFLOW, (va, LAST_IOVA - PAGE + 1, 2 * PAGE)),
        ):
            t.errno(code, container.map_dma, *arguments)
        for size in (0, 31):
            short = vfio.DmaMap(argsz=size, vaddr=va, iova=0, size=PAGE, flags=both)
            t.errno(errno.EINVAL, container.call, vfio.IOMMU_MAP_DMA, short)
        for code, unmapping in (
            (errno.EINVAL, (IOVA, 0)),
            (errno.EINVAL, (IOVA, 2 * PAGE, vfio.UNMAP_ALL)),
            (errno.EINVAL, (0, PAGE, vfio.UNMAP_ALL)),
            (errno.EINVAL, (IOVA, 2 * PAGE, 1)),
            (errno.ENOENT, (IOVA, PAGE)),
            (errno.ENOENT, (IOVA + PAGE, PAGE)),
            (errno.EOVERFLOW, (LAST_IOVA - PAGE + 1, 2 * PAGE)),
        ):
            t.errno(code, container.unmap_dma, *unmapping)
        t.equal(container.unmap_dma(0, PAGE), 0, "bytes where nothing is mapped")
        t.equal(
            container.unmap_dma(IOVA - PAGE, 4 * PAGE), 2 * PAGE, "bytes of a range that covers the mapping"
        )
        container.map_dma(va, IOVA, PAGE)
        t.equal(container.unmap_dma(0, 0, vfio.UNMAP_ALL), PAGE, "bytes of UNMAP_ALL")
        t.equal(container.unmap_dma(0, 0, vfio.UNMAP_ALL), 0, "bytes of a second UNMAP_ALL")


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/vfio_compat.c iommufd_vfio_unmap_dma(), iommufd_vfio_set_iommu(); "
    "io_pagetable.c iopt_cut_iova(), iopt_area_split()",
)
def first_version_cuts_at_either_end(t: Test) -> None:
    """After SET_IOMMU for type1, which may be repeated, UNMAP_DMA removes any pages of a mapping, from its
    start, its middle and its end, returns exactly their size, and leaves the rest as it was."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(9 * PAGE) as buffer:
        buffer.touch()
        iommufd, container = user.iommufd, _container(user.iommufd)
        iommufd.vfio_ioas(api.VFIO_IOAS_SET, user.ioas)
        for kind in (TYPE1V2_IOMMU, TYPE1_IOMMU, TYPE1_IOMMU):
            container.set_iommu(kind)
        for base in (0, IOVA):
            container.map_dma(buffer.address, base, 9 * PAGE)
            left = set(range(9))
            for first, count in ((0, 1), (8, 1), (4, 1), (6, 2), (1, 1), (2, 4)):
                taken = left & set(range(first, first + count))
                got = container.unmap_dma(base + first * PAGE, count * PAGE)
                t.equal(got, len(taken) * PAGE, f"bytes of pages {first} to {first + count - 1}")
                left -= taken
                t.equal(memory.pinned_pages(), len(left), "pages pinned")
                for page in range(9):
                    if page in left:
                        t.equal(
                            user.physical(base + page * PAGE, 1), buffer.physical(page * PAGE), f"page {page}"
                        )
                    else:
                        t.errno(errno.ENOENT, iommufd.get_pa, user.ioas, base + page * PAGE, 1)
            t.equal(left, set(), "the pages left")
