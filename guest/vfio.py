# SPDX-License-Identifier: GPL-2.0-only
"""VFIO's user interface (include/uapi/linux/vfio.h): groups, containers, devices. One method, one ioctl.

Nothing here checks results: a refused call raises the kernel's OSError.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from pathlib import Path
from typing import NamedTuple, Optional, Union

from guest import libc, pci
from guest.closing import Closing
from guest.uapi import Descriptor, Struct, s32, u32, u64

# _IO(';', 100 + n): every VFIO ioctl is a bare number.
GET_API_VERSION = 0x3B64
CHECK_EXTENSION = 0x3B65
SET_IOMMU = 0x3B66
GROUP_GET_STATUS = 0x3B67
GROUP_SET_CONTAINER = 0x3B68
GROUP_UNSET_CONTAINER = 0x3B69
GROUP_GET_DEVICE_FD = 0x3B6A
DEVICE_GET_INFO = 0x3B6B
DEVICE_GET_REGION_INFO = 0x3B6C
DEVICE_GET_IRQ_INFO = 0x3B6D
DEVICE_SET_IRQS = 0x3B6E
DEVICE_RESET = 0x3B6F
DEVICE_GET_PCI_HOT_RESET_INFO = 0x3B70
IOMMU_GET_INFO = 0x3B70
DEVICE_PCI_HOT_RESET = 0x3B71
IOMMU_MAP_DMA = 0x3B71
IOMMU_UNMAP_DMA = 0x3B72
DEVICE_IOEVENTFD = 0x3B74
DEVICE_FEATURE = 0x3B75
DEVICE_BIND_IOMMUFD = 0x3B76
DEVICE_ATTACH_IOMMUFD_PT = 0x3B77
DEVICE_DETACH_IOMMUFD_PT = 0x3B78

TYPE1_IOMMU = 1
TYPE1V2_IOMMU = 3
NOIOMMU_IOMMU = 8
UPDATE_VADDR = 10
UNMAP_ALL = 2
TYPE1_INFO_IOVA_RANGES, TYPE1_INFO_DMA_AVAIL = 1, 3

GROUP_VIABLE = 1
GROUP_CONTAINER_SET = 2

DEVICE_FLAGS_RESET = 1
DEVICE_FLAGS_PCI = 2
REGION_READ, REGION_WRITE, REGION_MMAP, REGION_CAPS = 1, 2, 4, 8
IRQ_EVENTFD, IRQ_MASKABLE, IRQ_AUTOMASKED, IRQ_NORESIZE = 1, 2, 4, 8
SET_DATA_NONE, SET_DATA_BOOL, SET_DATA_EVENTFD = 1, 2, 4
SET_ACTION_MASK, SET_ACTION_UNMASK, SET_ACTION_TRIGGER = 8, 16, 32
FEATURE_GET, FEATURE_SET, FEATURE_PROBE = 1 << 16, 1 << 17, 1 << 18
FEATURE_VF_TOKEN, FEATURE_MIGRATION, FEATURE_DMA_BUF = 0, 1, 11
LOW_POWER_ENTRY, LOW_POWER_ENTRY_WAKEUP, LOW_POWER_EXIT = 3, 4, 5
BIND_FLAG_TOKEN = 1
PASID_FLAG = 1

OFFSET_SHIFT = 40
"""Position of the region index in a file offset (VFIO_PCI_OFFSET_SHIFT)."""

BAR0, BAR1, ROM, CONFIG, VGA = 0, 1, 6, 7, 8
INTX, MSI, MSIX, ERR, REQ = range(5)

# PCI configuration space, include/uapi/linux/pci_regs.h
PCI_VENDOR_ID = 0x00
PCI_COMMAND = 0x04
PCI_COMMAND_MEMORY, PCI_COMMAND_MASTER, PCI_COMMAND_INTX_DISABLE = 2, 4, 0x400

READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE

CONTAINER = "/dev/vfio/vfio"


class GroupStatus(Struct):
    """struct vfio_group_status."""

    argsz: int
    flags: int
    _fields_ = (*u32("argsz", "flags"),)


class DeviceInfo(Struct):
    """struct vfio_device_info."""

    argsz: int
    flags: int
    num_regions: int
    num_irqs: int
    cap_offset: int
    pad: int
    _fields_ = (*u32("argsz", "flags", "num_regions", "num_irqs", "cap_offset", "pad"),)


class RegionInfo(Struct):
    """struct vfio_region_info."""

    argsz: int
    flags: int
    index: int
    cap_offset: int
    size: int
    offset: int
    _fields_ = (
        *u32("argsz", "flags", "index", "cap_offset"),
        *u64("size", "offset"),
    )


class IrqInfo(Struct):
    """struct vfio_irq_info."""

    argsz: int
    flags: int
    index: int
    count: int
    _fields_ = (*u32("argsz", "flags", "index", "count"),)


class IrqSet(Struct):
    """struct vfio_irq_set, without the data that follows it."""

    argsz: int
    flags: int
    index: int
    start: int
    count: int
    _fields_ = (*u32("argsz", "flags", "index", "start", "count"),)


class BindIommufd(Struct):
    """struct vfio_device_bind_iommufd."""

    argsz: int
    flags: int
    iommufd: int
    out_devid: int
    token_uuid_ptr: int
    _fields_ = (
        *u32("argsz", "flags"),
        *s32("iommufd"),
        *u32("out_devid"),
        *u64("token_uuid_ptr"),
    )


class AttachPt(Struct):
    """struct vfio_device_attach_iommufd_pt."""

    argsz: int
    flags: int
    pt_id: int
    pasid: int
    _fields_ = (*u32("argsz", "flags", "pt_id", "pasid"),)


class DetachPt(Struct):
    """struct vfio_device_detach_iommufd_pt."""

    argsz: int
    flags: int
    pasid: int
    _fields_ = (*u32("argsz", "flags", "pasid"),)


class Ioeventfd(Struct):
    """struct vfio_device_ioeventfd."""

    argsz: int
    flags: int
    offset: int
    data: int
    fd: int
    reserved: int
    _fields_ = (*u32("argsz", "flags"), *u64("offset", "data"), *s32("fd"), *u32("reserved"))


class Type1Info(Struct):
    """struct vfio_iommu_type1_info."""

    argsz: int
    flags: int
    iova_pgsizes: int
    cap_offset: int
    pad: int
    _fields_ = (
        *u32("argsz", "flags"),
        *u64("iova_pgsizes"),
        *u32("cap_offset", "pad"),
    )


class DmaMap(Struct):
    """struct vfio_iommu_type1_dma_map."""

    argsz: int
    flags: int
    vaddr: int
    iova: int
    size: int
    _fields_ = (
        *u32("argsz", "flags"),
        *u64("vaddr", "iova", "size"),
    )


class DmaUnmap(Struct):
    """struct vfio_iommu_type1_dma_unmap."""

    argsz: int
    flags: int
    iova: int
    size: int
    _fields_ = (
        *u32("argsz", "flags"),
        *u64("iova", "size"),
    )


_WIDTHS: dict[int, type[ctypes._SimpleCData]] = {  # type: ignore[type-arg]
    1: ctypes.c_uint8,
    2: ctypes.c_uint16,
    4: ctypes.c_uint32,
    8: ctypes.c_uint64,
}


class Bar(Closing):
    """A mapped BAR, or a part of one.  Each access is one load or store of exactly its width."""

    def __init__(
        self, fd: int, offset: int, length: int, prot: int = mmap.PROT_READ | mmap.PROT_WRITE
    ) -> None:
        self.length = length
        self.address = libc.mmap(length, prot, mmap.MAP_SHARED, fd, offset)

    def read32(self, offset: int) -> int:
        """Load 4 bytes."""
        return int(ctypes.c_uint32.from_address(self._at(offset, 4)).value)

    def write32(self, offset: int, value: int) -> None:
        """Store 4 bytes."""
        ctypes.c_uint32.from_address(self._at(offset, 4)).value = value

    def write64(self, offset: int, value: int) -> None:
        """Store 8 bytes."""
        ctypes.c_uint64.from_address(self._at(offset, 8)).value = value

    def load(self, offset: int, width: int) -> int:
        """Load *width* bytes: 1, 2, 4 or 8."""
        return int(_WIDTHS[width].from_address(self._at(offset, width)).value)

    def store(self, offset: int, width: int, value: int) -> None:
        """Store *width* bytes: 1, 2, 4 or 8."""
        _WIDTHS[width].from_address(self._at(offset, width)).value = value

    def close(self) -> None:
        """Unmap; a mapping left behind keeps the device open."""
        if self.address:
            address, self.address = self.address, 0
            libc.munmap(address, self.length)

    def _at(self, offset: int, width: int) -> int:
        if not self.address or offset < 0 or offset + width > self.length or offset % width:
            raise ValueError(f"{width}-byte access at {offset:#x} of a BAR of {self.length:#x} bytes")
        return self.address + offset


class Region(NamedTuple):
    """Position of a region in the device's file."""

    number: int
    """Its index in the uapi; tuples have an index() of their own."""

    flags: int
    size: int
    offset: int


class Device(Descriptor):
    """A device file: a cdev just opened, or one from a group (then already bound)."""

    def bind_iommufd(self, iommufd: int, *, token: Optional[bytes] = None) -> int:
        """DEVICE_BIND_IOMMUFD: bind the device to an iommufd and return its object id there."""
        argument = BindIommufd(iommufd=iommufd)
        uuid = ctypes.create_string_buffer(token, 16) if token is not None else None
        if uuid is not None:
            argument.flags = BIND_FLAG_TOKEN
            argument.token_uuid_ptr = ctypes.addressof(uuid)
        self.call(DEVICE_BIND_IOMMUFD, argument)
        return argument.out_devid

    def attach(self, pt_id: int, *, pasid: Optional[int] = None) -> int:
        """DEVICE_ATTACH_IOMMUFD_PT: attach to an IOAS or HWPT and return the id of the HWPT in use."""
        argument = AttachPt(pt_id=pt_id)
        if pasid is not None:
            argument.flags, argument.pasid = PASID_FLAG, pasid
        self.call(DEVICE_ATTACH_IOMMUFD_PT, argument)
        return argument.pt_id

    def detach(self, *, pasid: Optional[int] = None) -> None:
        """DEVICE_DETACH_IOMMUFD_PT."""
        argument = DetachPt()
        if pasid is not None:
            argument.flags, argument.pasid = PASID_FLAG, pasid
        self.call(DEVICE_DETACH_IOMMUFD_PT, argument)

    def info(self) -> DeviceInfo:
        """DEVICE_GET_INFO."""
        argument = DeviceInfo()
        self.call(DEVICE_GET_INFO, argument)
        return argument

    def region_info(self, index: int) -> RegionInfo:
        """DEVICE_GET_REGION_INFO."""
        argument = RegionInfo(index=index)
        self.call(DEVICE_GET_REGION_INFO, argument)
        return argument

    def region(self, index: int) -> Region:
        """Return the region as a value."""
        info = self.region_info(index)
        return Region(number=index, flags=info.flags, size=info.size, offset=info.offset)

    def irq_info(self, index: int) -> IrqInfo:
        """DEVICE_GET_IRQ_INFO."""
        argument = IrqInfo(index=index)
        self.call(DEVICE_GET_IRQ_INFO, argument)
        return argument

    def set_irqs(self, index: int, flags: int, start: int = 0, count: int = 1, data: bytes = b"") -> None:
        """DEVICE_SET_IRQS with *data* behind the header."""
        head = IrqSet(flags=flags, index=index, start=start, count=count)
        head.argsz = ctypes.sizeof(IrqSet) + len(data)
        self.call(DEVICE_SET_IRQS, bytearray(bytes(head) + data))

    def set_eventfds(self, index: int, *fds: int, start: int = 0) -> None:
        """Make the vectors from *start* of interrupt *index* signal these eventfds; -1 removes one."""
        flags = SET_DATA_EVENTFD | SET_ACTION_TRIGGER
        self.set_irqs(index, flags, start, len(fds), struct.pack(f"<{len(fds)}i", *fds))

    def disable_irqs(self, index: int) -> None:
        """Switch interrupt *index* off."""
        self.set_irqs(index, SET_DATA_NONE | SET_ACTION_TRIGGER, 0, 0)

    def trigger(self, index: int, vector: int = 0) -> None:
        """Make the kernel signal the eventfd as if the device had raised the interrupt."""
        self.set_irqs(index, SET_DATA_NONE | SET_ACTION_TRIGGER, vector, 1)

    def reset(self) -> None:
        """DEVICE_RESET."""
        self.call(DEVICE_RESET)

    def feature(self, flags: int, payload: Union[bytes, bytearray] = b"") -> bytes:
        """DEVICE_FEATURE; return the payload as the kernel left it."""
        argument = bytearray(struct.pack("<II", 8 + len(payload), flags) + payload)
        self.call(DEVICE_FEATURE, argument)
        return bytes(argument[8:])

    def dma_buf(self, index: int, length: int) -> int:
        """Return a new descriptor of a dma-buf with the first *length* bytes of a BAR."""
        request = struct.pack("<IIIIQQ", index, os.O_RDWR | os.O_CLOEXEC, 0, 1, 0, length)
        argument = bytearray(struct.pack("<II", 8 + len(request), FEATURE_GET | FEATURE_DMA_BUF) + request)
        return self.call(DEVICE_FEATURE, argument)

    def read_config(self, offset: int, size: int) -> int:
        """Read a little-endian number of *size* bytes from configuration space."""
        data = os.pread(self.fd, size, self.region(CONFIG).offset + offset)
        return int.from_bytes(data, "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Write a little-endian number of *size* bytes to configuration space."""
        os.pwrite(self.fd, value.to_bytes(size, "little"), self.region(CONFIG).offset + offset)

    def set_bus_master(self, on: bool = True) -> None:
        """Enable or disable DMA and MSIs of the device; they are disabled after every open."""
        command = self.read_config(PCI_COMMAND, 2) & ~PCI_COMMAND_MASTER
        self.write_config(PCI_COMMAND, 2, command | (PCI_COMMAND_MASTER if on else 0))

    def bar(self, index: int = BAR0, *, offset: int = 0, length: Optional[int] = None) -> Bar:
        """Map a BAR; the caller must close it, because it keeps the device open."""
        region = self.region(index)
        return Bar(self.fd, region.offset + offset, region.size - offset if length is None else length)


class Container(Descriptor):
    """/dev/vfio/vfio, or an iommufd used as a container."""

    def api_version(self) -> int:
        """GET_API_VERSION."""
        return self.call(GET_API_VERSION)

    def check_extension(self, extension: int) -> int:
        """CHECK_EXTENSION: return the container's answer about *extension*, 0 for no."""
        return self.call(CHECK_EXTENSION, extension)

    def set_iommu(self, kind: int) -> None:
        """SET_IOMMU."""
        self.call(SET_IOMMU, kind)

    def iommu_info(self) -> Type1Info:
        """IOMMU_GET_INFO."""
        argument = Type1Info()
        self.call(IOMMU_GET_INFO, argument)
        return argument

    def map_dma(self, vaddr: int, iova: int, size: int, flags: int = REGION_READ | REGION_WRITE) -> None:
        """IOMMU_MAP_DMA."""
        self.call(IOMMU_MAP_DMA, DmaMap(vaddr=vaddr, iova=iova, size=size, flags=flags))

    def unmap_dma(self, iova: int, size: int, flags: int = 0) -> int:
        """IOMMU_UNMAP_DMA; return the number of bytes unmapped."""
        argument = DmaUnmap(iova=iova, size=size, flags=flags)
        self.call(IOMMU_UNMAP_DMA, argument)
        return argument.size

    def capability(self, wanted: int) -> bytes:
        """Return IOMMU_GET_INFO's answer from behind the header of the capability *wanted* on; raise
        ValueError without that capability."""
        answer = bytearray(bytes(Type1Info(argsz=4096)).ljust(4096, b"\0"))
        self.call(IOMMU_GET_INFO, answer)
        place = Type1Info.from_buffer_copy(answer).cap_offset
        while place:
            # struct vfio_info_cap_header
            name, _, following = struct.unpack_from("=HHI", answer, place)
            if name == wanted:
                return bytes(answer[place + 8 :])
            place = following
        raise ValueError(f"the container does not report capability {wanted}")

    def maps_left(self) -> int:
        """Return VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL from IOMMU_GET_INFO; raise ValueError without it."""
        return int(struct.unpack_from("=I", self.capability(TYPE1_INFO_DMA_AVAIL))[0])

    def iova_ranges(self) -> list[tuple[int, int]]:
        """Return VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, [(first, last), ...]; raise ValueError without it."""
        told = self.capability(TYPE1_INFO_IOVA_RANGES)
        count = struct.unpack_from("=I", told)[0]
        words = struct.unpack_from(f"={2 * count}Q", told, 8)
        return [(words[i], words[i + 1]) for i in range(0, len(words), 2)]


class Group(Descriptor):
    """A group file, /dev/vfio/G or /dev/vfio/noiommu-G."""

    def status(self) -> int:
        """GROUP_GET_STATUS: the flags."""
        argument = GroupStatus()
        self.call(GROUP_GET_STATUS, argument)
        return argument.flags

    def set_container(self, container: Union[int, Descriptor]) -> None:
        """GROUP_SET_CONTAINER with an open container or any descriptor."""
        number = container if isinstance(container, int) else container.fd
        self.call(GROUP_SET_CONTAINER, bytearray(struct.pack("<i", number)))

    def unset_container(self) -> None:
        """GROUP_UNSET_CONTAINER."""
        self.call(GROUP_UNSET_CONTAINER)

    def device(self, name: str) -> Device:
        """GROUP_GET_DEVICE_FD; *name* is the BDF, perhaps followed by ` vf_token=UUID`."""
        return Device(self.call(GROUP_GET_DEVICE_FD, bytearray(name.encode() + b"\0")))


def _open(path: Union[str, Path]) -> int:
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def try_open(node: Path) -> None:
    """Open any node, and close it at once."""
    os.close(_open(node))


def open_container(path: Union[str, Path] = CONTAINER) -> Container:
    """Open a container."""
    return Container(_open(path))


def open_group(bdf: str) -> Group:
    """Open the group node of *bdf*; raise ENOENT when it has none."""
    node = pci.group_node(bdf)
    if node is None:
        raise OSError(errno.ENOENT, f"{bdf} has no VFIO group node")
    return Group(_open(node))


def open_cdev(bdf: str) -> Device:
    """Open the device node of *bdf*; raise ENOENT when it has none."""
    node = pci.cdev_node(bdf)
    if node is None:
        raise OSError(errno.ENOENT, f"{bdf} has no VFIO device node")
    return Device(_open(node))
