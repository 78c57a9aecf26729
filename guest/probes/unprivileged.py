# SPDX-License-Identifier: GPL-2.0-only
"""What works without CAP_SYS_RAWIO, and what works with CAP_SYS_RAWIO and no other privilege."""

from __future__ import annotations

import errno
import os

from guest import caps, edu, memory, pci, vfio
from guest.case import Test, case
from guest.iommufd import Iommufd
from guest.opened import Event, opened, through_cdev


@case(
    needs=("viommu", "cdev", "edu"),
    cites="drivers/vfio/device_cdev.c vfio_device_fops_cdev_open(): no-IOMMU devices only",
)
def real_iommu_cdev_needs_no_rawio(t: Test) -> None:
    """Behind an IOMMU, an ordinary user permitted by the node's mode can open the cdev."""
    with pci.bound(t.device("edu", iommu=True), noiommu="noiommu" in t.features) as nodes:
        node = nodes.cdev
        assert node is not None
        os.chmod(node, 0o666)

        def as_nobody() -> None:
            caps.become()
            vfio.try_open(node)

        t.in_child(as_nobody)


@case(
    needs=("viommu", "group", "edu"),
    cites="drivers/vfio/group.c vfio_group_fops_open(): VFIO_NO_IOMMU groups only",
)
def real_iommu_group_needs_no_rawio(t: Test) -> None:
    """Behind an IOMMU, an ordinary user permitted by the node's mode can open the group."""
    with pci.bound(t.device("edu", iommu=True), noiommu="noiommu" in t.features) as nodes:
        node = nodes.group
        assert node is not None
        os.chmod(node, 0o666)

        def as_nobody() -> None:
            caps.become()
            vfio.try_open(node)

        t.in_child(as_nobody)


@case(
    needs=("viommu", "group", "edu"),
    cites="drivers/vfio/container.c, group.c: VFIO_NO_IOMMU groups only; iommufd/vfio_compat.c",
)
def real_iommu_group_path_needs_no_privilege(t: Test) -> None:
    """Behind an IOMMU, an ordinary user permitted by the node's mode can set up group and type1 container,
    map memory and use the device."""
    bdf = t.device("edu", iommu=True)
    with pci.bound(bdf, noiommu="noiommu" in t.features) as nodes:
        assert nodes.group is not None
        os.chmod(nodes.group, 0o666)

        def user() -> None:
            caps.become()
            with vfio.open_container() as container, vfio.open_group(bdf) as group:
                group.set_container(container)
                container.set_iommu(vfio.TYPE1V2_IOMMU)
                with group.device(bdf) as device, memory.anonymous() as page:
                    page.touch()
                    container.map_dma(page.address, 0x4000_0000, page.length)
                    t.equal(device.read_config(vfio.PCI_VENDOR_ID, 2), 0x1234, "vendor ID")
                    t.equal(container.unmap_dma(0x4000_0000, page.length), page.length, "bytes unmapped")

        t.in_child(user)


@case(
    needs=("noiommu-cdev", "edu", "!viommu"),
    cites="drivers/vfio/device_cdev.c vfio_device_fops_cdev_open(); iommufd/ioas.c: CAP_SYS_RAWIO alone",
)
def rawio_alone_is_enough_for_the_cdev(t: Test) -> None:
    """An ordinary user with only CAP_SYS_RAWIO is subject to the node's mode, and if it permits, can open,
    bind, attach, map and call GET_PA."""
    with pci.bound(t.device("edu", iommu=False)) as nodes, Iommufd() as iommufd:
        node = nodes.cdev
        assert node is not None

        def user() -> None:
            caps.keep_only(caps.CAP_SYS_RAWIO)
            with vfio.Device(os.open(node, os.O_RDWR)) as device, memory.anonymous() as page:
                page.touch()
                device.bind_iommufd(iommufd.fd)
                ioas = iommufd.ioas_alloc()
                device.attach(ioas)
                iommufd.map(ioas, page.address, page.length, 0x10000)
                address, length = iommufd.get_pa(ioas, 0x10010, 1)
                t.equal((address & 0xFFF, length), (0x10, 1), "offset in the page and length of the answer")

        def stopped() -> None:
            caps.keep_only(caps.CAP_SYS_RAWIO)
            t.errno(errno.EACCES, vfio.try_open, node)

        t.in_child(stopped)
        os.chmod(node, 0o666)
        t.in_child(user)


@case(
    needs=("noiommu-group", "edu", "!viommu"),
    cites="drivers/vfio/group.c, container.c; iommufd/vfio_compat.c: CAP_SYS_RAWIO alone",
)
def rawio_alone_is_enough_for_the_group(t: Test) -> None:
    """CAP_SYS_RAWIO and the node's mode are enough for an ordinary user to set up group and container and use
    the device."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf) as nodes:
        assert nodes.group is not None
        os.chmod(nodes.group, 0o666)

        def user() -> None:
            caps.keep_only(caps.CAP_SYS_RAWIO)
            with vfio.open_container() as container, vfio.open_group(bdf) as group:
                group.set_container(container)
                container.set_iommu(vfio.NOIOMMU_IOMMU)
                with group.device(bdf) as device:
                    t.equal(device.read_config(vfio.PCI_VENDOR_ID, 2), 0x1234, "vendor ID")

        t.in_child(user)


@case(
    needs=("noiommu", "edu", "!viommu"),
    cites="drivers/vfio/vfio_main.c vfio_device_fops_unl_ioctl() (access_granted)",
)
def device_in_hand_needs_no_rawio(t: Test) -> None:
    """CAP_SYS_RAWIO is checked at open only: a task without it that was passed the file of a device in use
    can read, map and set up interrupts."""
    with opened(t, t.device("edu", iommu=False)) as device:
        event = Event()

        def holder() -> None:
            caps.become()
            t.equal(device.info().num_regions, 9, "regions")
            t.equal(device.read_config(vfio.PCI_VENDOR_ID, 2), 0x1234, "vendor ID")
            device.set_bus_master()
            with device.bar(length=memory.PAGE) as bar:
                t.equal(bar.read32(0), edu.IDENTIFIES, "edu's identification register")
            device.set_eventfds(vfio.REQ, event.fd)

        t.in_child(holder)
        device.trigger(vfio.REQ)
        t.equal(event.arrives(), 1, "events at the eventfd that the holder set")
        command = device.read_config(vfio.PCI_COMMAND, 2)
        t.check(command & vfio.PCI_COMMAND_MASTER, "the bus mastering bit that the holder set is clear")


@case(
    needs=("noiommu-cdev", "edu", "!viommu"),
    cites="drivers/iommu/iommufd/ioas.c: iommufd_ioas_noiommu_get_pa() alone asks for a capability",
)
def mapping_needs_no_rawio(t: Test) -> None:
    """A task without CAP_SYS_RAWIO that was passed an iommufd and its device can map, copy, unmap, detach and
    attach; only GET_PA is refused."""
    with through_cdev(t.device("edu", iommu=False)) as user:
        iommufd, ioas, device = user.iommufd, user.ioas, user.device

        def holder() -> None:
            caps.become()
            with memory.anonymous() as page:
                page.touch()
                iommufd.map(ioas, page.address, page.length, 0x10000)
                other = iommufd.ioas_alloc()
                iommufd.copy(other, ioas, page.length, 0x10000, 0x20000)
                device.attach(other)
                t.errno(errno.EPERM, iommufd.get_pa, other, 0x20000, 1)
                device.detach()
                iommufd.destroy(iommufd.hwpt_alloc(user.devid, ioas))
                t.equal(iommufd.unmap(ioas, 0x10000, page.length), page.length, "bytes unmapped")
                device.attach(ioas)
                iommufd.destroy(other)

        t.in_child(holder)


@case(
    needs=("noiommu-group", "edu", "!viommu"),
    cites="drivers/vfio/container.c vfio_noiommu_open(), vfio_container_attach_group(): caller, not opener",
)
def container_opened_without_rawio_serves_who_has_it(t: Test) -> None:
    """The caller's CAP_SYS_RAWIO counts, not the opener's: a container that an ordinary user opened accepts
    group and IOMMU type from a privileged task."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf), vfio.open_group(bdf) as group:
        os.seteuid(caps.NOBODY)
        t.check(not caps.has(caps.CAP_SYS_RAWIO), "the capability is still in effect")
        with vfio.open_container() as container:
            t.equal(container.check_extension(vfio.NOIOMMU_IOMMU), 1, "CHECK_EXTENSION(8) as nobody")
            os.seteuid(0)
            group.set_container(container)
            container.set_iommu(vfio.NOIOMMU_IOMMU)
            with group.device(bdf) as device:
                t.equal(device.read_config(vfio.PCI_VENDOR_ID, 2), 0x1234, "vendor ID")


@case(
    needs=("mixed", "noiommu", "edu2"),
    cites="drivers/vfio/device_cdev.c vfio_device_fops_cdev_open(), group.c vfio_group_fops_open()",
)
def rawio_is_asked_of_the_bare_device_only(t: Test) -> None:
    """In a machine with both kinds, a task without CAP_SYS_RAWIO can open the nodes of the device behind the
    IOMMU and none of the other device."""
    with pci.bound(t.device("edu", iommu=True)) as real, pci.bound(t.device("edu", iommu=False)) as bare:

        def without() -> None:
            caps.drop(caps.CAP_SYS_RAWIO)
            for node in real.made:
                vfio.try_open(node)
            for node in bare.made:
                t.errno(errno.EPERM, vfio.try_open, node)

        t.in_child(without)
