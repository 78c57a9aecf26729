# SPDX-License-Identifier: GPL-2.0-only
"""Containers for devices without an IOMMU: VFIO's own container, and an iommufd used as a container.

Any iommufd can be used as a container, so most of its cases use /dev/iommu, which every kernel with iommufd
has; the cases that need `compat` test /dev/vfio/vfio served by iommufd.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from guest import iommufd, memory, pci, vfio
from guest import iommufd as api
from guest.case import Test, case
from guest.iommufd import Iommufd
from guest.opened import open_files, through_group
from guest.uapi import errno_of
from guest.vfio import NOIOMMU_IOMMU, TYPE1_IOMMU, TYPE1V2_IOMMU

NATIVE = ("noiommu-group", "container", "edu", "!viommu")
COMPAT = ("noiommu-group", "iommufd", "edu", "!viommu")

# include/uapi/linux/vfio.h
DMA_CC_IOMMU, UNMAP_ALL, UNDEFINED_EXTENSION = 4, 9, 77
IOMMU_DIRTY_PAGES = 0x3B75

UNUSED_IOVA = 0x10_0000

TIMES = 30


class PlayedContainer(vfio.Container):
    """An open /dev/iommu used as a container."""

    def __init__(self) -> None:
        super().__init__(os.open(iommufd.PATH, os.O_RDWR | os.O_CLOEXEC))

    def ioas_alloc(self) -> int:
        """IOMMU_IOAS_ALLOC."""
        argument = iommufd.IoasAlloc()
        self.call(iommufd.IOAS_ALLOC, argument)
        return argument.out_ioas_id

    def vfio_ioas(self, op: int, ioas: int = 0) -> int:
        """IOMMU_VFIO_IOAS."""
        argument = iommufd.VfioIoas(op=op, ioas_id=ioas)
        self.call(iommufd.VFIO_IOAS, argument)
        return argument.ioas_id


@contextlib.contextmanager
def _native(bdf: str) -> Iterator[tuple[vfio.Container, vfio.Group]]:
    with pci.bound(bdf), vfio.open_container() as container, vfio.open_group(bdf) as group:
        yield container, group


@contextlib.contextmanager
def _played(bdf: str) -> Iterator[tuple[PlayedContainer, vfio.Group]]:
    with pci.bound(bdf), PlayedContainer() as container, vfio.open_group(bdf) as group:
        yield container, group


def _refuses_mappings(t: Test, container: vfio.Container, want: int) -> None:
    with memory.anonymous() as page:
        t.errno(want, container.map_dma, page.address, UNUSED_IOVA, page.length)
        t.errno(want, container.unmap_dma, UNUSED_IOVA, page.length)
        t.errno(want, container.iommu_info)


@case(
    needs=("container",),
    cites="drivers/vfio/container.c vfio_container_ioctl_check_extension()",
)
def empty_container_offers_type1(t: Test) -> None:
    """An empty container has API version 0 and offers both type1 versions but no unknown extension."""
    with vfio.open_container() as container:
        t.equal(container.api_version(), 0, "API version")
        for extension in (TYPE1_IOMMU, TYPE1V2_IOMMU, UNMAP_ALL):
            t.equal(container.check_extension(extension), 1, f"CHECK_EXTENSION({extension})")
        for extension in (2, 7, UNDEFINED_EXTENSION):
            t.equal(container.check_extension(extension), 0, f"CHECK_EXTENSION({extension})")


@case(needs=("container", "noiommu-group"), cites="drivers/vfio/container.c vfio_noiommu_ioctl()")
def noiommu_is_offered_by_parameter(t: Test) -> None:
    """A container offers the no-IOMMU type exactly while the module parameter is on."""
    with vfio.open_container() as container:
        for value in (False, True, False, True):
            pci.set_parameter(value)
            t.equal(container.check_extension(NOIOMMU_IOMMU), int(value), f"CHECK_EXTENSION(8), {value}")


@case(needs=("container",), cites="drivers/vfio/container.c vfio_ioctl_set_iommu(), vfio_fops_unl_ioctl()")
def empty_container_does_nothing(t: Test) -> None:
    """A container without a group refuses every IOMMU type and every mapping."""
    with vfio.open_container() as container:
        if pci.parameter() is not None:
            pci.set_parameter(True)
        for kind in (TYPE1_IOMMU, TYPE1V2_IOMMU, NOIOMMU_IOMMU, UNDEFINED_EXTENSION):
            t.errno(errno.EINVAL, container.set_iommu, kind)
        _refuses_mappings(t, container, errno.EINVAL)


@case(needs=NATIVE, cites="drivers/vfio/container.c vfio_iommu_driver_allowed()")
def group_narrows_the_offer(t: Test) -> None:
    """A container with a no-IOMMU group offers only the no-IOMMU type; after the group has left it offers
    type1 again."""
    with _native(t.device("edu")) as (container, group):
        group.set_container(container)
        for extension in (TYPE1_IOMMU, TYPE1V2_IOMMU, UNMAP_ALL):
            t.equal(container.check_extension(extension), 0, f"CHECK_EXTENSION({extension})")
        t.equal(container.check_extension(NOIOMMU_IOMMU), 1, "CHECK_EXTENSION(8)")
        group.unset_container()
        t.equal(container.check_extension(TYPE1V2_IOMMU), 1, "CHECK_EXTENSION(3) of the empty container")


@case(needs=NATIVE, cites="drivers/vfio/container.c vfio_ioctl_set_iommu()")
def only_the_noiommu_type_is_taken(t: Test) -> None:
    """A container with a no-IOMMU group refuses every type but no-IOMMU, and accepts that one once."""
    with _native(t.device("edu")) as (container, group):
        group.set_container(container)
        for kind in (TYPE1_IOMMU, TYPE1V2_IOMMU, UNDEFINED_EXTENSION):
            t.errno(errno.ENODEV, container.set_iommu, kind)
        container.set_iommu(NOIOMMU_IOMMU)
        for kind in (NOIOMMU_IOMMU, TYPE1_IOMMU):
            t.errno(errno.EINVAL, container.set_iommu, kind)
        for kind in (TYPE1_IOMMU, TYPE1V2_IOMMU):
            t.equal(container.check_extension(kind), 0, f"CHECK_EXTENSION({kind}) with the type set")


@case(needs=NATIVE, cites="drivers/vfio/container.c vfio_noiommu_ioctl()")
def nothing_can_be_mapped(t: Test) -> None:
    """A no-IOMMU container has no mappings: MAP_DMA, UNMAP_DMA, GET_INFO and DIRTY_PAGES are ENOTTY."""
    with through_group(t.device("edu")) as user:
        _refuses_mappings(t, user.container, errno.ENOTTY)
        t.errno(errno.ENOTTY, user.container.call, IOMMU_DIRTY_PAGES, bytearray(64))


@case(needs=NATIVE, cites="drivers/vfio/container.c vfio_noiommu_ioctl(), vfio_ioctl_set_iommu()")
def parameter_off_stops_new_users_only(t: Test) -> None:
    """With the parameter off no container accepts the no-IOMMU type, but a container that already has it
    still hands out its device."""
    bdf = t.device("edu")
    with _native(bdf) as (container, group):
        group.set_container(container)
        t.equal(container.check_extension(NOIOMMU_IOMMU), 1, "CHECK_EXTENSION(8) with the parameter on")
        pci.set_parameter(False)
        t.equal(container.check_extension(NOIOMMU_IOMMU), 0, "CHECK_EXTENSION(8) with the parameter off")
        t.errno(errno.ENODEV, container.set_iommu, NOIOMMU_IOMMU)
        pci.set_parameter(True)
        container.set_iommu(NOIOMMU_IOMMU)
        pci.set_parameter(False)
        with group.device(bdf) as device:
            t.equal(device.read_config(vfio.PCI_VENDOR_ID, 2), 0x1234, "vendor id with the parameter off")


@case(needs=NATIVE, cites="drivers/vfio/container.c vfio_group_detach_container()")
def last_group_takes_the_type_with_it(t: Test) -> None:
    """When its last group leaves, a container loses its type and behaves like a new one."""
    bdf = t.device("edu")
    with _native(bdf) as (container, group):
        for _ in range(2):
            group.set_container(container)
            t.errno(errno.EINVAL, group.device, bdf)
            container.set_iommu(NOIOMMU_IOMMU)
            group.device(bdf).close()
            group.unset_container()
            t.errno(errno.EINVAL, container.set_iommu, NOIOMMU_IOMMU)


@case(needs=(*NATIVE, "igb"), cites="drivers/vfio/container.c vfio_container_attach_group()")
def two_groups_share_a_container(t: Test) -> None:
    """Two no-IOMMU groups can share a container, which keeps its type when the first group leaves."""
    first, second = t.device("edu"), t.device("igb")
    with _native(first) as (container, group), pci.bound(second), vfio.open_group(second) as other:
        group.set_container(container)
        container.set_iommu(NOIOMMU_IOMMU)
        other.set_container(container)
        with group.device(first) as edu, other.device(second) as igb:
            t.equal(edu.read_config(vfio.PCI_VENDOR_ID, 2), 0x1234, "vendor id of the first device")
            t.equal(igb.read_config(vfio.PCI_VENDOR_ID, 2), 0x8086, "vendor id of the second device")
            t.errno(errno.ENODEV, group.device, second)
        group.unset_container()
        other.device(second).close()


@case(
    needs=("noiommu-group", "container", "mixed"),
    cites="drivers/vfio/container.c vfio_container_attach_group()",
)
def real_and_fake_groups_do_not_mix(t: Test) -> None:
    """A container with a group behind an IOMMU refuses a no-IOMMU group and the no-IOMMU type, and one with a
    no-IOMMU group refuses a group behind an IOMMU."""
    real, fake = t.device("edu", iommu=True), t.device("edu", iommu=False)
    with _native(real) as (container, real_group), pci.bound(fake), vfio.open_group(fake) as fake_group:
        real_group.set_container(container)
        t.errno(errno.EPERM, fake_group.set_container, container)
        t.errno(errno.ENODEV, container.set_iommu, NOIOMMU_IOMMU)
        real_group.unset_container()
        fake_group.set_container(container)
        t.errno(errno.EPERM, real_group.set_container, container)
        container.set_iommu(NOIOMMU_IOMMU)


@case(
    needs=("container", "iommufd"),
    cites="drivers/vfio/container.c vfio_dev, vfio_fops_unl_ioctl()",
)
def vfio_node_is_the_native_container(t: Test) -> None:
    """/dev/vfio/vfio does not answer iommufd's ioctls if VFIO's own container is built."""
    with vfio.open_container() as container:
        t.errno(errno.EINVAL, container.call, iommufd.IOAS_ALLOC, iommufd.IoasAlloc())


@case(needs=("compat",), cites="drivers/iommu/iommufd/main.c vfio_misc_dev, iommufd_fops_open()")
def vfio_node_is_an_iommufd(t: Test) -> None:
    """/dev/vfio/vfio is an iommufd like /dev/iommu if VFIO's own container is not built."""
    with vfio.open_container() as container:
        argument = iommufd.IoasAlloc()
        container.call(iommufd.IOAS_ALLOC, argument)
        t.check(argument.out_ioas_id, "no address space was made")
        t.equal(container.api_version(), 0, "API version")


@case(
    needs=("compat",),
    cites="drivers/iommu/iommufd/main.c iommufd_fops_open() (IOPT_PAGES_ACCOUNT_MM), ioas.c "
    "iommufd_option_rlimit_mode()",
)
def vfio_node_counts_per_process(t: Test) -> None:
    """/dev/vfio/vfio served by iommufd accounts pinned memory per process, like VFIO's own container;
    /dev/iommu accounts it per user."""
    for container, want in ((vfio.open_container(), 1), (PlayedContainer(), 0)):
        with container:
            argument = iommufd.Option(option_id=iommufd.OPTION_RLIMIT_MODE, op=iommufd.OPTION_GET)
            container.call(iommufd.OPTION, argument)
            t.equal(argument.val64, want, "the accounting mode")


@case(
    needs=COMPAT,
    cites="drivers/vfio/group.c vfio_group_ioctl_unset_container(), vfio_group_fops_release() "
    "(iommufd_ctx_put())",
)
def left_container_goes_with_its_file(t: Test) -> None:
    """An iommufd that a group has left, by UNSET_CONTAINER or by closing the group, is freed with its
    file."""
    bdf = t.device("edu")
    with pci.bound(bdf):
        before = open_files()
        for leave in (vfio.Group.unset_container, vfio.Group.close):
            for _ in range(TIMES):
                with PlayedContainer() as container, vfio.open_group(bdf) as group:
                    group.set_container(container)
                    leave(group)
            t.wait_until(lambda: open_files() < before + TIMES // 2, f"the end of {TIMES} files", 5)


@case(
    needs=("compat", *COMPAT), cites="drivers/iommu/iommufd/vfio_compat.c iommufd_vfio_compat_set_no_iommu()"
)
def vfio_node_hands_out_a_device(t: Test) -> None:
    """/dev/vfio/vfio served by iommufd hands out a no-IOMMU device by the classic sequence and refuses every
    mapping."""
    with through_group(t.device("edu")) as user:
        t.equal(user.device.read_config(vfio.PCI_VENDOR_ID, 2), 0x1234, "vendor id")
        _refuses_mappings(t, user.container, errno.ENODEV)


@case(
    needs=("iommufd",),
    cites="drivers/iommu/iommufd/vfio_compat.c iommufd_vfio_check_extension()",
)
def played_container_offers_type1(t: Test) -> None:
    """An iommufd used as a container has API version 0 and offers type1 before a group joins; the coherency
    extension is ENODEV until an address space exists."""
    with PlayedContainer() as container:
        t.equal(container.api_version(), 0, "API version")
        for extension in (TYPE1_IOMMU, TYPE1V2_IOMMU, UNMAP_ALL):
            t.equal(container.check_extension(extension), 1, f"CHECK_EXTENSION({extension})")
        for extension in (2, vfio.UPDATE_VADDR, UNDEFINED_EXTENSION):
            t.equal(container.check_extension(extension), 0, f"CHECK_EXTENSION({extension})")
        t.errno(errno.ENODEV, container.check_extension, DMA_CC_IOMMU)
        container.vfio_ioas(iommufd.VFIO_IOAS_SET, container.ioas_alloc())
        t.equal(container.check_extension(DMA_CC_IOMMU), 1, "CHECK_EXTENSION(4) with an address space")


@case(
    needs=("iommufd", "noiommu-group"),
    cites="drivers/iommu/iommufd/vfio_compat.c iommufd_vfio_check_extension()",
)
def played_container_offers_noiommu_by_parameter(t: Test) -> None:
    """An iommufd used as a container offers the no-IOMMU type exactly while the module parameter is on, like
    VFIO's own container."""
    with PlayedContainer() as container:
        for value in (True, False):
            pci.set_parameter(value)
            t.equal(container.check_extension(NOIOMMU_IOMMU), int(value), f"CHECK_EXTENSION(8), {value}")


@case(
    needs=("iommufd",),
    cites="drivers/iommu/iommufd/vfio_compat.c iommufd_vfio_set_iommu(), get_compat_ioas()",
)
def empty_played_container_does_nothing(t: Test) -> None:
    """An iommufd used as a container without a group refuses every type and mapping: type1 is ENODEV without
    an address space, no-IOMMU and unknown types are EINVAL."""
    with PlayedContainer() as container:
        for kind in (TYPE1_IOMMU, TYPE1V2_IOMMU):
            t.errno(errno.ENODEV, container.set_iommu, kind)
        for kind in (NOIOMMU_IOMMU, UNDEFINED_EXTENSION):
            t.errno(errno.EINVAL, container.set_iommu, kind)
        _refuses_mappings(t, container, errno.ENODEV)
        t.errno(errno.ENODEV, container.vfio_ioas, iommufd.VFIO_IOAS_GET)
        t.errno(errno.ENOTTY, container.call, IOMMU_DIRTY_PAGES, bytearray(64))


@case(needs=COMPAT, cites="drivers/iommu/iommufd/vfio_compat.c iommufd_vfio_compat_set_no_iommu()")
def played_container_becomes_noiommu(t: Test) -> None:
    """A no-IOMMU group makes an iommufd a no-IOMMU container, which neither offers nor accepts type1, accepts
    the no-IOMMU type repeatedly, and refuses every mapping."""
    with _played(t.device("edu")) as (container, group):
        group.set_container(container)
        for extension in (TYPE1_IOMMU, TYPE1V2_IOMMU, UNMAP_ALL):
            t.equal(container.check_extension(extension), 0, f"CHECK_EXTENSION({extension})")
        t.equal(container.check_extension(NOIOMMU_IOMMU), 1, "CHECK_EXTENSION(8)")
        container.set_iommu(NOIOMMU_IOMMU)
        container.set_iommu(NOIOMMU_IOMMU)
        for kind in (TYPE1_IOMMU, TYPE1V2_IOMMU, UNDEFINED_EXTENSION):
            t.errno(errno.EINVAL, container.set_iommu, kind)
        _refuses_mappings(t, container, errno.ENODEV)
        t.errno(errno.ENODEV, container.vfio_ioas, iommufd.VFIO_IOAS_GET)


@case(
    needs=COMPAT,
    cites="drivers/vfio/group.c vfio_df_group_open(); drivers/vfio/iommufd.c vfio_df_iommufd_bind()",
)
def played_container_needs_no_set_iommu(t: Test) -> None:
    """With an iommufd as its container a group hands out its device without SET_IOMMU, unlike with VFIO's own
    container."""
    bdf = t.device("edu")
    with _played(bdf) as (container, group):
        group.set_container(container)
        with group.device(bdf) as device:
            t.equal(device.read_config(vfio.PCI_VENDOR_ID, 2), 0x1234, "vendor id")


@case(needs=COMPAT, cites="drivers/vfio/group.c vfio_df_group_open()")
def translation_and_noiommu_exclude_each_other(t: Test) -> None:
    """An iommufd with an address space assigned for translation refuses to hand out a no-IOMMU device until
    the assignment is cleared."""
    bdf = t.device("edu")
    with _played(bdf) as (container, group):
        group.set_container(container)
        ioas = container.ioas_alloc()
        container.vfio_ioas(iommufd.VFIO_IOAS_SET, ioas)
        t.equal(container.vfio_ioas(iommufd.VFIO_IOAS_GET), ioas, "the address space assigned")
        t.errno(errno.EPERM, group.device, bdf)
        container.vfio_ioas(iommufd.VFIO_IOAS_CLEAR)
        group.device(bdf).close()


@case(needs=COMPAT, cites="drivers/iommu/iommufd/vfio_compat.c iommufd_vfio_compat_set_no_iommu()")
def translating_iommufd_takes_no_such_group(t: Test) -> None:
    """An iommufd with an address space assigned for translation refuses a no-IOMMU group, which stays free
    for another container."""
    with _played(t.device("edu")) as (container, group):
        container.vfio_ioas(iommufd.VFIO_IOAS_SET, container.ioas_alloc())
        t.errno(errno.EINVAL, group.set_container, container)
        t.equal(group.status(), vfio.GROUP_VIABLE, "status of the group that was refused")
        with PlayedContainer() as another:
            group.set_container(another)
            group.unset_container()


@case(needs=COMPAT, cites="drivers/iommu/iommufd/vfio_compat.c iommufd_vfio_compat_set_no_iommu()")
def noiommu_mode_is_for_life(t: Test) -> None:
    """An iommufd that was a no-IOMMU container once stays one after its group has left: it never again offers
    or accepts type1."""
    with _played(t.device("edu")) as (container, group):
        group.set_container(container)
        group.unset_container()
        t.equal(container.check_extension(TYPE1V2_IOMMU), 0, "CHECK_EXTENSION(3) after the group left")
        t.errno(errno.EINVAL, container.set_iommu, TYPE1V2_IOMMU)
        container.set_iommu(NOIOMMU_IOMMU)
        group.set_container(container)
        t.equal(group.status() & vfio.GROUP_CONTAINER_SET, vfio.GROUP_CONTAINER_SET, "the group back in it")


@case(
    needs=COMPAT,
    cites="drivers/vfio/container.c vfio_noiommu_ioctl(); vfio_compat.c iommufd_vfio_set_iommu()",
)
def played_container_survives_the_parameter(t: Test) -> None:
    """Switching the parameter off does not affect an iommufd that is a no-IOMMU container already."""
    bdf = t.device("edu")
    with _played(bdf) as (container, group):
        group.set_container(container)
        pci.set_parameter(False)
        container.set_iommu(NOIOMMU_IOMMU)
        with group.device(bdf) as device:
            t.equal(device.read_config(vfio.PCI_VENDOR_ID, 2), 0x1234, "vendor id with the parameter off")


@case(
    needs=COMPAT,
    cites="drivers/vfio/group.c vfio_group_ioctl_unset_container()",
)
def unset_waits_for_open_devices(t: Test) -> None:
    """A group with an open device cannot leave its container, whether an iommufd or VFIO's own."""
    bdf = t.device("edu")
    with _played(bdf) as (container, group):
        group.set_container(container)
        with group.device(bdf):
            t.errno(errno.EBUSY, group.unset_container)
        group.unset_container()


@case(needs=COMPAT, cites="drivers/vfio/group.c vfio_group_fops_open(), vfio_device_block_group()")
def played_container_does_not_hold_the_group(t: Test) -> None:
    """A device file from an iommufd container does not keep its group busy: the group can be opened again,
    and the device keeps working."""
    bdf = t.device("edu")
    with _played(bdf) as (container, group):
        group.set_container(container)
        with group.device(bdf) as device:
            group.close()
            with vfio.open_group(bdf) as again:
                t.equal(again.status() & vfio.GROUP_CONTAINER_SET, 0, "container of the group opened again")
            t.equal(device.read_config(vfio.PCI_VENDOR_ID, 2), 0x1234, "vendor id afterwards")


@case(
    needs=(*COMPAT, "noiommu-cdev"),
    cites="drivers/vfio/group.c vfio_device_block_group(); vfio_main.c vfio_df_open()",
)
def played_container_and_cdev_exclude_each_other(t: Test) -> None:
    """While a device file from an iommufd container is open, the device node cannot be bound: EBUSY while the
    group is open, EINVAL after that."""
    bdf = t.device("edu")
    with _played(bdf) as (container, group), iommufd.Iommufd() as other:
        group.set_container(container)
        with group.device(bdf), vfio.open_cdev(bdf) as cdev:
            t.errno(errno.EBUSY, cdev.bind_iommufd, other.fd)
            group.close()
            t.errno(errno.EINVAL, cdev.bind_iommufd, other.fd)
        with vfio.open_cdev(bdf) as cdev:
            cdev.bind_iommufd(other.fd)


@case(
    needs=("mixed", "noiommu-group", "iommufd", "edu2"),
    cites="drivers/iommu/iommufd/vfio_compat.c iommufd_vfio_compat_ioas_create(), "
    "iommufd_vfio_compat_set_no_iommu()",
)
def played_containers_do_not_mix(t: Test) -> None:
    """An iommufd used as the container of a group behind an IOMMU refuses a no-IOMMU group and the other way
    round, even after the first group has left; the refused group stays free."""
    real, bare = t.device("edu", iommu=True), t.device("edu", iommu=False)
    with pci.bound(real), pci.bound(bare), vfio.open_group(real) as first, vfio.open_group(bare) as second:
        for resident, stranger in ((first, second), (second, first)):
            with vfio.open_container(api.PATH) as container:
                resident.set_container(container)
                t.errno(errno.EINVAL, stranger.set_container, container)
                resident.unset_container()
                t.errno(errno.EINVAL, stranger.set_container, container)
                t.equal(stranger.status(), vfio.GROUP_VIABLE, "status of the group that was refused")


@case(
    needs=("noiommu-group", "iommufd", "container", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_group_ioctl_unset_container(); container.c vfio_group_unuse_container()",
    destructive=True,
)
def group_file_lives_as_long_as_its_users(t: Test) -> None:
    """However a group changes containers, closing its devices keeps its file open and drops no reference that
    was not taken."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf), Iommufd() as iommufd, vfio.open_container() as container:
        group = vfio.open_group(bdf)
        group.set_container(iommufd.fd)
        first = group.device(bdf)
        refused = errno_of(group.unset_container)
        t.check(refused in (0, errno.EBUSY), f"UNSET_CONTAINER is refused with {os.strerror(refused)}")
        if not refused:  # a correct kernel refuses
            group.set_container(container)
            container.set_iommu(vfio.NOIOMMU_IOMMU)
        second = group.device(bdf)
        first.close()
        second.close()
        t.check_no_complaint()
        os.fstat(group.fd)
        group.close()
