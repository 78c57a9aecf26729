# SPDX-License-Identifier: GPL-2.0-only
"""Resets: of the function and of its bus, by ioctl and by configuration space, and what state survives
them."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Iterator

from guest import edu, igb, libc, pci, vfio
from guest.brink import Brink
from guest.case import Test, case
from guest.iommufd import Iommufd
from guest.opened import (
    Event,
    opened,
    reopened,
    reopened_by_cdev,
    reopened_by_group,
    sigbus,
    through_cdev,
    through_group,
)
from guest.vfio import BAR0, MSIX, PCI_COMMAND

EDU = ("noiommu", "edu", "!viommu")
IGB = ("noiommu", "igb", "!viommu")
SHARED = (*IGB, "edu", "shared-port")

# include/uapi/linux/pci_regs.h
EXPRESS_DEVCTL = 8
DEVCTL_FLR = 0x8000

# include/uapi/linux/vfio.h
HOT_RESET_DEV_ID, HOT_RESET_OWNED = 1, 2
HOT_RESET_HEADER = 12
NOT_OWNED = 0xFFFF_FFFF  # VFIO_PCI_DEVID_NOT_OWNED

GOES = 10.0


@case(
    needs=(*EDU, "!hotplug", "!mixed", "!shared-port"),
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_reset()",
)
def no_reset_where_none_exists(t: Test) -> None:
    """edu on the root bus supports no reset: RESET, HOT_RESET and GET_PCI_HOT_RESET_INFO are refused, and the
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


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_reset()", timeout=45)
def reset_switches_no_memory_on(t: Test) -> None:
    """After a reset with memory decoding off, decoding stays off for file and mapping; after it is turned on,
    old and new mappings show the reset device."""
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
            t.equal(fresh.read32(8), bar.read32(8), "the status register through the new and the old mapping")
            t.equal(fresh.read32(8) & 0xF, status & 0xF, "duplex, link and function id after the reset")
        t.equal(len(os.pread(device.fd, 4, offset)), 4, "bytes read from the BAR")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_pci_hot_reset()")
def hot_reset_checks_its_arguments(t: Test) -> None:
    """HOT_RESET and GET_PCI_HOT_RESET_INFO refuse a short argsz and any flag before they look at the
    topology."""
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
    """If the buffer is too small for the devices that a hot reset affects, GET_PCI_HOT_RESET_INFO returns
    their number with ENOSPC and writes nothing after the header; with just enough room it returns all of
    them."""
    with opened(t, t.device("edu")) as device, Brink() as edge:
        request = vfio.DEVICE_GET_PCI_HOT_RESET_INFO
        for size in (12, 13, 19):
            where = edge.put(struct.pack("<III", size, 99, 99) + b"\xa5" * (size - 12))
            t.errno(errno.ENOSPC, libc.ioctl, device.fd, request, where)
            told = edge.tail(size)
            t.equal(struct.unpack_from("<II", told, 4), (0, 1), f"flags and count with {size} bytes")
            t.equal(told[12:], b"\xa5" * (size - 12), "the bytes after the header")
        libc.ioctl(device.fd, request, edge.put(struct.pack("<III", 20, 0, 0) + bytes(8)))
        told = edge.tail(20)
        t.equal(struct.unpack_from("<I", told, 8)[0], 1, "the number of devices returned")
        _owner, segment, bus, devfn = struct.unpack_from("<IHBB", told, 12)
        name = f"{segment:04x}:{bus:02x}:{devfn >> 3:02x}.{devfn & 7}"
        t.equal(name, t.device("edu"), "the device returned")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_reset()", timeout=45)
def reset_clears_the_device_not_its_user(t: Test) -> None:
    """RESET returns the device's registers to their defaults and keeps its user's bus mastering, memory
    decoding, mappings and interrupts."""
    with opened(t, t.device("igb")) as device, device.bar() as bar:
        t.check(device.info().flags & vfio.DEVICE_FLAGS_RESET, "igb does not claim that it can be reset")
        card, event = igb.Igb(bar), Event()
        device.set_bus_master()
        device.set_eventfds(MSIX, event.fd)
        command = device.read_config(PCI_COMMAND, 2)
        default = bar.read32(igb.RDLEN)
        bar.write32(igb.RDLEN, 4096)
        t.equal(bar.read32(igb.RDLEN), 4096, "a register before the reset")
        device.reset()
        t.equal(
            bar.read32(igb.RDLEN), default, "the register after the reset, through the mapping made before"
        )
        t.equal(device.read_config(PCI_COMMAND, 2), command, "the command register after the reset")
        card.enable_vectors(1)
        card.raise_causes(1)
        t.equal(event.arrives(), 1, "events of a vector set up before the reset")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_config.c vfio_exp_config_write()", timeout=45)
def function_level_reset_by_config_space(t: Test) -> None:
    """Writing the function level reset bit of the PCI Express capability resets the device, and the bit reads
    as zero."""
    with opened(t, t.device("igb")) as device, device.bar() as bar:
        cap = pci.capability(t.device("igb"), pci.CAP_EXPRESS)
        default = bar.read32(igb.RDLEN)
        bar.write32(igb.RDLEN, 4096)
        control = device.read_config(cap + EXPRESS_DEVCTL, 2)
        device.write_config(cap + EXPRESS_DEVCTL, 2, control)
        t.equal(bar.read32(igb.RDLEN), 4096, "the register after a write without the reset bit")
        device.write_config(cap + EXPRESS_DEVCTL, 2, control | DEVCTL_FLR)
        t.check(not device.read_config(cap + EXPRESS_DEVCTL, 2) & DEVCTL_FLR, "the reset bit reads as one")
        t.equal(bar.read32(igb.RDLEN), default, "the register after a write with the reset bit")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_enable(), vfio_pci_core_disable()")
def next_user_finds_a_reset_device(t: Test) -> None:
    """If a device can be reset, nothing that one user leaves in it remains for the next."""
    bdf = t.device("igb")
    with pci.bound(bdf):
        with reopened(t, bdf) as device, device.bar() as bar:
            default = bar.read32(igb.RDBAL)
            bar.write32(igb.RDBAL, 0x12340000)
            t.equal(bar.read32(igb.RDBAL), 0x12340000, "a ring address of the first user")
        with reopened(t, bdf) as device, device.bar() as bar:
            t.equal(bar.read32(igb.RDBAL), default, "the ring address that the second user finds")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_disable() (reset_works)")
def closing_resets_the_device(t: Test) -> None:
    """If a device can be reset, closing it clears what its user left in it at once, visible without VFIO too,
    even if the device is kept active."""
    bdf = t.device("igb")
    with pci.bound(bdf):
        pci.write(pci.path_of(bdf) / "power" / "control", "on")
        with reopened(t, bdf) as device, device.bar() as bar:
            size, default = bar.length, bar.read32(igb.RDBAL)
            bar.write32(igb.RDBAL, 0x12340000)
            t.equal(bar.read32(igb.RDBAL), 0x12340000, "a ring address of the user")
        with (
            open(pci.path_of(bdf) / "resource0", "r+b", buffering=0) as past_vfio,
            vfio.Bar(past_vfio.fileno(), 0, size) as bar,
        ):
            t.equal(bar.read32(igb.RDBAL), default, "the ring address after the close")


def _hot_reset_info(device: vfio.Device, room: int) -> tuple[int, list[tuple[int, str]]]:
    """Return flags, and (ID, BDF) of each device that a hot reset affects; raise OSError with ENOSPC if
    *room* is too small."""
    argument = bytearray(struct.pack("<III", HOT_RESET_HEADER + 8 * room, 0, 0) + bytes(8 * room))
    device.call(vfio.DEVICE_GET_PCI_HOT_RESET_INFO, argument)
    _size, flags, count = struct.unpack_from("<III", argument)
    entries = [struct.unpack_from("<IHBB", argument, HOT_RESET_HEADER + 8 * n) for n in range(count)]
    return flags, [
        (owner, f"{segment:04x}:{bus:02x}:{devfn >> 3:02x}.{devfn & 7}")
        for owner, segment, bus, devfn in entries
    ]


def _port_that_comes_back(t: Test) -> str:
    """Return the card's BDF; skip the case if QEMU's port would report no link after a reset of its bus.

    Above 5 GT/s Linux waits for the data link layer to report active (pci_bridge_wait_for_secondary_bus()),
    and QEMU's pcie-root-port, which runs at 16 GT/s unless x-speed=5 is set, never does after such a reset.
    """
    bdf = t.device("igb")
    speed = pci.read(pci.path_of(bdf).resolve().parent / "max_link_speed")
    if float(speed.split()[0]) > 5:
        t.skip(f"the port above {bdf} runs at {speed}; in QEMU it survives a bus reset only with x-speed=5")
    return bdf


def _hot_reset(device: vfio.Device, *groups: vfio.Group) -> None:
    fds = [group.fd for group in groups]
    head = struct.pack("<III", HOT_RESET_HEADER + 4 * len(fds), 0, len(fds))
    device.call(vfio.DEVICE_PCI_HOT_RESET, bytearray(head + struct.pack(f"<{len(fds)}i", *fds)))


@case(
    needs=(*IGB, "noiommu-cdev", "hotplug"),
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_dev_set_hot_reset()",
    timeout=60,
)
def hot_reset_by_iommufd(t: Test) -> None:
    """The user of the only device behind a port owns, by its iommufd ID, all devices that a hot reset
    affects, and may hot reset without naming groups: the device's registers return to their defaults."""
    bdf = _port_that_comes_back(t)
    with through_cdev(bdf) as user, user.device.bar() as bar:
        t.errno(errno.ENOSPC, _hot_reset_info, user.device, 0)
        flags, hit = _hot_reset_info(user.device, 8)
        t.equal(flags, HOT_RESET_DEV_ID | HOT_RESET_OWNED, "flags of the hot reset information")
        t.equal(hit, [(user.devid, bdf)], "devices that a hot reset affects")
        default = bar.read32(igb.RDLEN)
        bar.write32(igb.RDLEN, 4096)
        request = bytearray(struct.pack("<IIIi", HOT_RESET_HEADER + 4, 0, 1, user.iommufd.fd))
        t.errno(errno.EINVAL, user.device.call, vfio.DEVICE_PCI_HOT_RESET, request)
        t.equal(bar.read32(igb.RDLEN), 4096, "the register after a refused hot reset")
        _hot_reset(user.device)
        t.equal(bar.read32(igb.RDLEN), default, "the register after the hot reset")


@case(
    needs=(*IGB, "noiommu-group", "hotplug"),
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_pci_hot_reset_groups()",
    timeout=60,
)
def hot_reset_by_group(t: Test) -> None:
    """A user that opened the device through its group can hot reset it only by passing the group's file."""
    bdf = _port_that_comes_back(t)
    with through_group(bdf) as user, user.device.bar() as bar:
        flags, hit = _hot_reset_info(user.device, 8)
        t.equal(
            (flags, hit), (0, [(pci.iommu_group(bdf), bdf)]), "flags and devices that a hot reset affects"
        )
        default = bar.read32(igb.RDLEN)
        bar.write32(igb.RDLEN, 4096)
        t.errno(errno.EINVAL, _hot_reset, user.device)
        t.errno(errno.EINVAL, _hot_reset, user.device, user.group, user.group)
        t.errno(errno.EINVAL, _hot_reset, user.device, vfio.Group(user.container.fd))
        t.errno(errno.EBADF, _hot_reset, user.device, vfio.Group(999))
        t.equal(bar.read32(igb.RDLEN), 4096, "the register after refused hot resets")
        _hot_reset(user.device, user.group)
        t.equal(bar.read32(igb.RDLEN), default, "the register after the hot reset")


@case(
    needs=(*IGB, "noiommu-cdev", "noiommu-group", "hotplug"),
    cites="drivers/vfio/device_cdev.c vfio_df_unbind_iommufd() (cdev_opened)",
    timeout=60,
)
def hot_reset_goes_by_the_door_of_the_moment(t: Test) -> None:
    """GET_PCI_HOT_RESET_INFO returns iommufd IDs to a user that opened the device through its cdev and group
    IDs to one that opened it through its group, whichever the user before it used."""
    bdf = _port_that_comes_back(t)
    with pci.bound(bdf):
        for turn in ("first", "second"):
            with reopened_by_cdev(bdf) as device:
                flags, _hit = _hot_reset_info(device, 8)
                t.equal(flags, HOT_RESET_DEV_ID | HOT_RESET_OWNED, f"flags for the {turn} user of the cdev")
            with reopened_by_group(bdf) as device:
                told = _hot_reset_info(device, 8)
                t.equal(
                    told,
                    (0, [(pci.iommu_group(bdf), bdf)]),
                    f"flags and devices for the {turn} user of the group",
                )


@case(
    needs=(*SHARED, "noiommu-cdev"),
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_dev_set_hot_reset() (owned), vfio_pci_fill_devs()",
    timeout=60,
)
def hot_reset_wants_the_neighbour_as_well(t: Test) -> None:
    """The user of one of two devices behind a port may reset their bus if both are bound to that user's
    iommufd, and not while the other has no driver, no user, or another user; GET_PCI_HOT_RESET_INFO reports
    which."""
    bdf, other = _port_that_comes_back(t), t.device("edu")
    with through_cdev(bdf) as user, user.device.bar() as bar:
        default = bar.read32(igb.RDLEN)
        bar.write32(igb.RDLEN, 4096)

        def refused(neighbour: str) -> None:
            flags, hit = _hot_reset_info(user.device, 8)
            t.equal(flags, HOT_RESET_DEV_ID, f"flags of the hot reset information {neighbour}")
            t.equal(
                sorted(hit),
                [(user.devid, bdf), (NOT_OWNED, other)],
                f"devices that a hot reset affects {neighbour}",
            )
            t.errno(errno.EINVAL, _hot_reset, user.device)
            t.equal(bar.read32(igb.RDLEN), 4096, f"the register after a hot reset refused {neighbour}")

        refused("beside a device without a driver")
        with pci.bound(other):
            refused("beside an idle device")
            with reopened_by_cdev(other):
                refused("beside a device of another user")
            with vfio.open_cdev(other) as second:
                devid = second.bind_iommufd(user.iommufd.fd)
                flags, hit = _hot_reset_info(user.device, 8)
                t.equal(flags, HOT_RESET_DEV_ID | HOT_RESET_OWNED, "flags when one user has both devices")
                t.equal(
                    sorted(hit), sorted([(user.devid, bdf), (devid, other)]), "devices when one user has both"
                )
                _hot_reset(user.device)
                t.equal(bar.read32(igb.RDLEN), default, "the register after the hot reset")


@case(
    needs=(*SHARED, "noiommu-group"),
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_dev_in_groups(), vfio_pci_fill_devs() (EPERM)",
    timeout=60,
)
def hot_reset_wants_every_group(t: Test) -> None:
    """A user that opened a device through its group may reset a bus with two devices only by passing the
    files of both groups, in any order; GET_PCI_HOT_RESET_INFO is EPERM while one of the devices has no
    group."""
    bdf, other = _port_that_comes_back(t), t.device("edu")
    with through_group(bdf) as user, user.device.bar() as bar:
        default = bar.read32(igb.RDLEN)
        bar.write32(igb.RDLEN, 4096)
        t.errno(errno.EPERM, _hot_reset_info, user.device, 8)
        t.errno(errno.EINVAL, _hot_reset, user.device, user.group)
        with pci.bound(other), vfio.open_group(other) as second:
            flags, hit = _hot_reset_info(user.device, 8)
            want = [(pci.iommu_group(other), other), (pci.iommu_group(bdf), bdf)]
            t.equal((flags, sorted(hit)), (0, sorted(want)), "flags and devices that a hot reset affects")
            t.errno(errno.EINVAL, _hot_reset, user.device, user.group)
            t.errno(errno.EINVAL, _hot_reset, user.device, second)
            t.equal(bar.read32(igb.RDLEN), 4096, "the register after refused hot resets")
            _hot_reset(user.device, second, user.group)
            t.equal(bar.read32(igb.RDLEN), default, "the register after the hot reset")


@contextlib.contextmanager
def _no_reset(bdf: str) -> Iterator[None]:
    method = pci.path_of(bdf) / "reset_method"
    pci.write(method, "\n")
    try:
        yield
    finally:
        pci.write(method, "default")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_enable() (reset_works)")
def reset_is_offered_where_it_works(t: Test) -> None:
    """Whether a device can be reset is determined when it is opened: the RESET flag and the ioctl (EINVAL)
    agree."""
    bdf = t.device("igb")
    with pci.bound(bdf):
        with _no_reset(bdf), reopened(t, bdf) as device:
            t.check(
                not device.info().flags & vfio.DEVICE_FLAGS_RESET,
                "the flag says that the device can be reset, but it cannot",
            )
            t.errno(errno.EINVAL, device.reset)
        with reopened(t, bdf) as device:
            t.check(
                device.info().flags & vfio.DEVICE_FLAGS_RESET,
                "the flag says that the device cannot be reset, but it can",
            )
            device.reset()


@case(
    needs=(*IGB, "hotplug"),
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_dev_set_try_reset(), vfio_pci_dev_set_needs_reset()",
    timeout=60,
)
def bus_is_reset_where_the_device_cannot_be(t: Test) -> None:
    """If a device itself cannot be reset, its bus is reset when its user closes the device, whether or not it
    suspends in between, and the device suspends again afterwards."""
    bdf = _port_that_comes_back(t)
    power = pci.path_of(bdf) / "power"
    with pci.bound(bdf), _no_reset(bdf):
        pci.write(power / "control", "on")
        with reopened(t, bdf) as device, device.bar() as bar:
            t.check(not device.info().flags & vfio.DEVICE_FLAGS_RESET, "the device can be reset itself")
            default = bar.read32(igb.RDLEN)
            bar.write32(igb.RDLEN, 4096)
        with reopened(t, bdf) as device, device.bar() as bar:
            t.equal(bar.read32(igb.RDLEN), default, "the register that the next user finds")
        pci.write(power / "control", "auto")
        t.wait_until(
            lambda: pci.read(power / "runtime_status") == "suspended", "the suspend of an idle device", GOES
        )


@case(
    needs=SHARED,
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_dev_set_needs_reset() (open_count)",
    timeout=60,
)
def bus_is_not_reset_under_a_neighbour(t: Test) -> None:
    """While one of two devices behind a port is in use, closing the other does not reset their bus, although
    the other cannot be reset in any other way; closing the last one does."""
    bdf, other = _port_that_comes_back(t), t.device("edu")
    with pci.bound(bdf), pci.bound(other), _no_reset(bdf):
        pci.write(pci.path_of(bdf) / "power" / "control", "on")
        with reopened(t, other) as neighbour:
            t.check(not neighbour.info().flags & vfio.DEVICE_FLAGS_RESET, "edu claims that it can be reset")
            with reopened(t, bdf) as device, device.bar() as bar:
                default = bar.read32(igb.RDLEN)
                bar.write32(igb.RDLEN, 4096)
            with reopened(t, bdf) as device, device.bar() as bar:
                t.equal(
                    bar.read32(igb.RDLEN), 4096, "the register of a device closed while the other was in use"
                )
                neighbour.close()
                t.equal(bar.read32(igb.RDLEN), 4096, "the register of a device after the other was closed")
        with reopened(t, bdf) as device, device.bar() as bar:
            t.equal(bar.read32(igb.RDLEN), default, "the register after both were closed")


@case(
    needs=IGB,
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_reset(); pci.c pci_try_reset_function()",
)
def reset_does_not_wait_for_an_unbind(t: Test) -> None:
    """While an unbind waits for the device's user, that user's RESET is EAGAIN at once, and closing the
    device still ends the unbind."""
    bdf = t.device("igb")
    with opened(t, bdf) as device:
        event = Event()
        device.set_eventfds(vfio.REQ, event.fd)
        writer = pci.start_unbind(bdf)
        t.equal(event.arrives(), 1, "requests to the user")
        t.errno(errno.EAGAIN, device.reset)
        t.check(device.info().flags & vfio.DEVICE_FLAGS_PCI, "the device does not answer")
        device.close()
        writer.wait(GOES)
    t.equal(pci.driver(bdf), None, "the driver after the unbind")


@case(needs=(*IGB, "noiommu-cdev"), cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_enable() (-EAGAIN)")
def nobody_begins_to_use_a_device_that_leaves(t: Test) -> None:
    """While an unbind waits, a file opened before it cannot bind a device that needs a reset at open
    (EAGAIN), and the attempt does not block the unbind."""
    bdf = t.device("igb")
    with pci.bound(bdf), vfio.open_cdev(bdf) as device, Iommufd() as iommufd:
        writer = pci.start_unbind(bdf)
        node = pci.cdev_node(bdf)
        t.wait_until(lambda: pci.vfio_dev_name(bdf) is None, f"the removal of {node}", GOES)
        t.errno(errno.EAGAIN, device.bind_iommufd, iommufd.fd)
        t.check(not writer.done, "the unbind did not wait for the open file")
        device.close()
        writer.wait(GOES)
