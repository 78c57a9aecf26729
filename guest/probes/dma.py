# SPDX-License-Identifier: GPL-2.0-only
"""DMA without an IOMMU: the device accesses exactly the physical addresses that it is given."""

from __future__ import annotations

import mmap
import os
import time

from guest import edu, libc, memory, pci, vfio
from guest.case import Test, case
from guest.memory import HUGE, PAGE
from guest.opened import CdevUser, opened, through_cdev, through_group

CDEV = ("noiommu-cdev", "edu", "!viommu")

IOVA = 0x1000_0000

# One transfer takes 100 ms of QEMU's virtual clock (QEMU hw/misc/edu.c dma_rw()).
EDU_TRANSFER = 0.1
AFTER_DMA = 5 * EDU_TRANSFER


def _mapped(user: CdevUser, pages: int, iova: int = IOVA) -> memory.Buffer:
    buffer = memory.anonymous(pages * PAGE)
    buffer.fill(0)
    user.map(buffer, iova)
    return buffer


@case(
    needs=CDEV,
    cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_noiommu_get_pa(); QEMU docs/specs/edu.rst",
)
def both_ways_by_get_pa(t: Test) -> None:
    """DMA reads and writes at GET_PA's addresses access the mapped pages and change no other byte of them."""
    with through_cdev(t.device("edu")) as user, user.device.bar() as bar:
        device = edu.Edu(bar)
        t.check(device.is_edu(), "BAR 0 does not identify itself as an edu")
        buffer = _mapped(user, 3)
        data = memory.pattern(t.random, 256)
        buffer.write(data, 64)
        user.device.set_bus_master()
        device.copy_from_ram(user.physical(IOVA, PAGE) + 64, 256)
        device.copy_to_ram(user.physical(IOVA + 2 * PAGE, PAGE) + 512, 256)
        t.equal(buffer.read(2 * PAGE + 512, 256), data, "what the device stored")
        t.equal(buffer.read(64, 256), data, "the source after it was read")
        t.check(not any(buffer.read(PAGE, PAGE + 512)), "the device wrote before its target")
        t.check(not any(buffer.read(2 * PAGE + 768, PAGE - 768)), "the device wrote behind its target")


@case(needs=CDEV, cites="drivers/iommu/iommufd/io_pagetable.c iopt_get_phys()")
def offset_within_a_page_counts(t: Test) -> None:
    """GET_PA of an IOVA inside a page gives the address of that byte, and DMA to it starts there."""
    with through_cdev(t.device("edu")) as user, user.device.bar() as bar:
        device = edu.Edu(bar)
        buffer = _mapped(user, 1)
        data = memory.pattern(t.random, 32)
        buffer.write(data, 0x123)
        user.device.set_bus_master()
        device.copy_from_ram(user.physical(IOVA + 0x123, 32), 32)
        device.copy_to_ram(user.physical(IOVA + PAGE - 32, 32), 32)
        t.equal(buffer.read(PAGE - 32, 32), data, "the last 32 bytes of the page")
        t.check(not any(buffer.read(0x143, PAGE - 32 - 0x143)), "bytes between source and target changed")


@case(needs=CDEV, cites="drivers/iommu/iommufd/io_pagetable.c iopt_get_phys()", timeout=60)
def each_page_has_its_own_address(t: Test) -> None:
    """DMA reaches every page of a mapping at its own GET_PA address, whatever the order of the pages in
    memory."""
    pages = 4
    with through_cdev(t.device("edu")) as user, user.device.bar() as bar:
        device = edu.Edu(bar)
        source, target = _mapped(user, pages), _mapped(user, pages, IOVA + 2 * pages * PAGE)
        data = [memory.pattern(t.random, edu.BUFFER_SIZE) for _ in range(pages)]
        for page, piece in enumerate(data):
            source.write(piece, page * PAGE)
        order = t.random.sample(range(pages), pages)
        user.device.set_bus_master()
        for index, page in enumerate(order):
            device.copy_from_ram(user.physical(IOVA + page * PAGE, PAGE), edu.BUFFER_SIZE)
            there = user.physical(IOVA + (2 * pages + index) * PAGE, PAGE)
            device.copy_to_ram(there, edu.BUFFER_SIZE)
        for index, page in enumerate(order):
            t.check(
                target.read(index * PAGE, edu.BUFFER_SIZE) == data[page],
                f"target page {index} does not hold source page {page}",
            )


@case(needs=CDEV, cites="drivers/iommu/iommufd/io_pagetable.c iopt_get_phys()", timeout=45)
def huge_page_is_one_piece(t: Test) -> None:
    """GET_PA reports a 2 MiB page as one piece, and DMA works across its 4 KiB boundaries and up to its
    end."""
    if memory.set_hugepages(1) < 1:
        t.skip("no free 2 MiB page to reserve")
    with through_cdev(t.device("edu")) as user, user.device.bar() as bar, memory.hugetlb() as buffer:
        device = edu.Edu(bar)
        buffer.fill(0)
        user.map(buffer, IOVA)
        base, contiguous = user.iommufd.get_pa(user.ioas, IOVA, HUGE)
        t.equal(contiguous, HUGE, "contiguous bytes of a 2 MiB page")
        t.equal(base % HUGE, 0, "alignment of a 2 MiB page")
        size = edu.BUFFER_SIZE
        data = memory.pattern(t.random, size)
        buffer.write(data, 5 * PAGE - 1000)
        user.device.set_bus_master()
        device.copy_from_ram(base + 5 * PAGE - 1000, size)
        device.copy_to_ram(base + HUGE - size, size)
        t.check(
            buffer.read(HUGE - size, size) == data, "the last 4 KiB do not hold what was read in the middle"
        )
        t.check(not any(buffer.read(HUGE - size - PAGE, PAGE)), "the device wrote before its target")


@case(needs=CDEV, cites="drivers/iommu/iommufd/pages.c pfn_reader_user_pin()", timeout=45)
def fork_leaves_the_page_to_the_device(t: Test) -> None:
    """After a fork and a write, DMA reaches the page that its owner sees."""
    with through_cdev(t.device("edu")) as user, user.device.bar() as bar:
        device = edu.Edu(bar)
        buffer = _mapped(user, 2)
        before = user.physical(IOVA, PAGE)
        child = os.fork()
        if child == 0:
            time.sleep(60)  # holds its share of the copy-on-write pages until it is killed
            os._exit(0)
        try:
            data = memory.pattern(t.random, 128)
            buffer.write(data)
            t.equal(user.physical(IOVA, PAGE), before, "the physical address after fork and write")
            t.equal(buffer.physical(), before, "the owner's page after fork and write")
            user.device.set_bus_master()
            device.copy_from_ram(before, 128)
            device.copy_to_ram(before + 2048, 128)
            t.equal(buffer.read(2048, 128), data, "what the device read and stored back")
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)


@case(needs=CDEV, cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_map_file()")
def memfd_is_reached_through_its_mapping(t: Test) -> None:
    """DMA to a memfd mapped with IOAS_MAP_FILE is visible in every mapping of that memfd."""
    with through_cdev(t.device("edu")) as user, user.device.bar() as bar:
        device = edu.Edu(bar)
        fd = memory.memfd(2 * PAGE)
        with memory.shared_file(fd, 2 * PAGE) as buffer:
            data = memory.pattern(t.random, 512)
            buffer.write(data)
            user.iommufd.map_file(user.ioas, fd, 2 * PAGE, IOVA)
            user.device.set_bus_master()
            device.copy_from_ram(user.physical(IOVA, 512), 512)
            device.copy_to_ram(user.physical(IOVA + PAGE, 512), 512)
            t.equal(buffer.read(PAGE, 512), data, "the memfd's second page")
            t.equal(os.pread(fd, 512, PAGE), data, "the memfd read as a file")
        os.close(fd)


@case(
    needs=(*CDEV, "edu2", "!mixed"),
    cites="drivers/iommu/iommufd/device.c iommufd_device_auto_get_domain()",
    timeout=45,
)
def two_devices_share_an_address_space(t: Test) -> None:
    """Data that one device writes to a page of a shared IOAS can be read there by another device."""
    first, second = t.devices("edu", iommu=False)[:2]
    with through_cdev(first) as user, pci.bound(second), vfio.open_cdev(second) as other:
        other.bind_iommufd(user.iommufd.fd)
        other.attach(user.ioas)
        buffer = _mapped(user, 3)
        data = memory.pattern(t.random, 1024)
        buffer.write(data)
        user.device.set_bus_master()
        other.set_bus_master()
        with user.device.bar() as bar, other.bar() as other_bar:
            edu.Edu(bar).copy_from_ram(user.physical(IOVA, 1024), 1024)
            edu.Edu(bar).copy_to_ram(user.physical(IOVA + PAGE, 1024), 1024)
            edu.Edu(other_bar).copy_from_ram(user.physical(IOVA + PAGE, 1024), 1024)
            edu.Edu(other_bar).copy_to_ram(user.physical(IOVA + 2 * PAGE, 1024), 1024)
        t.equal(buffer.read(2 * PAGE, 1024), data, "what came back through the second device")


@case(needs=CDEV, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_enable()", timeout=45)
def nothing_moves_without_bus_master(t: Test) -> None:
    """A device just opened has bus mastering off and neither reads nor writes memory until its user switches
    it on."""
    with through_cdev(t.device("edu")) as user, user.device.bar() as bar:
        device = edu.Edu(bar)
        buffer = _mapped(user, 2)
        secret, mark = memory.pattern(t.random, 64), memory.pattern(t.random, 64)
        buffer.write(secret)
        buffer.write(mark, PAGE)
        source, target = user.physical(IOVA, PAGE), user.physical(IOVA + PAGE, PAGE)
        device.copy_from_ram(source, 64)
        device.copy_to_ram(target, 64)
        t.equal(buffer.read(PAGE, 64), mark, "the target while bus mastering is off")
        user.device.set_bus_master()
        device.copy_to_ram(target, 64)
        t.check(buffer.read(PAGE, 64) != mark, "the device does not write with bus mastering on either")
        t.check(buffer.read(PAGE, 64) != secret, "the device read memory while bus mastering was off")
        device.copy_from_ram(source, 64)
        device.copy_to_ram(target, 64)
        t.equal(buffer.read(PAGE, 64), secret, "the target with bus mastering on")
        user.device.set_bus_master(False)
        buffer.write(mark, PAGE)
        device.copy_to_ram(target, 64)
        t.equal(buffer.read(PAGE, 64), mark, "the target after bus mastering was switched off again")


@case(
    needs=("noiommu", "edu", "!viommu"),
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_disable()",
    timeout=60,
)
def closing_the_device_stops_its_dma(t: Test) -> None:
    """A transfer still running when the device file is closed never reaches memory."""
    with _locked(PAGE) as buffer:
        mark, address = memory.pattern(t.random, 64), buffer.physical()
        for _attempt in range(5):
            closed = _close_during_transfer(t, buffer, mark, address)
            if closed < EDU_TRANSFER:
                break
            t.log(f"closing took {closed:.3f} s, longer than the transfer itself: retrying")
        else:
            t.skip("this machine is too slow to close a device within edu's 100 ms")
        t.equal(buffer.read(0, 64), mark, "memory after the device was closed")


@case(
    needs=("noiommu-group", "edu", "!viommu"),
    cites="Documentation/driver-api/vfio.rst; Documentation/admin-guide/mm/pagemap.rst",
)
def group_user_finds_addresses_himself(t: Test) -> None:
    """A device opened through its group, which has no GET_PA, can do DMA to the physical addresses of locked
    memory."""
    with through_group(t.device("edu")) as user, user.device.bar() as bar, _locked(2 * PAGE) as buffer:
        device = edu.Edu(bar)
        data = memory.pattern(t.random, 1024)
        buffer.write(data)
        source, target = buffer.physical(), buffer.physical(PAGE)
        mark = buffer.read(PAGE, 1024)
        device.copy_from_ram(source, 1024)
        device.copy_to_ram(target, 1024)
        t.equal(buffer.read(PAGE, 1024), mark, "the target while bus mastering is off")
        user.device.set_bus_master()
        device.copy_from_ram(source, 1024)
        device.copy_to_ram(target, 1024)
        t.equal((buffer.physical(), buffer.physical(PAGE)), (source, target), "where the locked pages lie")
        t.equal(buffer.read(PAGE, 1024), data, "what came back")


def _close_during_transfer(t: Test, buffer: memory.Buffer, mark: bytes, address: int) -> float:
    """Start a transfer to *address*, close the device, and return how long both took."""
    with opened(t, t.device("edu")) as device:
        device.set_bus_master()
        with device.bar() as bar:
            one = edu.Edu(bar)
            other = bytes(255 - byte for byte in mark)
            buffer.write(other)
            one.copy_from_ram(address, len(mark))
            buffer.write(mark)
            one.copy_to_ram(address, len(mark))
            t.equal(buffer.read(0, len(mark)), other, "memory after a transfer that is left to end")
            buffer.write(mark)
            started = time.monotonic()
            one.start_to_ram(address, len(mark))
        device.close()
        closed = time.monotonic() - started
        time.sleep(AFTER_DMA)
    return closed


def _locked(length: int) -> memory.Buffer:
    """Return memory that does not move: locked, and shared, because a write after a fork moves a private
    page."""
    locked = 0x2000  # MAP_LOCKED, include/uapi/asm-generic/mman.h
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | memory.MAP_POPULATE | locked
    return memory.Buffer(libc.mmap(length, memory.READ_WRITE, flags), length)
