# SPDX-License-Identifier: GPL-2.0-only
"""iommufd's user interface (include/uapi/linux/iommufd.h). Each method makes one ioctl and raises its
OSError."""

from __future__ import annotations

import ctypes
import os
from typing import Optional

from guest.uapi import Descriptor, Struct, s32, u8, u16, u32, u64

PATH = "/dev/iommu"

# _IO(';', 0x80 + n)
DESTROY = 0x3B80
IOAS_ALLOC = 0x3B81
IOAS_ALLOW_IOVAS = 0x3B82
IOAS_COPY = 0x3B83
IOAS_IOVA_RANGES = 0x3B84
IOAS_MAP = 0x3B85
IOAS_UNMAP = 0x3B86
OPTION = 0x3B87
VFIO_IOAS = 0x3B88
HWPT_ALLOC = 0x3B89
GET_HW_INFO = 0x3B8A
HWPT_SET_DIRTY_TRACKING = 0x3B8B
HWPT_GET_DIRTY_BITMAP = 0x3B8C
HWPT_INVALIDATE = 0x3B8D
FAULT_QUEUE_ALLOC = 0x3B8E
IOAS_MAP_FILE = 0x3B8F
VIOMMU_ALLOC = 0x3B90
VDEVICE_ALLOC = 0x3B91
IOAS_CHANGE_PROCESS = 0x3B92
VEVENTQ_ALLOC = 0x3B93
HW_QUEUE_ALLOC = 0x3B94
IOAS_NOIOMMU_GET_PA = 0x3B95

MAP_FIXED_IOVA, MAP_WRITEABLE, MAP_READABLE = 1, 2, 4
READ_WRITE = MAP_WRITEABLE | MAP_READABLE

OPTION_RLIMIT_MODE, OPTION_HUGE_PAGES = 0, 1
OPTION_SET, OPTION_GET = 0, 1
VFIO_IOAS_GET, VFIO_IOAS_SET, VFIO_IOAS_CLEAR = 0, 1, 2

DIRTY_TRACKING_ENABLE = 1
VIOMMU_TYPE_ARM_SMMUV3 = 1
HWPT_NEST_PARENT, HWPT_DIRTY_TRACKING, HWPT_FAULT_ID_VALID, HWPT_PASID = 1, 2, 4, 8

LAST_IOVA = 2**64 - 1
NO_SUCH_ID = 0xDEAD
"""An object id that no test reaches."""


class Destroy(Struct):
    """struct iommu_destroy."""

    size: int
    id: int
    _fields_ = (*u32("size", "id"),)


class IoasAlloc(Struct):
    """struct iommu_ioas_alloc."""

    size: int
    flags: int
    out_ioas_id: int
    _fields_ = (*u32("size", "flags", "out_ioas_id"),)


class IovaRange(ctypes.Structure):
    """struct iommu_iova_range."""

    start: int
    last: int
    _fields_ = (*u64("start", "last"),)


class IovaRanges(Struct):
    """struct iommu_ioas_iova_ranges."""

    size: int
    ioas_id: int
    num_iovas: int
    reserved: int
    allowed_iovas: int
    out_iova_alignment: int
    _fields_ = (
        *u32("size", "ioas_id", "num_iovas", "reserved"),
        *u64("allowed_iovas", "out_iova_alignment"),
    )


class AllowIovas(Struct):
    """struct iommu_ioas_allow_iovas."""

    size: int
    ioas_id: int
    num_iovas: int
    reserved: int
    allowed_iovas: int
    _fields_ = (
        *u32("size", "ioas_id", "num_iovas", "reserved"),
        *u64("allowed_iovas"),
    )


class IoasMap(Struct):
    """struct iommu_ioas_map."""

    size: int
    flags: int
    ioas_id: int
    reserved: int
    user_va: int
    length: int
    iova: int
    _fields_ = (
        *u32("size", "flags", "ioas_id", "reserved"),
        *u64("user_va", "length", "iova"),
    )


class IoasMapFile(Struct):
    """struct iommu_ioas_map_file."""

    size: int
    flags: int
    ioas_id: int
    fd: int
    start: int
    length: int
    iova: int
    _fields_ = (
        *u32("size", "flags", "ioas_id"),
        *s32("fd"),
        *u64("start", "length", "iova"),
    )


class IoasCopy(Struct):
    """struct iommu_ioas_copy."""

    size: int
    flags: int
    dst_ioas_id: int
    src_ioas_id: int
    length: int
    dst_iova: int
    src_iova: int
    _fields_ = (
        *u32("size", "flags", "dst_ioas_id", "src_ioas_id"),
        *u64("length", "dst_iova", "src_iova"),
    )


class IoasUnmap(Struct):
    """struct iommu_ioas_unmap."""

    size: int
    ioas_id: int
    iova: int
    length: int
    _fields_ = (
        *u32("size", "ioas_id"),
        *u64("iova", "length"),
    )


class Option(Struct):
    """struct iommu_option."""

    size: int
    option_id: int
    op: int
    reserved: int
    object_id: int
    val64: int
    _fields_ = (
        *u32("size", "option_id"),
        *u16("op", "reserved"),
        *u32("object_id"),
        *u64("val64"),
    )


class VfioIoas(Struct):
    """struct iommu_vfio_ioas."""

    size: int
    ioas_id: int
    op: int
    reserved: int
    _fields_ = (
        *u32("size", "ioas_id"),
        *u16("op", "reserved"),
    )


class HwptAlloc(Struct):
    """struct iommu_hwpt_alloc."""

    size: int
    flags: int
    dev_id: int
    pt_id: int
    out_hwpt_id: int
    reserved: int
    data_type: int
    data_len: int
    data_uptr: int
    fault_id: int
    reserved2: int
    _fields_ = (
        *u32("size", "flags", "dev_id", "pt_id", "out_hwpt_id", "reserved", "data_type", "data_len"),
        *u64("data_uptr"),
        *u32("fault_id", "reserved2"),
    )


class HwptSetDirtyTracking(Struct):
    """struct iommu_hwpt_set_dirty_tracking."""

    size: int
    flags: int
    hwpt_id: int
    reserved: int
    _fields_ = (*u32("size", "flags", "hwpt_id", "reserved"),)


class HwptGetDirtyBitmap(Struct):
    """struct iommu_hwpt_get_dirty_bitmap."""

    _fields_ = (*u32("size", "hwpt_id", "flags", "reserved"), *u64("iova", "length", "page_size", "data"))


class HwptInvalidate(Struct):
    """struct iommu_hwpt_invalidate."""

    _fields_ = (
        *u32("size", "hwpt_id"),
        *u64("data_uptr"),
        *u32("data_type", "entry_len", "entry_num", "reserved"),
    )


class VdeviceAlloc(Struct):
    """struct iommu_vdevice_alloc."""

    _fields_ = (*u32("size", "viommu_id", "dev_id", "out_vdevice_id"), *u64("virt_id"))


class VeventqAlloc(Struct):
    """struct iommu_veventq_alloc."""

    _fields_ = (
        *u32("size", "flags", "viommu_id", "type", "veventq_depth", "out_veventq_id", "out_veventq_fd"),
        *u32("reserved"),
    )


class HwQueueAlloc(Struct):
    """struct iommu_hw_queue_alloc."""

    _fields_ = (
        *u32("size", "flags", "viommu_id", "type", "index", "out_hw_queue_id"),
        *u64("nesting_parent_iova", "length"),
    )


class FaultAlloc(Struct):
    """struct iommu_fault_alloc."""

    size: int
    flags: int
    out_fault_id: int
    out_fault_fd: int
    _fields_ = (*u32("size", "flags", "out_fault_id", "out_fault_fd"),)


class ViommuAlloc(Struct):
    """struct iommu_viommu_alloc."""

    size: int
    flags: int
    type: int
    dev_id: int
    hwpt_id: int
    out_viommu_id: int
    data_len: int
    reserved: int
    data_uptr: int
    _fields_ = (
        *u32("size", "flags", "type", "dev_id", "hwpt_id", "out_viommu_id", "data_len", "reserved"),
        *u64("data_uptr"),
    )


class HwInfo(Struct):
    """struct iommu_hw_info."""

    size: int
    flags: int
    dev_id: int
    data_len: int
    data_uptr: int
    out_data_type: int
    out_max_pasid_log2: int
    out_capabilities: int
    _fields_ = (
        *u32("size", "flags", "dev_id", "data_len"),
        *u64("data_uptr"),
        *u32("out_data_type"),
        *u8("out_max_pasid_log2"),
        ("reserved", ctypes.c_uint8 * 3),
        *u64("out_capabilities"),
    )


class ChangeProcess(Struct):
    """struct iommu_ioas_change_process."""

    size: int
    reserved: int
    _fields_ = (*u32("size", "reserved"),)


class NoiommuGetPa(Struct):
    """struct iommu_ioas_noiommu_get_pa, new in Linux 7.3."""

    size: int
    flags: int
    ioas_id: int
    reserved: int
    iova: int
    length: int
    out_phys: int
    _fields_ = (
        *u32("size", "flags", "ioas_id", "reserved"),
        *u64("iova", "length", "out_phys"),
    )


class Iommufd(Descriptor):
    """An open /dev/iommu."""

    def __init__(self, path: str = PATH) -> None:
        super().__init__(os.open(path, os.O_RDWR | os.O_CLOEXEC))

    def destroy(self, object_id: int) -> None:
        """IOMMU_DESTROY."""
        self.call(DESTROY, Destroy(id=object_id))

    def ioas_alloc(self) -> int:
        """IOMMU_IOAS_ALLOC: make an address space and return its id."""
        argument = IoasAlloc()
        self.call(IOAS_ALLOC, argument)
        return argument.out_ioas_id

    def map(
        self, ioas: int, va: int, length: int, iova: Optional[int] = None, *, flags: int = READ_WRITE
    ) -> int:
        """IOMMU_IOAS_MAP; return the IOVA, which the kernel chooses when *iova* is None."""
        if iova is not None:
            flags |= MAP_FIXED_IOVA
        argument = IoasMap(flags=flags, ioas_id=ioas, user_va=va, length=length, iova=iova or 0)
        self.call(IOAS_MAP, argument)
        return argument.iova

    def map_file(
        self,
        ioas: int,
        fd: int,
        length: int,
        iova: Optional[int] = None,
        *,
        start: int = 0,
        flags: int = READ_WRITE,
    ) -> int:
        """IOMMU_IOAS_MAP_FILE: map a memfd or a dma-buf; return the IOVA."""
        if iova is not None:
            flags |= MAP_FIXED_IOVA
        argument = IoasMapFile(flags=flags, ioas_id=ioas, fd=fd, start=start, length=length, iova=iova or 0)
        self.call(IOAS_MAP_FILE, argument)
        return argument.iova

    def unmap(self, ioas: int, iova: int, length: int) -> int:
        """IOMMU_IOAS_UNMAP; return the number of bytes unmapped."""
        argument = IoasUnmap(ioas_id=ioas, iova=iova, length=length)
        self.call(IOAS_UNMAP, argument)
        return argument.length

    def copy(
        self,
        dst: int,
        src: int,
        length: int,
        src_iova: int,
        dst_iova: Optional[int] = None,
        *,
        flags: int = READ_WRITE,
    ) -> int:
        """IOMMU_IOAS_COPY from *src* to *dst* without pinning again; return the IOVA in *dst*."""
        if dst_iova is not None:
            flags |= MAP_FIXED_IOVA
        argument = IoasCopy(
            flags=flags,
            dst_ioas_id=dst,
            src_ioas_id=src,
            length=length,
            dst_iova=dst_iova or 0,
            src_iova=src_iova,
        )
        self.call(IOAS_COPY, argument)
        return argument.dst_iova

    def get_pa(self, ioas: int, iova: int, length: int) -> tuple[int, int]:
        """IOMMU_IOAS_NOIOMMU_GET_PA; return (physical address, contiguous bytes, at most *length*)."""
        argument = NoiommuGetPa(ioas_id=ioas, iova=iova, length=length)
        self.call(IOAS_NOIOMMU_GET_PA, argument)
        return argument.out_phys, argument.length

    def iova_ranges(self, ioas: int, *, room: int = 16) -> tuple[list[tuple[int, int]], int]:
        """IOMMU_IOAS_IOVA_RANGES; return ([(first, last), ...], alignment)."""
        ranges = (IovaRange * room)()
        argument = IovaRanges(ioas_id=ioas, num_iovas=room, allowed_iovas=ctypes.addressof(ranges))
        self.call(IOAS_IOVA_RANGES, argument)
        found = [(ranges[i].start, ranges[i].last) for i in range(argument.num_iovas)]
        return found, argument.out_iova_alignment

    def allow_iovas(self, ioas: int, *allowed: tuple[int, int]) -> None:
        """IOMMU_IOAS_ALLOW_IOVAS with (first, last) pairs."""
        ranges = (IovaRange * max(len(allowed), 1))(*(IovaRange(first, last) for first, last in allowed))
        argument = AllowIovas(ioas_id=ioas, num_iovas=len(allowed), allowed_iovas=ctypes.addressof(ranges))
        self.call(IOAS_ALLOW_IOVAS, argument)

    def option_get(self, option: int, object_id: int = 0) -> int:
        """IOMMU_OPTION, op GET."""
        argument = Option(option_id=option, op=OPTION_GET, object_id=object_id)
        self.call(OPTION, argument)
        return argument.val64

    def option_set(self, option: int, value: int, object_id: int = 0) -> None:
        """IOMMU_OPTION, op SET."""
        self.call(OPTION, Option(option_id=option, op=OPTION_SET, object_id=object_id, val64=value))

    def vfio_ioas(self, op: int, ioas: int = 0) -> int:
        """IOMMU_VFIO_IOAS: get, set or clear the IOAS that the emulated container uses."""
        argument = VfioIoas(ioas_id=ioas, op=op)
        self.call(VFIO_IOAS, argument)
        return argument.ioas_id

    def hwpt_alloc(self, device: int, pt_id: int, *, flags: int = 0, fault_id: int = 0) -> int:
        """IOMMU_HWPT_ALLOC: make a page table and return its id."""
        argument = HwptAlloc(flags=flags, dev_id=device, pt_id=pt_id, fault_id=fault_id)
        self.call(HWPT_ALLOC, argument)
        return argument.out_hwpt_id

    def fault_queue_alloc(self) -> tuple[int, int]:
        """IOMMU_FAULT_QUEUE_ALLOC: make a queue of page faults and return its id and its descriptor."""
        argument = FaultAlloc()
        self.call(FAULT_QUEUE_ALLOC, argument)
        return argument.out_fault_id, argument.out_fault_fd

    def get_hw_info(self, device: int, *, flags: int = 0) -> HwInfo:
        """IOMMU_GET_HW_INFO without the vendor-specific data."""
        argument = HwInfo(flags=flags, dev_id=device)
        self.call(GET_HW_INFO, argument)
        return argument

    def set_dirty_tracking(self, hwpt: int, flags: int = DIRTY_TRACKING_ENABLE) -> None:
        """IOMMU_HWPT_SET_DIRTY_TRACKING."""
        self.call(HWPT_SET_DIRTY_TRACKING, HwptSetDirtyTracking(flags=flags, hwpt_id=hwpt))

    def viommu_alloc(self, device: int, hwpt: int, kind: int) -> int:
        """IOMMU_VIOMMU_ALLOC: make a virtual IOMMU of type *kind* for a guest and return its id."""
        argument = ViommuAlloc(type=kind, dev_id=device, hwpt_id=hwpt)
        self.call(VIOMMU_ALLOC, argument)
        return argument.out_viommu_id

    def change_process(self) -> None:
        """IOMMU_IOAS_CHANGE_PROCESS: account everything that the IOASes of this iommufd have pinned to the
        caller."""
        self.call(IOAS_CHANGE_PROCESS, ChangeProcess())
