# SPDX-License-Identifier: GPL-2.0-only
"""Every way to an unprotected device requires CAP_SYS_RAWIO, which the cases drop for real, in a child."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Callable

from guest import caps, libc, memory, pci, vfio
from guest import iommufd as iommufd_api
from guest.case import Test, case
from guest.iommufd import Iommufd
from guest.opened import through_cdev, through_group


@case(
    needs=("noiommu-group", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_group_fops_open()",
)
def group_open_needs_rawio(t: Test) -> None:
    """Root without CAP_SYS_RAWIO cannot open a no-IOMMU group (EPERM); root with it can."""
    with pci.bound(t.device("edu", iommu=False)) as nodes:
        node = nodes.group
        assert node is not None
        vfio.try_open(node)

        def without() -> None:
            caps.drop(caps.CAP_SYS_RAWIO)
            t.errno(errno.EPERM, vfio.try_open, node)

        t.in_child(without)


@case(
    needs=("noiommu-cdev", "edu", "!viommu"),
    cites="drivers/vfio/device_cdev.c vfio_device_fops_cdev_open()",
)
def cdev_open_needs_rawio(t: Test) -> None:
    """Root without CAP_SYS_RAWIO cannot open a no-IOMMU cdev (EPERM); root with it can."""
    with pci.bound(t.device("edu", iommu=False)) as nodes:
        node = nodes.cdev
        assert node is not None
        vfio.try_open(node)

        def without() -> None:
            caps.drop(caps.CAP_SYS_RAWIO)
            t.errno(errno.EPERM, vfio.try_open, node)

        t.in_child(without)


@case(
    needs=("noiommu-cdev", "edu", "!viommu"),
    cites="drivers/vfio/device_cdev.c vfio_device_fops_cdev_open(); fs/namei.c may_open()",
)
def cdev_mode_bits_do_not_replace_rawio(t: Test) -> None:
    """An ordinary user cannot open a no-IOMMU cdev: EACCES from its mode bits, EPERM once they allow
    everything."""
    with pci.bound(t.device("edu", iommu=False)) as nodes:
        node = nodes.cdev
        assert node is not None
        _refused_to_nobody(t, node)


@case(
    needs=("noiommu-group", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_group_fops_open(); fs/namei.c may_open()",
)
def group_mode_bits_do_not_replace_rawio(t: Test) -> None:
    """An ordinary user cannot open a no-IOMMU group: EACCES from its mode bits, EPERM once they allow
    everything."""
    with pci.bound(t.device("edu", iommu=False)) as nodes:
        node = nodes.group
        assert node is not None
        _refused_to_nobody(t, node)


def _refused_to_nobody(t: Test, node: Path) -> None:
    for mode, want in ((0o600, errno.EACCES), (0o666, errno.EPERM)):
        os.chmod(node, mode)

        def as_nobody(expected: int = want) -> None:
            caps.become()
            t.errno(expected, vfio.try_open, node)

        t.in_child(as_nobody)


@case(
    needs=("noiommu-cdev", "edu", "!viommu"),
    cites="drivers/vfio/device_cdev.c vfio_device_fops_cdev_open(): capable(), not ns_capable()",
)
def user_namespace_root_is_not_enough(t: Test) -> None:
    """Having all capabilities in a user namespace does not allow opening a no-IOMMU cdev."""
    with pci.bound(t.device("edu", iommu=False)) as nodes:
        node = nodes.cdev
        assert node is not None
        _as_namespace_root(t, lambda: t.errno(errno.EPERM, vfio.try_open, node))


@case(
    needs=("noiommu-cdev", "edu", "!viommu"),
    cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_noiommu_get_pa()",
)
def get_pa_needs_rawio(t: Test) -> None:
    """GET_PA without CAP_SYS_RAWIO is EPERM, before any argument is checked."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous() as page:
        page.touch()
        iommufd, ioas = user.iommufd, user.ioas
        iommufd.map(ioas, page.address, page.length, 0x10000)
        iommufd.get_pa(ioas, 0x10000, 1)

        def without() -> None:
            caps.drop(caps.CAP_SYS_RAWIO)
            t.errno(errno.EPERM, iommufd.get_pa, ioas, 0x10000, 1)
            t.errno(errno.EPERM, iommufd.get_pa, ioas, 0x10000, 0)
            t.errno(errno.EPERM, iommufd.get_pa, iommufd_api.NO_SUCH_ID, 0, 1)

        t.in_child(without)


@case(
    needs=("noiommu-cdev", "edu", "!viommu"),
    cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_noiommu_get_pa(): capable() at call time",
)
def get_pa_follows_current_credentials(t: Test) -> None:
    """GET_PA on one descriptor depends on the caller's capability at the time of the call."""
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
    """SET_CONTAINER, SET_IOMMU and GET_DEVICE_FD are each EPERM for a task without CAP_SYS_RAWIO."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf), vfio.open_container() as container, vfio.open_group(bdf) as group:
        _refused_without_rawio(t, lambda: t.errno(errno.EPERM, group.set_container, container))
        group.set_container(container)
        _refused_without_rawio(t, lambda: t.errno(errno.EPERM, container.set_iommu, vfio.NOIOMMU_IOMMU))
        container.set_iommu(vfio.NOIOMMU_IOMMU)
        _refused_without_rawio(t, lambda: t.errno(errno.EPERM, group.device, bdf))
        group.device(bdf).close()


@case(
    needs=("noiommu-group", "iommufd", "edu", "!viommu"),
    cites="drivers/iommu/iommufd/vfio_compat.c iommufd_vfio_set_iommu(); vfio/group.c vfio_df_group_open()",
)
def emulated_container_needs_rawio(t: Test) -> None:
    """With any iommufd as the container, SET_IOMMU and GET_DEVICE_FD are each EPERM for a task without
    CAP_SYS_RAWIO."""
    bdf = t.device("edu", iommu=False)
    path = vfio.CONTAINER if "compat" in t.features else iommufd_api.PATH
    with pci.bound(bdf), vfio.open_container(path) as container, vfio.open_group(bdf) as group:
        group.set_container(container)
        _refused_without_rawio(t, lambda: t.errno(errno.EPERM, container.set_iommu, vfio.NOIOMMU_IOMMU))
        container.set_iommu(vfio.NOIOMMU_IOMMU)
        _refused_without_rawio(t, lambda: t.errno(errno.EPERM, group.device, bdf))
        group.device(bdf).close()


def _refused_without_rawio(t: Test, attempt: Callable[[], object]) -> None:
    def without() -> None:
        caps.drop(caps.CAP_SYS_RAWIO)
        attempt()

    t.in_child(without)


@case(
    needs=("noiommu-cdev", "edu", "!viommu"),
    cites="drivers/vfio/device_cdev.c vfio_df_ioctl_bind_iommufd(); Documentation/driver-api/vfio.rst",
)
def bind_needs_rawio(t: Test) -> None:
    """A task without CAP_SYS_RAWIO that is passed an open no-IOMMU cdev cannot bind it."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf), vfio.open_cdev(bdf) as device, Iommufd() as iommufd:

        def without() -> None:
            caps.drop(caps.CAP_SYS_RAWIO)
            t.errno(errno.EPERM, device.bind_iommufd, iommufd.fd)

        t.in_child(without)


@case(needs=("iommufd",), cites="drivers/iommu/iommufd/ioas.c iommufd_option_rlimit_mode()")
def rlimit_mode_needs_sys_resource(t: Test) -> None:
    """Changing the accounting mode of an iommufd requires CAP_SYS_RESOURCE; reading it does not."""

    def without() -> None:
        caps.drop(caps.CAP_SYS_RESOURCE)
        with Iommufd() as iommufd:
            t.errno(errno.EPERM, iommufd.option_set, iommufd_api.OPTION_RLIMIT_MODE, 1)
            t.equal(iommufd.option_get(iommufd_api.OPTION_RLIMIT_MODE), 0, "the mode")

    t.in_child(without)
    with Iommufd() as iommufd:
        iommufd.option_set(iommufd_api.OPTION_RLIMIT_MODE, 1)
        t.equal(iommufd.option_get(iommufd_api.OPTION_RLIMIT_MODE), 1, "the mode after setting it")


def _open_errno(node: Path) -> int:
    """Open *node* in a newly executed program and return the errno."""
    code = "import os, sys\ntry: os.open(sys.argv[1], os.O_RDWR)\nexcept OSError as e: sys.exit(e.errno)"
    return os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-I", "-S", "-c", code, str(node)])


def _either_node(nodes: pci.Nodes) -> Path:
    return nodes.made[-1]


@case(
    needs=("noiommu", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_group_fops_open(), device_cdev.c: capable(); capabilities(7) execve()",
)
def rawio_is_followed_through_exec(t: Test) -> None:
    """A program after execve() can open a no-IOMMU node as a user with CAP_SYS_RAWIO ambient, but not as root
    without it in the bounding set, nor as a user who had it only permitted."""
    with pci.bound(t.device("edu", iommu=False)) as nodes:
        node = _either_node(nodes)
        os.chmod(node, 0o666)

        def bounded() -> None:
            libc.prctl(libc.PR_CAPBSET_DROP, caps.CAP_SYS_RAWIO)
            vfio.try_open(node)
            t.equal(_open_errno(node), errno.EPERM, "errno in a program that cannot have the capability")

        def ambient() -> None:
            caps.keep_only(caps.CAP_SYS_RAWIO)
            t.equal(_open_errno(node), errno.EPERM, "errno with the capability lost by execve()")
            caps.make_ambient(caps.CAP_SYS_RAWIO)
            t.equal(_open_errno(node), 0, "errno with the capability ambient")

        t.in_child(bounded)
        t.in_child(ambient)


@case(
    needs=("noiommu", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_group_fops_open(), device_cdev.c vfio_device_fops_cdev_open()",
)
def rawio_must_be_in_effect(t: Test) -> None:
    """Opening a no-IOMMU node requires CAP_SYS_RAWIO in the effective set; permitted alone is not enough."""
    with pci.bound(t.device("edu", iommu=False)) as nodes:
        for node in nodes.made:
            caps.lower(caps.CAP_SYS_RAWIO)
            t.errno(errno.EPERM, vfio.try_open, node)
            caps.raise_again(caps.CAP_SYS_RAWIO)
            vfio.try_open(node)


def _as_namespace_root(t: Test, attempt: Callable[[], object]) -> None:
    """Call *attempt* with every capability, in a new user namespace."""
    if not Path("/proc/self/ns/user").exists():
        t.skip("this kernel has no user namespaces")

    def inside() -> None:
        libc.unshare(libc.CLONE_NEWUSER)
        t.check(caps.has(caps.CAP_SYS_RAWIO), "the new namespace does not give CAP_SYS_RAWIO")
        attempt()

    t.in_child(inside)


@case(
    needs=("noiommu-group", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_group_fops_open(), vfio_df_group_open(); container.c: capable()",
)
def user_namespace_root_gets_nothing_from_a_group(t: Test) -> None:
    """Having all capabilities in a user namespace allows neither opening a no-IOMMU group nor, through
    inherited descriptors, setting its container or type or getting its device."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf) as nodes, vfio.open_container() as container:
        group_node = nodes.group
        assert group_node is not None
        _as_namespace_root(t, lambda: t.errno(errno.EPERM, vfio.try_open, group_node))
        with vfio.open_group(bdf) as group:
            if "container" in t.features:
                _as_namespace_root(t, lambda: t.errno(errno.EPERM, group.set_container, container))
            group.set_container(container)
            _as_namespace_root(t, lambda: t.errno(errno.EPERM, container.set_iommu, vfio.NOIOMMU_IOMMU))
            container.set_iommu(vfio.NOIOMMU_IOMMU)
            _as_namespace_root(t, lambda: t.errno(errno.EPERM, group.device, bdf))


@case(
    needs=("noiommu-cdev", "edu", "!viommu"),
    cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_noiommu_get_pa(): capable(), not ns_capable()",
)
def user_namespace_root_learns_no_address(t: Test) -> None:
    """Having all capabilities in a user namespace does not make GET_PA succeed."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous() as page:
        page.touch()
        user.map(page, 0x10000)
        _as_namespace_root(t, lambda: t.errno(errno.EPERM, user.iommufd.get_pa, user.ioas, 0x10000, 1))


@case(needs=("noiommu-group", "edu", "!viommu"), cites="drivers/vfio/group.c vfio_group_fops_open() (order)")
def group_does_not_tell_whether_it_is_busy(t: Test) -> None:
    """A task without CAP_SYS_RAWIO gets EPERM for opening a group, whether or not the group is open
    elsewhere."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf) as nodes, vfio.open_group(bdf):
        node = nodes.group
        assert node is not None
        t.errno(errno.EBUSY, vfio.try_open, node)
        _refused_without_rawio(t, lambda: t.errno(errno.EPERM, vfio.try_open, node))


@case(
    needs=("noiommu-group", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_df_group_open(); container.c vfio_group_use_container() (first open)",
)
def device_in_use_needs_rawio_again(t: Test) -> None:
    """A task without CAP_SYS_RAWIO gets no device from a no-IOMMU group that it is passed, even if a
    privileged task has the device open."""
    bdf = t.device("edu", iommu=False)
    with through_group(bdf) as user:
        _refused_without_rawio(t, lambda: t.errno(errno.EPERM, user.group.device, bdf))


@case(
    needs=("viommu", "noiommu-cdev", "edu"),
    cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_noiommu_get_pa() (order)",
)
def get_pa_does_not_tell_what_is_translated(t: Test) -> None:
    """GET_PA on a translated address space is EPERM without CAP_SYS_RAWIO and EOPNOTSUPP with it."""
    with through_cdev(t.device("edu", iommu=True)) as user, memory.anonymous() as page:
        page.touch()
        user.map(page, 0x10000)
        _refused_without_rawio(t, lambda: t.errno(errno.EPERM, user.iommufd.get_pa, user.ioas, 0x10000, 1))
        t.errno(errno.EOPNOTSUPP, user.iommufd.get_pa, user.ioas, 0x10000, 1)
