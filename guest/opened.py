# SPDX-License-Identifier: GPL-2.0-only
"""A device opened all the way, by either door, and what using one takes: mapped memory, interrupts.

Everything here is a context manager that leaves nothing open behind it, so that the device can be unbound.
The cases that are about opening itself spell out their steps instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from guest import edu, igb, libc, memory, pci, vfio
from guest.case import Test
from guest.forked import Child
from guest.iommufd import Iommufd
from guest.memory import PAGE

SETTLE = 0.1
"""Seconds in which an interrupt that is on its way arrives, also under TCG on a busy host.

One that takes longer still is not lost: whoever counts next finds it.  A third of the suite was this wait.
"""

ARRIVAL = 10.0
"""Seconds after which an interrupt that has not arrived never will."""


@dataclass(frozen=True)
class CdevUser:
    """A device bound to an iommufd and attached to one of its address spaces."""

    device: vfio.Device
    iommufd: Iommufd
    ioas: int
    devid: int

    def map(self, buffer: memory.Buffer, iova: int) -> None:
        """Map the whole of *buffer* at *iova*."""
        self.iommufd.map(self.ioas, buffer.address, buffer.length, iova)

    def physical(self, iova: int, length: int) -> int:
        """Return the physical address of *iova* by GET_PA; AssertionError when *length* is in pieces."""
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
    """Have *bdf* on vfio-pci and its device node open, not yet bound, beside a new iommufd."""
    with pci.bound(bdf), vfio.open_cdev(bdf) as device, Iommufd() as iommufd:
        yield device, iommufd


@dataclass(frozen=True)
class GroupUser:
    """A device that a group in a container handed out."""

    device: vfio.Device
    group: vfio.Group
    container: vfio.Container


@contextlib.contextmanager
def through_group(bdf: str, kind: int = vfio.NOIOMMU_IOMMU) -> Iterator[GroupUser]:
    """Open *bdf* by its group node and the container that this kernel has, with the IOMMU type *kind*."""
    with pci.bound(bdf), vfio.open_container() as container, vfio.open_group(bdf) as group:
        group.set_container(container)
        container.set_iommu(kind)
        with group.device(bdf) as device:
            yield GroupUser(device=device, group=group, container=container)


@contextlib.contextmanager
def opened(t: Test, bdf: str) -> Iterator[vfio.Device]:
    """Open a device without an IOMMU by its device node where the kernel offers one, else by its group."""
    door = through_cdev if "noiommu-cdev" in t.features else through_group
    with door(bdf) as user:
        yield user.device


@contextlib.contextmanager
def reopened_by_cdev(bdf: str, token: Optional[uuid.UUID] = None) -> Iterator[vfio.Device]:
    """Open *bdf*, which is on vfio-pci already, by its device node, and leave it on vfio-pci."""
    with Iommufd() as iommufd, vfio.open_cdev(bdf) as device:
        device.bind_iommufd(iommufd.fd, token=token.bytes if token else None)
        yield device


@contextlib.contextmanager
def reopened_by_group(bdf: str, token: Optional[uuid.UUID] = None) -> Iterator[vfio.Device]:
    """Open *bdf*, which is on vfio-pci already, by its group, and leave it on vfio-pci."""
    with vfio.open_container() as container, vfio.open_group(bdf) as group:
        group.set_container(container)
        container.set_iommu(vfio.NOIOMMU_IOMMU)
        with group.device(f"{bdf} vf_token={token}" if token else bdf) as device:
            yield device


def reopened(
    t: Test, bdf: str, token: Optional[uuid.UUID] = None
) -> contextlib.AbstractContextManager[vfio.Device]:
    """Open *bdf*, which is on vfio-pci already, by its device node where there is one, else by its group."""
    return (reopened_by_cdev if "noiommu-cdev" in t.features else reopened_by_group)(bdf, token)


def open_files() -> int:
    """Return how many files are open in the whole machine."""
    return int(Path("/proc/sys/fs/file-nr").read_text(encoding="ascii").split()[0])


def has_door(t: Test, bdf: str, door: str) -> bool:
    """Say whether this kernel lets users open *bdf* by *door*, which is `group` or `cdev`.

    The no-IOMMU mode of one may be left out of a kernel that has both.
    """
    return (door if pci.has_iommu(bdf) else f"noiommu-{door}") in t.features


def usable(t: Test, kind: str = "edu", *doors: str) -> str:
    """Return a device of *kind*, behind an IOMMU or not; skip the case where this kernel cannot drive it, or
    not by each of *doors*."""
    bdf = t.device(kind)
    if "noiommu" not in t.features and not pci.has_iommu(bdf):
        t.skip("the device does not bind at all")
    for door in doors:
        if not has_door(t, bdf, door):
            t.skip(f"without an IOMMU the device has no {door}")
    return bdf


def container_type(bdf: str) -> int:
    """Return the IOMMU type that a container with the group of *bdf* takes."""
    return vfio.TYPE1V2_IOMMU if pci.has_iommu(bdf) else vfio.NOIOMMU_IOMMU


@contextlib.contextmanager
def _registers(device: vfio.Device) -> Iterator[edu.Edu]:
    with device.bar() as bar:
        one = edu.Edu(bar)
        one.ack_irq()  # what a case that failed may have left asserted
        try:
            yield one
        finally:
            one.ack_irq()


@contextlib.contextmanager
def opened_edu(t: Test) -> Iterator[tuple[vfio.Device, edu.Edu]]:
    """Open an edu without an IOMMU, and its registers."""
    with opened(t, t.device("edu")) as device, _registers(device) as one:
        yield device, one


@contextlib.contextmanager
def opened_any_edu(t: Test) -> Iterator[tuple[vfio.Device, edu.Edu]]:
    """Open an edu, whether or not an IOMMU stands before it, by whichever door the kernel offers."""
    bdf = usable(t)
    by_cdev = has_door(t, bdf, "cdev")
    with (
        through_cdev(bdf) if by_cdev else through_group(bdf, container_type(bdf)) as user,
        _registers(user.device) as one,
    ):
        yield user.device, one


@contextlib.contextmanager
def opened_igb(t: Test) -> Iterator[tuple[vfio.Device, igb.Igb]]:
    """Open an igb without an IOMMU, reset and bus master, and its registers."""
    with opened(t, t.device("igb")) as device, device.bar() as bar:
        device.set_bus_master()
        card = igb.Igb(bar)
        card.reset()
        yield device, card


def sigbus(t: Test, access: Callable[[], object], what: str) -> None:
    """Fail unless *access*, in a process of its own, ends that with SIGBUS."""
    with Child(access) as child:
        status = child.wait()
    t.check(os.WIFSIGNALED(status), f"{what} did not kill its process: wait status {status:#x}")
    t.equal(os.WTERMSIG(status), int(signal.SIGBUS), f"the signal for {what}")


def round_trip(t: Test, device: edu.Edu, buffer: memory.Buffer, iova: int) -> None:
    """Have the device copy the first page of *buffer*, mapped at *iova*, to the second."""
    data = memory.pattern(t.random, 256)
    buffer.write(data)
    device.copy_from_ram(iova, 256)
    device.copy_to_ram(iova + PAGE, 256)
    t.equal(buffer.read(PAGE, 256), data, "what came back by IOVA")


def dma_buffer(buffer: memory.Buffer, address: int) -> igb.DmaBuffer:
    """Give *buffer* to the igb driver as memory that the device finds at bus address *address*."""
    view = memoryview((ctypes.c_uint8 * buffer.length).from_address(buffer.address)).cast("B")
    return igb.DmaBuffer(view, address)


class Event:
    """An eventfd that an interrupt signals."""

    def __init__(self) -> None:
        self.fd = libc.eventfd()

    def arrives(self, timeout: float = ARRIVAL) -> int:
        """Wait for a signal, let stragglers in, and return how many there were; 0 after *timeout* seconds."""
        ready = select.select([self.fd], [], [], timeout)[0]
        if not ready:
            return 0
        time.sleep(SETTLE)
        return libc.eventfd_count(self.fd)

    def silent(self) -> bool:
        """Whether no signal has come, and none comes in SETTLE seconds."""
        return silent(self)

    def signal(self) -> None:
        """Signal it from this side, as the kernel expects of an unmask or ioeventfd descriptor."""
        os.write(self.fd, (1).to_bytes(8, "little"))


def silent(*events: Event) -> bool:
    """Whether no signal has come to any of *events*, and none comes in SETTLE seconds."""
    time.sleep(SETTLE)
    return not any(libc.eventfd_count(event.fd) for event in events)
