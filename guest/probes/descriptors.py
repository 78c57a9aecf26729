# SPDX-License-Identifier: GPL-2.0-only
"""Lifetimes of device and iommufd files that are passed on, inherited, duplicated or left open."""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import mmap
import os
import signal
import socket
from collections.abc import Callable, Iterator

from guest import brink, edu, forked, libc, memory, pci, vfio
from guest import iommufd as api
from guest.case import Test, case
from guest.iommufd import Iommufd
from guest.memory import PAGE
from guest.opened import through_cdev, through_group, unbound
from guest.uapi import Descriptor

BARE = ("noiommu-cdev", "edu", "!viommu")
GROUP = ("noiommu-group", "edu", "!viommu")

BASE = 0x1000_0000

WORD = 20.0
"""Timeout in seconds of a message from another process."""


def _send(through: socket.socket, word: bytes, *fds: int) -> None:
    through.sendmsg([word], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def _receive(through: socket.socket) -> tuple[bytes, int]:
    word, ancillary, _flags, _address = through.recvmsg(64, socket.CMSG_SPACE(4))
    fds = array.array("i")
    for _level, _kind, data in ancillary:
        fds.frombytes(data)
    return word, fds[0]


@contextlib.contextmanager
def _sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        for end in (one, other):
            end.settimeout(WORD)
        yield one, other


def _identification(device: vfio.Device) -> int:
    return int.from_bytes(os.pread(device.fd, 4, device.region(vfio.BAR0).offset), "little")


def _can_bind(device: vfio.Device, iommufd: Iommufd) -> bool:
    try:
        device.bind_iommufd(iommufd.fd)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def _use_what_comes(through: socket.socket) -> None:
    """Receive a bound device and the id of an IOAS, wait for a message, use the device, and never close
    it."""
    word, fd = _receive(through)
    device = vfio.Device(fd)
    through.sendall(b"have it")
    through.recv(64)
    assert _identification(device) == edu.IDENTIFIES
    ioas = int(word)
    if ioas:
        device.detach()
        device.attach(ioas)
    through.sendall(b"used it")
    signal.pause()


@case(needs=BARE, cites="drivers/vfio/vfio_main.c vfio_device_fops_release(); drivers/iommu/iommufd/main.c")
def passed_device_works_elsewhere(t: Test) -> None:
    """A bound device passed through a socket works and attaches in the receiving process after its first
    owner has closed device and iommufd, and stays bound until the receiver is killed."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf), _sockets() as (here, there), forked.Child(lambda: _use_what_comes(there)) as child:
        with vfio.open_cdev(bdf) as device, Iommufd() as iommufd:
            device.bind_iommufd(iommufd.fd)
            ioas = iommufd.ioas_alloc()
            device.attach(ioas)
            _send(here, str(ioas).encode(), device.fd)
            t.equal(here.recv(64), b"have it", "the first message from the other process")
        here.sendall(b"go")
        t.equal(here.recv(64), b"used it", "the second message from the other process")
        with vfio.open_cdev(bdf) as second, Iommufd() as mine:
            t.errno(errno.EINVAL, second.bind_iommufd, mine.fd)
            child.kill()
            child.wait()
            t.wait_until(lambda: _can_bind(second, mine), "the end of the binding with its last owner")


@case(needs=GROUP, cites="drivers/vfio/vfio_main.c vfio_device_fops_release(); container.c, group.c")
def passed_group_device_works_elsewhere(t: Test) -> None:
    """A device from a group passed through a socket works in the receiving process after its opener has
    closed device, group and container; the group can be opened again once the receiver is killed."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf), _sockets() as (here, there), forked.Child(lambda: _use_what_comes(there)) as child:
        with vfio.open_container() as container, vfio.open_group(bdf) as group:
            group.set_container(container)
            container.set_iommu(vfio.NOIOMMU_IOMMU)
            with group.device(bdf) as device:
                _send(here, b"0", device.fd)
                t.equal(here.recv(64), b"have it", "the first message from the other process")
        here.sendall(b"go")
        t.equal(here.recv(64), b"used it", "the second message from the other process")
        if "container" in t.features:
            t.errno(errno.EBUSY, vfio.open_group, bdf)
        child.kill()
        child.wait()

        def reopened() -> bool:
            with contextlib.suppress(OSError):
                vfio.open_group(bdf).close()
                return True
            return False

        t.wait_until(reopened, "opening the group after its last user's death")


@case(needs=BARE, cites="net/unix/af_unix.c unix_release_sock(); drivers/vfio/vfio_main.c")
def device_in_flight_stays_bound(t: Test) -> None:
    """A bound device that is in flight in a socket stays bound until the socket is closed."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf), vfio.open_cdev(bdf) as second, Iommufd() as mine:
        here, there = socket.socketpair()
        with vfio.open_cdev(bdf) as device, Iommufd() as iommufd:
            device.bind_iommufd(iommufd.fd)
            _send(here, b"0", device.fd)
        t.errno(errno.EINVAL, second.bind_iommufd, mine.fd)
        here.close()
        t.errno(errno.EINVAL, second.bind_iommufd, mine.fd)
        there.close()
        t.wait_until(lambda: _can_bind(second, mine), "the end of the binding with its socket")


@case(needs=BARE, cites="drivers/vfio/vfio_main.c vfio_device_fops_release() (last reference)")
def inherited_device_outlives_its_opener(t: Test) -> None:
    """A device inherited through fork() stays bound until parent and child have closed it, and the parent
    sees what the child does to it."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf), vfio.open_cdev(bdf) as second, Iommufd() as mine, _sockets() as (here, there):
        device, iommufd = vfio.open_cdev(bdf), Iommufd()
        device.bind_iommufd(iommufd.fd)

        def hold() -> None:
            device.set_bus_master()
            there.sendall(b"x")
            signal.pause()

        with forked.Child(hold) as child:
            t.equal(here.recv(1), b"x", "the child's message")
            t.check(
                device.read_config(vfio.PCI_COMMAND, 2) & vfio.PCI_COMMAND_MASTER, "two states of one device"
            )
            device.close()
            iommufd.close()
            t.errno(errno.EINVAL, second.bind_iommufd, mine.fd)
            t.errno(errno.EINVAL, second.info)
            child.kill()
            child.wait()
        t.wait_until(lambda: _can_bind(second, mine), "the end of the binding with the child")
        command = second.read_config(vfio.PCI_COMMAND, 2)
        t.check(not command & vfio.PCI_COMMAND_MASTER, "the dead child's bus mastering is still on")


@case(needs=BARE, cites="drivers/vfio/device_cdev.c vfio_df_ioctl_bind_iommufd() (binds the file)")
def binding_outlives_the_binder(t: Test) -> None:
    """A file that the parent opened and a child has bound and attached stays so, with the child's iommufd,
    after the child has ended."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf), vfio.open_cdev(bdf) as device, Iommufd() as mine:

        def bind() -> list[int]:
            with Iommufd() as own:
                devid, ioas = device.bind_iommufd(own.fd), own.ioas_alloc()
                return [devid, ioas, device.attach(ioas)]

        t.errno(errno.EINVAL, device.info)
        answer = t.in_child(bind)
        assert isinstance(answer, list)
        _devid, ioas, hwpt = answer
        t.equal(_identification(device), edu.IDENTIFIES, "the register read by the parent")
        t.errno(errno.EINVAL, device.bind_iommufd, mine.fd)
        t.equal(device.attach(ioas), hwpt, "the page table by attaching again")
        device.detach()
        t.check(device.attach(ioas) > 0, "attach after a detach")


@case(needs=BARE, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_mmap() (the VMA holds the file)")
def inherited_mapping_holds_the_device(t: Test) -> None:
    """A BAR mapped only in a child, which holds no descriptor, works there and keeps the device bound until
    the child ends."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf), vfio.open_cdev(bdf) as second, Iommufd() as mine, _sockets() as (here, there):
        device, iommufd = vfio.open_cdev(bdf), Iommufd()
        device.bind_iommufd(iommufd.fd)
        bar = device.bar()

        def hold() -> None:
            for one in (device, iommufd, second, mine):
                one.close()
            there.sendall(b"closed")
            there.recv(64)
            bar.write32(edu.REG_LIVENESS, 0x11111111)
            there.sendall(bar.read32(edu.REG_LIVENESS).to_bytes(4, "little"))
            signal.pause()

        with forked.Child(hold) as child:
            t.equal(here.recv(64), b"closed", "the child's message")
            bar.close()
            device.close()
            iommufd.close()
            here.sendall(b"go")
            t.equal(here.recv(64), b"\xee" * 4, "what the child reads by its mapping")
            t.errno(errno.EINVAL, second.bind_iommufd, mine.fd)
            child.kill()
            child.wait()
        t.wait_until(lambda: _can_bind(second, mine), "the end of the binding with the child's mapping")


@case(
    needs=("iommufd",),
    cites="drivers/iommu/iommufd/main.c iommufd_fops_open(), iommufd_fops_release()",
)
def duplicates_share_all_objects(t: Test) -> None:
    """A duplicate of an iommufd, in this process or a child, has the same objects, which live until the last
    duplicate is closed; another iommufd has its own."""
    with Iommufd() as iommufd, Iommufd() as other, memory.anonymous() as page:
        ioas = iommufd.ioas_alloc()
        iommufd.map(ioas, page.address, PAGE, BASE)
        copy = Descriptor(os.dup(iommufd.fd))
        iommufd.close()
        t.errno(errno.ENOENT, other.call, api.DESTROY, api.Destroy(id=ioas))

        def look() -> int:
            argument = api.IoasAlloc()
            copy.call(api.IOAS_ALLOC, argument)
            return argument.out_ioas_id

        made = t.in_child(look)
        assert isinstance(made, int)
        t.check(made != ioas, "the child got the id of an object that exists")
        copy.call(api.DESTROY, api.Destroy(id=made))
        argument = api.IoasUnmap(ioas_id=ioas, iova=BASE, length=PAGE)
        copy.call(api.IOAS_UNMAP, argument)
        t.equal(argument.length, PAGE, "bytes unmapped through the duplicate")
        copy.close()


@case(needs=BARE, cites="drivers/vfio/vfio_main.c vfio_device_fops_unl_ioctl(); drivers/iommu/iommufd/main.c")
def files_know_their_own_calls(t: Test) -> None:
    """A device file returns ENOTTY for every iommufd ioctl, an iommufd for every device and group ioctl, and
    none of them has an effect."""
    with through_cdev(t.device("edu", iommu=False)) as user:
        for request in (
            api.DESTROY,
            api.IOAS_ALLOC,
            api.IOAS_MAP,
            api.IOAS_UNMAP,
            api.OPTION,
            api.HWPT_ALLOC,
            api.IOAS_NOIOMMU_GET_PA,
        ):
            t.errno(errno.ENOTTY, user.device.call, request, bytearray(64))
        for request in (
            vfio.GROUP_GET_STATUS,
            vfio.GROUP_SET_CONTAINER,
            vfio.GROUP_GET_DEVICE_FD,
            vfio.DEVICE_GET_INFO,
            vfio.DEVICE_GET_REGION_INFO,
            vfio.DEVICE_SET_IRQS,
            vfio.DEVICE_RESET,
            vfio.DEVICE_BIND_IOMMUFD,
            vfio.DEVICE_ATTACH_IOMMUFD_PT,
            vfio.DEVICE_DETACH_IOMMUFD_PT,
        ):
            t.errno(errno.ENOTTY, user.iommufd.call, request, bytearray(64))
        t.equal(_identification(user.device), edu.IDENTIFIES, "the register at the end")


@case(needs=BARE, cites="drivers/vfio/device_cdev.c vfio_device_fops_cdev_open(); fs/read_write.c, mm/mmap.c")
def file_mode_bounds_access(t: Test) -> None:
    """A cdev opened read-only can be bound and read, but not written or mapped writable; one opened
    write-only can be written, but not read or mapped."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf), Iommufd() as iommufd:
        node = pci.cdev_node(bdf)
        assert node is not None
        offset = vfio.CONFIG << vfio.OFFSET_SHIFT
        with vfio.Device(os.open(node, os.O_RDONLY | os.O_CLOEXEC)) as device:
            device.bind_iommufd(iommufd.fd)
            t.equal(_identification(device), edu.IDENTIFIES, "the register by file")
            t.errno(errno.EBADF, os.pwrite, device.fd, bytes(2), offset + vfio.PCI_COMMAND)
            t.errno(errno.EACCES, vfio.Bar, device.fd, 0, PAGE)
        with vfio.Device(os.open(node, os.O_WRONLY | os.O_CLOEXEC)) as device:
            device.bind_iommufd(iommufd.fd)
            t.errno(errno.EBADF, os.pread, device.fd, 4, 0)
            t.errno(errno.EACCES, vfio.Bar, device.fd, 0, PAGE, mmap.PROT_READ)
            t.equal(os.pwrite(device.fd, bytes(4), edu.REG_LIVENESS), 4, "bytes written")


@case(needs=GROUP, cites="drivers/vfio/group.c vfio_device_open_file(), vfio_group_ioctl_get_device_fd()")
def group_device_is_closed_on_exec(t: Test) -> None:
    """The descriptor of a device from a group is close-on-exec and open for reading and writing."""
    with through_group(t.device("edu", iommu=False)) as user:
        fd = user.device.fd
        t.check(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC, "the descriptor survives an exec")
        t.equal(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE, os.O_RDWR, "its access mode")


@case(needs=GROUP, cites="drivers/vfio/group.c vfio_group_ioctl_get_device_fd() (strndup_user())")
def device_name_must_be_a_string(t: Test) -> None:
    """GET_DEVICE_FD accepts a name that ends with memory, refuses an unterminated one there (EFAULT) and one
    of a page or more (EINVAL), and leaks no descriptor."""
    bdf = t.device("edu", iommu=False)
    with through_group(bdf) as user, brink.Brink() as edge:
        group, request = user.group.fd, vfio.GROUP_GET_DEVICE_FD
        first = os.dup(group)
        os.close(first)
        t.errno(errno.EFAULT, libc.ioctl, group, request, edge.put(bdf.encode()))
        t.errno(errno.EFAULT, libc.ioctl, group, request, brink.NOWHERE)
        with memory.anonymous(2 * PAGE) as long:
            long.fill(ord("0"))
            t.errno(errno.EINVAL, libc.ioctl, group, request, long.address)
        t.errno(errno.ENODEV, libc.ioctl, group, request, edge.put(b"\0"))
        device = vfio.Device(libc.ioctl(group, request, edge.put(bdf.encode() + b"\0")))
        t.equal(device.fd, first, "the number of the next descriptor")
        device.close()


@case(
    needs=BARE, cites="drivers/iommu/iommufd/main.c iommufd_fops_release(); device.c iommufd_device_unbind()"
)
def device_survives_its_iommufd(t: Test) -> None:
    """A device keeps working, with its pages pinned, after its iommufd is closed."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf), vfio.open_cdev(bdf) as device, memory.anonymous() as page:
        page.touch()
        with Iommufd() as iommufd:
            device.bind_iommufd(iommufd.fd)
            ioas = iommufd.ioas_alloc()
            device.attach(ioas)
            iommufd.map(ioas, page.address, page.length, 0)
        t.check(device.info().flags & vfio.DEVICE_FLAGS_PCI, "the device does not answer")
        t.equal(memory.pinned_pages(), 1, "pages pinned with the iommufd closed")
        device.close()
        t.equal(memory.pinned_pages(), 0, "pages pinned with the device closed")


@case(needs=BARE, cites="drivers/vfio/vfio_main.c vfio_device_fops_release(); drivers/iommu/iommufd/main.c")
def either_may_be_closed_first(t: Test) -> None:
    """Device and iommufd can be closed in either order, repeatedly, and leave nothing pinned or busy."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf), memory.anonymous() as page:
        page.touch()
        for turn in range(10):
            device, iommufd = vfio.open_cdev(bdf), Iommufd()
            device.bind_iommufd(iommufd.fd)
            ioas = iommufd.ioas_alloc()
            device.attach(ioas)
            iommufd.map(ioas, page.address, page.length, 0)
            order: list[Callable[[], None]] = [device.close, iommufd.close]
            for close in reversed(order) if turn % 2 else order:
                close()
            t.equal(memory.pinned_pages(), 0, f"pages pinned after turn {turn}")
    t.check_no_complaint()


@case(needs=BARE, cites="drivers/vfio/vfio_main.c vfio_device_fops_release() (last reference)")
def duplicates_keep_the_device_open(t: Test) -> None:
    """A duplicate of a bound device file keeps it bound; the last close frees the device for the next
    user."""
    bdf = t.device("edu", iommu=False)
    with unbound(bdf) as (device, iommufd), vfio.open_cdev(bdf) as second:
        device.bind_iommufd(iommufd.fd)
        copy = vfio.Device(os.dup(device.fd))
        device.close()
        t.check(copy.info().flags & vfio.DEVICE_FLAGS_PCI, "the duplicate does not answer")
        t.errno(errno.EINVAL, second.bind_iommufd, iommufd.fd)
        copy.close()
        second.bind_iommufd(iommufd.fd)


@case(
    needs=BARE, cites="drivers/vfio/vfio_main.c vfio_device_fops_mmap(); vfio_pci_core.c vfio_pci_core_mmap()"
)
def mapped_bar_keeps_the_device_bound(t: Test) -> None:
    """A mapped BAR keeps working after the file is closed, and keeps the device bound until it is
    unmapped."""
    bdf = t.device("edu", iommu=False)
    with unbound(bdf) as (device, iommufd), vfio.open_cdev(bdf) as second:
        device.bind_iommufd(iommufd.fd)
        bar = device.bar(length=memory.PAGE)
        device.close()
        t.equal(bar.read32(0), edu.IDENTIFIES, "edu's identification register")
        t.errno(errno.EINVAL, second.bind_iommufd, iommufd.fd)
        bar.close()
        second.bind_iommufd(iommufd.fd)
        t.errno(
            errno.EINVAL, vfio.Bar, second.fd, vfio.CONFIG << vfio.OFFSET_SHIFT, memory.PAGE, mmap.PROT_READ
        )
