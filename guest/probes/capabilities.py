# SPDX-License-Identifier: GPL-2.0-only
"""CAP_SYS_RAWIO stands before every way to an unprotected device.  It is dropped for real, in a child."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from guest import caps, libc, memory, pci, vfio
from guest import iommufd as iommufd_api
from guest.case import Test, case
from guest.iommufd import Iommufd
from guest.opened import through_cdev

# include/uapi/linux/sched.h, arch/x86/entry/syscalls/syscall_64.tbl
CLONE_NEWUSER = 0x10000000
SYS_UNSHARE = 272


def _open(node: Path) -> None:
    os.close(os.open(node, os.O_RDWR))


@case(
    needs=("noiommu-group", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_group_fops_open()",
)
def group_open_needs_rawio(t: Test) -> None:
    """Root without CAP_SYS_RAWIO cannot open a no-IOMMU group (EPERM); with it, it can."""
    with pci.bound(t.device("edu", iommu=False)) as nodes:
        node = nodes.group
        assert node is not None
        _open(node)

        def without() -> None:
            caps.drop(caps.CAP_SYS_RAWIO)
            t.errno(errno.EPERM, _open, node)

        t.in_child(without)


@case(
    needs=("noiommu-cdev", "edu", "!viommu"),
    cites="drivers/vfio/device_cdev.c vfio_device_fops_cdev_open()",
)
def cdev_open_needs_rawio(t: Test) -> None:
    """Root without CAP_SYS_RAWIO cannot open a no-IOMMU cdev (EPERM); with it, it can."""
    with pci.bound(t.device("edu", iommu=False)) as nodes:
        node = nodes.cdev
        assert node is not None
        _open(node)

        def without() -> None:
            caps.drop(caps.CAP_SYS_RAWIO)
            t.errno(errno.EPERM, _open, node)

        t.in_child(without)


@case(
    needs=("noiommu-cdev", "edu", "!viommu"),
    cites="drivers/vfio/device_cdev.c vfio_device_fops_cdev_open(); fs/namei.c may_open()",
)
def cdev_mode_bits_do_not_replace_rawio(t: Test) -> None:
    """An ordinary user gets EACCES from the node's mode, and once that allows everything, EPERM from VFIO."""
    with pci.bound(t.device("edu", iommu=False)) as nodes:
        node = nodes.cdev
        assert node is not None
        _refused_to_nobody(t, node)


@case(
    needs=("noiommu-group", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_group_fops_open(); fs/namei.c may_open()",
)
def group_mode_bits_do_not_replace_rawio(t: Test) -> None:
    """An ordinary user gets EACCES from the node's mode, and once that allows everything, EPERM from VFIO."""
    with pci.bound(t.device("edu", iommu=False)) as nodes:
        node = nodes.group
        assert node is not None
        _refused_to_nobody(t, node)


def _refused_to_nobody(t: Test, node: Path) -> None:
    for mode, want in ((0o600, errno.EACCES), (0o666, errno.EPERM)):
        os.chmod(node, mode)

        def as_nobody(expected: int = want) -> None:
            caps.become()
            t.errno(expected, _open, node)

        t.in_child(as_nobody)


@case(
    needs=("noiommu-cdev", "edu", "!viommu"),
    cites="drivers/vfio/device_cdev.c vfio_device_fops_cdev_open(): capable(), not ns_capable()",
)
def user_namespace_root_is_not_enough(t: Test) -> None:
    """All capabilities in a user namespace of its own do not open a no-IOMMU cdev."""
    if not Path("/proc/self/ns/user").exists():
        t.skip("this kernel has no user namespaces")
    with pci.bound(t.device("edu", iommu=False)) as nodes:
        node = nodes.cdev
        assert node is not None

        def in_namespace() -> None:
            libc.syscall(SYS_UNSHARE, CLONE_NEWUSER)
            t.check(caps.has(caps.CAP_SYS_RAWIO), "the new namespace does not give CAP_SYS_RAWIO")
            t.errno(errno.EPERM, _open, node)

        t.in_child(in_namespace)


@case(
    needs=("noiommu-cdev", "edu", "!viommu"),
    cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_noiommu_get_pa()",
)
def get_pa_needs_rawio(t: Test) -> None:
    """Without CAP_SYS_RAWIO no physical address is given away, and no argument is looked at: EPERM."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous() as page:
        page.touch()
        iommufd, ioas = user.iommufd, user.ioas
        iommufd.map(ioas, page.address, page.length, 0x10000)
        iommufd.get_pa(ioas, 0x10000, 1)

        def without() -> None:
            caps.drop(caps.CAP_SYS_RAWIO)
            t.errno(errno.EPERM, iommufd.get_pa, ioas, 0x10000, 1)
            t.errno(errno.EPERM, iommufd.get_pa, ioas, 0x10000, 0)
            t.errno(errno.EPERM, iommufd.get_pa, 0xDEAD, 0, 1)

        t.in_child(without)


@case(
    needs=("noiommu-cdev", "edu", "!viommu"),
    cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_noiommu_get_pa(): capable() at call time",
)
def get_pa_follows_current_credentials(t: Test) -> None:
    """The same descriptor answers or refuses as the caller's capability comes and goes."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous() as page:
        page.touch()
        iommufd, ioas = user.iommufd, user.ioas
        iommufd.map(ioas, page.address, page.length, 0x10000)
        caps.lower(caps.CAP_SYS_RAWIO)
        t.errno(errno.EPERM, iommufd.get_pa, ioas, 0x10000, 1)
        caps.raise_again(caps.CAP_SYS_RAWIO)
        t.equal(iommufd.get_pa(ioas, 0x10000, 1), (page.physical(), 1), "the answer with the capability back")


@case(
    needs=("noiommu-group", "container", "edu", "!viommu"),
    cites="drivers/vfio/container.c vfio_container_attach_group(), vfio_noiommu_open(), "
    "vfio_group_use_container()",
)
def native_container_needs_rawio_at_every_step(t: Test) -> None:
    """SET_CONTAINER, SET_IOMMU and GET_DEVICE_FD are EPERM one by one for a task without CAP_SYS_RAWIO."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf), vfio.open_container() as container, vfio.open_group(bdf) as group:
        _refused_without_rawio(t, lambda: t.errno(errno.EPERM, group.set_container, container))
        group.set_container(container)
        _refused_without_rawio(t, lambda: t.errno(errno.EPERM, container.set_iommu, vfio.NOIOMMU_IOMMU))
        container.set_iommu(vfio.NOIOMMU_IOMMU)
        _refused_without_rawio(t, lambda: t.errno(errno.EPERM, group.device, bdf))
        group.device(bdf).close()


@case(
    needs=("noiommu-group", "compat", "edu", "!viommu"),
    cites="drivers/iommu/iommufd/vfio_compat.c iommufd_vfio_set_iommu(); vfio/group.c vfio_df_group_open()",
)
def emulated_container_needs_rawio(t: Test) -> None:
    """In iommufd's container SET_IOMMU and GET_DEVICE_FD are EPERM for a task without CAP_SYS_RAWIO."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf), vfio.open_container() as container, vfio.open_group(bdf) as group:
        group.set_container(container)
        _refused_without_rawio(t, lambda: t.errno(errno.EPERM, container.set_iommu, vfio.NOIOMMU_IOMMU))
        container.set_iommu(vfio.NOIOMMU_IOMMU)
        _refused_without_rawio(t, lambda: t.errno(errno.EPERM, group.device, bdf))
        group.device(bdf).close()


def _refused_without_rawio(t: Test, attempt: object) -> None:
    def without() -> None:
        caps.drop(caps.CAP_SYS_RAWIO)
        assert callable(attempt)
        attempt()

    t.in_child(without)


@case(
    needs=("noiommu-cdev", "edu", "!viommu"),
    cites="drivers/vfio/device_cdev.c vfio_df_ioctl_bind_iommufd(); Documentation/driver-api/vfio.rst",
)
def bind_needs_rawio(t: Test) -> None:
    """A task without CAP_SYS_RAWIO that was handed an open no-IOMMU cdev cannot bind it."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf), vfio.open_cdev(bdf) as device, Iommufd() as iommufd:

        def without() -> None:
            caps.drop(caps.CAP_SYS_RAWIO)
            t.errno(errno.EPERM, device.bind_iommufd, iommufd.fd)

        t.in_child(without)


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
            _open(node)

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
            _open(node)

        t.in_child(as_nobody)


@case(needs=("iommufd",), cites="drivers/iommu/iommufd/ioas.c iommufd_option_rlimit_mode()")
def rlimit_mode_needs_sys_resource(t: Test) -> None:
    """The accounting mode of an iommufd is changed by CAP_SYS_RESOURCE alone, and read by anyone."""

    def without() -> None:
        caps.drop(caps.CAP_SYS_RESOURCE)
        with Iommufd() as iommufd:
            t.errno(errno.EPERM, iommufd.option_set, iommufd_api.OPTION_RLIMIT_MODE, 1)
            t.equal(iommufd.option_get(iommufd_api.OPTION_RLIMIT_MODE), 0, "the mode")

    t.in_child(without)
    with Iommufd() as iommufd:
        iommufd.option_set(iommufd_api.OPTION_RLIMIT_MODE, 1)
        t.equal(iommufd.option_get(iommufd_api.OPTION_RLIMIT_MODE), 1, "the mode after setting it")
