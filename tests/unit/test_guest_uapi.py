# SPDX-License-Identifier: GPL-2.0-only
"""The structures' sizes and offsets compared with include/uapi/linux/{vfio,iommufd}.h of Linux 7.3."""

from __future__ import annotations

import ctypes
import os

import pytest

from guest import iommufd, libc, vfio
from guest.uapi import Struct

SIZES: dict[type[ctypes.Structure], int] = {
    vfio.GroupStatus: 8,
    vfio.DeviceInfo: 24,
    vfio.RegionInfo: 32,
    vfio.IrqInfo: 16,
    vfio.IrqSet: 20,
    vfio.BindIommufd: 24,
    vfio.AttachPt: 16,
    vfio.DetachPt: 12,
    vfio.Ioeventfd: 32,
    vfio.Type1Info: 24,
    vfio.DmaMap: 32,
    vfio.DmaUnmap: 24,
    iommufd.Destroy: 8,
    iommufd.IoasAlloc: 12,
    iommufd.AllowIovas: 24,
    iommufd.IoasCopy: 40,
    iommufd.IovaRanges: 32,
    iommufd.IovaRange: 16,
    iommufd.IoasMap: 40,
    iommufd.IoasMapFile: 40,
    iommufd.IoasUnmap: 24,
    iommufd.Option: 24,
    iommufd.VfioIoas: 12,
    iommufd.HwptAlloc: 48,
    iommufd.HwptSetDirtyTracking: 16,
    iommufd.HwptGetDirtyBitmap: 48,
    iommufd.HwptInvalidate: 32,
    iommufd.VdeviceAlloc: 24,
    iommufd.VeventqAlloc: 32,
    iommufd.HwQueueAlloc: 40,
    iommufd.FaultAlloc: 16,
    iommufd.ViommuAlloc: 40,
    iommufd.HwInfo: 40,
    iommufd.ChangeProcess: 8,
    iommufd.NoiommuGetPa: 40,
}

OFFSETS: dict[tuple[type[ctypes.Structure], str], int] = {
    (vfio.RegionInfo, "size"): 16,
    (vfio.RegionInfo, "offset"): 24,
    (vfio.BindIommufd, "out_devid"): 12,
    (vfio.BindIommufd, "token_uuid_ptr"): 16,
    (vfio.AttachPt, "pt_id"): 8,
    (vfio.AttachPt, "pasid"): 12,
    (vfio.Ioeventfd, "offset"): 8,
    (vfio.Ioeventfd, "fd"): 24,
    (iommufd.IoasMap, "user_va"): 16,
    (iommufd.IoasMap, "iova"): 32,
    (iommufd.Option, "op"): 8,
    (iommufd.Option, "val64"): 16,
    (iommufd.HwptAlloc, "out_hwpt_id"): 16,
    (iommufd.FaultAlloc, "out_fault_fd"): 12,
    (iommufd.HwInfo, "out_data_type"): 24,
    (iommufd.HwInfo, "out_capabilities"): 32,
    (iommufd.NoiommuGetPa, "ioas_id"): 8,
    (iommufd.NoiommuGetPa, "iova"): 16,
    (iommufd.NoiommuGetPa, "length"): 24,
    (iommufd.NoiommuGetPa, "out_phys"): 32,
}


@pytest.mark.parametrize(
    ("structure", "size"), SIZES.items(), ids=lambda value: getattr(value, "__name__", "")
)
def test_sizes_are_the_kernels(structure: type[ctypes.Structure], size: int) -> None:
    assert ctypes.sizeof(structure) == size


@pytest.mark.parametrize(("member", "offset"), OFFSETS.items(), ids=lambda value: str(value))
def test_offsets_are_the_kernels(member: tuple[type[ctypes.Structure], str], offset: int) -> None:
    structure, name = member
    assert getattr(structure, name).offset == offset


def test_every_structure_of_both_modules_is_checked_here() -> None:
    declared = {
        value
        for module in (vfio, iommufd)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, ctypes.Structure) and value is not Struct
    }
    assert declared == set(SIZES)


def test_a_structure_knows_its_own_size_unless_told_otherwise() -> None:
    assert iommufd.NoiommuGetPa().size == 40
    assert iommufd.NoiommuGetPa(size=39).size == 39
    assert vfio.AttachPt(pt_id=3).argsz == 16


def test_ioctl_numbers_are_bare() -> None:
    assert ord(";") << 8 | 100 == vfio.GET_API_VERSION
    assert vfio.DEVICE_BIND_IOMMUFD - vfio.GET_API_VERSION == 18
    assert ord(";") << 8 | 0x80 == iommufd.DESTROY
    assert iommufd.IOAS_NOIOMMU_GET_PA - iommufd.DESTROY == 0x15


def test_eventfds_count_and_do_not_block() -> None:
    fd = libc.eventfd()
    try:
        assert libc.eventfd_count(fd) == 0
        os.write(fd, (2).to_bytes(8, "little"))
        assert libc.eventfd_count(fd) == 2
        assert libc.eventfd_count(fd) == 0
    finally:
        os.close(fd)
