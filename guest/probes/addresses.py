# SPDX-License-Identifier: GPL-2.0-only
"""IOMMU_IOAS_NOIOMMU_GET_PA with random mappings, checked against a model.

The model is the page map and a list of all mappings. Mappings and queries are random, from a logged seed.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Optional, Union

from guest import edu, libc, memory, vfio
from guest import iommufd as api
from guest.case import Test, case
from guest.iommufd import LAST_IOVA, Iommufd
from guest.memory import HUGE, PAGE
from guest.opened import CdevUser, through_cdev

BARE = ("noiommu-cdev", "edu", "!viommu")
GET_PHYS = "drivers/iommu/iommufd/io_pagetable.c iopt_get_phys()"

BASE = 0x1000_0000
SMALL_PAGES = 16
MAP_NORESERVE = 0x4000

Answer = Union[tuple[int, int], int]
"""(physical address, length), or the errno of a refusal."""


class Cloth:
    """Memory with known frames, from which areas are mapped."""

    def __init__(self, buffer: memory.Buffer) -> None:
        self.buffer = buffer
        self.frames = memory.frames(buffer.address, buffer.length)
        assert 0 not in self.frames, "some pages of the case's memory are missing"
        self._ends = _ends_of_runs(self.frames)

    def answer(self, offset: int, end: int, limit: int) -> tuple[int, int]:
        """Return the address of the byte at *offset* and the contiguous bytes from it, up to *end*."""
        page, inside = divmod(offset, PAGE)
        reach = min(self._ends[page] * PAGE, end) - offset
        return self.frames[page] + inside, min(reach, limit)


def _ends_of_runs(frames: Sequence[int]) -> list[int]:
    """Return for each page the index of the first later page that is not contiguous with it."""
    ends = [len(frames)] * len(frames)
    for page in range(len(frames) - 2, -1, -1):
        ends[page] = ends[page + 1] if frames[page + 1] == frames[page] + PAGE else page + 1
    return ends


class Area(NamedTuple):
    """A part of a Cloth, mapped at an IOVA."""

    iova: int
    cloth: Cloth
    start: int
    length: int

    @property
    def end(self) -> int:
        """Return the first IOVA after it."""
        return self.iova + self.length

    def answer(self, iova: int, limit: int) -> tuple[int, int]:
        """Return the expected answer of GET_PA for *iova*."""
        return self.cloth.answer(self.start + iova - self.iova, self.start + self.length, limit)

    def part(self, first: int, length: int) -> Area:
        """Return *length* bytes of it from *first* on, at the same IOVA."""
        return Area(self.iova + first, self.cloth, self.start + first, length)


class Space:
    """An IOAS and the list of its mappings."""

    def __init__(self, t: Test, iommufd: Iommufd, ioas: int) -> None:
        self.t, self.iommufd, self.ioas = t, iommufd, ioas
        self.areas: list[Area] = []

    def map(self, cloth: Cloth, start: int, length: int, iova: Optional[int] = None) -> Area:
        """Map a piece of *cloth*."""
        at = self.iommufd.map(self.ioas, cloth.buffer.address + start, length, iova)
        return self.note(Area(at, cloth, start, length))

    def map_file(self, fd: int, cloth: Cloth, start: int, length: int, iova: Optional[int] = None) -> Area:
        """Map a piece of the file *fd*, of which *cloth* is a view."""
        at = self.iommufd.map_file(self.ioas, fd, length, iova, start=start)
        return self.note(Area(at, cloth, start, length))

    def copy(self, source: Space, area: Area, iova: Optional[int] = None) -> Area:
        """Copy *area*, or a part of one, from *source*."""
        at = self.iommufd.copy(self.ioas, source.ioas, area.length, area.iova, iova)
        return self.note(Area(at, area.cloth, area.start, area.length))

    def note(self, area: Area) -> Area:
        """Add *area* to the list."""
        self.areas.append(area)
        return area

    def unmap(self, area: Area) -> None:
        """Unmap an area."""
        got = self.iommufd.unmap(self.ioas, area.iova, area.length)
        self.t.equal(got, area.length, f"bytes unmapped at {area.iova:#x}")
        self.areas.remove(area)

    def free(self, iova: int, length: int) -> bool:
        """Return whether nothing is mapped between *iova* and *iova* + *length*."""
        return all(area.end <= iova or iova + length <= area.iova for area in self.areas)

    def owed(self, iova: int, limit: int) -> Answer:
        """Return the expected answer of GET_PA."""
        for area in self.areas:
            if area.iova <= iova < area.end:
                return area.answer(iova, limit)
        return errno.ENOENT

    def ask(self, iova: int, limit: int) -> Answer:
        """Return the actual answer of GET_PA."""
        try:
            return self.iommufd.get_pa(self.ioas, iova, limit)
        except OSError as error:
            return error.errno or 0

    def examine(self, questions: int) -> None:
        """Query random places, mostly near the edges of areas, and compare."""
        for _ in range(questions):
            iova, limit = _question(self.t, self.areas)
            got, owed = self.ask(iova, limit), self.owed(iova, limit)
            self.t.equal(_shown(got), _shown(owed), f"GET_PA of {iova:#x}, at most {limit:#x} bytes")


def _shown(answer: Answer) -> str:
    if isinstance(answer, int):
        return errno.errorcode.get(answer, str(answer))
    return f"{answer[0]:#x}+{answer[1]:#x}"


def _question(t: Test, areas: Sequence[Area]) -> tuple[int, int]:
    limit = t.random.choice(
        (1, 8, PAGE - 1, PAGE, PAGE + 1, t.random.randrange(1, 4 * HUGE), HUGE, 1 << 63, 2**64 - 1)
    )
    if not areas or t.random.random() < 0.1:
        return t.random.randrange(LAST_IOVA), limit
    area = t.random.choice(areas)
    inside = t.random.randrange(area.length)
    near = (0, 1, inside, inside, inside & -PAGE, area.length - 1, area.length - PAGE, area.length, -1)
    return min(max(area.iova + t.random.choice(near), 0), LAST_IOVA - 1), limit


@contextlib.contextmanager
def quilt(t: Test) -> Iterator[Cloth]:
    """Yield memory made of small pages, a huge page, small pages out of order, and another huge page."""
    t.log(f"seed {t.seed}")
    if memory.set_hugepages(2) < 2:
        t.skip("the kernel cannot reserve 2 pages of 2 MiB")
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    with memory.Buffer(libc.mmap(5 * HUGE, memory.PROT_NONE, flags), 5 * HUGE) as room:
        first = -(-room.address // HUGE) * HUGE
        start = first + HUGE - SMALL_PAGES * PAGE
        _patch(t, start, SMALL_PAGES)
        _huge_patch(first + HUGE)
        _patch(t, first + 2 * HUGE, HUGE // PAGE)
        _huge_patch(first + 3 * HUGE)
        yield Cloth(memory.Buffer(start, first + 4 * HUGE - start))


def _patch(t: Test, address: int, pages: int) -> None:
    """Map runs of a file's pages at *address*, in random order."""
    fd = memory.memfd(pages * PAGE)
    runs = _cuts(t, pages, SMALL_PAGES // 4)
    os.pwrite(fd, bytes(pages * PAGE), 0)
    t.random.shuffle(runs)
    for first, count in runs:
        flags = mmap.MAP_SHARED | memory.MAP_FIXED | memory.MAP_POPULATE
        libc.mmap(count * PAGE, memory.READ_WRITE, flags, fd, first * PAGE, address=address)
        address += count * PAGE
    os.close(fd)


def _huge_patch(address: int) -> None:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | memory.MAP_HUGETLB | memory.MAP_FIXED
    libc.mmap(HUGE, memory.READ_WRITE, flags | memory.MAP_POPULATE, address=address)


def _cuts(t: Test, total: int, pieces: int) -> list[tuple[int, int]]:
    """Cut *total* into *pieces*; return the start and the length of each."""
    marks = [0, *sorted(t.random.sample(range(1, total), pieces - 1)), total]
    return [(marks[index], marks[index + 1] - marks[index]) for index in range(pieces)]


def _piece(t: Test, length: int, most: int) -> tuple[int, int]:
    """Return a random start and length in whole pages within *length*."""
    pages = t.random.randint(1, min(most, length) // PAGE)
    return t.random.randrange(length // PAGE - pages + 1) * PAGE, pages * PAGE


def _place(t: Test, space: Space, length: int) -> Optional[int]:
    """Return a free IOVA for *length* bytes: near another area, far away, or None for the kernel's choice."""
    for _ in range(20):
        kind = t.random.randrange(4)
        if kind == 0:
            return None
        iova = t.random.randrange((1 << 64) - length) & -PAGE
        if kind == 1:
            iova = (iova & -HUGE) | (t.random.randrange(HUGE) & -PAGE if t.random.random() < 0.5 else 0)
        elif space.areas:
            iova = t.random.choice(space.areas).end + t.random.choice((0, 0, PAGE))
        if iova + length <= 1 << 64 and space.free(iova, length):
            return iova
    return None


@case(needs=BARE, cites=f"{GET_PHYS} (iopt_area_last_iova, next_paddr, max_length); iopt_alloc_iova()")
def scattered_areas_agree(t: Test) -> None:
    """GET_PA answers correctly for many mappings, adjacent or far apart, at IOVAs chosen by the user or the
    kernel."""
    with through_cdev(t.device("edu")) as user, quilt(t) as cloth:
        space = Space(t, user.iommufd, user.ioas)
        for _ in range(24):
            start, length = _piece(t, cloth.buffer.length, t.random.choice((PAGE, 8 * PAGE, 2 * HUGE)))
            space.map(cloth, start, length, _place(t, space, length))
        space.examine(160)


@case(needs=BARE, cites=f"{GET_PHYS}; drivers/iommu/generic_pt/iommu_pt.h (page sizes of a mapping)")
def alignment_changes_no_answer(t: Test) -> None:
    """GET_PA's answers depend neither on the alignment of IOVA to physical address nor on large pages."""
    with through_cdev(t.device("edu")) as user, quilt(t) as cloth:
        for large in (1, 0):
            space = _table(t, user)
            user.iommufd.option_set(api.OPTION_HUGE_PAGES, large, space.ioas)
            for turn, shift in enumerate((0, PAGE, t.random.randrange(HUGE) & -PAGE)):
                # The first huge page begins after SMALL_PAGES; with shift 0 IOVA and address are aligned.
                iova = BASE + (turn + 1) * 16 * HUGE - SMALL_PAGES * PAGE + shift
                space.map(cloth, 0, cloth.buffer.length, iova)
            space.examine(60)


def _table(t: Test, user: CdevUser) -> Space:
    """Make another IOAS with its own page table, which pins pages and answers GET_PA without an
    attachment."""
    space = Space(t, user.iommufd, user.iommufd.ioas_alloc())
    user.iommufd.hwpt_alloc(user.devid, space.ioas)
    return space


@case(needs=BARE, cites=f"{GET_PHYS}; include/uapi/linux/iommufd.h struct iommu_ioas_noiommu_get_pa")
def walk_meets_every_byte_once(t: Test) -> None:
    """GET_PA repeated from the end of each answer covers a mapping to its last byte in the fewest pieces."""
    with through_cdev(t.device("edu")) as user, quilt(t) as cloth:
        space = Space(t, user.iommufd, user.ioas)
        start, length = _piece(t, cloth.buffer.length - HUGE, 4 * HUGE)
        area = space.map(cloth, start, length + HUGE, BASE)
        frames = cloth.frames[start // PAGE : (start + area.length) // PAGE]
        breaks = sum(frames[page] != frames[page - 1] + PAGE for page in range(1, len(frames)))
        covered, pieces = 0, 0
        while covered < area.length:
            address, reach = user.iommufd.get_pa(user.ioas, BASE + covered, area.length - covered)
            t.equal(address, frames[covered // PAGE], f"the address of piece {pieces}")
            covered, pieces = covered + reach, pieces + 1
        t.equal(covered, area.length, "bytes in all pieces")
        t.equal(pieces, breaks + 1, "pieces")
        t.equal(space.ask(area.end, 1), errno.ENOENT, "the answer after the last byte")


@case(needs=BARE, cites=f"{GET_PHYS}; ioas.c iommufd_ioas_noiommu_get_pa()")
def address_spaces_are_apart(t: Test) -> None:
    """The same IOVA refers to different pages in different IOASes, and unmapping it in one does not affect
    the others."""
    with through_cdev(t.device("edu")) as user, quilt(t) as cloth:
        spaces = [Space(t, user.iommufd, user.ioas), _table(t, user), _table(t, user)]
        places = [BASE + index * 4 * HUGE for index in range(6)]
        for space in spaces:
            for iova in places:
                space.map(cloth, *_piece(t, cloth.buffer.length, 2 * HUGE), iova)
        for space in spaces:
            space.examine(30)
        for space in spaces:
            for area in t.random.sample(space.areas, 2):
                space.unmap(area)
        for space in spaces:
            space.examine(30)


@case(needs=BARE, cites=f"{GET_PHYS}; ioas.c iommufd_ioas_map_file(); pages.c pin_memfd_pages()")
def file_areas_agree(t: Test) -> None:
    """Mapped parts of memfds, with small or huge pages, resolve to the file's own pages."""
    t.log(f"seed {t.seed}")
    if memory.set_hugepages(2) < 2:
        t.skip("the kernel cannot reserve 2 pages of 2 MiB")
    with through_cdev(t.device("edu")) as user:
        space = Space(t, user.iommufd, user.ioas)
        for huge, length in ((False, 64 * PAGE), (True, 2 * HUGE)):
            fd = memory.memfd(length, huge=huge)
            with memory.shared_file(fd, length) as view:
                for page in t.random.sample(range(length // PAGE), length // PAGE):
                    view.write(b"\1", page * PAGE)
                cloth = Cloth(view)
                for _ in range(8):
                    start, count = _piece(t, length, length)
                    space.map_file(fd, cloth, start, count, _place(t, space, count))
            os.close(fd)
        space.examine(120)


@case(needs=BARE, cites=f"{GET_PHYS} (iopt_area_last_iova()); ioas.c iommufd_ioas_copy()")
def copies_agree(t: Test) -> None:
    """A copy of part of a mapping, in any IOAS, resolves to the same pages up to its own end, with or without
    its source."""
    with through_cdev(t.device("edu")) as user, quilt(t) as cloth:
        spaces = [Space(t, user.iommufd, user.ioas), _table(t, user)]
        source = spaces[0]
        origins = [source.map(cloth, *_piece(t, cloth.buffer.length, 4 * HUGE)) for _ in range(4)]
        for _ in range(20):
            part = t.random.choice(source.areas)
            part = part.part(*_piece(t, part.length, HUGE))
            target = t.random.choice(spaces)
            target.copy(source, part, _place(t, target, part.length))
        for space in spaces:
            space.examine(50)
        for area in origins:
            source.unmap(area)
        for space in spaces:
            space.examine(50)


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/pages.c __iopt_area_unfill_domain(), struct pfn_batch",
)
def copies_of_the_ends_outlive_the_middle(t: Test) -> None:
    """When a mapping of many pages goes, exactly the pages of its copies stay pinned at their addresses: its
    first page, its last and some in between; each goes with its own copy."""
    pages, parts = 1100, ((0, 1), (510, 4), (1099, 1))
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(pages * PAGE) as buffer:
        buffer.touch()
        iommufd, other = user.iommufd, user.iommufd.ioas_alloc()
        iommufd.hwpt_alloc(user.devid, other)
        for _ in range(2):
            user.map(buffer, BASE)
            t.equal(memory.pinned_pages(), pages, "pages pinned by the mapping")
            for first, count in parts:
                iommufd.copy(other, user.ioas, count * PAGE, BASE + first * PAGE, first * PAGE)
            t.equal(memory.pinned_pages(), pages, "pages pinned with the copies")
            user.iommufd.unmap(user.ioas, BASE, buffer.length)
            left = sum(count for _first, count in parts)
            for first, count in parts:
                t.equal(memory.pinned_pages(), left, "pages pinned by the copies")
                for page in range(first, first + count):
                    got = iommufd.get_pa(other, page * PAGE, 1)[0]
                    t.equal(got, buffer.physical(page * PAGE), f"the address of page {page}")
                iommufd.unmap(other, first * PAGE, count * PAGE)
                left -= count
            t.equal(memory.pinned_pages(), 0, "pages pinned at the end")


@case(needs=BARE, cites=f"{GET_PHYS}; io_pagetable.c iopt_unmap_iova_range(), iopt_fill_domain()", timeout=45)
def any_history_agrees(t: Test) -> None:
    """GET_PA answers correctly after any sequence of maps, copies, unmaps and attachments."""
    with through_cdev(t.device("edu")) as user, quilt(t) as cloth:
        space = Space(t, user.iommufd, user.ioas)
        for _ in range(90):
            _step(t, user, space, cloth)
            space.examine(2)
        t.equal(user.iommufd.unmap(user.ioas, 0, LAST_IOVA), _bytes(space.areas), "bytes of all areas")
        space.areas.clear()
        space.examine(5)


def _bytes(areas: Sequence[Area]) -> int:
    return sum(area.length for area in areas)


def _step(t: Test, user: CdevUser, space: Space, cloth: Cloth) -> None:
    """Make one random change, in the kernel and in the model."""
    kind = t.random.choice(("map", "map", "map", "copy", "unmap", "unmap", "range", "attach"))
    if kind == "map" or not space.areas:
        start, length = _piece(t, cloth.buffer.length, t.random.choice((4 * PAGE, 2 * HUGE)))
        space.map(cloth, start, length, _place(t, space, length))
    elif kind == "copy":
        area = t.random.choice(space.areas)
        part = area.part(*_piece(t, area.length, HUGE))
        space.copy(space, part, _place(t, space, part.length))
    elif kind == "unmap":
        space.unmap(t.random.choice(space.areas))
    elif kind == "range":
        _unmap_range(t, space)
    else:
        user.device.detach()
        t.equal(space.ask(space.areas[0].iova, 1), errno.EOPNOTSUPP, "the answer while detached")
        user.device.attach(space.ioas)


def _unmap_range(t: Test, space: Space) -> None:
    """Unmap two areas and everything between them, holes too; a range that ends inside an area is ENOENT."""
    first, last = sorted(t.random.choices(space.areas, k=2), key=lambda area: area.iova)
    if first.length > PAGE:
        t.errno(errno.ENOENT, space.iommufd.unmap, space.ioas, first.iova, first.length - PAGE)
    gone = [area for area in space.areas if first.iova <= area.iova <= last.iova]
    got = space.iommufd.unmap(space.ioas, first.iova, last.end - first.iova)
    t.equal(got, _bytes(gone), f"bytes unmapped from {first.iova:#x} to {last.end:#x}")
    space.areas = [area for area in space.areas if area not in gone]


@case(needs=BARE, cites=f"{GET_PHYS} (storage_domain); io_pagetable.c iopt_table_remove_domain()")
def address_outlives_all_tables_but_the_last(t: Test) -> None:
    """GET_PA on an IOAS with several page tables answers correctly until the last one is gone, in any
    order."""
    with through_cdev(t.device("edu")) as user, quilt(t) as cloth:
        user.device.detach()
        space = Space(t, user.iommufd, user.ioas)
        tables = [user.iommufd.hwpt_alloc(user.devid, user.ioas)]
        space.map(cloth, *_piece(t, cloth.buffer.length, 4 * HUGE))
        tables += [user.iommufd.hwpt_alloc(user.devid, user.ioas) for _ in range(3)]
        space.map(cloth, *_piece(t, cloth.buffer.length, 4 * HUGE))
        t.random.shuffle(tables)
        for table in tables[:-1]:
            user.iommufd.destroy(table)
            space.examine(20)
        user.iommufd.destroy(tables[-1])
        for area in space.areas:
            t.equal(space.ask(area.iova, 1), errno.EOPNOTSUPP, "the answer without a page table")


@case(needs=BARE, cites=f"{GET_PHYS}; io_pagetable.c iopt_cut_iova(), iopt_area_split(); vfio_compat.c")
def cut_area_ends_at_the_cut(t: Test) -> None:
    """When UNMAP_DMA of the container splits a mapping, lengths end at the hole and addresses behind it stay
    the same."""
    with through_cdev(t.device("edu")) as user, quilt(t) as cloth:
        ioas = user.iommufd.ioas_alloc()
        user.iommufd.vfio_ioas(api.VFIO_IOAS_SET, ioas)
        with vfio.Container(os.dup(user.iommufd.fd)) as container:
            container.set_iommu(vfio.TYPE1_IOMMU)
            user.device.attach(ioas)
            space = Space(t, user.iommufd, ioas)
            whole = Area(BASE, cloth, 0, cloth.buffer.length)
            container.map_dma(cloth.buffer.address, BASE, whole.length)
            areas = [whole]
            for _ in range(12):
                area = t.random.choice(areas)
                areas.remove(area)
                first, length = _piece(t, area.length, 8 * PAGE)
                t.equal(container.unmap_dma(area.iova + first, length), length, "bytes cut out")
                left = area.part(0, first), area.part(first + length, area.length - first - length)
                areas += [part for part in left if part.length]
                space.areas = areas
                space.examine(10)
            t.equal(memory.pinned_pages(), _bytes(areas) // PAGE, "pages pinned after the cuts")


@case(needs=BARE, cites=f"{GET_PHYS}; QEMU docs/specs/edu.rst", timeout=60)
def device_writes_where_get_pa_says(t: Test) -> None:
    """DMA writes to the addresses and lengths from GET_PA change exactly the intended bytes."""
    with through_cdev(t.device("edu")) as user, user.device.bar() as bar, quilt(t) as cloth:
        space, device = Space(t, user.iommufd, user.ioas), edu.Edu(bar)
        for _ in range(6):
            start, length = _piece(t, cloth.buffer.length, 2 * HUGE)
            space.map(cloth, start, length, _place(t, space, length))
        image = bytearray(t.random.randbytes(cloth.buffer.length))
        cloth.buffer.write(bytes(image))
        user.device.set_bus_master()
        where, address, length = _target(t, space)
        device.copy_from_ram(address, length)
        kept = bytes(image[where : where + length])
        for _ in range(4):
            where, address, length = _target(t, space)
            length = min(length, len(kept))
            device.copy_to_ram(address, length)
            image[where : where + length] = kept[:length]
        t.check(cloth.buffer.read() == bytes(image), "memory after the transfers is not as expected")


def _target(t: Test, space: Space) -> tuple[int, int, int]:
    """Pick a mapped byte; return its offset in the cloth, its address, and the longest transfer from it."""
    area = t.random.choice(space.areas)
    offset = t.random.randrange(area.length)
    address, reach = space.iommufd.get_pa(space.ioas, area.iova + offset, edu.BUFFER_SIZE)
    return area.start + offset, address, reach
