# SPDX-License-Identifier: GPL-2.0-only
"""Binding, attaching and mapping with allocation failures: each allocation on the way fails in turn.

The kernel's fault injection does it for one task (Documentation/fault-injection/fault-injection.rst): N in
/proc/self/fail-nth fails the Nth allocation from then on; the file reads 0 once that has failed.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Optional

from guest import memory, pci, vfio
from guest.case import Test, case
from guest.iommufd import Iommufd
from guest.opened import unbound

DEBUGFS = Path("/sys/kernel/debug")

MOST = 400
"""More than the number of allocations that can fail during one call: 113 in a bind to vfio-pci on 7.3."""

IN_IOMMUFD = 4
"""How many allocations of a bind to an iommufd are iommufd's own on 7.3.  Those that follow enable the
device: ACPI's interpreter corrupts its objects when one of its allocations fails, and the kernel crashes."""

ERRNOS = (0, errno.ENOMEM, errno.EFAULT)
"""What a call may come to.  Copying from or to user space (EFAULT) fails as allocations do."""

IOMMUFD_ERRNOS = (*ERRNOS, errno.ENOENT)
"""With CONFIG_IOMMUFD_TEST finding an object of iommufd fails as well (ENOENT, iommufd_should_fail())."""

BARE = ("noiommu-cdev", "fault-injection", "edu", "!viommu")


@contextlib.contextmanager
def failing() -> Iterator[int]:
    """Make allocations that may sleep fail too, without a log line; yield a descriptor of this task's
    fail-nth."""
    for kind in ("failslab", "fail_page_alloc"):
        pci.write(DEBUGFS / kind / "ignore-gfp-wait", "N")
        pci.write(DEBUGFS / kind / "verbose", "0")
    pci.write(DEBUGFS / "fail_page_alloc" / "min-order", "0")  # single pages too
    fd = os.open("/proc/thread-self/fail-nth", os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.pwrite(fd, b"0", 0)
        os.close(fd)


def _has_failed(fd: int) -> bool:
    """Return whether the requested failure has happened; cancel it otherwise."""
    try:
        return os.pread(fd, 16, 0).strip(b"\0\n ") == b"0"
    except OSError:
        return False  # the read itself was the next thing to fail
    finally:
        os.pwrite(fd, b"0", 0)


def _each_failing(
    t: Test,
    attempt: Callable[[], object],
    *,
    first: Optional[int] = None,
    errnos: tuple[int, ...] = IOMMUFD_ERRNOS,
    least: int = 1,
) -> Iterator[tuple[int, int]]:
    """Call *attempt* with its first allocation failing, then with its second, and so on, until it makes no
    more, or only the *first* ones; yield which one failed and the errno of the call, 0 for success.

    The caller undoes a success before the next call.  At *least* so many calls must fail.
    """
    refused = 0
    with failing() as fd:
        for nth in range(1, (first or MOST) + 1):
            code = 0
            os.pwrite(fd, str(nth).encode(), 0)
            try:
                attempt()
            except OSError as error:
                code = error.errno or -1
            finally:
                failed = _has_failed(fd)
            t.check(code in errnos, f"errno {code} when allocation {nth} fails")
            t.check_no_complaint()
            refused += bool(code)
            yield nth, code
            if not failed:
                t.equal(code, 0, "errno when nothing fails")
                break
        else:
            t.check(first is not None, f"one call makes more than {MOST} allocations")
    t.check(refused >= least, f"only {refused} of the failing allocations were noticed")


def _next_id(iommufd: Iommufd) -> int:
    """Return the ID that the next object of *iommufd* gets: the lowest that none has, even none that is left
    behind half-made."""
    found = iommufd.ioas_alloc()
    iommufd.destroy(found)
    return found


@case(
    needs=("noiommu", "fault-injection", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_create_group(), vfio_group_release(); vfio_main.c __vfio_register_dev()",
    timeout=60,
    destructive=True,
)
def bind_that_fails_leaves_nothing(t: Test) -> None:
    """If any allocation fails during a bind, the bind succeeds completely or fails without leaving anything
    behind, and the kernel reports no bug."""
    bdf = t.device("edu", iommu=False)
    pci.set_parameter(True)
    pci.set_override(bdf, pci.VFIO_PCI)
    bind = os.open(pci.BUS / "drivers" / pci.VFIO_PCI / "bind", os.O_WRONLY | os.O_CLOEXEC)
    try:
        attempt = functools.partial(os.pwrite, bind, bdf.encode(), 0)
        for nth, code in _each_failing(t, attempt, errnos=ERRNOS, least=6):
            if code:
                t.equal(pci.driver(bdf), None, f"the driver after allocation {nth} failed")
                t.equal(pci.iommu_group(bdf), None, f"the group after allocation {nth} failed")
            else:
                pci.unbind(bdf)
    finally:
        os.close(bind)
    with pci.bound(bdf):
        t.check_no_complaint()


@case(
    needs=BARE,
    cites="drivers/vfio/device_cdev.c vfio_device_fops_cdev_open(); vfio_main.c vfio_allocate_device_file()",
    timeout=60,
)
def open_that_fails_leaves_nothing(t: Test) -> None:
    """If any allocation fails while the device node is opened, there is no file, or one that can be
    bound; what failed does not keep the driver from being unbound."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf), Iommufd() as iommufd:
        node = pci.cdev_node(bdf)
        assert node is not None
        files: list[vfio.Device] = []

        def attempt() -> None:
            files.append(vfio.Device(os.open(node, os.O_RDWR | os.O_CLOEXEC)))

        for nth, code in _each_failing(t, attempt, errnos=ERRNOS, least=2):
            t.equal(len(files), int(not code), f"files after allocation {nth} failed")
            for device in files:
                device.bind_iommufd(iommufd.fd)
                device.close()
            files.clear()


@case(
    needs=BARE,
    cites="drivers/vfio/device_cdev.c vfio_df_ioctl_bind_iommufd(); drivers/iommu/iommufd/device.c "
    "iommufd_device_bind(), iommufd_bind_noiommu()",
    timeout=60,
)
def bind_to_an_iommufd_that_fails_can_be_repeated(t: Test) -> None:
    """If an allocation of iommufd fails during VFIO_DEVICE_BIND_IOMMUFD, no object is left, and the same
    device file can be bound to the same iommufd afterwards."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf), Iommufd() as iommufd, contextlib.ExitStack() as opened:
        free = _next_id(iommufd)
        files = [opened.enter_context(vfio.open_cdev(bdf))]
        for nth, code in _each_failing(t, lambda: files[-1].bind_iommufd(iommufd.fd), first=IN_IOMMUFD):
            if code:
                t.equal(_next_id(iommufd), free, f"ID of the next object after allocation {nth} failed")
            else:
                files[-1].close()
                files.append(opened.enter_context(vfio.open_cdev(bdf)))


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/device.c iommufd_device_auto_get_domain(); hwpt_noiommu.c "
    "noiommu_alloc_paging_flags()",
    timeout=60,
)
def attach_that_fails_leaves_nothing(t: Test) -> None:
    """If any allocation fails during VFIO_DEVICE_ATTACH_IOMMUFD_PT, no object is left and no page is pinned,
    GET_PA finds no page table (EOPNOTSUPP), and the device can be attached afterwards."""
    with (
        unbound(t.device("edu", iommu=False)) as (device, iommufd),
        memory.anonymous(4 * memory.PAGE) as pages,
    ):
        pages.touch()
        device.bind_iommufd(iommufd.fd)
        ioas = iommufd.ioas_alloc()
        iommufd.map(ioas, pages.address, pages.length, 0x10000)
        free = _next_id(iommufd)
        for nth, code in _each_failing(t, lambda: device.attach(ioas)):
            if code:
                t.equal(_next_id(iommufd), free, f"ID of the next object after allocation {nth} failed")
                t.errno(errno.EOPNOTSUPP, iommufd.get_pa, ioas, 0x10000, 1)
                t.equal(memory.pinned_pages(), 0, f"pages pinned after allocation {nth} failed")
            else:
                t.equal(iommufd.get_pa(ioas, 0x10000, 1)[0], pages.physical(), "the address once attached")
                device.detach()


@case(
    needs=BARE,
    cites="drivers/iommu/iommufd/io_pagetable.c iopt_map_pages(); pages.c iopt_area_fill_domains()",
    timeout=60,
)
def map_that_fails_leaves_nothing(t: Test) -> None:
    """If any allocation fails during IOMMU_IOAS_MAP into an attached IOAS (ENOMEM), nothing is mapped and no
    page is pinned."""
    with (
        unbound(t.device("edu", iommu=False)) as (device, iommufd),
        memory.anonymous(4 * memory.PAGE) as pages,
    ):
        pages.touch()
        device.bind_iommufd(iommufd.fd)
        ioas = iommufd.ioas_alloc()
        device.attach(ioas)
        for nth, code in _each_failing(t, lambda: iommufd.map(ioas, pages.address, pages.length, 0x10000)):
            if code in (errno.ENOMEM, errno.ENOENT):
                t.errno(errno.ENOENT, iommufd.get_pa, ioas, 0x10000, 1)
                t.equal(memory.pinned_pages(), 0, f"pages pinned after allocation {nth} failed")
            elif code == 0:
                iommufd.unmap(ioas, 0x10000, pages.length)
            else:
                # EFAULT: it is mapped if only the result could not be written.
                with contextlib.suppress(FileNotFoundError):
                    iommufd.unmap(ioas, 0x10000, pages.length)
