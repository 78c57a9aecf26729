# SPDX-License-Identifier: GPL-2.0-only
"""Device regions: the BARs through the file and through mappings, their region info, and their limits."""

from __future__ import annotations

import errno
import mmap
import os
import struct

from guest import edu, igb, libc, pci, vfio
from guest.brink import NOWHERE, Brink
from guest.case import Test, case
from guest.memory import PAGE
from guest.opened import opened, sigbus
from guest.vfio import BAR0, CONFIG, PCI_COMMAND, ROM, VGA

EDU = ("noiommu", "edu", "!viommu")
IGB = ("noiommu", "igb", "!viommu")

PCI_BAR0 = 0x10

# include/uapi/linux/vfio.h
REGION_CAP_MSIX_MAPPABLE = 3


def _resources(bdf: str) -> list[int]:
    """Return the sizes of the six BARs according to sysfs."""
    lines = pci.read(pci.path_of(bdf) / "resource").splitlines()[:6]
    ranges = [tuple(int(word, 16) for word in line.split()[:2]) for line in lines]
    return [last - first + 1 if last else 0 for first, last in ranges]


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_get_region_info()")
def regions_are_the_bars(t: Test) -> None:
    """The BAR regions have the sizes that sysfs reports, regions without a BAR are empty, and configuration
    space is 256 bytes that can be read and written but not mapped."""
    bdf = t.device("edu")
    with opened(t, bdf) as device:
        sizes = _resources(bdf)
        t.equal(sizes[0], edu.BAR_SIZE, "edu's BAR 0 in sysfs")
        for index, size in enumerate(sizes):
            region = device.region(index)
            flags = vfio.REGION_READ | vfio.REGION_WRITE | vfio.REGION_MMAP if size else 0
            t.equal((region.size, region.flags), (size, flags), f"size and flags of region {index}")
            t.equal(region.offset, index << vfio.OFFSET_SHIFT, f"file offset of region {index}")
        config = device.region(CONFIG)
        t.equal(
            (config.size, config.flags), (256, vfio.REGION_READ | vfio.REGION_WRITE), "configuration space"
        )
        t.equal(device.region(ROM).size, 0, "size of the ROM that edu does not have")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_get_region_info()")
def regions_that_do_not_exist(t: Test) -> None:
    """GET_REGION_INFO refuses the VGA region of a device that is not VGA, and a tenth region."""
    with opened(t, t.device("edu")) as device:
        t.errno(errno.EINVAL, device.region_info, VGA)
        t.errno(errno.EINVAL, device.region_info, 9)
        t.errno(errno.EINVAL, device.region_info, 0xFFFFFFFF)


@case(needs=IGB, cites="drivers/vfio/vfio_main.c vfio_get_region_info() (caps); include/uapi/linux/vfio.h")
def region_info_tells_the_room_it_needs(t: Test) -> None:
    """For a region with a capability, GET_REGION_INFO returns the required size in argsz; with a smaller
    argsz it returns no capability offset and writes nothing after the structure, and with that size it
    returns the capability and its offset."""
    with opened(t, t.device("igb")) as device, Brink() as edge:
        for size, offset in ((32, 0), (39, 0), (40, 32)):
            argument = bytes(vfio.RegionInfo(argsz=size, index=igb.TABLE_BAR, cap_offset=77))
            where = edge.put(argument + b"\xa5" * (size - 32))
            libc.ioctl(device.fd, vfio.DEVICE_GET_REGION_INFO, where)
            told = edge.tail(size)
            info = vfio.RegionInfo.from_buffer_copy(told[:32])
            t.check(info.flags & vfio.REGION_CAPS, f"no capability is reported with argsz {size}")
            t.equal((info.argsz, info.cap_offset), (40, offset), f"argsz and offset with argsz {size}")
            if not offset:
                t.equal(told[32:], b"\xa5" * (size - 32), "the bytes after the structure")
        plain = vfio.RegionInfo(argsz=4000, index=BAR0)
        device.call(vfio.DEVICE_GET_REGION_INFO, plain)
        t.equal(
            (plain.argsz, plain.cap_offset), (4000, 0), "argsz and offset of a region without capabilities"
        )


@case(
    needs=EDU,
    cites="drivers/vfio/pci/vfio_pci_rdwr.c vfio_pci_bar_rw(); vfio_pci_core.c vfio_pci_core_mmap()",
)
def file_and_mapping_show_the_same_bar(t: Test) -> None:
    """Reading and writing a BAR through the file and through a mapping accesses the same registers."""
    with opened(t, t.device("edu")) as device, device.bar() as bar:
        offset = device.region(BAR0).offset
        t.equal(
            os.pread(device.fd, 4, offset),
            struct.pack("<I", edu.IDENTIFIES),
            "identification through the file",
        )
        t.equal(bar.read32(edu.REG_IDENTIFICATION), edu.IDENTIFIES, "identification through the mapping")
        os.pwrite(device.fd, struct.pack("<I", 0x0F0F0F0F), offset + edu.REG_LIVENESS)
        t.equal(
            bar.read32(edu.REG_LIVENESS),
            0xF0F0F0F0,
            "data written through the file and read through the mapping",
        )
        bar.write64(edu.REG_DMA_SOURCE, 0x1234_5678_9ABC_DEF0)
        data = os.pread(device.fd, 8, offset + edu.REG_DMA_SOURCE)
        t.equal(
            data,
            struct.pack("<Q", 0x1234_5678_9ABC_DEF0),
            "data written through the mapping and read through the file",
        )
        t.equal(edu.Edu(bar).factorial(10), 3628800, "10! computed by the device")
        t.equal(len(os.pread(device.fd, 16, offset + edu.BAR_SIZE - 4)), 4, "bytes read across the BAR's end")
        t.errno(errno.EINVAL, os.pread, device.fd, 4, offset + edu.BAR_SIZE)


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_mmap()")
def mappings_stay_inside_a_bar(t: Test) -> None:
    """A part of a BAR can be mapped shared; a private mapping, a mapping past the BAR's end, and a mapping of
    a region that is no BAR are refused."""
    with opened(t, t.device("edu")) as device:
        region = device.region(BAR0)
        page = mmap.PAGESIZE

        def attempt(length: int, offset: int, flags: int = mmap.MAP_SHARED) -> None:
            libc.munmap(libc.mmap(length, vfio.READ_WRITE, flags, device.fd, offset), length)

        attempt(region.size, region.offset)
        attempt(page, region.offset + region.size - page)
        with device.bar(offset=edu.BUFFER_BASE, length=page) as part:
            part.write32(0, 0)
        t.errno(errno.EINVAL, attempt, region.size + page, region.offset)
        t.errno(errno.EINVAL, attempt, 2 * page, region.offset + region.size - page)
        t.errno(errno.EINVAL, attempt, page, region.offset + region.size)
        t.errno(errno.EINVAL, attempt, page, region.offset, mmap.MAP_PRIVATE)
        for index in (vfio.BAR1, ROM, CONFIG, VGA, 9):
            t.errno(errno.EINVAL, attempt, page, index << vfio.OFFSET_SHIFT)


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_core.c vma_to_pfn(), vfio_pci_mmap_huge_fault()")
def mapping_of_a_part_shows_that_part(t: Test) -> None:
    """A mapping that begins inside a BAR shows the registers at that offset, and each page of a longer
    mapping shows its own part of the BAR."""
    page = mmap.PAGESIZE
    start = igb.RDLEN - igb.RDLEN % page
    if not start:
        t.skip(f"with pages of {page // 1024} KiB the register is in the first page of the BAR")
    with (
        opened(t, t.device("igb")) as device,
        device.bar() as whole,
        device.bar(offset=start, length=page) as part,
        device.bar(offset=start - page, length=2 * page) as longer,
    ):
        places = {igb.RDLEN: whole, igb.RDLEN - start: part, igb.RDLEN - start + page: longer}
        for length, (where, writer) in enumerate(places.items(), 1):
            writer.write32(where, length * 1024)
            got = [reader.read32(at) for at, reader in places.items()]
            t.equal(
                got,
                [length * 1024] * 3,
                "the register through mappings of the whole BAR, of a part and of two pages",
            )


@case(
    needs=EDU,
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_read(), vfio_pci_rw(); vfio_pci_rdwr.c "
    "vfio_pci_bar_rw()",
)
def transfers_end_with_the_bar(t: Test) -> None:
    """A transfer across the end of a BAR is cut short, a transfer of zero bytes succeeds at any offset, and a
    transfer from or to unmapped memory is EFAULT and changes no register."""
    with opened(t, t.device("edu")) as device, device.bar() as bar, Brink() as edge:
        start, config = device.region(BAR0).offset, device.region(CONFIG).offset
        end = start + edu.BAR_SIZE
        t.equal(os.pwrite(device.fd, bytes(16), end - 8), 8, "bytes written across the end of the BAR")
        t.equal(len(os.pread(device.fd, 1 << 20, end - 4)), 4, "bytes of a long read across the BAR's end")
        t.errno(errno.EINVAL, os.pwrite, device.fd, bytes(4), end)
        t.errno(errno.EINVAL, os.pread, device.fd, 1, start + (1 << vfio.OFFSET_SHIFT) - 1)
        for offset in (start, end, config + 256, vfio.BAR1 << vfio.OFFSET_SHIFT, 9 << vfio.OFFSET_SHIFT):
            t.equal(os.pread(device.fd, 0, offset), b"", f"a read of zero bytes at {offset:#x}")
            t.equal(os.pwrite(device.fd, b"", offset), 0, f"a write of zero bytes at {offset:#x}")
        bar.write32(edu.REG_LIVENESS, 0x01020304)
        for offset in (start + edu.REG_LIVENESS, config + PCI_BAR0):
            t.errno(errno.EFAULT, libc.pread, device.fd, NOWHERE, 4, offset)
            t.errno(errno.EFAULT, libc.pwrite, device.fd, NOWHERE, 4, offset)
            t.errno(errno.EFAULT, libc.pwrite, device.fd, edge.put(bytes(3)), 4, offset)
            t.errno(errno.EFAULT, libc.pread, device.fd, edge.put(bytes(3)), 4, offset)
        t.equal(bar.read32(edu.REG_LIVENESS), 0xFEFDFCFB, "the register after faults")
        t.equal(
            libc.pread(device.fd, edge.put(bytes(4)), 4, start), 4, "bytes read into the last mapped bytes"
        )
        t.equal(edge.tail(4), struct.pack("<I", edu.IDENTIFIES), "the data read there")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_vmf_insert_pfn(), vfio_pci_zap_bars()")
def bar_without_memory_enable_is_a_sigbus(t: Test) -> None:
    """With memory decoding off, access to a mapped BAR is SIGBUS and access through the file is EIO; after it
    is turned on again both work as before, and the kernel logs no complaint."""
    with opened(t, t.device("edu")) as device, device.bar() as bar:
        offset = device.region(BAR0).offset
        command = device.read_config(PCI_COMMAND, 2)
        t.check(bar.read32(0) == edu.IDENTIFIES, "the BAR does not work at the start")
        device.write_config(PCI_COMMAND, 2, command & ~vfio.PCI_COMMAND_MEMORY)
        sigbus(t, lambda: bar.read32(0), "a load")
        sigbus(t, lambda: bar.write32(edu.REG_LIVENESS, 1), "a store")
        t.errno(errno.EIO, os.pread, device.fd, 4, offset)
        t.errno(errno.EIO, os.pwrite, device.fd, b"\0\0\0\0", offset + edu.REG_LIVENESS)
        device.write_config(PCI_COMMAND, 2, command)
        t.equal(bar.read32(0), edu.IDENTIFIES, "identification through the mapping after turning decoding on")
        t.equal(
            os.pread(device.fd, 4, offset),
            struct.pack("<I", edu.IDENTIFIES),
            "identification through the file after turning decoding on",
        )
        t.check_no_complaint()


@case(
    needs=EDU,
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_mmap(); Documentation/driver-api/vfio.rst",
)
def bar_may_be_mapped_while_it_is_off(t: Test) -> None:
    """A BAR can be mapped while memory decoding is off; access is SIGBUS until decoding is on, and then
    works, also in a child that inherits the mapping."""
    with opened(t, t.device("edu")) as device:
        command = device.read_config(PCI_COMMAND, 2)
        device.write_config(PCI_COMMAND, 2, command & ~vfio.PCI_COMMAND_MEMORY)
        with device.bar() as bar:
            sigbus(t, lambda: bar.read32(0), "a load")
            device.write_config(PCI_COMMAND, 2, command)
            t.equal(t.in_child(lambda: bar.read32(0)), edu.IDENTIFIES, "identification read by a child")
            t.equal(bar.read32(0), edu.IDENTIFIES, "identification")
            device.write_config(PCI_COMMAND, 1, command & 0xFF & ~vfio.PCI_COMMAND_MEMORY)
            sigbus(t, lambda: bar.write32(edu.REG_LIVENESS, 1), "a store after writing the low byte only")
            device.write_config(PCI_COMMAND, 1, command & 0xFF)
            t.equal(bar.read32(0), edu.IDENTIFIES, "identification after turning decoding on")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_get_region_info(); QEMU hw/net/igb.c")
def regions_of_every_kind(t: Test) -> None:
    """igb's memory BARs can be mapped, its I/O port BAR can be read and written, but not mapped, if its
    bridge has ports for it, and its MSI-X BAR is reported as mappable although it has the vector table."""
    bdf = t.device("igb")
    # After a hot plug a bridge may have no I/O ports left, and the region is then empty.
    has_ports = pci.resource_start(bdf, 2) != 0
    access = vfio.REGION_READ | vfio.REGION_WRITE
    want = {
        0: (0x20000, access | vfio.REGION_MMAP),
        1: (0x20000, access | vfio.REGION_MMAP),
        2: (32, access) if has_ports else (0, 0),
        # 16 KiB, unless the kernel gives each BAR a large page of its own.
        3: (max(0x4000, pci.resource_size(bdf, 3)), access | vfio.REGION_MMAP | vfio.REGION_CAPS),
        4: (0, 0),
        5: (0, 0),
    }
    with opened(t, bdf) as device:
        for index, (size, flags) in want.items():
            region = device.region(index)
            t.equal((region.size, region.flags), (size, flags), f"size and flags of region {index}")
        room = bytearray(struct.pack("<IIIIQQ", 64, 0, igb.TABLE_BAR, 0, 0, 0) + bytes(32))
        device.call(vfio.DEVICE_GET_REGION_INFO, room)
        start = struct.unpack_from("<I", room, 12)[0]
        t.equal(start, 32, "offset of the capability after the region info")
        t.equal(
            struct.unpack_from("<HHI", room, start), (REGION_CAP_MSIX_MAPPABLE, 1, 0), "id, version, next"
        )
        ports = device.region(2).offset
        t.errno(errno.EINVAL, libc.mmap, PAGE, vfio.READ_WRITE, mmap.MAP_SHARED, device.fd, ports)
        if has_ports:
            t.equal(len(os.pread(device.fd, 4, ports)), 4, "bytes read from the port BAR")
