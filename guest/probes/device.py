# SPDX-License-Identifier: GPL-2.0-only
"""The device file of vfio-pci: what it tells, what it virtualises, and where it says no."""

from __future__ import annotations

import errno
import mmap
import os
import struct
import time

from guest import brink, edu, libc, pci, vfio
from guest import iommufd as api
from guest.brink import NOWHERE, Brink
from guest.case import Test, case
from guest.opened import SETTLE, Event, opened, sigbus
from guest.vfio import BAR0, CONFIG, PCI_COMMAND, ROM, VGA

EDU = ("noiommu", "edu", "!viommu")

PCI_BAR0 = 0x10
PCI_CAPABILITIES = 0x34
PCI_INTERRUPT_LINE = 0x3C
MSI_ENABLE = 1

GET, SET, PROBE = vfio.FEATURE_GET, vfio.FEATURE_SET, vfio.FEATURE_PROBE

INDEX_SHIFT = 40

IGB = ("noiommu", "igb", "!viommu")
TABLE_BAR = vfio.BAR3
"""The BAR in which QEMU's igb keeps its MSI-X table, from the start of it."""

IOEVENTFDS = 1000
"""How many a device may have (drivers/vfio/pci/vfio_pci_rdwr.c, VFIO_PCI_IOEVENTFD_MAX)."""


def _resources(bdf: str) -> list[int]:
    """Sizes of the six BARs as sysfs has them."""
    lines = pci.read(pci.path_of(bdf) / "resource").splitlines()[:6]
    ranges = [tuple(int(word, 16) for word in line.split()[:2]) for line in lines]
    return [last - first + 1 if last else 0 for first, last in ranges]


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_get_info()")
def info_counts_regions_and_interrupts(t: Test) -> None:
    """A PCI device has nine regions and five interrupts; an argsz that just reaches the counts is enough, and
    nothing is written behind them."""
    with opened(t, t.device("edu")) as device:
        info = device.info()
        t.equal((info.num_regions, info.num_irqs), (9, 5), "numbers of regions and interrupts")
        t.check(info.flags & vfio.DEVICE_FLAGS_PCI, "a PCI device does not say that it is one")
        least = vfio.DeviceInfo(argsz=16, cap_offset=77)
        device.call(vfio.DEVICE_GET_INFO, least)
        t.equal((least.num_regions, least.cap_offset), (9, 77), "regions, and the field beyond argsz")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_get_region_info()")
def regions_are_the_bars(t: Test) -> None:
    """The BAR regions have the sizes that sysfs gives, those without a BAR are empty, and configuration
    space is 256 bytes that can be read and written but not mapped."""
    bdf = t.device("edu")
    with opened(t, bdf) as device:
        sizes = _resources(bdf)
        t.equal(sizes[0], edu.BAR_SIZE, "edu's BAR 0 in sysfs")
        for index, size in enumerate(sizes):
            region = device.region(index)
            flags = vfio.REGION_READ | vfio.REGION_WRITE | vfio.REGION_MMAP if size else 0
            t.equal((region.size, region.flags), (size, flags), f"size and flags of region {index}")
            t.equal(region.offset, index << INDEX_SHIFT, f"file offset of region {index}")
        config = device.region(CONFIG)
        t.equal(
            (config.size, config.flags), (256, vfio.REGION_READ | vfio.REGION_WRITE), "configuration space"
        )
        t.equal(device.region(ROM).size, 0, "size of the ROM that edu does not have")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_get_region_info()")
def regions_that_do_not_exist(t: Test) -> None:
    """VGA of a device that is none and a tenth region are refused."""
    with opened(t, t.device("edu")) as device:
        t.errno(errno.EINVAL, device.region_info, VGA)
        t.errno(errno.EINVAL, device.region_info, 9)
        t.errno(errno.EINVAL, device.region_info, 0xFFFFFFFF)


@case(
    needs=EDU,
    cites="drivers/vfio/pci/vfio_pci_config.c vfio_pci_config_rw_single(); vfio_pci_core.c vfio_pci_rw()",
)
def config_space_has_an_end(t: Test) -> None:
    """Configuration space reads as the device's up to its last byte; reading or writing beyond, and a
    region that does not exist, is refused; an empty region has nothing to read."""
    bdf = t.device("edu")
    with opened(t, bdf) as device:
        offset = device.region(CONFIG).offset
        t.equal(device.read_config(vfio.PCI_VENDOR_ID, 4), 0x11E81234, "vendor and device id")
        t.equal(len(os.pread(device.fd, 1, offset + 255)), 1, "bytes read at the end")
        t.errno(errno.EFAULT, os.pread, device.fd, 1, offset + 256)
        t.errno(errno.EFAULT, os.pread, device.fd, 8, offset + 252)
        t.errno(errno.EFAULT, os.pwrite, device.fd, b"\0", offset + 256)
        t.errno(errno.EINVAL, os.pread, device.fd, 4, 9 << INDEX_SHIFT)
        t.errno(errno.EINVAL, os.pread, device.fd, 4, vfio.BAR1 << INDEX_SHIFT)
        t.errno(errno.EINVAL, os.pwrite, device.fd, b"\0", ROM << INDEX_SHIFT)


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_config.c vfio_bar_fixup(), init_pci_cap_basic_perm()")
def bars_are_virtual(t: Test) -> None:
    """A user can size and move a BAR in configuration space as on hardware, while the device's own BAR
    stays and goes on working."""
    bdf = t.device("edu")
    with opened(t, bdf) as device, device.bar() as bar:
        real = pci.config_number(bdf, PCI_BAR0, 4)
        t.equal(device.read_config(PCI_BAR0, 4), real, "the virtual BAR after open")
        device.write_config(PCI_BAR0, 4, 0xFFFFFFFF)
        t.equal(device.read_config(PCI_BAR0, 4), 0xFFF00000, "the size mask of a 1 MiB memory BAR")
        device.write_config(PCI_BAR0, 4, 0xD0000000)
        t.equal(device.read_config(PCI_BAR0, 4), 0xD0000000, "the virtual BAR after moving it")
        t.equal(pci.config_number(bdf, PCI_BAR0, 4), real, "the device's own BAR")
        t.check(edu.Edu(bar).is_edu(), "the mapped BAR no longer leads to the device")
        device.write_config(PCI_BAR0 + 4, 4, 0xFFFFFFFF)
        t.equal(device.read_config(PCI_BAR0 + 4, 4), 0, "a BAR that the device does not have")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_config.c init_pci_cap_basic_perm()")
def identity_cannot_be_written(t: Test) -> None:
    """Vendor, device, capability pointer and interrupt pin ignore writes; the interrupt line keeps what is
    written and passes nothing on."""
    bdf = t.device("edu")
    with opened(t, bdf) as device:
        line = pci.config_number(bdf, PCI_INTERRUPT_LINE, 1)
        for offset, size, what in (
            (0, 4, "vendor and device id"),
            (PCI_CAPABILITIES, 1, "capability pointer"),
        ):
            before = device.read_config(offset, size)
            device.write_config(offset, size, ~before & (1 << 8 * size) - 1)
            t.equal(device.read_config(offset, size), before, what)
        device.write_config(PCI_INTERRUPT_LINE, 2, 0x0299)
        t.equal(device.read_config(PCI_INTERRUPT_LINE, 2), 0x0199, "interrupt line and pin")
        t.equal(pci.config_number(bdf, PCI_INTERRUPT_LINE, 1), line, "the device's own interrupt line")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_config.c vfio_msi_config_write()")
def msi_enable_bit_is_not_the_users(t: Test) -> None:
    """MSI is enabled by SET_IRQS alone: the enable bit written before has no effect, and no message address
    that a user writes reaches the device."""
    bdf = t.device("edu")
    with opened(t, bdf) as device:
        cap = device.read_config(PCI_CAPABILITIES, 1)
        t.equal(device.read_config(cap, 1), 5, "id of edu's first capability (MSI)")
        device.write_config(cap + 2, 2, device.read_config(cap + 2, 2) | MSI_ENABLE)
        t.equal(device.read_config(cap + 2, 2) & MSI_ENABLE, 0, "the enable bit after writing it")
        t.equal(pci.config_number(bdf, cap + 2, 2) & MSI_ENABLE, 0, "the device's own enable bit")
        address = pci.config_number(bdf, cap + 4, 4)
        device.write_config(cap + 4, 4, 0xFEE01230)
        t.equal(device.read_config(cap + 4, 4), 0xFEE01230, "the virtual message address")
        t.equal(pci.config_number(bdf, cap + 4, 4), address, "the device's own message address")
        device.set_eventfds(vfio.MSI, Event().fd)
        t.equal(pci.config_number(bdf, cap + 2, 2) & MSI_ENABLE, 1, "the device's enable bit after SET_IRQS")
        t.check(
            pci.config_number(bdf, cap + 4, 4) != 0xFEE01230, "the user's message address reached the device"
        )


def _bus_master_is_off(t: Test, bdf: str) -> None:
    """Fail unless bus mastering is off at open, can be switched on, and is off after the close."""
    master = vfio.PCI_COMMAND_MASTER

    def real() -> int:
        return pci.config_number(bdf, PCI_COMMAND, 2) & master

    with pci.bound(bdf):
        pci.write_config(bdf, PCI_COMMAND, struct.pack("<H", pci.config_number(bdf, PCI_COMMAND, 2) | master))
        t.check(real(), "bus mastering cannot be switched on at all")
        with opened(t, bdf) as device:
            t.check(not device.read_config(PCI_COMMAND, 2) & master, "bus mastering is on after open")
            t.check(not real(), "the device's own bit is on after open")
            device.set_bus_master()
            t.check(device.read_config(PCI_COMMAND, 2) & master, "switching it on is not shown")
            t.check(real(), "switching it on does not reach the device")
            device.close()
            t.check(not real(), "bus mastering is on after close")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_enable(), vfio_pci_core_disable()")
def bus_master_is_off_at_open_and_after_close(t: Test) -> None:
    """However the bit was left, a user finds bus mastering off, can switch it on, and cannot leave it on."""
    _bus_master_is_off(t, t.device("edu"))


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_enable(), vfio_pci_core_disable()")
def bus_master_of_a_card_that_is_reset_is_off(t: Test) -> None:
    """The same holds for a card that is reset, and its configuration put back, at open and close."""
    _bus_master_is_off(t, t.device("igb"))


@case(
    needs=EDU,
    cites="drivers/vfio/pci/vfio_pci_rdwr.c vfio_pci_bar_rw(); vfio_pci_core.c vfio_pci_core_mmap()",
)
def file_and_mapping_show_the_same_bar(t: Test) -> None:
    """Reading and writing a BAR through the file and through a mapping reaches the same registers."""
    with opened(t, t.device("edu")) as device, device.bar() as bar:
        offset = device.region(BAR0).offset
        t.equal(os.pread(device.fd, 4, offset), struct.pack("<I", edu.IDENTIFIES), "identification by file")
        t.equal(bar.read32(edu.REG_IDENTIFICATION), edu.IDENTIFIES, "identification by mapping")
        os.pwrite(device.fd, struct.pack("<I", 0x0F0F0F0F), offset + edu.REG_LIVENESS)
        t.equal(bar.read32(edu.REG_LIVENESS), 0xF0F0F0F0, "what was written by file, read by mapping")
        bar.write64(edu.REG_DMA_SOURCE, 0x1234_5678_9ABC_DEF0)
        data = os.pread(device.fd, 8, offset + edu.REG_DMA_SOURCE)
        t.equal(data, struct.pack("<Q", 0x1234_5678_9ABC_DEF0), "what was written by mapping, read by file")
        t.equal(edu.Edu(bar).factorial(10), 3628800, "the factorial of ten")
        t.equal(len(os.pread(device.fd, 16, offset + edu.BAR_SIZE - 4)), 4, "bytes read across the BAR's end")
        t.errno(errno.EINVAL, os.pread, device.fd, 4, offset + edu.BAR_SIZE)


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_mmap()")
def mappings_stay_inside_a_bar(t: Test) -> None:
    """A part of a BAR can be mapped shared; a private mapping, one beyond its end, and one of anything that
    is no BAR is refused."""
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
            t.errno(errno.EINVAL, attempt, page, index << INDEX_SHIFT)


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_vmf_insert_pfn(), vfio_pci_zap_bars()")
def bar_without_memory_enable_is_a_sigbus(t: Test) -> None:
    """With memory decoding off a mapped BAR is a SIGBUS for its user and a read of the file EIO; switched
    on again, both work as before and the kernel has nothing to say."""
    with opened(t, t.device("edu")) as device, device.bar() as bar:
        offset = device.region(BAR0).offset
        command = device.read_config(PCI_COMMAND, 2)
        t.check(bar.read32(0) == edu.IDENTIFIES, "the BAR does not work to begin with")
        device.write_config(PCI_COMMAND, 2, command & ~vfio.PCI_COMMAND_MEMORY)
        sigbus(t, lambda: bar.read32(0), "a load")
        sigbus(t, lambda: bar.write32(edu.REG_LIVENESS, 1), "a store")
        t.errno(errno.EIO, os.pread, device.fd, 4, offset)
        t.errno(errno.EIO, os.pwrite, device.fd, b"\0\0\0\0", offset + edu.REG_LIVENESS)
        device.write_config(PCI_COMMAND, 2, command)
        t.equal(bar.read32(0), edu.IDENTIFIES, "identification by mapping afterwards")
        t.equal(
            os.pread(device.fd, 4, offset),
            struct.pack("<I", edu.IDENTIFIES),
            "identification by file afterwards",
        )
        t.check_no_complaint()


@case(needs=EDU, cites="drivers/vfio/vfio_main.c vfio_ioctl_device_feature(); vfio_pci_core.c")
def features_can_be_probed(t: Test) -> None:
    """PROBE tells which features a device has, by which operation, and changes nothing; a request without
    an operation, with two, or with an unknown flag is refused."""
    with opened(t, t.device("edu")) as device:
        for feature in (vfio.LOW_POWER_ENTRY, vfio.LOW_POWER_ENTRY_WAKEUP, vfio.LOW_POWER_EXIT):
            device.feature(PROBE | SET | feature)
            t.errno(errno.EINVAL, device.feature, PROBE | GET | feature)
        for feature in (vfio.FEATURE_VF_TOKEN, vfio.FEATURE_MIGRATION, 0xFFFF):
            t.errno(errno.ENOTTY, device.feature, PROBE | GET | feature)
            t.errno(errno.ENOTTY, device.feature, PROBE | SET | feature)
        t.errno(errno.EINVAL, device.feature, vfio.LOW_POWER_ENTRY)
        t.errno(errno.EINVAL, device.feature, GET | SET | vfio.LOW_POWER_ENTRY)
        t.errno(errno.EINVAL, device.feature, PROBE | SET | 1 << 19 | vfio.LOW_POWER_ENTRY)
        t.equal(device.read_config(vfio.PCI_VENDOR_ID, 2), edu.VENDOR_ID, "vendor id after all probes")


@case(needs=(*EDU, "!hotplug", "!mixed"), cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_reset()")
def no_reset_where_none_exists(t: Test) -> None:
    """edu on the root bus has no way to be reset: RESET, HOT_RESET and its information are refused, and the
    device keeps its state."""
    with opened(t, t.device("edu")) as device, device.bar() as bar:
        t.check(not device.info().flags & vfio.DEVICE_FLAGS_RESET, "edu claims that it can be reset")
        bar.write32(edu.REG_LIVENESS, 0xA5A5A5A5)
        t.errno(errno.EINVAL, device.reset)
        room = bytearray(struct.pack("<III", 12 + 8 * 64, 0, 0) + bytes(8 * 64))
        t.errno(errno.ENODEV, device.call, vfio.DEVICE_GET_PCI_HOT_RESET_INFO, room)
        count = 0 if "noiommu-cdev" in t.features else 1
        request = bytearray(struct.pack("<IIIi", 16, 0, count, -1))
        t.errno(errno.ENODEV, device.call, vfio.DEVICE_PCI_HOT_RESET, request)
        t.equal(bar.read32(edu.REG_LIVENESS), 0x5A5A5A5A, "the register that a reset would clear")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_ioctl()")
def unknown_requests_are_enotty(t: Test) -> None:
    """A request that vfio-pci does not know, a container's, a group's or an iommufd's, is ENOTTY."""
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


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_rdwr.c vfio_pci_ioeventfd(), vfio_pci_ioeventfd_handler()")
def ioeventfd_writes_a_register(t: Test) -> None:
    """An ioeventfd writes its value to its register whenever it is signalled, until it is taken away."""
    with opened(t, t.device("edu")) as device, device.bar() as bar:
        event = Event()
        where = device.region(BAR0).offset + edu.REG_LIVENESS
        add = vfio.Ioeventfd(flags=4, offset=where, data=0x11223344, fd=event.fd)
        device.call(vfio.DEVICE_IOEVENTFD, add)
        t.errno(errno.EEXIST, device.call, vfio.DEVICE_IOEVENTFD, add)
        bar.write32(edu.REG_LIVENESS, 0)
        t.equal(bar.read32(edu.REG_LIVENESS), 0xFFFFFFFF, "the register before the signal")
        event.signal()
        t.wait_until(lambda: bar.read32(edu.REG_LIVENESS) == 0xEEDDCCBB, "the write of the register")
        device.call(vfio.DEVICE_IOEVENTFD, vfio.Ioeventfd(flags=4, offset=where, data=0x11223344, fd=-1))
        bar.write32(edu.REG_LIVENESS, 0)
        event.signal()
        time.sleep(SETTLE)
        t.equal(bar.read32(edu.REG_LIVENESS), 0xFFFFFFFF, "the register after the ioeventfd was removed")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_ioeventfd(); vfio_pci_rdwr.c")
def ioeventfd_refusals(t: Test) -> None:
    """An ioeventfd must lie whole in a BAR, have one width, come from an eventfd, and exist before it is
    removed."""
    with opened(t, t.device("edu")) as device:
        fd = Event().fd
        bar, config = device.region(BAR0).offset, device.region(CONFIG).offset

        def attempt(flags: int, offset: int, number: int = fd) -> None:
            argument = vfio.Ioeventfd(flags=flags, offset=offset, data=0, fd=number)
            device.call(vfio.DEVICE_IOEVENTFD, argument)

        for flags in (0, 3, 16):
            t.errno(errno.EINVAL, attempt, flags, bar + 4)
        t.errno(errno.EINVAL, attempt, 4, bar + 4, -2)
        t.errno(errno.EINVAL, attempt, 4, config)
        t.errno(errno.EINVAL, attempt, 4, bar + edu.BAR_SIZE)
        t.errno(errno.EINVAL, attempt, 4, device.region(vfio.BAR1).offset)
        t.errno(errno.ENODEV, attempt, 4, bar + 4, -1)
        t.errno(errno.EBADF, attempt, 4, bar + 4, 999)


@case(
    needs=EDU,
    cites="drivers/vfio/vfio_main.c vfio_get_region_info(), vfio_ioctl_device_feature(); "
    "pci/vfio_pci_core.c (minsz)",
)
def structures_may_end_where_memory_does(t: Test) -> None:
    """Every device ioctl takes the shortest structure that it promises to although no memory follows, with a
    byte less of memory it is EFAULT, and with a byte less of argsz EINVAL."""
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


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_get_info(); vfio_get_region_info()")
def unwritable_answers_are_faults(t: Test) -> None:
    """Information that cannot be written to its caller is EFAULT, and so is a missing argument."""
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


@case(needs=IGB, cites="drivers/vfio/vfio_main.c vfio_get_region_info() (caps); include/uapi/linux/vfio.h")
def region_info_tells_the_room_it_needs(t: Test) -> None:
    """For a region with a capability GET_REGION_INFO says in argsz how much room it needs; with less it gives
    no offset and writes nothing behind the structure, with as much it gives both."""
    with opened(t, t.device("igb")) as device, Brink() as edge:
        for size, offset in ((32, 0), (39, 0), (40, 32)):
            argument = bytes(vfio.RegionInfo(argsz=size, index=TABLE_BAR, cap_offset=77))
            where = edge.put(argument + b"\xa5" * (size - 32))
            libc.ioctl(device.fd, vfio.DEVICE_GET_REGION_INFO, where)
            told = edge.tail(size)
            info = vfio.RegionInfo.from_buffer_copy(told[:32])
            t.check(info.flags & vfio.REGION_CAPS, f"no capability is told with argsz {size}")
            t.equal((info.argsz, info.cap_offset), (40, offset), f"argsz and offset with argsz {size}")
            if not offset:
                t.equal(told[32:], b"\xa5" * (size - 32), "what lies behind the structure")
        plain = vfio.RegionInfo(argsz=4000, index=BAR0)
        device.call(vfio.DEVICE_GET_REGION_INFO, plain)
        t.equal((plain.argsz, plain.cap_offset), (4000, 0), "argsz and offset of a region without any")


@case(needs=EDU, cites="drivers/vfio/vfio_main.c vfio_set_irqs_validate_and_prepare()")
def set_irqs_counts_in_32_bits(t: Test) -> None:
    """SET_IRQS refuses every start and count that leave the interrupts there are, also where their sum
    overflows, and data that argsz or memory cuts short; the interrupt set up before stays."""
    with opened(t, t.device("edu")) as device, Brink() as edge:
        event = Event()
        fd = struct.pack("<i", event.fd)
        device.set_eventfds(vfio.MSI, event.fd)
        eventfd = vfio.SET_DATA_EVENTFD | vfio.SET_ACTION_TRIGGER
        none = vfio.SET_DATA_NONE | vfio.SET_ACTION_TRIGGER
        most = 0xFFFFFFFF
        for start, count in (
            (0, 2),
            (1, 0),
            (1, 1),
            (0, most),
            (most, 0),
            (most, 1),
            (1, most),
            (2, most - 1),
        ):
            t.errno(errno.EINVAL, device.set_irqs, vfio.MSI, none, start, count)
            t.errno(errno.EINVAL, device.set_irqs, vfio.MSI, eventfd, start, count, fd * 2)
        for index in (5, 6, 1 << 31, most):
            t.errno(errno.EINVAL, device.set_irqs, index, none)
        for flags in (vfio.SET_ACTION_TRIGGER, 3 | vfio.SET_ACTION_TRIGGER, 7, none | 1 << 31):
            t.errno(errno.EINVAL, device.set_irqs, vfio.MSI, flags, 0, 1, fd)
        t.errno(errno.ENOTTY, device.set_irqs, vfio.MSI, vfio.SET_DATA_NONE)
        t.errno(errno.EINVAL, device.set_irqs, vfio.MSI, eventfd, 0, 1, fd[:3])
        cut = edge.put(vfio.IrqSet(argsz=24, flags=eventfd, index=vfio.MSI, count=1))
        t.errno(errno.EFAULT, libc.ioctl, device.fd, vfio.DEVICE_SET_IRQS, cut)
        device.trigger(vfio.MSI)
        t.equal(event.arrives(), 1, "events by loopback after all refusals")


@case(
    needs=EDU,
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_read(), vfio_pci_rw(); vfio_pci_rdwr.c "
    "vfio_pci_bar_rw()",
)
def transfers_end_with_the_bar(t: Test) -> None:
    """A transfer over the end of a BAR is cut short, one of nothing succeeds anywhere, and one from or to
    where no memory is is EFAULT and reaches no register."""
    with opened(t, t.device("edu")) as device, device.bar() as bar, Brink() as edge:
        start, config = device.region(BAR0).offset, device.region(CONFIG).offset
        end = start + edu.BAR_SIZE
        t.equal(os.pwrite(device.fd, bytes(16), end - 8), 8, "bytes written across the end of the BAR")
        t.equal(len(os.pread(device.fd, 1 << 20, end - 4)), 4, "bytes of a long read at the end")
        t.errno(errno.EINVAL, os.pwrite, device.fd, bytes(4), end)
        t.errno(errno.EINVAL, os.pread, device.fd, 1, start + (1 << INDEX_SHIFT) - 1)
        for offset in (start, end, config + 256, vfio.BAR1 << INDEX_SHIFT, 9 << INDEX_SHIFT):
            t.equal(os.pread(device.fd, 0, offset), b"", f"a read of nothing at {offset:#x}")
            t.equal(os.pwrite(device.fd, b"", offset), 0, f"a write of nothing at {offset:#x}")
        bar.write32(edu.REG_LIVENESS, 0x01020304)
        for offset in (start + edu.REG_LIVENESS, config + PCI_BAR0):
            t.errno(errno.EFAULT, libc.pread, device.fd, NOWHERE, 4, offset)
            t.errno(errno.EFAULT, libc.pwrite, device.fd, NOWHERE, 4, offset)
            t.errno(errno.EFAULT, libc.pwrite, device.fd, edge.put(bytes(3)), 4, offset)
            t.errno(errno.EFAULT, libc.pread, device.fd, edge.put(bytes(3)), 4, offset)
        t.equal(bar.read32(edu.REG_LIVENESS), 0xFEFDFCFB, "the register after faults")
        t.equal(libc.pread(device.fd, edge.put(bytes(4)), 4, start), 4, "bytes read to the last of memory")
        t.equal(edge.tail(4), struct.pack("<I", edu.IDENTIFIES), "what was read there")


@case(
    needs=EDU,
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_mmap(); Documentation/driver-api/vfio.rst",
)
def bar_may_be_mapped_while_it_is_off(t: Test) -> None:
    """A BAR can be mapped with memory decoding off; using it is a SIGBUS until decoding is on, and then
    works, in a child that inherits it as well."""
    with opened(t, t.device("edu")) as device:
        command = device.read_config(PCI_COMMAND, 2)
        device.write_config(PCI_COMMAND, 2, command & ~vfio.PCI_COMMAND_MEMORY)
        with device.bar() as bar:
            sigbus(t, lambda: bar.read32(0), "a load")
            device.write_config(PCI_COMMAND, 2, command)
            t.equal(t.in_child(lambda: bar.read32(0)), edu.IDENTIFIES, "identification read by a child")
            t.equal(bar.read32(0), edu.IDENTIFIES, "identification")
            device.write_config(PCI_COMMAND, 1, command & 0xFF & ~vfio.PCI_COMMAND_MEMORY)
            sigbus(t, lambda: bar.write32(edu.REG_LIVENESS, 1), "a store after a write of the low byte alone")
            device.write_config(PCI_COMMAND, 1, command & 0xFF)
            t.equal(bar.read32(0), edu.IDENTIFIES, "identification in the end")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_reset()", timeout=45)
def reset_switches_no_memory_on(t: Test) -> None:
    """After a reset with memory decoding off it is still off, for file and mapping; then switched on, old and
    new mappings show the reset device."""
    with opened(t, t.device("igb")) as device, device.bar() as bar:
        offset = device.region(BAR0).offset
        command = device.read_config(PCI_COMMAND, 2)
        status = bar.read32(8)
        device.write_config(PCI_COMMAND, 2, command & ~vfio.PCI_COMMAND_MEMORY)
        device.reset()
        t.check(not device.read_config(PCI_COMMAND, 2) & vfio.PCI_COMMAND_MEMORY, "the reset enabled memory")
        t.errno(errno.EIO, os.pread, device.fd, 4, offset + 8)
        sigbus(t, lambda: bar.read32(8), "a load after the reset")
        device.write_config(PCI_COMMAND, 2, command)
        with device.bar() as fresh:
            t.equal(fresh.read32(8), bar.read32(8), "the status register by the new and the old mapping")
            t.equal(fresh.read32(8) & 0xF, status & 0xF, "duplex, link and function id after the reset")
        t.equal(len(os.pread(device.fd, 4, offset)), 4, "bytes read from the BAR")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_pci_hot_reset()")
def hot_reset_checks_its_arguments(t: Test) -> None:
    """HOT_RESET and its information refuse a short argsz and any flag before they look at the topology."""
    with opened(t, t.device("edu")) as device, Brink() as edge:
        count = 0 if "noiommu-cdev" in t.features else 1
        for data in (
            struct.pack("<IIIi", 11, 0, count, -1),
            struct.pack("<IIIi", 0, 0, count, -1),
            struct.pack("<IIIi", 16, 1, count, -1),
            struct.pack("<IIIi", 16, 1 << 31, count, -1),
            struct.pack("<IIIi", 16, 0, 1 - count, -1),
        ):
            t.errno(errno.EINVAL, device.call, vfio.DEVICE_PCI_HOT_RESET, bytearray(data))
        short = struct.pack("<III", 11, 0, 0)
        t.errno(errno.EINVAL, libc.ioctl, device.fd, vfio.DEVICE_GET_PCI_HOT_RESET_INFO, edge.put(short))
        for request in (vfio.DEVICE_GET_PCI_HOT_RESET_INFO, vfio.DEVICE_PCI_HOT_RESET):
            t.errno(errno.EFAULT, libc.ioctl, device.fd, request, edge.put(struct.pack("<III", 12, 0, 0), 11))


@case(
    needs=("noiommu", "hotplug", "edu"),
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_get_pci_hot_reset_info() (ENOSPC)",
)
def hot_reset_info_counts_what_it_cannot_tell(t: Test) -> None:
    """Without room for the devices that a hot reset hits, their number is told with ENOSPC and nothing is
    written behind the header; with just enough room, all of them are."""
    with opened(t, t.device("edu")) as device, Brink() as edge:
        request = vfio.DEVICE_GET_PCI_HOT_RESET_INFO
        for size in (12, 13, 19):
            where = edge.put(struct.pack("<III", size, 99, 99) + b"\xa5" * (size - 12))
            t.errno(errno.ENOSPC, libc.ioctl, device.fd, request, where)
            told = edge.tail(size)
            t.equal(struct.unpack_from("<II", told, 4), (0, 1), f"flags and count with {size} bytes")
            t.equal(told[12:], b"\xa5" * (size - 12), "what lies behind the header")
        libc.ioctl(device.fd, request, edge.put(struct.pack("<III", 20, 0, 0) + bytes(8)))
        told = edge.tail(20)
        t.equal(struct.unpack_from("<I", told, 8)[0], 1, "the devices told")
        _owner, segment, bus, devfn = struct.unpack_from("<IHBB", told, 12)
        name = f"{segment:04x}:{bus:02x}:{devfn >> 3:02x}.{devfn & 7}"
        t.equal(name, t.device("edu"), "the device told")


@case(
    needs=EDU,
    cites="drivers/vfio/pci/vfio_pci_rdwr.c vfio_pci_ioeventfd() (VFIO_PCI_IOEVENTFD_MAX)",
    timeout=45,
)
def ioeventfds_are_limited(t: Test) -> None:
    """A device has a thousand ioeventfds and no more (ENOSPC): taking one away makes room for another, and
    the next user has all of them again."""
    bdf = t.device("edu")
    with pci.bound(bdf):
        for user in ("first", "second"):
            with opened(t, bdf) as device:
                event = Event()
                where = device.region(BAR0).offset + edu.REG_LIVENESS

                def call(number: int, fd: int, device: vfio.Device = device, where: int = where) -> None:
                    argument = vfio.Ioeventfd(flags=4, offset=where, data=number, fd=fd)
                    device.call(vfio.DEVICE_IOEVENTFD, argument)

                for number in range(IOEVENTFDS):
                    call(number, event.fd)
                t.errno(errno.ENOSPC, call, IOEVENTFDS, event.fd)
                t.errno(errno.EEXIST, call, 7, event.fd)
                call(7, -1)
                t.errno(errno.ENODEV, call, 7, -1)
                call(IOEVENTFDS, event.fd)
                t.errno(errno.ENOSPC, call, 7, event.fd)
                t.log(f"the {user} user is done")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_rdwr.c vfio_pci_ioeventfd() (msix_offset)")
def ioeventfd_stays_off_the_vector_table(t: Test) -> None:
    """An ioeventfd may not touch the MSI-X table, not even with its last or first byte; behind it, up to the
    very end of the BAR, it may lie."""
    with opened(t, t.device("igb")) as device:
        fd = Event().fd
        region = device.region(TABLE_BAR)
        table_size = 16 * device.irq_info(vfio.MSIX).count

        def attempt(size: int, offset: int) -> None:
            argument = vfio.Ioeventfd(flags=size, offset=region.offset + offset, data=0, fd=fd)
            device.call(vfio.DEVICE_IOEVENTFD, argument)

        for size, offset in ((4, 0), (1, table_size - 1), (8, table_size - 4), (2, 6), (8, table_size - 8)):
            t.errno(errno.EINVAL, attempt, size, offset)
        attempt(4, table_size)
        attempt(1, region.size - 1)
        attempt(8, region.size - 8)
        for size in (2, 4, 8):
            t.errno(errno.EINVAL, attempt, size, region.size - size + 1)


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_rdwr.c vfio_pci_ioeventfd_handler() (test_mem)")
def ioeventfd_does_nothing_while_memory_is_off(t: Test) -> None:
    """An ioeventfd that is signalled with memory decoding off writes nothing, then or later; on again, it
    writes for the next signal."""
    with opened(t, t.device("edu")) as device, device.bar() as bar:
        event = Event()
        command = device.read_config(PCI_COMMAND, 2)
        where = device.region(BAR0).offset + edu.REG_LIVENESS
        device.call(vfio.DEVICE_IOEVENTFD, vfio.Ioeventfd(flags=4, offset=where, data=5, fd=event.fd))
        bar.write32(edu.REG_LIVENESS, 0)
        device.write_config(PCI_COMMAND, 2, command & ~vfio.PCI_COMMAND_MEMORY)
        event.signal()
        time.sleep(SETTLE)
        device.write_config(PCI_COMMAND, 2, command)
        t.equal(bar.read32(edu.REG_LIVENESS), 0xFFFFFFFF, "the register after the signal")
        event.signal()
        t.wait_until(lambda: bar.read32(edu.REG_LIVENESS) == 0xFFFFFFFA, "the write of the register")
