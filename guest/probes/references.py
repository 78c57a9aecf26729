# SPDX-License-Identifier: GPL-2.0-only
"""What a refused call lets go of: objects, files, eventfds, pages and the device itself.

A reference that is lost on an error path shows when what it refers to should go: an object that cannot be
destroyed, a file that stays open in the kernel, an unbind that never ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import struct
from collections.abc import Callable

from guest import brink, edu, igb, libc, memory, pci, vfio
from guest import iommufd as api
from guest.brink import NOWHERE
from guest.case import Test, case
from guest.iommufd import LAST_IOVA, NO_SUCH_ID, Iommufd
from guest.leftovers import TIMES, eventfds_come_back, files_come_back
from guest.memory import PAGE
from guest.opened import CdevUser, open_files, opened, reopened, through_cdev, unbound, usable

BARE = ("noiommu-cdev", "edu", "!viommu")
EDU = ("noiommu", "edu", "!viommu")
GROUP = ("group", "edu")

IOVA = 0x10000


Refusal = tuple[int, Callable[[], object]]
"""An errno, and a call that must fail with it."""


def _of_ioas(user: CdevUser, ioas: int, page: memory.Buffer) -> list[Refusal]:
    """Return calls that are refused after they have found the IOAS *ioas*, where IOVA is mapped."""
    iommufd, va, unknown = user.iommufd, page.address, NO_SUCH_ID
    fd = memory.memfd()
    return [
        (errno.EMSGSIZE, lambda: iommufd.iova_ranges(ioas, room=0)),
        (
            errno.EFAULT,
            lambda: iommufd.call(
                api.IOAS_IOVA_RANGES, api.IovaRanges(ioas_id=ioas, num_iovas=1, allowed_iovas=NOWHERE)
            ),
        ),
        (errno.EINVAL, lambda: iommufd.allow_iovas(ioas, (2, 1))),
        (
            errno.EFAULT,
            lambda: iommufd.call(
                api.IOAS_ALLOW_IOVAS, api.AllowIovas(ioas_id=ioas, num_iovas=1, allowed_iovas=NOWHERE)
            ),
        ),
        (errno.EEXIST, lambda: iommufd.map(ioas, va, PAGE, IOVA)),
        (errno.EINVAL, lambda: iommufd.map(ioas, va, 0, IOVA)),
        (errno.EOVERFLOW, lambda: iommufd.map(ioas, va, 2 * PAGE, LAST_IOVA - PAGE + 1)),
        (errno.EEXIST, lambda: iommufd.map_file(ioas, fd, PAGE, IOVA)),
        (errno.EBADF, lambda: iommufd.map_file(ioas, -1, PAGE, 2 * IOVA)),
        (errno.EEXIST, lambda: iommufd.copy(ioas, ioas, PAGE, IOVA, IOVA)),
        (errno.ENOENT, lambda: iommufd.copy(ioas, ioas, 2 * PAGE, IOVA, 2 * IOVA)),
        (errno.EINVAL, lambda: iommufd.copy(ioas, ioas, 0, IOVA, 2 * IOVA)),
        (errno.ENOENT, lambda: iommufd.copy(unknown, ioas, PAGE, IOVA)),
        (errno.ENOENT, lambda: iommufd.copy(ioas, unknown, PAGE, IOVA)),
        (errno.ENOENT, lambda: iommufd.unmap(ioas, 4 * IOVA, PAGE)),
        (errno.EINVAL, lambda: iommufd.unmap(ioas, IOVA, 0)),
        (errno.EOVERFLOW, lambda: iommufd.unmap(ioas, LAST_IOVA, 1)),
        (errno.EINVAL, lambda: iommufd.option_set(api.OPTION_HUGE_PAGES, 7, ioas)),
        (errno.EOPNOTSUPP, lambda: iommufd.get_pa(ioas, IOVA, 1)),
        (errno.ENOENT, lambda: iommufd.get_pa(ioas, 4 * IOVA, 1)),
        (errno.EOPNOTSUPP, lambda: iommufd.hwpt_alloc(user.devid, ioas, flags=api.HWPT_NEST_PARENT)),
        (errno.EOPNOTSUPP, lambda: iommufd.hwpt_alloc(user.devid, ioas, flags=api.HWPT_PASID)),
        (
            errno.ENOENT,
            lambda: iommufd.hwpt_alloc(user.devid, ioas, flags=api.HWPT_FAULT_ID_VALID, fault_id=unknown),
        ),
        (errno.ENOENT, lambda: iommufd.hwpt_alloc(unknown, ioas)),
        (errno.EINVAL, lambda: user.device.attach(ioas, pasid=1)),
    ]


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/ioas.c, hw_pagetable.c, device.c (iommufd_put_object() on each error path)",
)
def refused_calls_hold_no_ioas(t: Test) -> None:
    """After any refused call that named an IOAS, that IOAS can be destroyed at once."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous() as page:
        page.touch()
        for index in range(len(_of_ioas(user, NO_SUCH_ID, page))):
            ioas = user.iommufd.ioas_alloc()
            user.iommufd.map(ioas, page.address, PAGE, IOVA)
            code, call = _of_ioas(user, ioas, page)[index]
            t.log(f"refusal {index}")
            for _ in range(2):
                t.errno(code, call)
            user.iommufd.destroy(ioas)
        with brink.frozen(
            api.Option(option_id=api.OPTION_HUGE_PAGES, op=api.OPTION_GET, object_id=user.ioas)
        ) as where:
            t.errno(errno.EFAULT, libc.ioctl, user.iommufd.fd, api.OPTION, where)
        user.device.detach()
        user.iommufd.destroy(user.ioas)


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/device.c iommufd_device_change_pt(), hw_pagetable.c iommufd_hwpt_alloc(), "
    "viommu.c (iommufd_put_object() on each error path)",
    timeout=90,
)
def refused_calls_hold_no_page_table(t: Test) -> None:
    """After any refused call that named a device, a page table or a fault queue, the page table and the queue
    can be destroyed at once, and the device closes at once and can be opened again."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf), Iommufd() as iommufd, memory.anonymous() as page:
        page.touch()
        with vfio.open_cdev(bdf) as device:
            devid, ioas = device.bind_iommufd(iommufd.fd), iommufd.ioas_alloc()
            empty = iommufd.ioas_alloc()
            iommufd.map(empty, 0x1000, PAGE, IOVA)  # nothing is there
            uneven = iommufd.ioas_alloc()
            iommufd.map(uneven, page.address, 16, IOVA)
            hwpt = iommufd.hwpt_alloc(devid, ioas)
            queue, fd = iommufd.fault_queue_alloc()
            faults = api.HWPT_FAULT_ID_VALID
            info, alloc = api.HwInfo(dev_id=devid), api.HwptAlloc(dev_id=devid, pt_id=ioas)
            refusals: list[Refusal] = [
                (errno.EINVAL, lambda: device.attach(devid)),
                (errno.EINVAL, lambda: device.attach(queue)),
                (errno.EINVAL, lambda: device.attach(hwpt, pasid=1)),
                (errno.EFAULT, lambda: device.attach(empty)),
                (errno.EADDRINUSE, lambda: device.attach(uneven)),
                (errno.EOPNOTSUPP, lambda: iommufd.call(api.GET_HW_INFO, info)),
                (errno.EOPNOTSUPP, lambda: iommufd.set_dirty_tracking(hwpt)),
                (errno.ENOENT, lambda: iommufd.set_dirty_tracking(queue)),
                (errno.EOPNOTSUPP, lambda: iommufd.viommu_alloc(devid, hwpt, 1)),
                (errno.EOPNOTSUPP, lambda: iommufd.hwpt_alloc(devid, hwpt)),
                (errno.EINVAL, lambda: iommufd.hwpt_alloc(devid, queue)),
                (errno.EINVAL, lambda: iommufd.hwpt_alloc(devid, NO_SUCH_ID)),
                (errno.EOPNOTSUPP, lambda: iommufd.hwpt_alloc(devid, ioas, flags=faults | 1, fault_id=queue)),
                (errno.ENOENT, lambda: iommufd.hwpt_alloc(devid, ioas, flags=faults, fault_id=hwpt)),
                (errno.EFAULT, lambda: iommufd.hwpt_alloc(devid, empty)),
                (errno.EADDRINUSE, lambda: iommufd.hwpt_alloc(devid, uneven, flags=faults, fault_id=queue)),
                (errno.EINVAL, lambda: iommufd.call(api.HWPT_INVALIDATE, api.HwptInvalidate(hwpt_id=hwpt))),
                (errno.EOPNOTSUPP, lambda: iommufd.call(api.HWPT_GET_DIRTY_BITMAP, _ask(hwpt))),
                (errno.EINVAL, lambda: iommufd.call(api.HWPT_GET_DIRTY_BITMAP, _ask(hwpt, length=0))),
                (
                    errno.EOVERFLOW,
                    lambda: iommufd.call(api.HWPT_GET_DIRTY_BITMAP, _ask(hwpt, iova=LAST_IOVA, length=2)),
                ),
                (errno.EINVAL, lambda: iommufd.call(api.HWPT_GET_DIRTY_BITMAP, _ask(hwpt, page_size=0))),
            ]
            for index, (code, call) in enumerate(refusals):
                t.log(f"refusal {index}")
                t.errno(code, call)
            with brink.frozen(alloc) as where:
                t.errno(errno.EFAULT, libc.ioctl, iommufd.fd, api.HWPT_ALLOC, where)
            with_queue = api.HwptAlloc(dev_id=devid, pt_id=ioas, flags=faults, fault_id=queue)
            with brink.frozen(with_queue) as where:
                t.errno(errno.EFAULT, libc.ioctl, iommufd.fd, api.HWPT_ALLOC, where)
            os.close(fd)
            for name, one in (
                ("queue", queue),
                ("hwpt", hwpt),
                ("empty", empty),
                ("uneven", uneven),
                ("IOAS", ioas),
            ):
                t.log(f"destroying {name}")
                iommufd.destroy(one)
        t.check_no_complaint()
        t.equal(memory.pinned_pages(), 0, "pages pinned")
        iommufd.option_set(api.OPTION_RLIMIT_MODE, 0)  # EBUSY while any object exists
        with reopened(t, bdf) as device:
            t.equal(device.read_config(vfio.PCI_VENDOR_ID, 2), edu.VENDOR_ID, "the vendor afterwards")


def _ask(hwpt: int, *, iova: int = 0, length: int = PAGE, page_size: int = PAGE) -> api.HwptGetDirtyBitmap:
    return api.HwptGetDirtyBitmap(hwpt_id=hwpt, iova=iova, length=length, page_size=page_size)


@case(
    needs=("iommufd",), cites="drivers/iommu/iommufd/pages.c iopt_release_pages(), ioas.c iommufd_ioas_copy()"
)
def refused_maps_let_go_of_their_file(t: Test) -> None:
    """A memfd is released when its descriptor is closed after any refused MAP_FILE, and, if it was mapped and
    a COPY of it refused, when it is unmapped."""
    with Iommufd() as iommufd, files_come_back(t, "refused maps"):
        ioas, other = iommufd.ioas_alloc(), iommufd.ioas_alloc()
        for _ in range(TIMES):
            fd = memory.memfd(2 * PAGE)
            iommufd.map_file(ioas, fd, PAGE, IOVA)
            t.errno(errno.EEXIST, iommufd.map_file, ioas, fd, PAGE, IOVA)
            t.errno(errno.EOVERFLOW, iommufd.map_file, ioas, fd, 2 * PAGE, LAST_IOVA - PAGE + 1)
            t.errno(errno.EOVERFLOW, iommufd.map_file, ioas, fd, 2 * PAGE, IOVA, start=LAST_IOVA - PAGE + 1)
            t.errno(errno.ENOENT, iommufd.map_file, NO_SUCH_ID, fd, PAGE, IOVA)
            os.close(fd)
            iommufd.copy(other, ioas, PAGE, IOVA, IOVA)
            t.errno(errno.EEXIST, iommufd.copy, other, ioas, PAGE, IOVA, IOVA)
            t.errno(errno.ENOENT, iommufd.copy, other, ioas, 2 * PAGE, IOVA, 2 * IOVA)
            t.errno(errno.ENOENT, iommufd.copy, NO_SUCH_ID, ioas, PAGE, IOVA)
            t.errno(errno.EOVERFLOW, iommufd.copy, other, ioas, PAGE, IOVA, LAST_IOVA - PAGE + 2)
            iommufd.unmap(ioas, IOVA, PAGE)
            iommufd.unmap(other, IOVA, PAGE)
            fd = memory.memfd(PAGE)
            readable = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
            iommufd.map_file(ioas, readable, PAGE, IOVA, flags=api.MAP_READABLE)
            t.errno(errno.EPERM, iommufd.copy, other, ioas, PAGE, IOVA, IOVA)
            os.close(fd)
            os.close(readable)
            iommufd.destroy(ioas)
            ioas = iommufd.ioas_alloc()


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/pages.c iopt_area_fill_domains(), io_pagetable.c iopt_fill_domain()",
)
def refused_copies_pin_nothing(t: Test) -> None:
    """A COPY or an ATTACH that fails after some pages were pinned leaves exactly the pins of before, and the
    mappings work afterwards."""
    with through_cdev(t.device("edu", iommu=False)) as user, memory.anonymous(8 * PAGE) as buffer:
        buffer.touch()
        iommufd, source = user.iommufd, user.iommufd.ioas_alloc()
        hole = memory.Buffer(buffer.address + 6 * PAGE, PAGE)
        iommufd.map(source, buffer.address, 4 * PAGE, IOVA)
        iommufd.map(source, buffer.address + 4 * PAGE, 4 * PAGE, IOVA + 4 * PAGE)
        hole.protect(memory.PROT_NONE)
        for _ in range(3):
            t.errno(errno.EFAULT, iommufd.copy, user.ioas, source, 8 * PAGE, IOVA, IOVA)
            t.equal(memory.pinned_pages(), 0, "pages pinned after a refused COPY")
            t.errno(errno.ENOENT, iommufd.get_pa, user.ioas, IOVA, 1)
            t.errno(errno.EFAULT, user.device.attach, source)
            t.equal(memory.pinned_pages(), 0, "pages pinned after a refused ATTACH")
        hole.protect(memory.READ_WRITE)
        iommufd.copy(user.ioas, source, 8 * PAGE, IOVA, IOVA)
        t.equal(memory.pinned_pages(), 8, "pages pinned by the copy")
        t.equal(user.physical(IOVA + 7 * PAGE, 1), buffer.physical(7 * PAGE), "the last page's address")
        iommufd.unmap(user.ioas, IOVA, 8 * PAGE)
        t.equal(memory.pinned_pages(), 0, "pages pinned without the copy")


@case(needs=BARE, cites="drivers/vfio/device_cdev.c vfio_df_ioctl_bind_iommufd() (iommufd_ctx_put())")
def every_refused_bind_lets_go_of_its_iommufd(t: Test) -> None:
    """An iommufd to which BIND was refused, because the answer could not be written or the file is bound
    already, is released with its own file, while the device file stays open."""
    with unbound(t.device("edu", iommu=False)) as (device, first), files_come_back(t, "iommufds"):
        for bound in (False, True):
            if bound:
                device.bind_iommufd(first.fd)
            for _ in range(TIMES):
                with Iommufd() as iommufd:
                    if bound:
                        t.errno(errno.EINVAL, device.bind_iommufd, iommufd.fd)
                        continue
                    with brink.frozen(vfio.BindIommufd(iommufd=iommufd.fd)) as where:
                        t.errno(errno.EFAULT, libc.ioctl, device.fd, vfio.DEVICE_BIND_IOMMUFD, where)


@case(
    needs=("noiommu-group", "iommufd", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_group_ioctl_set_container() (iommufd_ctx_put()); container.c",
)
def refused_containers_are_let_go(t: Test) -> None:
    """An iommufd or a container that a group was refused, because it translates, or because the group has
    another container, is released with its own file."""
    bdf = t.device("edu", iommu=False)
    with (
        pci.bound(bdf),
        vfio.open_group(bdf) as group,
        vfio.open_container() as own,
        files_come_back(t, "containers"),
    ):
        for joined in (False, True):
            if joined:
                group.set_container(own)
            for _ in range(TIMES):
                with Iommufd() as iommufd, vfio.open_container() as other:
                    iommufd.vfio_ioas(api.VFIO_IOAS_SET, iommufd.ioas_alloc())
                    t.errno(errno.EINVAL, group.set_container, iommufd.fd)
                    if joined:
                        t.errno(errno.EINVAL, group.set_container, other)
            t.equal(
                bool(group.status() & vfio.GROUP_CONTAINER_SET), joined, "whether the group has a container"
            )


@case(
    needs=GROUP,
    cites="drivers/vfio/group.c vfio_group_ioctl_get_device_fd() (vfio_device_put_registration()), "
    "vfio_device_open_file()",
)
def refused_device_files_do_not_hold_the_device(t: Test) -> None:
    """A GET_DEVICE_FD that fails because a descriptor, a container or the right name is missing keeps no
    device open, and the device can be unbound."""
    bdf = usable(t, "edu", "group")
    kind = vfio.TYPE1V2_IOMMU if pci.has_iommu(bdf) else vfio.NOIOMMU_IOMMU
    with pci.bound(bdf), vfio.open_container() as container, vfio.open_group(bdf) as group:
        for _ in range(TIMES):
            t.errno(errno.EINVAL, group.device, bdf)
        group.set_container(container)
        container.set_iommu(kind)
        before = open_files()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        for _ in range(TIMES):
            t.errno(errno.ENODEV, group.device, "0000:ff:1f.7")
            free = os.dup(0)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
            try:
                t.errno(errno.EMFILE, group.device, bdf)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        t.check(open_files() < before + TIMES / 2, "refused device files stay open")
        with group.device(bdf) as device:
            t.equal(device.read_config(vfio.PCI_VENDOR_ID, 2), edu.VENDOR_ID, "the vendor")
        group.unset_container()
        group.close()
        pci.unbind(bdf)
        t.equal(pci.driver(bdf), None, "the driver after the unbind")


@case(
    needs=BARE,
    cites="drivers/vfio/device_cdev.c vfio_device_fops_cdev_open(), vfio_df_ioctl_bind_iommufd()",
)
def refused_users_do_not_hold_the_device(t: Test) -> None:
    """After refused opens, BINDs and ATTACHes of every kind and the close of their files, the device can be
    unbound and bound, and then used."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf):
        for _ in range(2):
            with Iommufd() as iommufd:
                for code, argument in (
                    (errno.EBADF, vfio.BindIommufd(iommufd=999)),
                    (errno.EINVAL, vfio.BindIommufd(iommufd=-1)),
                    (errno.EINVAL, vfio.BindIommufd(iommufd=iommufd.fd, flags=2)),
                    (errno.EBADFD, vfio.BindIommufd(iommufd=memory.memfd())),
                    (errno.EFAULT, vfio.BindIommufd(iommufd=iommufd.fd, flags=1, token_uuid_ptr=NOWHERE)),
                ):
                    with vfio.open_cdev(bdf) as device:
                        t.errno(code, device.call, vfio.DEVICE_BIND_IOMMUFD, argument)
                with vfio.open_cdev(bdf) as device:
                    with brink.frozen(vfio.BindIommufd(iommufd=iommufd.fd)) as where:
                        t.errno(errno.EFAULT, libc.ioctl, device.fd, vfio.DEVICE_BIND_IOMMUFD, where)
                    device.bind_iommufd(iommufd.fd)
                    t.errno(errno.ENOENT, device.attach, NO_SUCH_ID)
            pci.unbind(bdf)
            pci.bind(bdf)
        with reopened(t, bdf) as device:
            t.equal(device.read_config(vfio.PCI_VENDOR_ID, 2), edu.VENDOR_ID, "the vendor")


@case(
    needs=("iommufd",),
    cites="drivers/iommu/iommufd/eventq.c iommufd_fault_alloc() (out_put_fdno), main.c "
    "iommufd_object_abort_and_destroy() (file_offset)",
)
def unreported_fault_queue_is_not_made(t: Test) -> None:
    """A FAULT_QUEUE_ALLOC that cannot write its answer is EFAULT and leaves no object, no descriptor and no
    open file, and one without a free descriptor is EMFILE and leaves none either."""
    with Iommufd() as iommufd, files_come_back(t, "fault queues"):
        descriptors = os.listdir("/proc/self/fd")
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        for _ in range(TIMES):
            t.errno(errno.EOPNOTSUPP, iommufd.call, api.FAULT_QUEUE_ALLOC, api.FaultAlloc(flags=1))
            with brink.frozen(api.FaultAlloc()) as where:
                t.errno(errno.EFAULT, libc.ioctl, iommufd.fd, api.FAULT_QUEUE_ALLOC, where)
            free = os.dup(0)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
            try:
                t.errno(errno.EMFILE, iommufd.fault_queue_alloc)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        t.equal(os.listdir("/proc/self/fd"), descriptors, "open descriptors")
        iommufd.option_set(api.OPTION_RLIMIT_MODE, 0)  # EBUSY while any object exists
        t.check_no_complaint()


@case(
    needs=("iommufd",),
    cites="drivers/iommu/iommufd/eventq.c iommufd_fault_fops_read(), iommufd_fault_fops_write(), "
    "iommufd_eventq_fops_release()",
)
def fault_queue_takes_whole_records(t: Test) -> None:
    """A fault queue without faults reads as empty, takes reads and writes of whole records only and no
    response to a fault that does not exist, and its file keeps its iommufd alive."""
    fault, response = 40, 8  # struct iommu_hwpt_pgfault, struct iommu_hwpt_page_response
    with Iommufd() as iommufd, files_come_back(t, "fault queues"):
        queue, fd = iommufd.fault_queue_alloc()
        t.equal(os.read(fd, fault), b"", "a read of one record")
        t.equal(os.read(fd, 4 * fault), b"", "a read of four records")
        for size in (1, fault - 1, fault + 1):
            t.errno(errno.ESPIPE, os.read, fd, size)
        for size in (1, response - 1, response + 1):
            t.errno(errno.ESPIPE, os.write, fd, bytes(size))
        t.errno(errno.ESPIPE, os.pread, fd, fault, fault)
        for cookie, code in ((0, 0), (1, 0), (1, 1), (0xFFFFFFFF, 0), (0, 7)):
            t.errno(errno.EINVAL, os.write, fd, struct.pack("<II", cookie, code))
        t.errno(errno.EBUSY, iommufd.destroy, queue)
        iommufd.close()
        t.equal(os.read(fd, fault), b"", "a read after the iommufd is closed")
        os.close(fd)


@case(
    needs=EDU,
    cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_intx_enable(), vfio_msi_set_block(), "
    "vfio_pci_set_ctx_trigger_single(); virqfd.c vfio_virqfd_enable() (err_busy); vfio_pci_rdwr.c",
)
def refused_interrupts_let_go_of_their_eventfds(t: Test) -> None:
    """The eventfd of a refused SET_IRQS, resample, ioeventfd or low power request is released when its own
    descriptor is closed, with the device still open."""
    trigger = vfio.SET_DATA_EVENTFD | vfio.SET_ACTION_TRIGGER
    unmask = vfio.SET_DATA_EVENTFD | vfio.SET_ACTION_UNMASK
    with opened(t, t.device("edu")) as device, contextlib.ExitStack() as stack:
        with eventfds_come_back(t, "an INTx while MSI is on") as make:
            device.set_eventfds(vfio.MSI, make())
            t.errno(errno.EINVAL, device.set_eventfds, vfio.INTX, make())
            t.errno(
                errno.EINVAL, device.set_irqs, vfio.MSI, trigger, 0, 2, struct.pack("<2i", make(), make())
            )
            t.errno(errno.EBADF, device.set_eventfds, vfio.MSI, 999)
            device.disable_irqs(vfio.MSI)
        with eventfds_come_back(t, "interrupts with a start of 1") as make:
            for index in (vfio.INTX, vfio.MSI, vfio.ERR, vfio.REQ):
                t.errno(errno.EINVAL, device.set_irqs, index, trigger, 1, 1, struct.pack("<i", make()))
        with eventfds_come_back(t, "a second resample eventfd") as make:
            device.set_eventfds(vfio.INTX, make())
            device.set_irqs(vfio.INTX, unmask, data=struct.pack("<i", make()))
            t.errno(errno.EBUSY, device.set_irqs, vfio.INTX, unmask, data=struct.pack("<i", make()))
            t.errno(errno.EINVAL, device.set_eventfds, vfio.MSI, make())
            device.disable_irqs(vfio.INTX)
        with eventfds_come_back(t, "ioeventfds") as make:
            where = device.region(vfio.BAR0).offset + edu.REG_LIVENESS
            device.call(vfio.DEVICE_IOEVENTFD, vfio.Ioeventfd(flags=4, offset=where, data=1, fd=make()))
            again = vfio.Ioeventfd(flags=4, offset=where, data=1, fd=make())
            t.errno(errno.EEXIST, device.call, vfio.DEVICE_IOEVENTFD, again)
            for flags, offset in ((4, where + edu.BAR_SIZE), (3, where), (0, where)):
                wrong = vfio.Ioeventfd(flags=flags, offset=offset, data=2, fd=make())
                t.errno(errno.EINVAL, device.call, vfio.DEVICE_IOEVENTFD, wrong)
            device.call(vfio.DEVICE_IOEVENTFD, vfio.Ioeventfd(flags=4, offset=where, data=1, fd=-1))
        entry = vfio.FEATURE_SET | vfio.LOW_POWER_ENTRY
        wakeup = vfio.FEATURE_SET | vfio.LOW_POWER_ENTRY_WAKEUP
        stack.callback(device.feature, vfio.FEATURE_SET | vfio.LOW_POWER_EXIT)
        with eventfds_come_back(t, "low power requests in low power") as make:
            device.feature(entry)
            for _ in range(3):
                t.errno(errno.EINVAL, device.feature, wakeup, struct.pack("<iI", make(), 0))


@case(
    needs=("noiommu", "igb", "!viommu"),
    cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_msi_set_block() (the vectors before the one that failed)",
)
def refused_vectors_let_go_of_their_eventfds(t: Test) -> None:
    """If one of several MSI-X vectors is refused, at any place, the eventfds of all are released when their
    descriptors are closed, and the same vectors can be set up afterwards."""
    trigger = vfio.SET_DATA_EVENTFD | vfio.SET_ACTION_TRIGGER
    with opened(t, t.device("igb")) as device:
        for bad in (0, 1, igb.VECTORS - 1):
            with eventfds_come_back(t, f"vectors of which vector {bad} is refused") as make:
                fds = [make() for _ in range(igb.VECTORS)]
                wrong = [*fds[:bad], 999, *fds[bad + 1 :]]
                t.errno(errno.EBADF, device.set_eventfds, vfio.MSIX, *wrong)
                device.set_eventfds(vfio.MSIX, *fds)
                t.errno(errno.EBADF, device.set_eventfds, vfio.MSIX, *wrong)
                for _ in range(2):
                    device.set_eventfds(vfio.MSIX, *fds)
                    for vector, fd in enumerate(fds):
                        device.trigger(vfio.MSIX, vector)
                        t.equal(libc.eventfd_count(fd), 1, f"events of vector {vector}")
                data = struct.pack(f"<{igb.VECTORS + 1}i", *fds, make())
                t.errno(errno.EINVAL, device.set_irqs, vfio.MSIX, trigger, 0, igb.VECTORS + 1, data)
                device.disable_irqs(vfio.MSIX)


@case(
    needs=("cdev", "iommufd", "edu"),
    cites="drivers/vfio/vfio_main.c vfio_df_open() (try_module_get(), put_device()), pci/vfio_pci_core.c "
    "vfio_pci_core_enable()",
)
def failed_use_leaves_a_device_to_the_next(t: Test) -> None:
    """After a first user was refused everything and closed, a second user finds bus mastering off, every
    region, interrupt and mapping working, and an address space to attach to."""
    bdf = usable(t, "edu", "cdev")
    with pci.bound(bdf):
        for _ in range(3):
            with vfio.open_cdev(bdf) as device, Iommufd() as iommufd:
                device.bind_iommufd(iommufd.fd)
                t.errno(errno.ENOENT, device.attach, NO_SUCH_ID)
                t.errno(errno.EINVAL, device.region_info, 99)
                t.errno(errno.EINVAL, device.irq_info, 99)
                t.errno(errno.EINVAL, device.disable_irqs, 99)
                t.errno(errno.EINVAL, os.pread, device.fd, 4, 99 << vfio.OFFSET_SHIFT)
                t.errno(errno.EINVAL, libc.mmap, PAGE, 1, 1, device.fd, 99 << vfio.OFFSET_SHIFT)
                device.set_bus_master()
            with vfio.open_cdev(bdf) as device, Iommufd() as iommufd, memory.anonymous() as page:
                page.touch()
                device.bind_iommufd(iommufd.fd)
                ioas = iommufd.ioas_alloc()
                device.attach(ioas)
                iommufd.map(ioas, page.address, PAGE, IOVA)
                t.check(not device.read_config(vfio.PCI_COMMAND, 2) & 4, "bus mastering is on")
                fd = libc.eventfd()
                device.set_eventfds(vfio.MSI, fd)
                device.trigger(vfio.MSI)
                t.equal(libc.eventfd_count(fd), 1, "events of the MSI")
                with device.bar(length=PAGE) as bar:
                    t.equal(bar.read32(0), edu.IDENTIFIES, "the identification")
                os.close(fd)
