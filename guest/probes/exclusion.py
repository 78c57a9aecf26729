# SPDX-License-Identifier: GPL-2.0-only
"""One user per device: group and device node exclude each other, and a refused request has no effect.

The rules are the same with and without an IOMMU, so most cases run with either.
"""

from __future__ import annotations

import errno
import itertools
import os
import time
from typing import Callable

from guest import brink, libc, pci, vfio
from guest import iommufd as api
from guest.case import Test, case
from guest.iommufd import Iommufd
from guest.memory import PAGE
from guest.opened import container_type, has_door, through_cdev, through_group, usable
from guest.uapi import errnos_at_once

DOORS = ("group", "cdev", "iommufd", "edu")
SHUT = ("noiommu-group", "noiommu-cdev", "edu", "!viommu")

RACE_SECONDS = 0.7


def _vendor(device: vfio.Device) -> int:
    return device.read_config(vfio.PCI_VENDOR_ID, 2)


@case(needs=DOORS, cites="drivers/vfio/device_cdev.c vfio_df_ioctl_bind_iommufd() (unwinding)")
def refused_bind_leaves_the_device_free(t: Test) -> None:
    """After a BIND that fails at any step, the group can be opened, and the next BIND succeeds."""
    bdf = usable(t, "edu", "group", "cdev")
    with pci.bound(bdf), Iommufd() as iommufd, vfio.open_cdev(bdf) as device:
        argument = vfio.BindIommufd(iommufd=iommufd.fd)
        with open(os.devnull, "rb") as null, brink.frozen(argument) as frozen:
            refusals: dict[int, Callable[[], object]] = {
                errno.EBADF: lambda: device.bind_iommufd(999),
                errno.EBADFD: lambda: device.bind_iommufd(null.fileno()),
                errno.EINVAL: lambda: device.bind_iommufd(iommufd.fd, token=os.urandom(16)),
                errno.EFAULT: lambda: libc.ioctl(device.fd, vfio.DEVICE_BIND_IOMMUFD, frozen),
            }
            for want, refused in refusals.items():
                t.errno(want, refused)
                t.errno(errno.EINVAL, device.info)
                vfio.open_group(bdf).close()
        device.bind_iommufd(iommufd.fd)
        t.check(_vendor(device), "the device does not answer")


@case(needs=DOORS, cites="drivers/vfio/device_cdev.c vfio_df_unbind_iommufd() (access_granted)")
def refused_bind_leaves_the_owner_alone(t: Test) -> None:
    """Closing a second file whose BIND was refused does not affect the first: its device works, and the group
    stays busy until it is closed."""
    bdf = usable(t, "edu", "group", "cdev")
    with pci.bound(bdf), Iommufd() as iommufd, vfio.open_cdev(bdf) as owner:
        owner.bind_iommufd(iommufd.fd)
        for _ in range(3):
            with vfio.open_cdev(bdf) as other:
                t.errno(errno.EINVAL, other.bind_iommufd, iommufd.fd)
            t.errno(errno.EBUSY, vfio.open_group, bdf)
        t.check(_vendor(owner), "the device does not answer its owner")
        owner.close()
        vfio.open_group(bdf).close()


@case(needs=DOORS, cites="drivers/vfio/group.c vfio_group_fops_release(), vfio_device_block_group()")
def group_is_held_by_its_last_copy(t: Test) -> None:
    """A duplicate of an open group file alone keeps the group busy, for other openers and for BIND, until it
    is closed."""
    bdf = usable(t, "edu", "group", "cdev")
    with pci.bound(bdf), Iommufd() as iommufd, vfio.open_cdev(bdf) as device:
        group = vfio.open_group(bdf)
        copy = vfio.Group(os.dup(group.fd))
        group.close()
        t.errno(errno.EBUSY, vfio.open_group, bdf)
        t.errno(errno.EBUSY, device.bind_iommufd, iommufd.fd)
        t.equal(copy.status(), vfio.GROUP_VIABLE, "status by the duplicate")
        copy.close()
        device.bind_iommufd(iommufd.fd)


@case(needs=DOORS, cites="drivers/vfio/vfio_main.c vfio_device_fops_release(), device_cdev.c")
def group_waits_for_the_last_copy_of_a_bound_file(t: Test) -> None:
    """The group stays busy while a duplicate of the bound device file is open or a BAR is mapped through it,
    and can be opened after that."""
    bdf = usable(t, "edu", "group", "cdev")
    with pci.bound(bdf), Iommufd() as iommufd, vfio.open_cdev(bdf) as device:
        device.bind_iommufd(iommufd.fd)
        with vfio.Device(os.dup(device.fd)) as copy:
            device.close()
            t.errno(errno.EBUSY, vfio.open_group, bdf)
            bar = copy.bar(length=PAGE)
        t.errno(errno.EBUSY, vfio.open_group, bdf)
        bar.close()
        vfio.open_group(bdf).close()


@case(needs=("group", "edu"), cites="drivers/vfio/container.c (`closed in any order`)")
def group_path_closes_in_any_order(t: Test) -> None:
    """Container, group and device can be closed in any order: the device works until its own file is closed,
    and everything can be opened again afterwards."""
    bdf = usable(t, "edu", "group")
    kind = container_type(bdf)
    with pci.bound(bdf):
        for order in itertools.permutations(("container", "group", "device")):
            container, group = vfio.open_container(), vfio.open_group(bdf)
            group.set_container(container)
            container.set_iommu(kind)
            device = group.device(bdf)
            files = {"container": container, "group": group, "device": device}
            for name in order:
                if device.fd >= 0:
                    t.equal(device.info().num_irqs, 5, f"interrupts of the device before {name} in {order}")
                files[name].close()
            vfio.open_group(bdf).close()
            if has_door(t, bdf, "cdev"):
                with Iommufd() as iommufd, vfio.open_cdev(bdf) as cdev:
                    cdev.bind_iommufd(iommufd.fd)
    t.check_no_complaint()


@case(needs=DOORS, cites="drivers/vfio/group.c vfio_device_block_group(), vfio_device_unblock_group()")
def doors_may_be_used_in_turn(t: Test) -> None:
    """Users can alternate between group and device node any number of times: the device is free after each
    close."""
    bdf = usable(t, "edu", "group", "cdev")
    kind = container_type(bdf)
    for turn in range(6):
        if t.random.random() < 0.5:
            with through_group(bdf, kind) as by_group:
                t.check(_vendor(by_group.device), f"no answer through the group in turn {turn}")
        else:
            with through_cdev(bdf) as by_cdev:
                t.check(_vendor(by_cdev.device), f"no answer through the device node in turn {turn}")
                t.errno(errno.EBUSY, vfio.open_group, bdf)


@case(
    needs=(*DOORS, "igb"),
    cites="drivers/vfio/group.c vfio_device_block_group(): of its own group",
    timeout=45,
)
def devices_are_shut_one_by_one(t: Test) -> None:
    """A device in use through its group or device node does not block another device: both can be used at the
    same time, each through either."""
    for one, other in (("edu", "igb"), ("igb", "edu")):
        first, second = (usable(t, kind, "group", "cdev") for kind in (one, other))
        with through_group(first, container_type(first)) as user, through_cdev(second) as neighbour:
            t.check(_vendor(user.device), f"{one} does not answer through its group")
            t.check(_vendor(neighbour.device), f"{other} does not answer through its device node")
            t.errno(errno.EBUSY, vfio.open_group, first)
            t.errno(errno.EBUSY, vfio.open_group, second)


@case(needs=("group", "iommufd", "edu"), cites="drivers/vfio/group.c vfio_group_ioctl_unset_container()")
def group_moves_between_containers(t: Test) -> None:
    """A group can leave one container for another of either kind and hands out its device from each; while it
    is in one, the other is refused."""
    bdf = usable(t, "edu", "group")
    kind = container_type(bdf)
    with (
        pci.bound(bdf),
        vfio.open_group(bdf) as group,
        vfio.open_container() as first,
        vfio.open_container(api.PATH) as second,
    ):
        for container, other in ((first, second), (second, first), (first, second)):
            group.set_container(container)
            t.errno(errno.EINVAL, group.set_container, other)
            container.set_iommu(kind)
            with group.device(bdf) as device:
                t.check(_vendor(device), "the device does not answer")
            group.unset_container()
            t.equal(group.status(), vfio.GROUP_VIABLE, "status after leaving")


@case(
    needs=DOORS, cites="drivers/vfio/group.c vfio_group_fops_open(), vfio_device_block_group() (group_lock)"
)
def racing_doors_have_one_winner(t: Test) -> None:
    """If the group is opened and the device node bound at the same moment, exactly one succeeds and the other
    is EBUSY."""
    bdf = usable(t, "edu", "group", "cdev")
    wins = {"group": 0, "cdev": 0}
    with pci.bound(bdf), Iommufd() as iommufd:
        end = time.monotonic() + RACE_SECONDS
        while time.monotonic() < end:
            groups: list[vfio.Group] = []
            with vfio.open_cdev(bdf) as device:
                results = errnos_at_once(_opener(bdf, groups), _binder(device, iommufd))
                t.equal(sorted(results), [0, errno.EBUSY], "results of the two")
                wins["group" if groups else "cdev"] += 1
                for group in groups:
                    group.close()
    t.log(f"wins: {wins}")


@case(
    needs=DOORS,
    cites="drivers/vfio/vfio_main.c vfio_df_open() (dev_set lock); group.c vfio_group_fops_open()",
)
def racing_users_of_one_door_have_one_winner(t: Test) -> None:
    """If two tasks bind one device to different iommufds, or open its group, at the same moment, exactly one
    succeeds."""
    bdf = usable(t, "edu", "group", "cdev")
    with pci.bound(bdf), Iommufd() as one, Iommufd() as other:
        end = time.monotonic() + RACE_SECONDS
        while time.monotonic() < end:
            with vfio.open_cdev(bdf) as first, vfio.open_cdev(bdf) as second:
                files = ((first, one), (second, other))
                results = errnos_at_once(*(_binder(file, iommufd) for file, iommufd in files))
                t.equal(sorted(results), [0, errno.EINVAL], "results of two BINDs")
            groups: list[vfio.Group] = []
            results = errnos_at_once(_opener(bdf, groups), _opener(bdf, groups))
            for group in groups:
                group.close()
            t.equal(sorted(results), [0, errno.EBUSY], "results of two opens")


def _opener(bdf: str, into: list[vfio.Group]) -> Callable[[], object]:
    return lambda: into.append(vfio.open_group(bdf))


def _binder(device: vfio.Device, iommufd: Iommufd) -> Callable[[], object]:
    return lambda: device.bind_iommufd(iommufd.fd)


@case(needs=SHUT, cites="drivers/vfio/group.c vfio_device_block_group()")
def open_group_shuts_out_the_cdev(t: Test) -> None:
    """While the group is open, the device node can be opened but not bound; once the group is closed, it can
    be bound."""
    bdf = t.device("edu")
    with pci.bound(bdf), Iommufd() as iommufd, vfio.open_cdev(bdf) as device:
        with vfio.open_group(bdf):
            t.errno(errno.EBUSY, device.bind_iommufd, iommufd.fd)
        device.bind_iommufd(iommufd.fd)


@case(
    needs=(*SHUT, "container"), cites="drivers/vfio/group.c vfio_device_block_group(), vfio_df_group_open()"
)
def device_in_use_by_group_shuts_out_the_cdev(t: Test) -> None:
    """While a device file from the group is open, the device node cannot be bound, even after the group's own
    file is closed."""
    bdf = t.device("edu")
    with pci.bound(bdf), vfio.open_container() as container, Iommufd() as iommufd:
        group = vfio.open_group(bdf)
        group.set_container(container)
        container.set_iommu(vfio.NOIOMMU_IOMMU)
        with group.device(bdf), vfio.open_cdev(bdf) as other:
            t.errno(errno.EBUSY, other.bind_iommufd, iommufd.fd)
            group.close()
            t.errno(errno.EBUSY, other.bind_iommufd, iommufd.fd)
        with vfio.open_cdev(bdf) as other:
            other.bind_iommufd(iommufd.fd)


@case(needs=SHUT, cites="drivers/vfio/group.c vfio_group_fops_open()")
def bound_cdev_shuts_out_the_group(t: Test) -> None:
    """A bound device node makes the group busy; a device node that is only open, or closed again, does
    not."""
    bdf = t.device("edu")
    with pci.bound(bdf), Iommufd() as iommufd:
        with vfio.open_cdev(bdf) as device:
            vfio.open_group(bdf).close()
            device.bind_iommufd(iommufd.fd)
            t.errno(errno.EBUSY, vfio.open_group, bdf)
        vfio.open_group(bdf).close()
