# SPDX-License-Identifier: GPL-2.0-only
"""What needs no CAP_SYS_RAWIO, or nothing besides: users whom a node's mode lets in, or who got a file."""

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
    """Behind an IOMMU the cdev opens for an ordinary user whom the node's mode lets in."""
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
    """Behind an IOMMU the group opens for an ordinary user whom the node's mode lets in."""
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
    """Behind an IOMMU an ordinary user whom the node lets in goes the whole way through group and type1
    container, maps memory and uses the device."""
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
                    t.equal(device.read_config(vfio.PCI_VENDOR_ID, 2), 0x1234, "vendor id")
                    t.equal(container.unmap_dma(0x4000_0000, page.length), page.length, "bytes unmapped")

        t.in_child(user)


@case(
    needs=("noiommu-cdev", "edu", "!viommu"),
    cites="drivers/vfio/device_cdev.c vfio_device_fops_cdev_open(); iommufd/ioas.c: CAP_SYS_RAWIO alone",
)
def rawio_alone_is_enough_for_the_cdev(t: Test) -> None:
    """An ordinary user with CAP_SYS_RAWIO and nothing else is stopped by the node's mode, and past it opens,
    binds, attaches, maps and learns addresses."""
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
    """An ordinary user with CAP_SYS_RAWIO and nothing else whom the node's mode lets in goes the whole way
    through group and container to the device."""
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
                    t.equal(device.read_config(vfio.PCI_VENDOR_ID, 2), 0x1234, "vendor id")

        t.in_child(user)


@case(
    needs=("noiommu", "edu", "!viommu"),
    cites="drivers/vfio/vfio_main.c vfio_device_fops_unl_ioctl() (access_granted)",
)
def device_in_hand_needs_no_rawio(t: Test) -> None:
    """The capability guards the door: whoever was handed a device file that is in use reads, maps and sets
    interrupts by it without."""
    with opened(t, t.device("edu", iommu=False)) as device:
        event = Event()

        def holder() -> None:
            caps.become()
            t.equal(device.info().num_regions, 9, "regions")
            t.equal(device.read_config(vfio.PCI_VENDOR_ID, 2), 0x1234, "vendor id")
            device.set_bus_master()
            with device.bar(length=memory.PAGE) as bar:
                t.equal(bar.read32(0), edu.IDENTIFIES, "edu's identification register")
            device.set_eventfds(vfio.REQ, event.fd)

        t.in_child(holder)
        device.trigger(vfio.REQ)
        t.equal(event.arrives(), 1, "events by the eventfd that the holder set")
        command = device.read_config(vfio.PCI_COMMAND, 2)
        t.check(command & vfio.PCI_COMMAND_MASTER, "what the holder wrote is lost")


@case(
    needs=("noiommu-cdev", "edu", "!viommu"),
    cites="drivers/iommu/iommufd/ioas.c: iommufd_ioas_noiommu_get_pa() alone asks for a capability",
)
def mapping_needs_no_rawio(t: Test) -> None:
    """Whoever was handed an iommufd and its device maps, copies, unmaps, detaches and attaches without the
    capability; the address alone is withheld."""
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
    """It is the caller's capability that counts, not the opener's: a container that an ordinary user opened
    takes group and type from a privileged one."""
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
                t.equal(device.read_config(vfio.PCI_VENDOR_ID, 2), 0x1234, "vendor id")


@case(
    needs=("mixed", "noiommu", "edu2"),
    cites="drivers/vfio/device_cdev.c vfio_device_fops_cdev_open(), group.c vfio_group_fops_open()",
)
def rawio_is_asked_of_the_bare_device_only(t: Test) -> None:
    """In a mixed machine a task without CAP_SYS_RAWIO opens the nodes of the device behind the IOMMU and none
    of the other's."""
    with pci.bound(t.device("edu", iommu=True)) as real, pci.bound(t.device("edu", iommu=False)) as bare:

        def without() -> None:
            caps.drop(caps.CAP_SYS_RAWIO)
            for node in real.made:
                vfio.try_open(node)
            for node in bare.made:
                t.errno(errno.EPERM, vfio.try_open, node)

        t.in_child(without)
