# SPDX-License-Identifier: GPL-2.0-only
"""Every BAR of a device with several: its own registers, both its ends, and accesses of every width."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from guest import edu, igb, libc, pci, vfio
from guest.case import Test, case
from guest.memory import PAGE
from guest.opened import SETTLE, Event, opened, reopened, sigbus
from guest.vfio import PCI_COMMAND, PCI_COMMAND_MEMORY

IGB = ("noiommu", "igb", "!viommu")
NVME = ("noiommu", "nvme", "!viommu")
BALLOON = ("noiommu", "aer", "!viommu")

BARS = range(6)
WIDTHS = (1, 2, 4, 8)

# include/uapi/linux/pci_regs.h
CAP_VENDOR = 0x09
MSIX_TABLE = 4
MSIX_ENTRY_SIZE = 16

# include/uapi/linux/virtio_pci.h: struct virtio_pci_cap and struct virtio_pci_common_cfg
VIRTIO_COMMON = 1
VIRTIO_REGISTERS = {1: 20, 2: 24, 4: 8, 8: 32}
"""A register of each width that reads back what was written: status, queue_size, guest_feature_select and
the address of a queue's descriptors."""

ACKNOWLEDGE = 1
"""Bits of the device status and values of the other registers that the device accepts in any order."""

IOMEM = Path("/proc/iomem")


def _memory_bars(device: vfio.Device) -> list[vfio.Region]:
    """Return the BARs that can be mapped."""
    regions = [device.region(index) for index in BARS]
    return [region for region in regions if region.flags & vfio.REGION_MMAP]


def _bars(device: vfio.Device) -> list[vfio.Region]:
    return [region for region in map(device.region, BARS) if region.size]


@case(
    needs=IGB,
    cites="drivers/vfio/pci/vfio_pci_rdwr.c vfio_pci_bar_rw(); vfio_pci_core.c vfio_pci_core_mmap()",
)
def every_bar_has_two_ends(t: Test) -> None:
    """Each BAR can be read and mapped from its first byte to its last: a transfer across its end is cut
    short, one behind it is EINVAL, and so is a mapping that reaches or begins behind it."""
    with opened(t, t.device("igb")) as device:
        regions = _memory_bars(device)
        t.check(len(regions) >= 3, f"igb has {len(regions)} BARs that can be mapped; this case needs three")
        for region in _bars(device):
            end, name = region.offset + region.size, f"BAR {region.number}"
            t.equal(len(os.pread(device.fd, 4, region.offset)), 4, f"bytes read at the start of {name}")
            for width in WIDTHS:
                got = len(os.pread(device.fd, width, end - width))
                t.equal(got, width, f"bytes read at the end of {name}")
            t.equal(len(os.pread(device.fd, 16, end - 2)), 2, f"bytes read across the end of {name}")
            t.errno(errno.EINVAL, os.pread, device.fd, 1, end)
            t.errno(errno.EINVAL, os.pwrite, device.fd, b"\0", end)
        for region in regions:
            end = region.offset + -(-region.size // PAGE) * PAGE
            device.bar(region.number).close()
            for start in (region.offset, end - PAGE):
                libc.munmap(libc.mmap(PAGE, mmap.PROT_READ, mmap.MAP_SHARED, device.fd, start), PAGE)
            for start, length in (
                (region.offset, end - region.offset + PAGE),
                (end - PAGE, 2 * PAGE),
                (end, PAGE),
            ):
                t.errno(errno.EINVAL, libc.mmap, length, mmap.PROT_READ, mmap.MAP_SHARED, device.fd, start)


@case(
    needs=IGB,
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_zap_bars(), vfio_pci_vmf_insert_pfn(); vfio_pci_rdwr.c "
    "vfio_pci_core_do_io_rw() (test_mem)",
)
def memory_enable_governs_every_bar(t: Test) -> None:
    """With memory decoding off, every memory BAR is SIGBUS through mappings of its first and last page, made
    before or after, and EIO through the file; with it on again all of them work."""
    with opened(t, t.device("igb")) as device, contextlib.ExitStack() as stack:
        regions = _memory_bars(device)
        ends = [(region, at) for region in regions for at in {0, max(region.size - PAGE, 0)}]
        parts = [(stack.enter_context(device.bar(r.number, offset=at, length=PAGE)), r, at) for r, at in ends]
        seen = [part.load(0, 4) for part, _region, _at in parts]
        command = device.read_config(PCI_COMMAND, 2)
        for _ in range(2):
            device.write_config(PCI_COMMAND, 2, command & ~PCI_COMMAND_MEMORY)
            late = [
                (stack.enter_context(device.bar(r.number, offset=at, length=PAGE)), r, at) for r, at in ends
            ]
            for part, region, at in (*parts, *late):
                sigbus(t, lambda part=part: part.load(0, 4), f"a load at {at:#x} of BAR {region.number}")  # type: ignore[misc]
            for region in regions:
                for width in WIDTHS:
                    t.errno(errno.EIO, os.pread, device.fd, width, region.offset + region.size - width)
                    t.errno(
                        errno.EIO, os.pwrite, device.fd, bytes(width), region.offset + region.size - width
                    )
            device.write_config(PCI_COMMAND, 2, command)
            for mapped in (parts, late):
                t.equal([part.load(0, 4) for part, _r, _at in mapped], seen, "the registers afterwards")


@case(
    needs=IGB,
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_map_bars(), vfio_pci_core_disable() (barmap)",
)
def every_bar_serves_each_user(t: Test) -> None:
    """Every BAR is reserved for VFIO in /proc/iomem and works by file and by mapping while a user has the
    device open, and is free afterwards, for any number of users in turn."""
    bdf = t.device("igb")
    with pci.bound(bdf):
        free = _reserved()
        for _ in range(3):
            with reopened(t, bdf) as device:
                regions = _memory_bars(device)
                t.equal(len(_reserved()) - len(free), len(regions), "BARs reserved in /proc/iomem")
                for region in _bars(device):
                    os.pread(device.fd, 4, region.offset)
                for region in regions:
                    with device.bar(region.number) as bar:
                        by_file = os.pread(device.fd, 4, region.offset + igb.STATUS)
                        by_mapping = struct.pack("<I", bar.read32(igb.STATUS))
                    if region.number != igb.TABLE_BAR:
                        t.equal(by_mapping, by_file, f"a register of BAR {region.number} through its mapping")
            t.equal(_reserved(), free, "what is reserved in /proc/iomem after the user")


def _reserved() -> list[str]:
    lines = IOMEM.read_text(encoding="ascii").splitlines()
    return [line.strip() for line in lines if line.endswith((": vfio", ": vfio-pci"))]


@contextlib.contextmanager
def _virtio(t: Test) -> Iterator[tuple[vfio.Device, vfio.Region, int]]:
    """Yield a virtio device, and BAR and offset of its common configuration."""
    bdf = t.device("virtio-balloon")
    with opened(t, bdf) as device:
        space = pci.config(bdf, 0, 256)
        for name, at in pci.capabilities(space):
            kind, bar, offset = struct.unpack_from("<xxxBBxxxI", space, at)
            if (name, kind) == (CAP_VENDOR, VIRTIO_COMMON):
                yield device, device.region(bar), offset
                return
        t.fail("the virtio device has no common configuration")


def _values(width: int) -> tuple[int, int]:
    """Return two values that the register of *width* bytes takes and that differ in every byte."""
    if width == 1:
        return ACKNOWLEDGE, 0
    if width == 2:
        return 0x0102, 0x0201  # the sizes of a queue that exists have no more bits
    full = (1 << 8 * width) - 1
    return 0x0102_0304_0506_0708 & full, 0xF1F2_F3F4_F5F6_F7F8 & full


@case(
    needs=BALLOON,
    cites="drivers/vfio/pci/vfio_pci_rdwr.c VFIO_IORDWR(); QEMU hw/virtio/virtio-pci.c",
)
def registers_of_every_width_are_reached(t: Test) -> None:
    """Registers of 1, 2, 4 and 8 bytes are read and written in one access of their width, by file and by
    mapping, and their neighbours keep their values."""
    with _virtio(t) as (device, region, start), device.bar(region.number) as bar:
        for width, at in VIRTIO_REGISTERS.items():
            where = region.offset + start + at
            for value in (*_values(width), _values(width)[0]):
                others = {w: bar.load(start + o, w) for w, o in VIRTIO_REGISTERS.items() if w != width}
                t.equal(os.pwrite(device.fd, value.to_bytes(width, "little"), where), width, "bytes written")
                t.equal(bar.load(start + at, width), value, f"{width} bytes written by file, read by mapping")
                t.equal(
                    os.pread(device.fd, width, where), value.to_bytes(width, "little"), "the same by file"
                )
                if width > 1:  # a status of 0 resets the others
                    now = {w: bar.load(start + o, w) for w, o in VIRTIO_REGISTERS.items() if w != width}
                    t.equal(now, others, f"the other registers after a write of {width} bytes")
            for value in _values(width):
                bar.store(start + at, width, value)
                t.equal(
                    os.pread(device.fd, width, where), value.to_bytes(width, "little"), "written by mapping"
                )


@case(
    needs=BALLOON,
    cites="drivers/vfio/pci/vfio_pci_rdwr.c vfio_pci_core_do_io_rw(); QEMU hw/virtio/virtio-pci.c",
)
def transfers_of_any_alignment_agree(t: Test) -> None:
    """A transfer from any offset and of any length moves the bytes that single accesses of the natural width
    move: reads of one stretch agree however it is cut."""
    with _virtio(t) as (device, region, start), device.bar(region.number) as bar:
        # Past the registers whose meaning depends on the width: the address of a queue's descriptors.
        at = start + VIRTIO_REGISTERS[8]
        low, high = 0x1122_3344, 0x5566_7788
        for offset, value in ((0, low), (4, high)):
            os.pwrite(device.fd, struct.pack("<I", value), region.offset + at + offset)
        t.equal(os.pread(device.fd, 8, region.offset + at), struct.pack("<II", low, high), "8 bytes")
        t.equal([bar.load(at + offset, 4) for offset in (0, 4)], [low, high], "4 bytes each, by mapping")
        os.pwrite(device.fd, struct.pack("<II", high, low), region.offset + at)
        t.equal([bar.load(at + offset, 4) for offset in (0, 4)], [high, low], "after 8 bytes were written")
        # 12 bytes from an offset that is a multiple of 4 only: one access of 4 bytes, one of 8.
        before = struct.pack("<I", bar.load(at - 4, 4))
        t.equal(
            os.pread(device.fd, 12, region.offset + at - 4),
            before + struct.pack("<II", high, low),
            "12 bytes from 4 bytes before",
        )


@case(
    needs=BALLOON,
    cites="drivers/vfio/pci/vfio_pci_rdwr.c vfio_pci_ioeventfd_do_write(); include/uapi/linux/vfio.h",
)
def ioeventfds_write_every_width(t: Test) -> None:
    """An ioeventfd of 1, 2, 4 or 8 bytes writes exactly its register, and several of them with one eventfd
    all write."""
    with _virtio(t) as (device, region, start), device.bar(region.number) as bar:
        together = Event()
        for width, at in VIRTIO_REGISTERS.items():
            first, second = _values(width)
            for value in (first, second):
                bar.store(start + at, width, second if value == first else first)
                event, where = Event(), region.offset + start + at
                add = vfio.Ioeventfd(flags=width, offset=where, data=value, fd=event.fd)
                device.call(vfio.DEVICE_IOEVENTFD, add)
                event.signal()
                t.wait_until(
                    lambda at=at, width=width, value=value: bar.load(start + at, width) == value,  # type: ignore[misc]
                    f"the write of {width} bytes",
                )
                device.call(
                    vfio.DEVICE_IOEVENTFD, vfio.Ioeventfd(flags=width, offset=where, data=value, fd=-1)
                )
        for width in (4, 8):
            bar.store(start + VIRTIO_REGISTERS[width], width, 0)
            add = vfio.Ioeventfd(
                flags=width, offset=region.offset + start + VIRTIO_REGISTERS[width], data=1, fd=together.fd
            )
            device.call(vfio.DEVICE_IOEVENTFD, add)
        together.signal()
        for width in (4, 8):
            t.wait_until(
                lambda width=width: bar.load(start + VIRTIO_REGISTERS[width], width) == 1,  # type: ignore[misc]
                f"the write of {width} bytes by the shared eventfd",
            )


@case(
    needs=("noiommu", "edu", "lenient-bus", "!viommu"),
    cites="drivers/vfio/pci/vfio_pci_rdwr.c VFIO_IORDWR(), vfio_pci_ioeventfd_do_write()",
)
def narrow_accesses_stay_narrow(t: Test) -> None:
    """A write of 1 or 2 bytes, by file or by ioeventfd, does not reach a register that takes 4 bytes only."""
    with opened(t, t.device("edu")) as device, device.bar() as bar:
        place = device.region(0).offset + edu.REG_LIVENESS
        bar.write32(edu.REG_LIVENESS, 0x01020304)
        for width in (1, 2):
            t.equal(os.pwrite(device.fd, bytes(width), place), width, "bytes written")
            event = Event()
            add = vfio.Ioeventfd(flags=width, offset=place, data=7, fd=event.fd)
            device.call(vfio.DEVICE_IOEVENTFD, add)
            event.signal()
        time.sleep(SETTLE)
        t.equal(bar.read32(edu.REG_LIVENESS), 0xFEFDFCFB, "the register after narrow writes")
        t.equal(os.pwrite(device.fd, struct.pack("<I", 9), place), 4, "bytes written")
        t.equal(bar.read32(edu.REG_LIVENESS), ~9 & 0xFFFFFFFF, "the register after a write of 4 bytes")


def _table(bdf: str) -> tuple[int, int, int]:
    """Return BAR, first byte and size of the MSI-X table of *bdf*."""
    place = pci.capability(bdf, pci.CAP_MSIX)
    entries = (pci.config_number(bdf, place + 2, 2) & 0x7FF) + 1
    table = pci.config_number(bdf, place + MSIX_TABLE, 4)
    return table & 7, table & ~7, entries * MSIX_ENTRY_SIZE


def _table_is_cut_out(t: Test, kind: str) -> None:
    bdf = t.device(kind)
    with opened(t, bdf) as device:
        index, first, size = _table(bdf)
        region = device.region(index)
        with device.bar(index) as bar:
            for edge in (first, first + size):
                for before in range(17):
                    for length in (1, 2, 4, 8, 12, 33):
                        at = edge - before
                        if at < 0 or at + length > region.size:
                            continue
                        got = os.pread(device.fd, length, region.offset + at)
                        inside = [first <= at + i < first + size for i in range(length)]
                        hidden = bytes(got[i] for i in range(length) if inside[i])
                        t.equal(
                            hidden, b"\xff" * sum(inside), f"{length} bytes at {at:#x}: those of the table"
                        )
                        t.equal(len(got), length, "bytes read")
                at = edge - 4 if edge == first else edge
                if 0 <= at < region.size - 4:
                    want = struct.pack("<I", bar.read32(at))
                    t.equal(os.pread(device.fd, 4, region.offset + at), want, f"the 4 bytes at {at:#x}")
            entries = [bar.read32(first + 4 * i) for i in range(size // 4)]
            t.equal(
                os.pwrite(device.fd, bytes(size), region.offset + first), size, "bytes of a dropped write"
            )
            for start in range(first + 1, first + 9):
                os.pwrite(device.fd, b"\xa5", region.offset + start)
            os.pwrite(device.fd, bytes(8), region.offset + first + size - 8)
            t.equal([bar.read32(first + 4 * i) for i in range(size // 4)], entries, "the table after writes")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_rdwr.c vfio_pci_core_do_io_rw() (x_start, x_end)")
def vector_table_ends_at_its_last_byte(t: Test) -> None:
    """Of a transfer across the end of the MSI-X table exactly the table's bytes read as ones, whatever its
    width and alignment, and no write through the file changes the table."""
    _table_is_cut_out(t, "igb")


@case(needs=NVME, cites="drivers/vfio/pci/vfio_pci_rdwr.c vfio_pci_core_do_io_rw() (x_start, x_end)")
def vector_table_begins_at_its_first_byte(t: Test) -> None:
    """Of a transfer that begins before an MSI-X table inside a BAR, or crosses it, exactly the table's bytes
    read as ones, and no write through the file changes the table."""
    _table_is_cut_out(t, "nvme")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_core.c vma_to_pfn() (index); vfio_pci_rdwr.c (bar)")
def every_bar_is_itself(t: Test) -> None:
    """Each BAR's mapping and file show that BAR and not another: pages of two BARs with the same offset
    differ where the card's do."""
    bdf = t.device("igb")
    with opened(t, bdf) as device, device.bar(0) as registers, device.bar(igb.TABLE_BAR) as table:
        region = device.region(0)
        for value in (0x1000, 0x2000):
            registers.write32(igb.RDLEN, value)
            t.equal(registers.read32(igb.RDLEN), value, "the register of BAR 0")
            t.equal(os.pread(device.fd, 4, region.offset + igb.RDLEN), struct.pack("<I", value), "by file")
        vectors = [table.read32(MSIX_ENTRY_SIZE * vector + 12) & 1 for vector in range(igb.VECTORS)]
        t.equal(vectors, [1] * igb.VECTORS, "the mask bits in the vector table after a reset")
        if pci.resource_start(bdf, 2):
            ports = device.region(2).offset
            # IOADDR and IODATA of the 82576: the register at the offset in the first is in the second.
            os.pwrite(device.fd, struct.pack("<I", igb.RDLEN), ports)
            t.equal(os.pread(device.fd, 4, ports + 4), struct.pack("<I", 0x2000), "the register by I/O ports")


@case(
    needs=IGB,
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_mmap_huge_fault(), vfio_pci_zap_bars(); mm/memory.c",
)
def moved_mapping_shows_its_part(t: Test) -> None:
    """A mapping of a part of a BAR shows that part in a child, and again after memory decoding was off and
    on, whichever page is touched first."""
    page = igb.RDLEN - igb.RDLEN % PAGE
    with opened(t, t.device("igb")) as device, device.bar(0) as bar:
        command = device.read_config(PCI_COMMAND, 2)
        for turn, order in enumerate(((0, page), (page, 0), (bar.length - PAGE, page))):
            bar.write32(igb.RDLEN, 0x800 + 0x80 * turn)
            device.write_config(PCI_COMMAND, 2, command & ~PCI_COMMAND_MEMORY)
            device.write_config(PCI_COMMAND, 2, command)
            for start in order:
                bar.read32(start)
            t.equal(bar.read32(igb.RDLEN), 0x800 + 0x80 * turn, "the register")
            t.equal(t.in_child(lambda: bar.read32(igb.RDLEN)), 0x800 + 0x80 * turn, "the register in a child")
