# SPDX-License-Identifier: GPL-2.0-only
"""The device node: bind to an iommufd, attach, detach, replace, and every error of these calls."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Iterator

from guest import brink, libc, memory, pci, vfio
from guest import iommufd as api
from guest.brink import NOWHERE, Brink
from guest.case import Test, case
from guest.iommufd import NO_SUCH_ID, Iommufd
from guest.memory import PAGE
from guest.opened import Event, through_cdev, unbound
from guest.uapi import errno_of

BARE = ("noiommu-cdev", "edu", "!viommu")


@case(needs=BARE, cites="drivers/vfio/device_cdev.c vfio_df_ioctl_bind_iommufd()")
def bind_gives_an_id(t: Test) -> None:
    """BIND_IOMMUFD succeeds, gives the device an object id, and enables the device's own ioctls."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd):
        devid = device.bind_iommufd(iommufd.fd)
        t.check(devid > 0, f"the device's id is {devid}")
        t.check(device.info().flags & vfio.DEVICE_FLAGS_PCI, "GET_INFO lacks the PCI flag")
        t.equal(device.read_config(vfio.PCI_VENDOR_ID, 4), 0x11E81234, "vendor and device in config space")


@case(needs=BARE, cites="drivers/vfio/vfio_main.c vfio_device_fops_unl_ioctl() (access_granted)")
def nothing_works_before_bind(t: Test) -> None:
    """An open cdev that is not bound returns EINVAL for read, write, mmap and every ioctl but
    BIND_IOMMUFD."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd):
        config = vfio.CONFIG << vfio.OFFSET_SHIFT
        t.errno(errno.EINVAL, device.info)
        t.errno(errno.EINVAL, device.region_info, 0)
        t.errno(errno.EINVAL, device.reset)
        t.errno(errno.EINVAL, device.attach, iommufd.ioas_alloc())
        t.errno(errno.EINVAL, device.detach)
        t.errno(errno.EINVAL, os.pread, device.fd, 4, config)
        t.errno(errno.EINVAL, os.pwrite, device.fd, bytes(4), config)
        t.errno(errno.EINVAL, vfio.Bar, device.fd, 0, memory.PAGE)


@case(needs=BARE, cites="drivers/vfio/device_cdev.c vfio_df_ioctl_bind_iommufd()")
def bind_refuses_bad_arguments(t: Test) -> None:
    """BIND_IOMMUFD refuses unknown flags, a token at a bad address and a missing argument, and succeeds
    afterwards."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd):

        def bind(**fields: int) -> None:
            device.call(vfio.DEVICE_BIND_IOMMUFD, vfio.BindIommufd(**fields))

        t.errno(errno.EINVAL, bind, flags=2, iommufd=iommufd.fd)
        t.errno(errno.EFAULT, bind, flags=vfio.BIND_FLAG_TOKEN, iommufd=iommufd.fd)
        t.errno(errno.EFAULT, device.call, vfio.DEVICE_BIND_IOMMUFD)
        bind(argsz=16, iommufd=iommufd.fd)


@case(needs=BARE, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_match_token_uuid()")
def bind_refuses_a_needless_token(t: Test) -> None:
    """BIND_IOMMUFD with a VF token for a device that is neither PF nor VF is EINVAL."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd):
        t.errno(errno.EINVAL, device.bind_iommufd, iommufd.fd, token=os.urandom(16))
        device.bind_iommufd(iommufd.fd)


@case(needs=BARE, cites="drivers/vfio/device_cdev.c vfio_df_ioctl_bind_iommufd(), vfio_main.c vfio_df_open()")
def bind_twice_is_refused(t: Test) -> None:
    """A bound device cannot be bound again, through the same file or another, until it is closed."""
    bdf = t.device("edu", iommu=False)
    with unbound(bdf) as (device, iommufd), Iommufd() as other, vfio.open_cdev(bdf) as second:
        device.bind_iommufd(iommufd.fd)
        t.errno(errno.EINVAL, device.bind_iommufd, iommufd.fd)
        t.errno(errno.EINVAL, device.bind_iommufd, other.fd)
        t.errno(errno.EINVAL, second.bind_iommufd, iommufd.fd)
        t.errno(errno.EINVAL, second.bind_iommufd, other.fd)
        device.close()
        t.check(second.bind_iommufd(other.fd) > 0, "no id")


@case(needs=BARE, cites="drivers/iommu/iommufd/device.c iommufd_device_auto_get_domain()")
def attach_makes_a_page_table(t: Test) -> None:
    """Attaching to an IOAS returns the id of a page table, which exists as long as the attachment."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd):
        device.bind_iommufd(iommufd.fd)
        ioas = iommufd.ioas_alloc()
        hwpt = device.attach(ioas)
        t.check(hwpt not in (0, ioas), f"attach gave {hwpt} for IOAS {ioas}")
        t.errno(errno.EBUSY, iommufd.destroy, hwpt)
        device.detach()
        t.errno(errno.ENOENT, iommufd.destroy, hwpt)


@case(
    needs=BARE,
    cites="drivers/vfio/iommufd.c vfio_iommufd_physical_attach_ioas(); iommufd/device.c "
    "iommufd_device_replace()",
)
def attach_again_replaces(t: Test) -> None:
    """A second ATTACH moves the device: the old page table is gone, its IOAS unpinned, and GET_PA works on
    the new IOAS."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd), memory.anonymous(8 * PAGE) as buffer:
        buffer.touch()
        device.bind_iommufd(iommufd.fd)
        old, new = iommufd.ioas_alloc(), iommufd.ioas_alloc()
        iommufd.map(old, buffer.address, buffer.length, 0)
        iommufd.map(new, buffer.address, PAGE, 0)
        first = device.attach(old)
        t.equal(memory.pinned_pages(), 8, "pages pinned by the old IOAS")
        second = device.attach(new)
        t.check(first != second, "the page table did not change")
        t.errno(errno.ENOENT, iommufd.destroy, first)
        t.equal(memory.pinned_pages(), 1, "pages pinned by the new IOAS")
        t.errno(errno.EOPNOTSUPP, iommufd.get_pa, old, 0, 1)
        t.equal(iommufd.get_pa(new, 0, 1)[0], buffer.physical(), "the new IOAS's physical address")
        iommufd.destroy(old)


@case(
    needs=BARE,
    cites="drivers/vfio/device_cdev.c vfio_df_ioctl_attach_pt(); iommufd/device.c iommufd_device_change_pt()",
)
def attach_refuses_bad_arguments(t: Test) -> None:
    """ATTACH refuses ids that are not page tables, unknown flags and a missing argument, and leaves the
    device detached."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd), memory.anonymous() as page:
        devid = device.bind_iommufd(iommufd.fd)
        ioas = iommufd.ioas_alloc()

        def attach(**fields: int) -> None:
            device.call(vfio.DEVICE_ATTACH_IOMMUFD_PT, vfio.AttachPt(**fields))

        t.errno(errno.ENOENT, device.attach, NO_SUCH_ID)
        t.errno(errno.EINVAL, device.attach, devid)
        t.errno(errno.EINVAL, attach, flags=2, pt_id=ioas)
        t.errno(errno.EINVAL, attach, argsz=12, flags=vfio.PASID_FLAG, pt_id=ioas)
        t.errno(errno.EFAULT, device.call, vfio.DEVICE_ATTACH_IOMMUFD_PT)
        iommufd.map(ioas, page.address, page.length, 0)
        t.errno(errno.EOPNOTSUPP, iommufd.get_pa, ioas, 0, 1)


@case(
    needs=BARE,
    cites="drivers/vfio/iommufd.c vfio_iommufd_physical_detach_ioas(); device_cdev.c "
    "vfio_df_ioctl_detach_pt()",
)
def detach_may_be_repeated(t: Test) -> None:
    """DETACH succeeds after an attach, after a detach and before any attach; unknown flags are EINVAL."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd):
        device.bind_iommufd(iommufd.fd)
        device.detach()
        device.attach(iommufd.ioas_alloc())
        device.detach()
        device.detach()

        def detach(**fields: int) -> None:
            device.call(vfio.DEVICE_DETACH_IOMMUFD_PT, vfio.DetachPt(**fields))

        t.errno(errno.EINVAL, detach, flags=2)


@case(needs=BARE, cites="drivers/iommu/iommufd/main.c iommufd_object_remove()")
def objects_in_use_cannot_be_destroyed(t: Test) -> None:
    """While a device is attached, destroying it, its page table or its IOAS is EBUSY; an unknown id is
    ENOENT."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd):
        devid = device.bind_iommufd(iommufd.fd)
        ioas = iommufd.ioas_alloc()
        hwpt = device.attach(ioas)
        for object_id in (devid, hwpt, ioas):
            t.errno(errno.EBUSY, iommufd.destroy, object_id)
        t.errno(errno.ENOENT, iommufd.destroy, 0)
        t.errno(errno.ENOENT, iommufd.destroy, NO_SUCH_ID)
        device.detach()
        iommufd.destroy(ioas)
        t.errno(errno.EBUSY, iommufd.destroy, devid)
        device.close()
        t.errno(errno.ENOENT, iommufd.destroy, devid)


@case(needs=BARE, cites="drivers/iommu/iommufd/device.c iommufd_hwpt_pasid_compat()")
def other_pasids_are_refused(t: Test) -> None:
    """Attaching a PASID of a no-IOMMU device is EINVAL and does not prevent a plain attach."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd):
        device.bind_iommufd(iommufd.fd)
        ioas = iommufd.ioas_alloc()
        t.errno(errno.EINVAL, device.attach, ioas, pasid=1)
        t.errno(errno.EINVAL, device.attach, ioas, pasid=0xFFFFF)
        t.check(device.attach(ioas) > 0, "plain attach")


@case(
    needs=BARE,
    cites="drivers/vfio/iommufd.c vfio_iommufd_physical_pasid_attach_ioas(); include/uapi/linux/vfio.h",
)
def pasid_zero_is_no_pasid(t: Test) -> None:
    """Attaching PASID 0 is refused or harmless: a plain attach works afterwards."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd):
        device.bind_iommufd(iommufd.fd)
        ioas = iommufd.ioas_alloc()
        refused = errno_of(lambda: device.attach(ioas, pasid=0))
        t.log(f"attaching PASID 0: errno {refused}")
        t.check(
            refused in (0, errno.EINVAL, errno.EOPNOTSUPP),
            f"attaching PASID 0 is refused with {os.strerror(refused)}",
        )
        try:
            device.attach(ioas)
        except OSError as error:
            t.fail(f"a plain attach after one of PASID 0: {error}")


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/io_pagetable.c iopt_table_add_domain(), iopt_check_iova_alignment()",
)
def attach_refuses_unaligned_maps(t: Test) -> None:
    """ATTACH to an IOAS with a mapping that is not page-aligned is EADDRINUSE until that is unmapped."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd), memory.anonymous() as page:
        device.bind_iommufd(iommufd.fd)
        ioas = iommufd.ioas_alloc()
        iommufd.map(ioas, page.address, 512, 0x10200)
        t.errno(errno.EADDRINUSE, device.attach, ioas)
        iommufd.unmap(ioas, 0x10200, 512)
        t.check(device.attach(ioas) > 0, "attach after the unmap")


def _refuses_growth(t: Test, fd: int, request: int, argument: ctypes.Structure) -> None:
    """Fail unless a nonzero byte behind *argument* is E2BIG, and a missing byte there EFAULT."""
    known = ctypes.sizeof(argument)
    setattr(argument, argument._fields_[0][0], known + 1)
    with Brink() as edge:
        t.errno(errno.E2BIG, libc.ioctl, fd, request, edge.put(bytes(argument) + b"\1"))
        t.errno(errno.EFAULT, libc.ioctl, fd, request, edge.put(argument))


@case(needs=BARE, cites="drivers/vfio/device_cdev.c vfio_df_ioctl_bind_iommufd() (iommufd < 0)")
def bind_takes_descriptor_zero(t: Test) -> None:
    """BIND_IOMMUFD accepts an iommufd whose file descriptor is 0."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd):
        before = os.dup(0)
        try:
            os.dup2(iommufd.fd, 0)
            t.check(device.bind_iommufd(0) > 0, "the device has no id")
        finally:
            os.dup2(before, 0)
            os.close(before)
        t.check(device.info().flags & vfio.DEVICE_FLAGS_PCI, "GET_INFO lacks the PCI flag")


@case(needs=BARE, cites="drivers/vfio/device_cdev.c vfio_df_ioctl_bind_iommufd() (copy_struct_from_user())")
def bind_takes_a_longer_structure(t: Test) -> None:
    """BIND_IOMMUFD accepts a longer structure with a zero tail, and refuses a nonzero tail, an argsz that
    reaches beyond memory, and one that is too small."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd), Brink() as edge:
        request = vfio.DEVICE_BIND_IOMMUFD
        _refuses_growth(t, device.fd, request, vfio.BindIommufd(iommufd=iommufd.fd))
        whole = vfio.BindIommufd(iommufd=iommufd.fd)
        t.errno(errno.EFAULT, libc.ioctl, device.fd, request, edge.put(whole, 23))
        t.errno(errno.EFAULT, libc.ioctl, device.fd, request, edge.put(vfio.BindIommufd(argsz=0xFFFFFFFF)))
        for size in (0, 4, 12):
            t.errno(errno.EINVAL, libc.ioctl, device.fd, request, edge.put(vfio.BindIommufd(argsz=size), 4))
        t.errno(errno.EINVAL, device.info)
        longer = bytearray(bytes(vfio.BindIommufd(argsz=64, iommufd=iommufd.fd)) + bytes(40))
        device.call(request, longer)
        t.check(struct.unpack_from("<I", longer, 12)[0] > 0, "no device id in the longer structure")


@case(
    needs=BARE,
    cites="drivers/vfio/device_cdev.c vfio_df_ioctl_bind_iommufd(), vfio_df_ioctl_attach_pt(), "
    "vfio_df_ioctl_detach_pt() (minsz)",
)
def structures_may_end_where_memory_does(t: Test) -> None:
    """BIND, ATTACH and DETACH accept their shortest structure at the end of memory; one byte less of memory
    is EFAULT, one byte less of argsz EINVAL."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd), Brink() as edge:
        ioas = iommufd.ioas_alloc()
        shortest: tuple[tuple[int, ctypes.Structure, int], ...] = (
            (vfio.DEVICE_BIND_IOMMUFD, vfio.BindIommufd(argsz=16, iommufd=iommufd.fd), 16),
            (vfio.DEVICE_ATTACH_IOMMUFD_PT, vfio.AttachPt(argsz=12, pt_id=ioas), 12),
            (vfio.DEVICE_DETACH_IOMMUFD_PT, vfio.DetachPt(argsz=8), 8),
        )
        for request, argument, least in shortest:
            t.log(f"ioctl {request:#x} with {least} bytes")
            t.errno(errno.EFAULT, libc.ioctl, device.fd, request, edge.put(argument, least - 1))
            small = struct.pack("<I", least - 1) + bytes(argument)[4:]
            t.errno(errno.EINVAL, libc.ioctl, device.fd, request, edge.put(small))
            libc.ioctl(device.fd, request, edge.put(argument, least))


@case(
    needs=BARE, cites="drivers/vfio/device_cdev.c vfio_df_ioctl_attach_pt(), vfio_df_ioctl_detach_pt() (xend)"
)
def pasid_flag_wants_the_pasid(t: Test) -> None:
    """With the PASID flag ATTACH and DETACH refuse a structure without the PASID field (EINVAL) or not
    completely in memory (EFAULT)."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd), Brink() as edge:
        device.bind_iommufd(iommufd.fd)
        ioas = iommufd.ioas_alloc()
        longer: tuple[tuple[int, type[ctypes.Structure], int], ...] = (
            (vfio.DEVICE_ATTACH_IOMMUFD_PT, vfio.AttachPt, 16),
            (vfio.DEVICE_DETACH_IOMMUFD_PT, vfio.DetachPt, 12),
        )
        for request, kind, size in longer:
            short = edge.put(kind(argsz=size - 1, flags=vfio.PASID_FLAG))
            t.errno(errno.EINVAL, libc.ioctl, device.fd, request, short)
            cut = edge.put(kind(argsz=size, flags=vfio.PASID_FLAG), size - 1)
            t.errno(errno.EFAULT, libc.ioctl, device.fd, request, cut)
        device.detach(pasid=1)
        t.check(device.attach(ioas) > 0, "a plain attach after a detach of a PASID never attached")


@case(needs=BARE, cites="drivers/vfio/device_cdev.c vfio_df_ioctl_bind_iommufd() (out_close_device)")
def bind_that_cannot_answer_binds_nothing(t: Test) -> None:
    """A BIND whose result cannot be written is EFAULT and changes neither the file nor the iommufd; the next
    BIND succeeds."""
    bdf = t.device("edu", iommu=False)
    with unbound(bdf) as (device, iommufd), vfio.open_cdev(bdf) as second:
        for _ in range(2):
            with brink.frozen(vfio.BindIommufd(iommufd=iommufd.fd)) as where:
                t.errno(errno.EFAULT, libc.ioctl, device.fd, vfio.DEVICE_BIND_IOMMUFD, where)
        t.errno(errno.EINVAL, device.info)
        iommufd.option_set(api.OPTION_RLIMIT_MODE, 1)  # EBUSY if the iommufd had a device
        if "noiommu-group" in t.features:
            vfio.open_group(bdf).close()
        second.bind_iommufd(iommufd.fd)
        second.close()
        devid = device.bind_iommufd(iommufd.fd)
        t.check(iommufd.hwpt_alloc(devid, iommufd.ioas_alloc()) > 0, "no page table for the device")


@case(needs=BARE, cites="drivers/vfio/device_cdev.c vfio_df_ioctl_attach_pt() (out_detach)")
def attach_that_cannot_answer_attaches_nothing(t: Test) -> None:
    """An ATTACH whose result cannot be written is EFAULT and leaves the device detached: nothing is pinned,
    its IOAS can be destroyed, and the next ATTACH succeeds."""
    with unbound(t.device("edu", iommu=False)) as (device, iommufd), memory.anonymous() as page:
        page.touch()
        device.bind_iommufd(iommufd.fd)
        ioas, other = iommufd.ioas_alloc(), iommufd.ioas_alloc()
        iommufd.map(ioas, page.address, page.length, 0x10000)
        with brink.frozen(vfio.AttachPt(pt_id=ioas)) as where:
            t.errno(errno.EFAULT, libc.ioctl, device.fd, vfio.DEVICE_ATTACH_IOMMUFD_PT, where)
        t.equal(memory.pinned_pages(), 0, "pages pinned after the refusal")
        t.errno(errno.EOPNOTSUPP, iommufd.get_pa, ioas, 0x10000, 1)
        iommufd.destroy(ioas)
        iommufd.map(other, page.address, page.length, 0x10000)
        t.check(device.attach(other) > 0, "attach afterwards")
        t.equal(iommufd.get_pa(other, 0x10000, 1)[0], page.physical(), "the address after an attach")


@case(needs=BARE, cites="drivers/iommu/iommufd/main.c iommufd_ctx_from_fd()")
def only_an_iommufd_is_an_iommufd(t: Test) -> None:
    """BIND refuses a device file, eventfd, memfd or directory as the iommufd (EBADFD) and a closed descriptor
    (EBADF), and then still accepts the real iommufd."""
    bdf = t.device("edu", iommu=False)
    with unbound(bdf) as (device, iommufd), vfio.open_cdev(bdf) as second, Iommufd() as closed:
        number = closed.fd
        closed.close()
        t.errno(errno.EBADF, device.bind_iommufd, number)
        for number in (999, (1 << 31) - 1):
            t.errno(errno.EBADF, device.bind_iommufd, number)
        for number in (-1, -(1 << 31)):
            t.errno(errno.EINVAL, device.bind_iommufd, number)
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        directory = os.open("/dev", os.O_RDONLY | os.O_CLOEXEC)
        path = os.open("/dev/iommu", os.O_PATH | os.O_CLOEXEC)
        for fd in (device.fd, second.fd, Event().fd, memory.memfd(), null, directory):
            t.errno(errno.EBADFD, device.bind_iommufd, fd)
        t.errno(errno.EBADF, device.bind_iommufd, path)
        device.bind_iommufd(iommufd.fd)


@case(
    needs=BARE, cites="drivers/iommu/iommufd/device.c iommufd_device_do_replace(), iommufd_device_change_pt()"
)
def refused_replacement_leaves_the_device_attached(t: Test) -> None:
    """A replacing ATTACH that fails, for whatever reason, leaves the device attached as before."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(2 * PAGE) as buffer:
        buffer.touch()
        iommufd = user.iommufd
        user.map(buffer, 0x10000)
        hwpt = user.device.attach(user.ioas)
        bad = iommufd.ioas_alloc()
        user.device.detach()
        iommufd.map(bad, buffer.address, 512, 0)
        user.device.attach(user.ioas)
        unmapped = iommufd.ioas_alloc()
        iommufd.map(unmapped, NOWHERE, PAGE, 0)
        t.errno(errno.EADDRINUSE, user.device.attach, bad)
        t.errno(errno.EFAULT, user.device.attach, unmapped)
        t.errno(errno.ENOENT, user.device.attach, NO_SUCH_ID)
        t.errno(errno.EINVAL, user.device.attach, user.devid)
        t.equal(user.physical(0x10000, 1), buffer.physical(), "the address after refused replacements")
        t.equal(memory.pinned_pages(), 2, "pages pinned after refused replacements")
        t.equal(user.device.attach(user.ioas), hwpt, "the page table at the end")
        iommufd.destroy(bad)
        iommufd.destroy(unmapped)


@case(needs=BARE, cites="drivers/iommu/iommufd/device.c iommufd_device_do_replace() (same hwpt)")
def replacing_by_the_same_changes_nothing(t: Test) -> None:
    """Attaching again to the same IOAS or page table returns the same id, pins nothing twice and needs no
    second detach."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous() as page:
        page.touch()
        user.map(page, 0x10000)
        hwpt = user.device.attach(user.ioas)
        for target in (user.ioas, hwpt, hwpt, user.ioas):
            t.equal(user.device.attach(target), hwpt, f"the page table by attaching to {target}")
        t.equal(memory.pinned_pages(), 1, "pages pinned after attaching five times")
        user.device.detach()
        t.equal(memory.pinned_pages(), 0, "pages pinned after one detach")
        t.errno(errno.ENOENT, user.device.attach, hwpt)


@case(
    needs=BARE,
    cites="drivers/vfio/device_cdev.c vfio_df_ioctl_attach_pt() (out_detach); iommufd/device.c "
    "iommufd_device_replace()",
)
def replacement_without_an_answer_changes_nothing(t: Test) -> None:
    """A replacing ATTACH whose result cannot be written is EFAULT and leaves the device attached as
    before."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous() as page:
        page.touch()
        user.map(page, PAGE)
        _attach_unanswered(t, user.device, vfio.AttachPt(pt_id=user.iommufd.ioas_alloc()))
        t.equal(memory.pinned_pages(), 1, "pages pinned by the IOAS that was attached")
        t.equal(user.physical(PAGE, PAGE), page.physical(), "the address in it")


@case(
    needs=BARE,
    cites="drivers/vfio/device_cdev.c vfio_df_ioctl_attach_pt() (out_detach: detach_ioas())",
)
def pasid_attach_without_an_answer_attaches_nothing(t: Test) -> None:
    """An ATTACH with the PASID flag whose result cannot be written leaves nothing attached."""
    with _bound_cdev(t.device("edu", iommu=False)) as (device, iommufd, ioas), memory.anonymous() as page:
        page.touch()
        iommufd.map(ioas, page.address, PAGE, PAGE)
        argument = vfio.AttachPt(flags=vfio.PASID_FLAG, pasid=0, pt_id=ioas)
        with brink.frozen(argument) as address:
            t.errno(
                (errno.EFAULT, errno.EINVAL), libc.ioctl, device.fd, vfio.DEVICE_ATTACH_IOMMUFD_PT, address
            )
        t.equal(memory.pinned_pages(), 0, "pages pinned after the failed ATTACH")


def _attach_unanswered(t: Test, device: vfio.Device, argument: vfio.AttachPt) -> None:
    with brink.frozen(argument) as address:
        t.errno(errno.EFAULT, libc.ioctl, device.fd, vfio.DEVICE_ATTACH_IOMMUFD_PT, address)


@contextlib.contextmanager
def _bound_cdev(bdf: str) -> Iterator[tuple[vfio.Device, Iommufd, int]]:
    with pci.bound(bdf), Iommufd() as iommufd, vfio.open_cdev(bdf) as device:
        device.bind_iommufd(iommufd.fd)
        yield device, iommufd, iommufd.ioas_alloc()
