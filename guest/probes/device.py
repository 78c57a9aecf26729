# SPDX-License-Identifier: GPL-2.0-only
"""The device file of vfio-pci: device information, ioctl structures and errors."""

from __future__ import annotations

import errno
import struct

from guest import brink, edu, libc, pci, vfio
from guest import iommufd as api
from guest.brink import NOWHERE, Brink
from guest.case import Test, case
from guest.opened import Event, opened, reopened
from guest.vfio import BAR0, CONFIG, PCI_COMMAND

EDU = ("noiommu", "edu", "!viommu")

GET, SET, PROBE = vfio.FEATURE_GET, vfio.FEATURE_SET, vfio.FEATURE_PROBE

IGB = ("noiommu", "igb", "!viommu")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_get_info()")
def info_counts_regions_and_interrupts(t: Test) -> None:
    """GET_INFO of a PCI device reports nine regions and five interrupts, accepts an argsz that ends after
    these counts, and writes nothing beyond argsz."""
    with opened(t, t.device("edu")) as device:
        info = device.info()
        t.equal((info.num_regions, info.num_irqs), (9, 5), "numbers of regions and interrupts")
        t.check(info.flags & vfio.DEVICE_FLAGS_PCI, "GET_INFO lacks the PCI flag")
        least = vfio.DeviceInfo(argsz=16, cap_offset=77)
        device.call(vfio.DEVICE_GET_INFO, least)
        t.equal((least.num_regions, least.cap_offset), (9, 77), "regions, and the field beyond argsz")


def _bus_master_is_off(t: Test, bdf: str) -> None:
    """Fail unless bus mastering is off at open, can be switched on, and is off after the close.

    Tried with runtime PM and without: a device that was suspended has lost the bit on resume; an active one
    keeps it.
    """
    master = vfio.PCI_COMMAND_MASTER

    def real() -> int:
        return pci.config_number(bdf, PCI_COMMAND, 2) & master

    with pci.bound(bdf):
        for sleep in ("auto", "on"):
            pci.write(pci.path_of(bdf) / "power" / "control", sleep)
            command = pci.config_number(bdf, PCI_COMMAND, 2)
            pci.write_config(bdf, PCI_COMMAND, struct.pack("<H", command | master))
            t.check(real(), "bus mastering cannot be switched on at all")
            with reopened(t, bdf) as device:
                t.check(not device.read_config(PCI_COMMAND, 2) & master, "bus mastering is on after open")
                t.check(not real(), "the device's own bit is on after open")
                device.set_bus_master()
                t.check(device.read_config(PCI_COMMAND, 2) & master, "bus mastering still reads as off")
                t.check(real(), "the device's own bit is still off")
                device.close()
                t.check(not real(), "bus mastering is on after close")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_enable(), vfio_pci_core_disable()")
def bus_master_is_off_at_open_and_after_close(t: Test) -> None:
    """Bus mastering is off after open, whatever it was before, can be switched on, and is off after close."""
    _bus_master_is_off(t, t.device("edu"))


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_enable(), vfio_pci_core_disable()")
def bus_master_of_a_card_that_is_reset_is_off(t: Test) -> None:
    """Bus mastering of a card that is reset and restored at open and close is off after open, can be switched
    on, and is off after close."""
    _bus_master_is_off(t, t.device("igb"))


@case(needs=EDU, cites="drivers/vfio/vfio_main.c vfio_ioctl_device_feature(); vfio_pci_core.c")
def features_can_be_probed(t: Test) -> None:
    """PROBE reports the features of a device and their operations and changes nothing; a request with no
    operation, with two, or with an unknown flag is refused."""
    with opened(t, t.device("edu")) as device:
        for feature in (vfio.LOW_POWER_ENTRY, vfio.LOW_POWER_ENTRY_WAKEUP, vfio.LOW_POWER_EXIT):
            device.feature(PROBE | SET | feature)
            t.errno(errno.EINVAL, device.feature, PROBE | GET | feature)
        for feature in (vfio.FEATURE_VF_TOKEN, vfio.FEATURE_MIGRATION, 0xFFFF):
            t.errno(errno.ENOTTY, device.feature, PROBE | GET | feature)
            t.errno(errno.ENOTTY, device.feature, PROBE | SET | feature)
        t.errno(errno.EINVAL, device.feature, vfio.LOW_POWER_ENTRY)
        for feature in (vfio.LOW_POWER_ENTRY, 0xFFFF):
            t.errno(errno.EINVAL, device.feature, GET | SET | feature)
        t.errno(errno.EINVAL, device.feature, PROBE | SET | 1 << 19 | vfio.LOW_POWER_ENTRY)
        t.equal(device.read_config(vfio.PCI_VENDOR_ID, 2), edu.VENDOR_ID, "vendor id after all probes")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_ioctl()")
def unknown_requests_are_enotty(t: Test) -> None:
    """A device file returns ENOTTY for ioctls of containers, groups and iommufds, and for unknown ones."""
    with opened(t, t.device("edu")) as device:
        for request in (
            vfio.GET_API_VERSION,
            vfio.SET_IOMMU,
            vfio.GROUP_GET_STATUS,
            vfio.GROUP_SET_CONTAINER,
            vfio.GROUP_UNSET_CONTAINER,
            vfio.IOMMU_UNMAP_DMA,
            api.IOAS_NOIOMMU_GET_PA,
            0x3BFF,
            0x5401,
        ):
            t.errno(errno.ENOTTY, device.call, request, bytearray(64))


@case(
    needs=EDU,
    cites="drivers/vfio/vfio_main.c vfio_get_region_info(), vfio_ioctl_device_feature(); "
    "pci/vfio_pci_core.c (minsz)",
)
def structures_may_end_where_memory_does(t: Test) -> None:
    """Every device ioctl accepts its shortest structure at the end of memory; one byte less of memory is
    EFAULT, one byte less of argsz EINVAL."""
    with opened(t, t.device("edu")) as device, Brink() as edge:
        event = Event()
        device.set_eventfds(vfio.REQ, event.fd)
        where = device.region(BAR0).offset + edu.REG_LIVENESS
        off = vfio.IrqSet(flags=vfio.SET_DATA_NONE | vfio.SET_ACTION_TRIGGER, index=vfio.REQ)
        shortest: tuple[tuple[int, bytes], ...] = (
            (vfio.DEVICE_GET_INFO, bytes(vfio.DeviceInfo(argsz=16))[:16]),
            (vfio.DEVICE_GET_INFO, bytes(vfio.DeviceInfo(argsz=20))[:20]),
            (vfio.DEVICE_GET_REGION_INFO, bytes(vfio.RegionInfo(index=CONFIG))),
            (vfio.DEVICE_GET_IRQ_INFO, bytes(vfio.IrqInfo(index=vfio.REQ))),
            (vfio.DEVICE_SET_IRQS, bytes(off)),
            (vfio.DEVICE_IOEVENTFD, bytes(vfio.Ioeventfd(argsz=28, flags=4, offset=where, fd=event.fd))[:28]),
            (vfio.DEVICE_FEATURE, struct.pack("<II", 8, PROBE | SET | vfio.LOW_POWER_ENTRY)),
        )
        for request, data in shortest:
            t.log(f"ioctl {request:#x} with {len(data)} bytes")
            least = 16 if request == vfio.DEVICE_GET_INFO else len(data)
            t.errno(errno.EFAULT, libc.ioctl, device.fd, request, edge.put(data, least - 1))
            small = struct.pack("<I", least - 1) + data[4:]
            t.errno(errno.EINVAL, libc.ioctl, device.fd, request, edge.put(small))
            libc.ioctl(device.fd, request, edge.put(data))


@case(
    needs=EDU,
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_get_info(); vfio_main.c vfio_get_region_info()",
)
def unwritable_answers_are_faults(t: Test) -> None:
    """An information ioctl whose result cannot be written, or without an argument, is EFAULT."""
    with opened(t, t.device("edu")) as device:
        for request, argument in (
            (vfio.DEVICE_GET_INFO, vfio.DeviceInfo()),
            (vfio.DEVICE_GET_REGION_INFO, vfio.RegionInfo(index=BAR0)),
            (vfio.DEVICE_GET_IRQ_INFO, vfio.IrqInfo()),
        ):
            with brink.frozen(argument) as where:
                t.errno(errno.EFAULT, libc.ioctl, device.fd, request, where)
        for request in (
            vfio.DEVICE_GET_INFO,
            vfio.DEVICE_GET_REGION_INFO,
            vfio.DEVICE_GET_IRQ_INFO,
            vfio.DEVICE_SET_IRQS,
            vfio.DEVICE_IOEVENTFD,
            vfio.DEVICE_FEATURE,
            vfio.DEVICE_GET_PCI_HOT_RESET_INFO,
            vfio.DEVICE_PCI_HOT_RESET,
        ):
            for nowhere in (0, NOWHERE):
                t.errno(errno.EFAULT, libc.ioctl, device.fd, request, nowhere)
