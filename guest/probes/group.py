# SPDX-License-Identifier: GPL-2.0-only
"""The group node of a device without an IOMMU: its states, its errors, and exclusive use."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from guest import pci, vfio
from guest.case import Test, case
from guest.iommufd import Iommufd
from guest.opened import through_cdev, through_group

GROUP = ("noiommu-group", "edu", "!viommu")
NATIVE = (*GROUP, "container")
BOTH = (*GROUP, "noiommu-cdev")

VIABLE = vfio.GROUP_VIABLE
IN_CONTAINER = vfio.GROUP_VIABLE | vfio.GROUP_CONTAINER_SET


@case(needs=GROUP, cites="drivers/vfio/group.c vfio_group_ioctl_get_status()")
def status_follows_the_container(t: Test) -> None:
    """GET_STATUS reports viable, adds container-set while the group is in a container, and checks argsz."""
    with (
        pci.bound(t.device("edu")),
        vfio.open_container() as container,
        vfio.open_group(t.device("edu")) as group,
    ):
        t.equal(group.status(), VIABLE, "status of a group just opened")
        group.set_container(container)
        t.equal(group.status(), IN_CONTAINER, "status inside a container")
        group.unset_container()
        t.equal(group.status(), VIABLE, "status after UNSET_CONTAINER")
        short = vfio.GroupStatus(argsz=ctypes.sizeof(vfio.GroupStatus) - 1)
        t.errno(errno.EINVAL, group.call, vfio.GROUP_GET_STATUS, short)
        t.errno(errno.EFAULT, group.call, vfio.GROUP_GET_STATUS, 0)


@case(needs=GROUP, cites="drivers/vfio/group.c vfio_group_fops_open()")
def one_opener_at_a_time(t: Test) -> None:
    """A group node that is open cannot be opened again, by anyone, until it is closed."""
    bdf = t.device("edu")
    with pci.bound(bdf):
        with vfio.open_group(bdf):
            t.errno(errno.EBUSY, vfio.open_group, bdf)
        vfio.open_group(bdf).close()


@case(needs=GROUP, cites="drivers/vfio/group.c vfio_group_ioctl_set_container()")
def set_container_tells_files_apart(t: Test) -> None:
    """SET_CONTAINER refuses a closed descriptor, a file that is not a container, a second container and a bad
    pointer, each with its own errno and without changing the group."""
    bdf = t.device("edu")
    with pci.bound(bdf), vfio.open_container() as container, vfio.open_group(bdf) as group:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        t.errno(errno.EBADF, group.set_container, 999)
        t.errno(errno.EBADFD, group.set_container, null)
        t.errno(errno.EBADFD, group.set_container, group)
        t.errno(errno.EFAULT, group.call, vfio.GROUP_SET_CONTAINER, 0)
        t.equal(group.status(), VIABLE, "status after four refusals")
        group.set_container(container)
        t.errno(errno.EINVAL, group.set_container, container)
        with vfio.open_container() as another:
            t.errno(errno.EINVAL, group.set_container, another)
        t.equal(group.status(), IN_CONTAINER, "status after a second container was refused")


@case(needs=GROUP, cites="drivers/vfio/group.c vfio_df_group_open(), vfio_group_ioctl_unset_container()")
def no_device_without_a_container(t: Test) -> None:
    """Outside a container, GET_DEVICE_FD and UNSET_CONTAINER are EINVAL, and unknown ioctls are ENOTTY."""
    bdf = t.device("edu")
    with pci.bound(bdf), vfio.open_group(bdf) as group:
        t.errno(errno.EINVAL, group.device, bdf)
        t.errno(errno.EINVAL, group.unset_container)
        t.errno(errno.ENODEV, group.device, "ffff:ff:1f.7")
        t.errno(errno.EFAULT, group.call, vfio.GROUP_GET_DEVICE_FD, 0)
        t.errno(errno.ENOTTY, group.call, vfio.DEVICE_GET_INFO, vfio.DeviceInfo())
        t.errno(errno.ENOTTY, group.call, 0x3BFF)


@case(needs=NATIVE, cites="drivers/vfio/container.c vfio_group_use_container()")
def no_device_without_set_iommu(t: Test) -> None:
    """A native container hands out no device before SET_IOMMU, and does after it."""
    bdf = t.device("edu")
    with pci.bound(bdf), vfio.open_container() as container, vfio.open_group(bdf) as group:
        group.set_container(container)
        t.errno(errno.EINVAL, group.device, bdf)
        container.set_iommu(vfio.NOIOMMU_IOMMU)
        with group.device(bdf) as device:
            t.equal(device.read_config(vfio.PCI_VENDOR_ID, 2), 0x1234, "vendor id")


@case(
    needs=GROUP,
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_match(), vfio_pci_core_match_token_uuid()",
)
def device_names_are_strict(t: Test) -> None:
    """GET_DEVICE_FD requires the exact BDF: trailing words, and a VF token for a device that is not a VF, are
    refused."""
    bdf = t.device("edu")
    token = "2ab74924-c335-45f4-9b16-8569e5b08258"
    with pci.bound(bdf), vfio.open_container() as container, vfio.open_group(bdf) as group:
        group.set_container(container)
        container.set_iommu(vfio.NOIOMMU_IOMMU)
        t.errno(errno.EINVAL, group.device, f"{bdf} nonsense")
        t.errno(errno.EINVAL, group.device, f"{bdf} vf_token={token}")
        t.errno(errno.ENODEV, group.device, f"{bdf}x")
        t.errno(errno.ENODEV, group.device, bdf[:-1])
        group.device(bdf).close()


@case(needs=GROUP, cites="drivers/vfio/vfio_main.c vfio_df_open()")
def two_files_share_one_device(t: Test) -> None:
    """A group hands out the same device twice: both files share one state, which lasts until the last is
    closed."""
    bdf = t.device("edu")
    with through_group(bdf) as user:
        first = user.device
        with user.group.device(bdf) as second:
            second.set_bus_master()
            command = first.read_config(vfio.PCI_COMMAND, 2)
            t.check(command & vfio.PCI_COMMAND_MASTER, "the first file does not see what the second wrote")
        command = first.read_config(vfio.PCI_COMMAND, 2)
        t.check(command & vfio.PCI_COMMAND_MASTER, "closing one file reset the device under the other")


@case(needs=NATIVE, cites="drivers/vfio/container.c vfio_group_use_container(), vfio_group_unuse_container()")
def device_file_keeps_the_group_open(t: Test) -> None:
    """In a native container an open device file keeps the group busy after the group's own file is closed,
    until the device is closed."""
    bdf = t.device("edu")
    with pci.bound(bdf), vfio.open_container() as container:
        group = vfio.open_group(bdf)
        group.set_container(container)
        container.set_iommu(vfio.NOIOMMU_IOMMU)
        with group.device(bdf) as device:
            t.errno(errno.EBUSY, group.unset_container)
            group.close()
            t.errno(errno.EBUSY, vfio.open_group, bdf)
            t.equal(device.info().num_regions, 9, "regions of the device whose group file is closed")
        vfio.open_group(bdf).close()


@case(
    needs=(*GROUP, "iommufd"),
    cites="drivers/vfio/device_cdev.c vfio_df_ioctl_bind_iommufd() (df->group); vfio_main.c "
    "vfio_device_fops_unl_ioctl()",
)
def device_from_group_is_no_cdev(t: Test) -> None:
    """A device file from a group refuses BIND and does not support ATTACH and DETACH."""
    with through_group(t.device("edu")) as user, Iommufd() as iommufd:
        device, ioas = user.device, iommufd.ioas_alloc()
        refused = errno.EINVAL if "cdev" in t.features else errno.ENOTTY
        t.errno(refused, device.bind_iommufd, iommufd.fd)
        t.errno(errno.ENOTTY, device.attach, ioas)
        t.errno(errno.ENOTTY, device.detach)
        t.equal(device.info().num_irqs, 5, "interrupts of the device after the refusals")


@case(
    needs=GROUP, cites="drivers/vfio/group.c vfio_device_open_file(); vfio_main.c vfio_device_show_fdinfo()"
)
def device_file_says_what_it_is(t: Test) -> None:
    """A device file from a group is an anonymous vfio-device whose fdinfo names the PCI device."""
    bdf = t.device("edu")
    with through_group(bdf) as user:
        device = user.device
        t.equal(os.readlink(f"/proc/self/fd/{device.fd}"), "anon_inode:[vfio-device]", "the file's name")
        with open(f"/proc/self/fdinfo/{device.fd}", encoding="ascii") as info:
            fields = dict(line.rstrip("\n").split(":", 1) for line in info if ":" in line)
        path = fields.get("vfio-device-syspath", "").strip()
        t.equal(os.path.realpath(path), os.path.realpath(pci.path_of(bdf)), "vfio-device-syspath")


@case(needs=BOTH, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_ioctl()")
def both_doors_show_the_same_device(t: Test) -> None:
    """Device info, regions, interrupts and configuration space are the same through the group and the device
    node."""
    _both_doors_agree(t, t.device("edu"))


@case(
    needs=("noiommu-group", "noiommu-cdev", "igb", "!viommu"),
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_ioctl()",
)
def both_doors_show_the_same_card(t: Test) -> None:
    """A card with reset, MSI-X and BARs of every type is described the same through the group and the device
    node."""
    _both_doors_agree(t, t.device("igb"))


def _both_doors_agree(t: Test, bdf: str) -> None:
    with through_group(bdf) as group_user:
        by_group = _description(group_user.device)
    with through_cdev(bdf) as cdev_user:
        by_cdev = _description(cdev_user.device)
    for part, value in by_group.items():
        t.equal(by_cdev[part], value, f"{part} through the device node, compared with the group")


def _description(device: vfio.Device) -> dict[str, object]:
    info = device.info()
    return {
        "device info": (info.flags, info.num_regions, info.num_irqs),
        "regions": [device.region(index) for index in range(vfio.CONFIG + 1)],
        "interrupts": [
            (one.index, one.flags, one.count) for one in map(device.irq_info, range(vfio.REQ + 1))
        ],
        "configuration": struct.unpack("<16I", os.pread(device.fd, 64, device.region(vfio.CONFIG).offset)),
    }
