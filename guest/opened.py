# SPDX-License-Identifier: GPL-2.0-only
"""Open a device through its group or its device node ("door"), with mapped memory and interrupts.

Every helper is a context manager that leaves nothing open, so that the device can be unbound. The cases that
test opening itself make these calls themselves.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Optional

from guest import bounded, edu, igb, libc, memory, pci, vfio
from guest.case import Test
from guest.forked import Child
from guest.iommufd import Iommufd
from guest.memory import PAGE

SETTLE = 0.1
"""Seconds within which a pending interrupt arrives, also under TCG on a busy host.

A later one is not lost: the next count includes it.  It is short because this wait was a third of the suite.
"""

ARRIVAL = 10.0
"""Seconds after which an interrupt counts as lost."""


class CdevUser(NamedTuple):
    """A device bound to an iommufd and attached to one of its address spaces."""

    device: vfio.Device
    iommufd: Iommufd
    ioas: int
    devid: int

    def map(self, buffer: memory.Buffer, iova: int) -> None:
        """Map the whole of *buffer* at *iova*."""
        self.iommufd.map(self.ioas, buffer.address, buffer.length, iova)

    def physical(self, iova: int, length: int) -> int:
        """Return the physical address of *iova* by GET_PA; raise AssertionError unless *length* is
        contiguous."""
        address, contiguous = self.iommufd.get_pa(self.ioas, iova, length)
        assert contiguous == length, f"want {length:#x} contiguous bytes at {iova:#x}, got {contiguous:#x}"
        return address


@contextlib.contextmanager
def through_cdev(bdf: str) -> Iterator[CdevUser]:
    """Open *bdf* by its device node: bind, allocate an address space, attach."""
    with pci.bound(bdf), Iommufd() as iommufd, vfio.open_cdev(bdf) as device:
        devid = device.bind_iommufd(iommufd.fd)
        ioas = iommufd.ioas_alloc()
        device.attach(ioas)
        yield CdevUser(device=device, iommufd=iommufd, ioas=ioas, devid=devid)


@contextlib.contextmanager
def unbound(bdf: str) -> Iterator[tuple[vfio.Device, Iommufd]]:
    """Bind *bdf* to vfio-pci and open its device node, not yet bound to an iommufd, and a new iommufd."""
    with pci.bound(bdf), vfio.open_cdev(bdf) as device, Iommufd() as iommufd:
        yield device, iommufd


class GroupUser(NamedTuple):
    """A device from a group in a container."""

    device: vfio.Device
    group: vfio.Group
    container: vfio.Container


@contextlib.contextmanager
def through_group(bdf: str, kind: int = vfio.NOIOMMU_IOMMU) -> Iterator[GroupUser]:
    """Open *bdf* through its group and this kernel's container, with the IOMMU type *kind*."""
    with pci.bound(bdf), vfio.open_container() as container, vfio.open_group(bdf) as group:
        group.set_container(container)
        container.set_iommu(kind)
        with group.device(bdf) as device:
            yield GroupUser(device=device, group=group, container=container)


@contextlib.contextmanager
def opened(t: Test, bdf: str) -> Iterator[vfio.Device]:
    """Open a device without an IOMMU through its device node if the kernel offers one, else its group."""
    door = through_cdev if "noiommu-cdev" in t.features else through_group
    with door(bdf) as user:
        yield user.device


def uuid_of(token: bytes) -> str:
    """Return the 16 bytes of a VF token as text."""
    digits = token.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


@contextlib.contextmanager
def reopened_by_cdev(bdf: str, token: Optional[bytes] = None) -> Iterator[vfio.Device]:
    """Open *bdf*, which is bound to vfio-pci, through its device node, and leave it bound."""
    with Iommufd() as iommufd, vfio.open_cdev(bdf) as device:
        device.bind_iommufd(iommufd.fd, token=token)
        yield device


@contextlib.contextmanager
def reopened_by_group(bdf: str, token: Optional[bytes] = None) -> Iterator[vfio.Device]:
    """Open *bdf*, which is bound to vfio-pci, through its group, and leave it bound."""
    with vfio.open_container() as container, vfio.open_group(bdf) as group:
        group.set_container(container)
        container.set_iommu(vfio.NOIOMMU_IOMMU)
        with group.device(f"{bdf} vf_token={uuid_of(token)}" if token else bdf) as device:
            yield device


def reopened(
    t: Test, bdf: str, token: Optional[bytes] = None
) -> contextlib.AbstractContextManager[vfio.Device]:
    """Open *bdf*, which is bound to vfio-pci, through its device node if there is one, else its group."""
    return (reopened_by_cdev if "noiommu-cdev" in t.features else reopened_by_group)(bdf, token)


def open_files() -> int:
    """Return the number of open files in the whole machine."""
    return int(Path("/proc/sys/fs/file-nr").read_text(encoding="ascii").split()[0])


def has_door(t: Test, bdf: str, door: str) -> bool:
    """Return whether this kernel lets users open *bdf* through *door*, `group` or `cdev`.

    A kernel that has both may support no-IOMMU mode for only one of them.
    """
    return (door if pci.has_iommu(bdf) else f"noiommu-{door}") in t.features


def usable(t: Test, kind: str = "edu", *doors: str) -> str:
    """Return a device of *kind*, with or without an IOMMU; skip the case if this kernel cannot drive it, or
    not through each of *doors*."""
    bdf = t.device(kind)
    if "noiommu" not in t.features and not pci.has_iommu(bdf):
        t.skip("this kernel cannot bind the device")
    for door in doors:
        if not has_door(t, bdf, door):
            t.skip(f"without an IOMMU the device has no {door}")
    return bdf


def container_type(bdf: str) -> int:
    """Return the IOMMU type that a container with the group of *bdf* accepts."""
    return vfio.TYPE1V2_IOMMU if pci.has_iommu(bdf) else vfio.NOIOMMU_IOMMU


@contextlib.contextmanager
def _registers(device: vfio.Device) -> Iterator[edu.Edu]:
    with device.bar() as bar:
        one = edu.Edu(bar)
        one.ack_irq()  # a failed case may have left it asserted
        try:
            yield one
        finally:
            one.ack_irq()


@contextlib.contextmanager
def opened_edu(t: Test) -> Iterator[tuple[vfio.Device, edu.Edu]]:
    """Open an edu without an IOMMU; yield it and its registers."""
    with opened(t, t.device("edu")) as device, _registers(device) as one:
        yield device, one


@contextlib.contextmanager
def opened_any_edu(t: Test) -> Iterator[tuple[vfio.Device, edu.Edu]]:
    """Open an edu, with or without an IOMMU, through whichever door the kernel offers."""
    bdf = usable(t)
    by_cdev = has_door(t, bdf, "cdev")
    with (
        through_cdev(bdf) if by_cdev else through_group(bdf, container_type(bdf)) as user,
        _registers(user.device) as one,
    ):
        yield user.device, one


@contextlib.contextmanager
def opened_igb(t: Test) -> Iterator[tuple[vfio.Device, igb.Igb]]:
    """Open an igb without an IOMMU, reset it and enable bus mastering; yield it and its registers."""
    with opened(t, t.device("igb")) as device, device.bar() as bar:
        device.set_bus_master()
        card = igb.Igb(bar)
        card.reset()
        yield device, card


def sigbus(t: Test, access: Callable[[], object], what: str) -> None:
    """Fail unless *access* kills a child process with SIGBUS."""
    with Child(access) as child:
        status = child.wait()
    t.check(os.WIFSIGNALED(status), f"{what} did not kill its process: wait status {status:#x}")
    t.equal(os.WTERMSIG(status), int(signal.SIGBUS), f"the signal for {what}")


def round_trip(t: Test, device: edu.Edu, buffer: memory.Buffer, iova: int) -> None:
    """Make the device copy the first page of *buffer*, mapped at *iova*, to the second."""
    data = memory.pattern(t.random, 256)
    buffer.write(data)
    device.copy_from_ram(iova, 256)
    device.copy_to_ram(iova + PAGE, 256)
    t.equal(buffer.read(PAGE, 256), data, "the data copied by IOVA")


def dma_buffer(buffer: memory.Buffer, address: int) -> igb.DmaBuffer:
    """Return *buffer* as memory for the igb driver, at the bus address *address*."""
    view = memoryview((ctypes.c_uint8 * buffer.length).from_address(buffer.address)).cast("B")
    return igb.DmaBuffer(view, address)


class Event:
    """An eventfd that an interrupt signals."""

    def __init__(self) -> None:
        self.fd = libc.eventfd()

    def arrives(self, timeout: float = ARRIVAL) -> int:
        """Wait for a signal and for late ones, and return their number; 0 after *timeout* seconds."""
        ready = select.select([self.fd], [], [], timeout)[0]
        if not ready:
            bounded.expired.append(timeout)
            return 0
        time.sleep(SETTLE)
        return libc.eventfd_count(self.fd)

    def silent(self) -> bool:
        """Return whether no signal has come, and none comes within SETTLE seconds."""
        return silent(self)

    def signal(self) -> None:
        """Signal it from user space, as the kernel expects for an unmask or ioeventfd descriptor."""
        os.write(self.fd, (1).to_bytes(8, "little"))


def silent(*events: Event) -> bool:
    """Return whether no signal has come to any of *events*, and none comes within SETTLE seconds."""
    time.sleep(SETTLE)
    return not any(libc.eventfd_count(event.fd) for event in events)
