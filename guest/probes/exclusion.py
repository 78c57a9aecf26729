# SPDX-License-Identifier: GPL-2.0-only
"""One device, one user: group and device node shut each other out, and what was refused leaves no trace.

The rules are the same with and without an IOMMU, so that most cases run on whichever the machine has.
Address spaces are here too: what two devices without an IOMMU share, and what they do not.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Callable

from guest import brink, libc, memory, pci, vfio
from guest import iommufd as api
from guest.case import Test, case
from guest.iommufd import Iommufd
from guest.memory import PAGE
from guest.opened import CdevUser, container_type, through_cdev, through_group, unbound, usable
from guest.uapi import errno_of

DOORS = ("group", "cdev", "iommufd", "edu")
SHUT = ("noiommu-group", "noiommu-cdev", "edu", "!viommu")
TWO = ("noiommu-cdev", "edu", "igb", "!viommu")
MIXED = ("mixed", "noiommu-cdev", "iommufd", "edu2")

IOVA = 0x40_0000_0000
RACE_SECONDS = 0.7


def _vendor(device: vfio.Device) -> int:
    return device.read_config(vfio.PCI_VENDOR_ID, 2)


@case(needs=DOORS, cites="drivers/vfio/device_cdev.c vfio_df_ioctl_bind_iommufd() (unwinding)")
def refused_bind_leaves_the_device_free(t: Test) -> None:
    """A BIND that fails, at whichever step, shuts nobody out: the group opens, and the next BIND succeeds."""
    bdf = usable(t)
    with pci.bound(bdf), Iommufd() as iommufd, vfio.open_cdev(bdf) as device:
        argument = vfio.BindIommufd(iommufd=iommufd.fd)
        with open(os.devnull, "rb") as null, brink.frozen(argument) as frozen:
            refusals: dict[int, Callable[[], object]] = {
                errno.EBADF: lambda: device.bind_iommufd(999),
                errno.EBADFD: lambda: device.bind_iommufd(null.fileno()),
                errno.EINVAL: lambda: device.bind_iommufd(iommufd.fd, token=uuid.uuid4().bytes),
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
    """A second file that was refused the device takes nothing from the first when it is closed: the device
    works, and the group stays shut until the first file closes."""
    bdf = usable(t)
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
    """A duplicate of an open group file holds the group alone: no other opener and no BIND until it is closed
    as well."""
    bdf = usable(t)
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
    """The group stays shut while a duplicate of the bound device file lives, then while a BAR is mapped
    through it, and opens when that is gone too."""
    bdf = usable(t)
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
    """Container, group and device may be closed in any order: the device works until its own file closes,
    and everything can be opened anew afterwards."""
    bdf = usable(t)
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
            if "cdev" in t.features:
                with Iommufd() as iommufd, vfio.open_cdev(bdf) as cdev:
                    cdev.bind_iommufd(iommufd.fd)
    t.check_no_complaint()


@case(needs=DOORS, cites="drivers/vfio/group.c vfio_device_block_group(), vfio_device_unblock_group()")
def doors_may_be_used_in_turn(t: Test) -> None:
    """Users may take turns between the doors, however often: whoever comes after a close finds the device
    free."""
    bdf = usable(t)
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
    """A device in use by one door shuts neither door of another device: each may be used by either at the
    same time."""
    for one, other in (("edu", "igb"), ("igb", "edu")):
        first, second = usable(t, one), usable(t, other)
        with through_group(first, container_type(first)) as user, through_cdev(second) as neighbour:
            t.check(_vendor(user.device), f"{one} does not answer through its group")
            t.check(_vendor(neighbour.device), f"{other} does not answer through its device node")
            t.errno(errno.EBUSY, vfio.open_group, first)
            t.errno(errno.EBUSY, vfio.open_group, second)


@case(needs=("group", "iommufd", "edu"), cites="drivers/vfio/group.c vfio_group_ioctl_unset_container()")
def group_moves_between_containers(t: Test) -> None:
    """A group leaves one container for another, of either make, and hands out its device from each; while it
    is in one the other is refused."""
    bdf = usable(t)
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


def _race(*attempts: Callable[[], object]) -> list[int]:
    """Make all *attempts* at once and return the errno of each, 0 for success."""
    start = threading.Barrier(len(attempts))
    results = [-1] * len(attempts)

    def run(index: int) -> None:
        start.wait(10)
        results[index] = errno_of(attempts[index])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(attempts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    return results


@case(
    needs=DOORS, cites="drivers/vfio/group.c vfio_group_fops_open(), vfio_device_block_group() (group_lock)"
)
def racing_doors_have_one_winner(t: Test) -> None:
    """When the group is opened and the device node bound at the same moment, exactly one succeeds, and the
    other is told EBUSY."""
    bdf = usable(t)
    wins = {"group": 0, "cdev": 0}
    with pci.bound(bdf), Iommufd() as iommufd:
        end = time.monotonic() + RACE_SECONDS
        while time.monotonic() < end:
            groups: list[vfio.Group] = []
            with vfio.open_cdev(bdf) as device:
                results = _race(_opener(bdf, groups), _binder(device, iommufd))
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
    """Of two tasks that bind one device at the same moment, to an iommufd each, exactly one gets it, and so
    of two that open its group."""
    bdf = usable(t)
    with pci.bound(bdf), Iommufd() as one, Iommufd() as other:
        end = time.monotonic() + RACE_SECONDS
        while time.monotonic() < end:
            with vfio.open_cdev(bdf) as first, vfio.open_cdev(bdf) as second:
                files = ((first, one), (second, other))
                results = _race(*(_binder(file, iommufd) for file, iommufd in files))
                t.equal(sorted(results), [0, errno.EINVAL], "results of two BINDs")
            groups: list[vfio.Group] = []
            results = _race(_opener(bdf, groups), _opener(bdf, groups))
            for group in groups:
                group.close()
            t.equal(sorted(results), [0, errno.EBUSY], "results of two opens")


def _opener(bdf: str, into: list[vfio.Group]) -> Callable[[], object]:
    return lambda: into.append(vfio.open_group(bdf))


def _binder(device: vfio.Device, iommufd: Iommufd) -> Callable[[], object]:
    return lambda: device.bind_iommufd(iommufd.fd)


@contextlib.contextmanager
def _two(t: Test) -> Iterator[tuple[CdevUser, vfio.Device, int, memory.Buffer, memory.Buffer]]:
    """An attached edu, an igb bound to the same iommufd and attached nowhere with its id, and two pages."""
    first, second = t.device("edu", iommu=False), t.device("igb", iommu=False)
    with (
        through_cdev(first) as user,
        pci.bound(second),
        vfio.open_cdev(second) as other,
        memory.anonymous() as one,
        memory.anonymous() as two,
    ):
        one.touch()
        two.touch()
        yield user, other, other.bind_iommufd(user.iommufd.fd), one, two


@case(needs=TWO, cites="drivers/iommu/iommufd/device.c iommufd_device_auto_get_domain(); io_pagetable.c")
def address_spaces_keep_apart(t: Test) -> None:
    """Two devices in two address spaces of one iommufd: one IOVA is a page of its own in each, and neither
    UNMAP nor DETACH in the one touches the other."""
    with _two(t) as (user, other, _devid, one, two):
        iommufd = user.iommufd
        ioas = iommufd.ioas_alloc()
        other.attach(ioas)
        iommufd.map(user.ioas, one.address, PAGE, IOVA)
        iommufd.map(ioas, two.address, PAGE, IOVA)
        t.equal(iommufd.get_pa(user.ioas, IOVA, PAGE), (one.physical(), PAGE), "the first device's page")
        t.equal(iommufd.get_pa(ioas, IOVA, PAGE), (two.physical(), PAGE), "the second device's page")
        iommufd.unmap(user.ioas, IOVA, PAGE)
        t.errno(errno.ENOENT, iommufd.get_pa, user.ioas, IOVA, PAGE)
        t.equal(iommufd.get_pa(ioas, IOVA, PAGE), (two.physical(), PAGE), "the second page after UNMAP")
        user.device.detach()
        t.equal(iommufd.get_pa(ioas, IOVA, PAGE), (two.physical(), PAGE), "the second page after DETACH")
        t.equal(memory.pinned_kib(), 4, "KiB pinned for the second device")


@case(
    needs=TWO, cites="drivers/iommu/iommufd/device.c iommufd_device_change_pt(); main.c iommufd_get_object()"
)
def ids_belong_to_one_iommufd(t: Test) -> None:
    """An id of one iommufd says nothing to another: a device attaches only to objects of the one that it is
    bound to, and closing it leaves the addresses of the other."""
    with (
        unbound(t.device("igb", iommu=False)) as (other, strange),
        through_cdev(t.device("edu", iommu=False)) as user,
        memory.anonymous() as page,
    ):
        page.touch()
        user.map(page, IOVA)
        strange.ioas_alloc()
        devid = other.bind_iommufd(strange.fd)
        foreign = [strange.ioas_alloc() for _ in range(8)][-1]
        t.errno(errno.ENOENT, user.device.attach, foreign)
        t.errno(errno.ENOENT, user.iommufd.hwpt_alloc, foreign, user.ioas)
        t.errno(errno.EINVAL, user.iommufd.hwpt_alloc, user.devid, foreign)
        t.errno(errno.ENOENT, user.iommufd.get_hw_info, foreign)
        t.errno(errno.ENOENT, user.iommufd.destroy, foreign)
        t.errno(errno.EBUSY, strange.destroy, devid)
        t.check(other.attach(foreign) > 0, "attach to the object in its own iommufd")
        t.errno(errno.ENOENT, strange.get_pa, foreign, IOVA, PAGE)
        other.close()
        t.equal(user.physical(IOVA, PAGE), page.physical(), "the first device's page")


@case(needs=TWO, cites="drivers/iommu/iommufd/device.c iommufd_hwpt_detach_device()")
def shared_space_lasts_as_long_as_either_device(t: Test) -> None:
    """Two devices in one address space share one page table, which gives addresses and keeps pages pinned
    until the second of them leaves, whichever is first."""
    with _two(t) as (user, other, devid, one, _spare):
        t.check(devid not in (0, user.devid), "both devices have one id")
        user.map(one, IOVA)
        table = user.device.attach(user.ioas)
        t.equal(other.attach(user.ioas), table, "the second device's page table")
        pair = (user.device, other)
        for first, last in (pair, pair[::-1]):
            first.detach()
            t.equal(user.physical(IOVA, PAGE), one.physical(), "the address with one device gone")
            t.equal(memory.pinned_kib(), 4, "KiB pinned with one device gone")
            last.detach()
            t.errno(errno.EOPNOTSUPP, user.iommufd.get_pa, user.ioas, IOVA, PAGE)
            t.equal(memory.pinned_kib(), 0, "KiB pinned with both gone")
            first.attach(user.ioas)
            last.attach(user.ioas)
        user.device.close()
        t.equal(user.physical(IOVA, PAGE), one.physical(), "the address with the first device closed")


@case(needs=TWO, cites="drivers/iommu/iommufd/io_pagetable.c iopt_table_remove_domain(); pages.c")
def addresses_move_to_the_next_page_table(t: Test) -> None:
    """With two page tables over one address space, taking the first away leaves addresses and pins with the
    second."""
    with _two(t) as (user, _other, devid, one, _spare):
        iommufd = user.iommufd
        user.device.detach()
        first, second = (iommufd.hwpt_alloc(device, user.ioas) for device in (user.devid, devid))
        user.map(one, IOVA)
        for table in (first, second):
            t.equal(user.physical(IOVA, PAGE), one.physical(), "the address")
            t.equal(memory.pinned_kib(), 4, "KiB pinned")
            iommufd.destroy(table)
        t.errno(errno.EOPNOTSUPP, iommufd.get_pa, user.ioas, IOVA, PAGE)
        t.equal(memory.pinned_kib(), 0, "KiB pinned without a page table")


@contextlib.contextmanager
def _mixed(t: Test) -> Iterator[tuple[CdevUser, vfio.Device, int]]:
    """A device without an IOMMU, attached, and one behind an IOMMU, bound to the same iommufd."""
    bare, real = t.device("edu", iommu=False), t.device("edu", iommu=True)
    with through_cdev(bare) as user, pci.bound(real), vfio.open_cdev(real) as device:
        yield user, device, device.bind_iommufd(user.iommufd.fd)


@case(
    needs=MIXED, cites="drivers/iommu/iommufd/device.c iommufd_device_bind(); io_pagetable.c iopt_get_phys()"
)
def one_iommufd_serves_both_kinds(t: Test) -> None:
    """In one iommufd a device behind an IOMMU and one without have an address space each: the one gives no
    physical address, the other does, whatever the first does."""
    with _mixed(t) as (user, real, devid), memory.anonymous() as page:
        page.touch()
        iommufd, ioas = user.iommufd, user.iommufd.ioas_alloc()
        for space in (ioas, user.ioas):
            iommufd.map(space, page.address, PAGE, IOVA)
        for _ in range(2):
            real.attach(ioas)
            t.errno(errno.EOPNOTSUPP, iommufd.get_pa, ioas, IOVA, PAGE)
            t.equal(user.physical(IOVA, PAGE), page.physical(), "the address beside a translated device")
            real.detach()
            t.equal(user.physical(IOVA, PAGE), page.physical(), "the address after that one was detached")
        iommufd.get_hw_info(devid)
        t.errno(errno.EOPNOTSUPP, iommufd.get_hw_info, user.devid)


@case(needs=MIXED, cites="drivers/iommu/iommu.c __iommu_attach_group(), __iommu_attach_device()")
def translated_device_takes_no_software_table(t: Test) -> None:
    """A device behind an IOMMU is refused the page table of one without, and stays as it was."""
    with _mixed(t) as (user, real, _devid):
        table = user.iommufd.hwpt_alloc(user.devid, user.ioas)
        t.errno(errno.EINVAL, real.attach, table)
        own = user.iommufd.ioas_alloc()
        real.attach(own)
        t.errno((errno.EINVAL, errno.ENODEV), real.attach, table)
        t.errno(errno.EBUSY, user.iommufd.destroy, own)
        user.iommufd.destroy(table)


@case(
    needs=MIXED,
    cites="drivers/iommu/iommufd/device.c iommufd_hwpt_attach_device(), iommufd_hwpt_replace_device()",
)
def bare_device_takes_no_translated_table(t: Test) -> None:
    """A device without an IOMMU is refused the page table of one behind an IOMMU, which cannot serve it."""
    with _mixed(t) as (user, _real, devid):
        table = user.iommufd.hwpt_alloc(devid, user.iommufd.ioas_alloc())
        t.errno(errno.EINVAL, user.device.attach, table)


@case(
    needs=("mixed", "noiommu-group", "iommufd", "edu2"),
    cites="drivers/iommu/iommufd/vfio_compat.c iommufd_vfio_compat_ioas_create(), ..._set_no_iommu()",
)
def played_containers_do_not_mix(t: Test) -> None:
    """An iommufd that plays the container for a group behind an IOMMU refuses one without, and the other way
    round, also after the first has left; the one refused stays free."""
    real, bare = t.device("edu", iommu=True), t.device("edu", iommu=False)
    with pci.bound(real), pci.bound(bare), vfio.open_group(real) as first, vfio.open_group(bare) as second:
        for resident, stranger in ((first, second), (second, first)):
            with vfio.open_container(api.PATH) as container:
                resident.set_container(container)
                t.errno(errno.EINVAL, stranger.set_container, container)
                resident.unset_container()
                t.errno(errno.EINVAL, stranger.set_container, container)
                t.equal(stranger.status(), vfio.GROUP_VIABLE, "status of the group that was refused")


@case(needs=SHUT, cites="drivers/vfio/group.c vfio_device_block_group()")
def open_group_shuts_out_the_cdev(t: Test) -> None:
    """While the group node is open the device node opens but cannot be bound; once it is closed it can."""
    bdf = t.device("edu")
    with pci.bound(bdf), Iommufd() as iommufd, vfio.open_cdev(bdf) as device:
        with vfio.open_group(bdf):
            t.errno(errno.EBUSY, device.bind_iommufd, iommufd.fd)
        device.bind_iommufd(iommufd.fd)


@case(
    needs=(*SHUT, "container"), cites="drivers/vfio/group.c vfio_device_block_group(), vfio_df_group_open()"
)
def device_in_use_by_group_shuts_out_the_cdev(t: Test) -> None:
    """While a device file handed out by the group lives, the device node cannot be bound, even after the
    group's own file is closed."""
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
    """A bound device node makes the group node busy; one that is merely open does not, nor one that is
    closed again."""
    bdf = t.device("edu")
    with pci.bound(bdf), Iommufd() as iommufd:
        with vfio.open_cdev(bdf) as device:
            vfio.open_group(bdf).close()
            device.bind_iommufd(iommufd.fd)
            t.errno(errno.EBUSY, vfio.open_group, bdf)
        vfio.open_group(bdf).close()
