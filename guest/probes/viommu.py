# SPDX-License-Identifier: GPL-2.0-only
"""Devices behind a real IOMMU on a kernel with no-IOMMU support: nothing of no-IOMMU applies, and the IOMMU
works.

Names, taint and privileges at open are tested in `nodes`, `taint` and `unprivileged`; these cases test what
happens after the open.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from guest import caps, edu, memory, pci, taint, vfio
from guest import iommufd as api
from guest.brink import Brink
from guest.case import Test, case
from guest.iommufd import Iommufd
from guest.memory import HUGE, PAGE, SMALLEST
from guest.opened import CdevUser, Event, round_trip, through_cdev, through_group, unbound

CDEV = ("viommu", "cdev", "iommufd", "edu")
GROUP = ("viommu", "group", "edu")

# Above the memory of any test machine, so that no IOVA is a valid physical address.
IOVA = 0x40_0000_0000
# include/uapi/linux/iommufd.h enum iommufd_hw_capabilities
HW_CAP_DIRTY_TRACKING = 1
HW_CAP_ATS_NOT_SUPPORTED = 8  # not in 7.2


@contextlib.contextmanager
def _edu(t: Test) -> Iterator[tuple[CdevUser, edu.Edu, memory.Buffer]]:
    """Yield an edu behind an IOMMU with bus mastering on, and three zeroed pages that are not mapped yet."""
    bdf = t.device("edu", iommu=True)
    with through_cdev(bdf) as user, user.device.bar() as bar, memory.anonymous(3 * PAGE) as buffer:
        buffer.fill(0)
        user.device.set_bus_master()
        yield user, edu.Edu(bar), buffer


@case(
    needs=("viommu", "noiommu", "edu"),
    cites="drivers/vfio/vfio_main.c vfio_device_set_noiommu_and_name(); group.c",
)
def no_trace_of_noiommu(t: Test) -> None:
    """With the parameter on, binding a device behind an IOMMU creates no noiommu node, class device or log
    line, and does not taint the kernel."""
    before = taint.mask() & taint.USER
    with pci.bound(t.device("edu", iommu=True), noiommu=True) as nodes:
        t.equal(pci.parameter(), True, "the parameter")
        t.check(nodes.group or nodes.cdev, "the device has no VFIO node")
        places = [Path("/dev/vfio"), Path("/dev/vfio/devices"), *Path("/sys/class").glob("vfio*")]
        names = [str(entry) for place in places if place.is_dir() for entry in place.iterdir()]
        t.equal([name for name in names if "noiommu" in name], [], "nodes and class devices named noiommu")
        t.equal([line for line in t.dmesg() if "noiommu" in line], [], "log lines about noiommu")
        t.equal(taint.mask() & taint.USER, before, "taint")


@case(needs=(*CDEV, "noiommu"), cites="drivers/iommu/iommufd/io_pagetable.c iopt_get_phys()")
def get_pa_is_refused(t: Test) -> None:
    """On an IOAS that a real IOMMU translates, GET_PA is EOPNOTSUPP, even with the parameter on; ENOENT and
    EINVAL take precedence as usual."""
    pci.set_parameter(True)
    with through_cdev(t.device("edu", iommu=True)) as user, memory.anonymous() as buffer:
        buffer.fill(1)
        user.map(buffer, IOVA)
        t.errno(errno.EOPNOTSUPP, user.iommufd.get_pa, user.ioas, IOVA, PAGE)
        if "noiommu-cdev" in t.features:
            t.errno(errno.ENOENT, user.iommufd.get_pa, user.ioas, IOVA + PAGE, 1)
            t.errno(errno.EINVAL, user.iommufd.get_pa, user.ioas, IOVA, 0)
        user.device.detach()
        t.errno(errno.EOPNOTSUPP, user.iommufd.get_pa, user.ioas, IOVA, PAGE)


@case(
    needs=CDEV, cites="drivers/iommu/iommufd/device.c iommufd_hwpt_attach_device(); QEMU docs/specs/edu.rst"
)
def dma_by_iova(t: Test) -> None:
    """Behind an IOMMU a device reaches mapped memory by its IOVA, which differs from the physical address."""
    with _edu(t) as (user, device, buffer):
        user.map(buffer, IOVA)
        t.check(buffer.physical() != IOVA, "the IOVA equals the physical address")
        round_trip(t, device, buffer, IOVA)


@case(
    needs=CDEV, cites="drivers/iommu/iommufd/device.c iommufd_bind_iommu(); drivers/iommu/iommu.c", timeout=60
)
def physical_addresses_reach_nothing(t: Test) -> None:
    """Behind an IOMMU a device can neither read nor write memory by its physical address."""
    with _edu(t) as (user, device, buffer):
        user.map(buffer, IOVA)
        round_trip(t, device, buffer, IOVA)
        secret, mark = memory.pattern(t.random, 64), memory.pattern(t.random, 64)
        buffer.write(secret)
        device.copy_from_ram(buffer.physical(), 64)
        device.copy_to_ram(IOVA + 2 * PAGE, 64)
        t.check(buffer.read(2 * PAGE, 64) != secret, "the device read by physical address")
        buffer.write(mark)
        device.copy_to_ram(buffer.physical(), 64)
        t.equal(buffer.read(0, 64), mark, "memory after a write by physical address")
        round_trip(t, device, buffer, IOVA)


@case(
    needs=CDEV,
    cites="drivers/iommu/iommufd/device.c iommufd_device_detach(); io_pagetable.c iopt_unmap_iova()",
    timeout=60,
)
def detach_and_unmap_cut_the_device_off(t: Test) -> None:
    """After UNMAP, and after DETACH, the device's writes to that IOVA do not reach memory; after attaching
    again they do."""
    with _edu(t) as (user, device, buffer):
        mark = memory.pattern(t.random, 64)
        for cut in ("unmap", "detach"):
            user.map(buffer, IOVA)
            round_trip(t, device, buffer, IOVA)
            if cut == "unmap":
                user.iommufd.unmap(user.ioas, IOVA, buffer.length)
            else:
                user.device.detach()
            buffer.write(mark, PAGE)
            device.copy_to_ram(IOVA + PAGE, 64)
            t.equal(buffer.read(PAGE, 64), mark, f"memory after {cut}")
        user.device.attach(user.ioas)
        round_trip(t, device, buffer, IOVA)


@case(needs=CDEV, cites="drivers/iommu/iommufd/io_pagetable.c iopt_table_enforce_dev_resv_regions()")
def interrupt_window_is_reserved(t: Test) -> None:
    """No memory can be mapped at the IOVAs of a device's interrupt messages, and IOVA_RANGES excludes
    them."""
    bdf = t.device("edu", iommu=True)
    window = pci.interrupt_window(bdf)
    with through_cdev(bdf) as user, memory.anonymous() as buffer:
        buffer.fill(1)
        ranges, alignment = user.iommufd.iova_ranges(user.ioas)
        t.check(SMALLEST <= alignment <= PAGE, f"the IOVA alignment is {alignment}")
        if "viommu-intel" in t.features:
            t.check(ranges[-1][1] < api.LAST_IOVA, "the IOVA space is wider than the page table")
        inside = [one for one in ranges if one[0] <= window <= one[1]]
        t.equal(inside, [], "ranges that contain the interrupt window")
        t.errno(errno.EINVAL, user.iommufd.map, user.ioas, buffer.address, PAGE, window)
        user.iommufd.map(user.ioas, buffer.address, PAGE, IOVA)


@case(
    needs=GROUP,
    cites="drivers/vfio/vfio_iommu_type1.c vfio_dma_do_map(); drivers/iommu/iommufd/vfio_compat.c",
)
def type1_container_maps(t: Test) -> None:
    """A group behind an IOMMU accepts type1 in either kind of container, and its device does DMA by IOVA."""
    bdf = t.device("edu", iommu=True)
    with through_group(bdf, vfio.TYPE1V2_IOMMU) as user, memory.anonymous(2 * PAGE) as buffer:
        buffer.fill(0)
        user.container.map_dma(buffer.address, IOVA, buffer.length)
        user.device.set_bus_master()
        with user.device.bar() as bar:
            round_trip(t, edu.Edu(bar), buffer, IOVA)
        t.equal(user.container.unmap_dma(IOVA, buffer.length), buffer.length, "bytes unmapped")


@case(
    needs=GROUP,
    cites="drivers/vfio/vfio_iommu_type1.c vfio_iommu_map() (prot); drivers/iommu/iommufd/vfio_compat.c",
    timeout=45,
)
def type1_read_only_map_is_not_written(t: Test) -> None:
    """A device can read but not write memory that a type1 container maps for reading only."""
    bdf = t.device("edu", iommu=True)
    with through_group(bdf, vfio.TYPE1V2_IOMMU) as user, memory.anonymous(2 * PAGE) as buffer:
        data, mark = memory.pattern(t.random, 64), memory.pattern(t.random, 64)
        buffer.write(data)
        buffer.write(mark, PAGE)
        user.container.map_dma(buffer.address, IOVA, 2 * PAGE, flags=vfio.REGION_READ)
        user.container.map_dma(buffer.address, IOVA + HUGE, 2 * PAGE)
        user.device.set_bus_master()
        with user.device.bar() as bar:
            device = edu.Edu(bar)
            device.copy_from_ram(IOVA, 64)
            device.copy_to_ram(IOVA + PAGE, 64)
            t.equal(buffer.read(PAGE, 64), mark, "memory after a write to the read-only mapping")
            device.copy_to_ram(IOVA + HUGE + PAGE, 64)
            t.equal(buffer.read(PAGE, 64), data, "memory after a write to the read-write mapping")


@case(
    needs=GROUP,
    cites="vfio_iommu_type1.c vfio_dma_do_unmap(); iommufd/vfio_compat.c iommufd_vfio_unmap_dma()",
)
def type1_unmaps_everything_only_without_a_range(t: Test) -> None:
    """UNMAP_ALL with a range is EINVAL and unmaps nothing; without one it unmaps everything and returns the
    number of bytes."""
    bdf = t.device("edu", iommu=True)
    with through_group(bdf, vfio.TYPE1V2_IOMMU) as user, memory.anonymous(3 * PAGE) as buffer:
        user.container.map_dma(buffer.address, IOVA, 2 * PAGE)
        user.container.map_dma(buffer.address + 2 * PAGE, IOVA + HUGE, PAGE)
        for iova, size in ((IOVA, 0), (0, PAGE), (IOVA, 2 * PAGE)):
            t.errno(errno.EINVAL, user.container.unmap_dma, iova, size, vfio.UNMAP_ALL)
        t.equal(user.container.unmap_dma(0, 0, vfio.UNMAP_ALL), 3 * PAGE, "bytes unmapped")
        user.container.map_dma(buffer.address, IOVA, 2 * PAGE)


@case(needs=(*GROUP, "container"), cites="drivers/vfio/vfio_iommu_type1.c vfio_iommu_dma_avail_build_caps()")
def type1_tells_how_many_maps_are_left(t: Test) -> None:
    """A type1 container reports how many mappings it still accepts: one less for each mapping of any size,
    until it is unmapped."""
    bdf = t.device("edu", iommu=True)
    with through_group(bdf, vfio.TYPE1V2_IOMMU) as user, memory.anonymous(3 * PAGE) as buffer:
        before = user.container.maps_left()
        t.check(before > 1, f"an empty container has only {before} mappings left")
        user.container.map_dma(buffer.address, IOVA, 2 * PAGE)
        user.container.map_dma(buffer.address + 2 * PAGE, IOVA + HUGE, PAGE)
        t.equal(user.container.maps_left(), before - 2, "mappings left with two")
        user.container.unmap_dma(IOVA, 2 * PAGE)
        t.equal(user.container.maps_left(), before - 1, "mappings left with one")
        user.container.unmap_dma(0, 0, vfio.UNMAP_ALL)
        t.equal(user.container.maps_left(), before, "mappings left with none")


@case(
    needs=(*GROUP, "container"), cites="drivers/vfio/vfio_iommu_type1.c vfio_lock_acct(), vfio_remove_dma()"
)
def type1_counts_what_it_has_pinned(t: Test) -> None:
    """Memory that a type1 container has pinned counts as locked memory of the process that mapped it until it
    is unmapped or the container is closed."""
    bdf = t.device("edu", iommu=True)
    with memory.anonymous(16 * PAGE) as buffer:
        buffer.touch()
        with through_group(bdf, vfio.TYPE1V2_IOMMU) as user:
            for _ in range(2):
                user.container.map_dma(buffer.address, IOVA, 16 * PAGE)
                t.equal(memory.locked_pages(), 16, "pages locked while mapped")
                user.container.unmap_dma(IOVA, 16 * PAGE)
                t.equal(memory.locked_pages(), 0, "pages locked after the unmap")
            user.container.map_dma(buffer.address, IOVA, 16 * PAGE)
        t.equal(memory.locked_pages(), 0, "pages locked after closing the container")


@case(needs=GROUP, cites="drivers/vfio/container.c vfio_iommu_driver_allowed(); vfio_compat.c")
def container_refuses_noiommu(t: Test) -> None:
    """A container with a group behind an IOMMU refuses the no-IOMMU type, even with the parameter on, and
    accepts type1 afterwards."""
    bdf = t.device("edu", iommu=True)
    unsafe = pci.bound(bdf, noiommu="noiommu" in t.features)
    with unsafe, vfio.open_container() as container, vfio.open_group(bdf) as group:
        group.set_container(container)
        want = errno.ENODEV if "container" in t.features else errno.EINVAL
        if "container" in t.features:
            t.equal(container.check_extension(vfio.NOIOMMU_IOMMU), 0, "CHECK_EXTENSION(8) before SET_IOMMU")
        t.errno(want, container.set_iommu, vfio.NOIOMMU_IOMMU)
        if "container" in t.features:
            t.equal(container.check_extension(vfio.NOIOMMU_IOMMU), 0, "CHECK_EXTENSION(8)")
            t.errno(errno.EINVAL, group.device, bdf)
        container.set_iommu(vfio.TYPE1V2_IOMMU)
        with group.device(bdf) as device:
            t.equal(device.read_config(vfio.PCI_VENDOR_ID, 2), edu.VENDOR_ID, "vendor id")
        t.equal([line for line in t.dmesg() if "noiommu" in line], [], "log lines about noiommu")


@case(
    needs=CDEV,
    cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_msi_set_vector_signal(); QEMU docs/specs/edu.rst",
)
def interrupts_arrive(t: Test) -> None:
    """MSI and INTx of a device behind an IOMMU reach their eventfds."""
    with through_cdev(t.device("edu", iommu=True)) as user, user.device.bar() as bar:
        device = edu.Edu(bar)
        device.ack_irq()
        try:
            for index in (vfio.MSI, vfio.INTX):
                event = Event()
                user.device.set_eventfds(index, event.fd)
                user.device.set_bus_master()
                device.raise_irq(1)
                t.equal(event.arrives(), 1, f"events of interrupt {index}")
                device.ack_irq()
                user.device.disable_irqs(index)
        finally:
            device.ack_irq()


@case(
    needs=("viommu", "cdev", "iommufd", "edu", "its"),
    cites="drivers/iommu/iommufd/device.c iommufd_bind_iommu(); drivers/irqchip/irq-gic-v3-its.c",
)
def isolated_interrupts_need_no_word(t: Test) -> None:
    """Behind an IOMMU, a device whose interrupts an ITS keeps apart can be bound while
    allow_unsafe_interrupts is off."""
    allow = Path("/sys/module/iommufd/parameters/allow_unsafe_interrupts")
    before = allow.read_text(encoding="ascii").strip()
    bdf = t.device("edu", iommu=True)
    try:
        with pci.bound(bdf), Iommufd() as iommufd, vfio.open_cdev(bdf) as device:
            allow.write_text("N", encoding="ascii")
            device.bind_iommufd(iommufd.fd)
    finally:
        allow.write_text(before, encoding="ascii")


@case(
    needs=("viommu-virtio", "cdev", "iommufd", "edu", "!its"),
    cites="drivers/iommu/iommufd/device.c iommufd_bind_iommu()",
)
def unsafe_interrupts_need_a_word(t: Test) -> None:
    """Behind an IOMMU that does not isolate interrupts, a device can be bound only while
    allow_unsafe_interrupts is on, even if no-IOMMU mode is on."""
    allow = Path("/sys/module/iommufd/parameters/allow_unsafe_interrupts")
    before = allow.read_text(encoding="ascii").strip()
    if pci.parameter() is not None:
        pci.set_parameter(True)
    bdf = t.device("edu", iommu=True)
    try:
        with pci.bound(bdf), Iommufd() as iommufd, vfio.open_cdev(bdf) as device:
            allow.write_text("N", encoding="ascii")
            t.errno(errno.EPERM, device.bind_iommufd, iommufd.fd)
            allow.write_text("Y", encoding="ascii")
            device.bind_iommufd(iommufd.fd)
    finally:
        allow.write_text(before, encoding="ascii")


@case(needs=CDEV, cites="drivers/iommu/iommufd/device.c iommufd_get_hw_info(); hw_pagetable.c")
def dirty_tracking_is_as_announced(t: Test) -> None:
    """GET_HW_INFO of a device behind an IOMMU succeeds, and a page table with dirty tracking can be allocated
    exactly if it reports support; a page table without dirty tracking refuses to enable it."""
    with through_cdev(t.device("edu", iommu=True)) as user:
        iommufd = user.iommufd
        announced = iommufd.get_hw_info(user.devid).out_capabilities & HW_CAP_DIRTY_TRACKING
        flags = api.HWPT_DIRTY_TRACKING
        if announced:
            table = iommufd.hwpt_alloc(user.devid, user.ioas, flags=flags)
            iommufd.set_dirty_tracking(table)
        else:
            t.errno(errno.EOPNOTSUPP, iommufd.hwpt_alloc, user.devid, user.ioas, flags=flags)
        plain = iommufd.hwpt_alloc(user.devid, user.ioas)
        t.errno(errno.EOPNOTSUPP, iommufd.set_dirty_tracking, plain)


@case(needs=(*CDEV, "noiommu-cdev"), cites="drivers/iommu/iommufd/device.c iommufd_get_hw_info()")
def conventional_device_has_no_ats(t: Test) -> None:
    """GET_HW_INFO of a device behind an IOMMU that is no PCI Express device, so that it has neither ATS nor
    PASIDs, says that ATS is not supported and reports no PASIDs, with and without an attachment."""
    express = 0x10  # include/uapi/linux/pci_regs.h PCI_CAP_ID_EXP
    bdf = t.device("edu", iommu=True)
    listed = dict(pci.capabilities(pci.config(bdf, 0, 256)))
    t.check(express not in listed, "the edu is a PCI Express device; this case needs one that is not")
    with through_cdev(bdf) as user:
        for state in ("attached", "detached"):
            info = user.iommufd.get_hw_info(user.devid)
            announced = info.out_capabilities & ~HW_CAP_DIRTY_TRACKING
            t.equal(announced, HW_CAP_ATS_NOT_SUPPORTED, f"{state} device: flags of ATS and PASIDs")
            t.equal(info.out_max_pasid_log2, 0, f"{state} device: PASIDs")
            if state == "attached":
                user.device.detach()


@case(
    needs=(*CDEV, "viommu-intel"), cites="drivers/iommu/iommufd/device.c iommufd_get_hw_info() (clear_user())"
)
def hardware_info_fills_the_room_it_has(t: Test) -> None:
    """GET_HW_INFO writes as much of the hardware's data as there is room for, zeros behind it and nothing
    more, returns the full length, and is EFAULT if any of the room cannot be written."""
    with through_cdev(t.device("edu", iommu=True)) as user, Brink() as edge:
        iommufd = user.iommufd
        length = iommufd.get_hw_info(user.devid).data_len
        t.check(length >= 8, f"the hardware has {length} bytes of data; this case needs eight")

        def ask(room: int, where: int) -> int:
            info = api.HwInfo(dev_id=user.devid, data_len=room, data_uptr=where)
            iommufd.call(api.GET_HW_INFO, info)
            return info.data_len

        where = edge.put(b"\xa5" * 256)
        t.equal(ask(256, where), length, "the length returned")
        whole = edge.tail(256)
        t.equal(whole[length:], bytes(256 - length), "the bytes behind the data")
        for room in (0, 1, 4, length - 1, length, length + 1):
            edge.put(b"\xa5" * 256)
            t.equal(ask(room, where), length, f"the length returned for {room} bytes")
            t.equal(edge.tail(256), whole[:room] + b"\xa5" * (256 - room), f"the data in {room} bytes")
        for room in (length, length + 1, 4096):
            t.errno(errno.EFAULT, ask, room, edge.put(bytes(room - 1)))
        t.errno(errno.ENOENT, iommufd.get_hw_info, user.ioas)
        user.device.detach()
        t.equal(ask(length, where), length, "the length without an attachment")


@case(needs=(*CDEV, "noiommu-cdev"), cites="drivers/iommu/iommufd/io_pagetable.c iopt_get_phys() (owner)")
def no_page_table_gives_an_address(t: Test) -> None:
    """GET_PA is refused for a translated IOAS whether it has an additional page table, only a manually
    allocated one, or none; the device can still reach the memory."""
    pci.set_parameter(True)
    with _edu(t) as (user, device, buffer):
        user.map(buffer, IOVA)
        refused = (errno.EOPNOTSUPP, user.iommufd.get_pa, user.ioas, IOVA, PAGE)
        table = user.iommufd.hwpt_alloc(user.devid, user.ioas)
        t.errno(*refused)
        user.device.attach(table)
        t.errno(*refused)
        round_trip(t, device, buffer, IOVA)
        user.device.detach()
        user.iommufd.destroy(table)
        t.errno(*refused)


@case(
    needs=(*GROUP, "iommufd"),
    cites="drivers/iommu/iommufd/vfio_compat.c iommufd_vfio_set_iommu(), iommufd_vfio_compat_ioas_create()",
)
def played_container_is_a_type1_one(t: Test) -> None:
    """An iommufd used as container with a group behind an IOMMU offers type1, refuses the no-IOMMU type with
    the parameter on, and maps for its device."""
    bdf = t.device("edu", iommu=True)
    on = pci.parameter() is not None
    with (
        pci.bound(bdf, noiommu=on),
        vfio.open_container(api.PATH) as container,
        vfio.open_group(bdf) as group,
    ):
        group.set_container(container)
        t.equal(container.check_extension(vfio.TYPE1V2_IOMMU), 1, "CHECK_EXTENSION(3)")
        t.errno(errno.EINVAL, container.set_iommu, vfio.NOIOMMU_IOMMU)
        container.set_iommu(vfio.TYPE1V2_IOMMU)
        with group.device(bdf) as device, device.bar() as bar, memory.anonymous(2 * PAGE) as buffer:
            buffer.fill(0)
            container.map_dma(buffer.address, IOVA, buffer.length)
            device.set_bus_master()
            round_trip(t, edu.Edu(bar), buffer, IOVA)


@case(
    needs=(*CDEV, "noiommu"),
    cites="drivers/vfio/vfio_main.c vfio_device_set_noiommu_and_name(); iommufd/device.c: dev->iommu",
)
def parameter_changes_nothing_in_use(t: Test) -> None:
    """Changing the parameter while a device behind an IOMMU is in use changes neither its name nor its
    translation, and GET_PA stays refused."""
    bdf = t.device("edu", iommu=True)
    with _edu(t) as (user, device, buffer):
        before = (pci.vfio_nodes(bdf), pci.vfio_dev_name(bdf), pci.iommu_group(bdf))
        user.map(buffer, IOVA)
        for on in (True, False, True, False):
            pci.set_parameter(on)
            round_trip(t, device, buffer, IOVA)
            user.device.detach()
            user.device.attach(user.ioas)
            t.errno(errno.EOPNOTSUPP, user.iommufd.get_pa, user.ioas, IOVA, PAGE)
            now = (pci.vfio_nodes(bdf), pci.vfio_dev_name(bdf), pci.iommu_group(bdf))
            t.equal(now, before, f"nodes, name and group with the parameter {on}")


@case(
    needs=(*CDEV, "igb"),
    cites="drivers/iommu/iommufd/device.c iommufd_device_auto_get_domain(); io_pagetable.c",
    timeout=45,
)
def address_spaces_isolate_devices(t: Test) -> None:
    """Of two devices behind an IOMMU in separate IOASes, neither can reach memory mapped only for the other
    at the same IOVA."""
    second = t.device("igb", iommu=True)
    with _edu(t) as (user, device, buffer), pci.bound(second), vfio.open_cdev(second) as other:
        other.bind_iommufd(user.iommufd.fd)
        theirs = user.iommufd.ioas_alloc()
        other.attach(theirs)
        user.iommufd.map(user.ioas, buffer.address, PAGE, IOVA)
        user.iommufd.map(theirs, buffer.address + PAGE, PAGE, IOVA)
        user.iommufd.map(theirs, buffer.address + 2 * PAGE, PAGE, IOVA + PAGE)
        data, mark = memory.pattern(t.random, 64), memory.pattern(t.random, 64)
        buffer.write(data)
        buffer.write(mark, PAGE)
        buffer.write(mark, 2 * PAGE)
        device.copy_from_ram(IOVA, 64)
        buffer.write(bytes(64))
        device.copy_to_ram(IOVA, 64)
        device.copy_to_ram(IOVA + PAGE, 64)
        t.equal(buffer.read(0, 64), data, "the device's own page")
        t.equal([buffer.read(at, 64) for at in (PAGE, 2 * PAGE)], [mark, mark], "the other device's pages")


@case(
    needs=("viommu", "viommu-intel", "cdev", "iommufd", "edu"),
    cites="drivers/iommu/iommufd/device.c iommufd_device_bind(), iommufd_get_hw_info()",
)
def real_iommu_binds_and_attaches(t: Test) -> None:
    """Behind an IOMMU with interrupt remapping the same calls work, and GET_HW_INFO returns the type of the
    hardware."""
    with unbound(t.device("edu", iommu=True)) as (device, iommufd), memory.anonymous() as page:
        page.touch()
        devid = device.bind_iommufd(iommufd.fd)
        ioas = iommufd.ioas_alloc()
        iommufd.map(ioas, page.address, page.length, 0x10000)
        t.check(device.attach(ioas) not in (0, ioas), "ATTACH returned no page table ID")
        t.equal(memory.pinned_pages(), 1, "pages pinned")
        t.equal(
            iommufd.get_hw_info(devid).out_data_type, 1, "the hardware's type (IOMMU_HW_INFO_TYPE_INTEL_VTD)"
        )


@case(
    needs=CDEV, cites="drivers/vfio/device_cdev.c vfio_device_fops_cdev_open(), vfio_df_ioctl_bind_iommufd()"
)
def whole_path_without_rawio(t: Test) -> None:
    """A task without CAP_SYS_RAWIO can open, bind, attach, map and do DMA behind an IOMMU."""
    if pci.parameter() is not None:
        pci.set_parameter(True)
    with pci.bound(t.device("edu", iommu=True)) as nodes:

        def unprivileged() -> None:
            caps.drop(caps.CAP_SYS_RAWIO)
            t.check(not caps.has(caps.CAP_SYS_RAWIO), "the process still has the capability")
            with Iommufd() as iommufd, vfio.Device(os.open(str(nodes.cdev), os.O_RDWR)) as device:
                device.bind_iommufd(iommufd.fd)
                ioas = iommufd.ioas_alloc()
                device.attach(ioas)
                with device.bar() as bar, memory.anonymous(2 * PAGE) as buffer:
                    buffer.fill(0)
                    iommufd.map(ioas, buffer.address, buffer.length, IOVA)
                    device.set_bus_master()
                    round_trip(t, edu.Edu(bar), buffer, IOVA)

        t.in_child(unprivileged)
