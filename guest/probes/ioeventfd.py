# SPDX-License-Identifier: GPL-2.0-only
"""ioeventfds: registers that the kernel writes when an eventfd is signalled."""

from __future__ import annotations

import errno
import time

from guest import edu, igb, pci, vfio
from guest.case import Test, case
from guest.opened import SETTLE, Event, opened, reopened
from guest.vfio import BAR0, CONFIG, PCI_COMMAND

EDU = ("noiommu", "edu", "!viommu")
IGB = ("noiommu", "igb", "!viommu")

IOEVENTFDS = 1000
"""The most ioeventfds of a device (drivers/vfio/pci/vfio_pci_rdwr.c, VFIO_PCI_IOEVENTFD_MAX)."""


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_rdwr.c vfio_pci_ioeventfd(), vfio_pci_ioeventfd_handler()")
def ioeventfd_writes_a_register(t: Test) -> None:
    """An ioeventfd writes its value to its register whenever it is signalled, until it is removed."""
    with opened(t, t.device("edu")) as device, device.bar() as bar:
        event = Event()
        where = device.region(BAR0).offset + edu.REG_LIVENESS
        add = vfio.Ioeventfd(flags=4, offset=where, data=0x11223344, fd=event.fd)
        device.call(vfio.DEVICE_IOEVENTFD, add)
        t.errno(errno.EEXIST, device.call, vfio.DEVICE_IOEVENTFD, add)
        bar.write32(edu.REG_LIVENESS, 0)
        t.equal(bar.read32(edu.REG_LIVENESS), 0xFFFFFFFF, "the register before the signal")
        event.signal()
        t.wait_until(lambda: bar.read32(edu.REG_LIVENESS) == 0xEEDDCCBB, "the write to the register")
        device.call(vfio.DEVICE_IOEVENTFD, vfio.Ioeventfd(flags=4, offset=where, data=0x11223344, fd=-1))
        bar.write32(edu.REG_LIVENESS, 0)
        event.signal()
        time.sleep(SETTLE)
        t.equal(bar.read32(edu.REG_LIVENESS), 0xFFFFFFFF, "the register after the ioeventfd was removed")


@case(needs=EDU, cites="drivers/vfio/virqfd.c vfio_virqfd_enable() (an event already pending)")
def ioeventfd_that_was_signalled_writes_at_once(t: Test) -> None:
    """An eventfd already signalled when it becomes an ioeventfd writes the register at once."""
    with opened(t, t.device("edu")) as device, device.bar() as bar:
        event = Event()
        event.signal()
        where = device.region(BAR0).offset + edu.REG_LIVENESS
        bar.write32(edu.REG_LIVENESS, 0)
        device.call(
            vfio.DEVICE_IOEVENTFD, vfio.Ioeventfd(flags=4, offset=where, data=0x11223344, fd=event.fd)
        )
        t.wait_until(lambda: bar.read32(edu.REG_LIVENESS) == 0xEEDDCCBB, "the write to the register")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_ioeventfd(); vfio_pci_rdwr.c")
def ioeventfd_refusals(t: Test) -> None:
    """An ioeventfd is refused unless it lies entirely in a BAR, has exactly one width and comes from an
    eventfd, and removing one that does not exist is refused."""
    with opened(t, t.device("edu")) as device:
        fd = Event().fd
        bar, config = device.region(BAR0).offset, device.region(CONFIG).offset

        def attempt(flags: int, offset: int, number: int = fd) -> None:
            argument = vfio.Ioeventfd(flags=flags, offset=offset, data=0, fd=number)
            device.call(vfio.DEVICE_IOEVENTFD, argument)

        for flags in (0, 3, 16):
            t.errno(errno.EINVAL, attempt, flags, bar + 4)
        t.errno(errno.EINVAL, attempt, 4, bar + 4, -2)
        t.errno(errno.EINVAL, attempt, 4, config)
        t.errno(errno.EINVAL, attempt, 4, bar + edu.BAR_SIZE)
        t.errno(errno.EINVAL, attempt, 4, device.region(vfio.BAR1).offset)
        t.errno(errno.ENODEV, attempt, 4, bar + 4, -1)
        t.errno(errno.EBADF, attempt, 4, bar + 4, 999)


@case(
    needs=EDU,
    cites="drivers/vfio/pci/vfio_pci_rdwr.c vfio_pci_ioeventfd() (VFIO_PCI_IOEVENTFD_MAX)",
    timeout=45,
)
def ioeventfds_are_limited(t: Test) -> None:
    """A device has at most a thousand ioeventfds (ENOSPC beyond that); removing one makes room for another,
    and the next user can set all of them again."""
    bdf = t.device("edu")
    with pci.bound(bdf):
        for user in ("first", "second"):
            with reopened(t, bdf) as device:
                event = Event()
                where = device.region(BAR0).offset + edu.REG_LIVENESS

                def call(number: int, fd: int, device: vfio.Device = device, where: int = where) -> None:
                    argument = vfio.Ioeventfd(flags=4, offset=where, data=number, fd=fd)
                    device.call(vfio.DEVICE_IOEVENTFD, argument)

                for number in range(IOEVENTFDS):
                    call(number, event.fd)
                t.errno(errno.ENOSPC, call, IOEVENTFDS, event.fd)
                t.errno(errno.EEXIST, call, 7, event.fd)
                call(7, -1)
                t.errno(errno.ENODEV, call, 7, -1)
                call(IOEVENTFDS, event.fd)
                t.errno(errno.ENOSPC, call, 7, event.fd)
                t.log(f"the {user} user has finished")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_rdwr.c vfio_pci_ioeventfd() (msix_offset)")
def ioeventfd_stays_off_the_vector_table(t: Test) -> None:
    """An ioeventfd that touches the MSI-X table, even with its first or last byte, is refused; one behind the
    table, up to the last byte of the BAR, is accepted."""
    with opened(t, t.device("igb")) as device:
        fd = Event().fd
        region = device.region(igb.TABLE_BAR)
        table_size = 16 * device.irq_info(vfio.MSIX).count

        def attempt(size: int, offset: int) -> None:
            argument = vfio.Ioeventfd(flags=size, offset=region.offset + offset, data=0, fd=fd)
            device.call(vfio.DEVICE_IOEVENTFD, argument)

        for size, offset in ((4, 0), (1, table_size - 1), (8, table_size - 4), (2, 6), (8, table_size - 8)):
            t.errno(errno.EINVAL, attempt, size, offset)
        attempt(4, table_size)
        attempt(1, region.size - 1)
        attempt(8, region.size - 8)
        for size in (2, 4, 8):
            t.errno(errno.EINVAL, attempt, size, region.size - size + 1)


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_rdwr.c vfio_pci_ioeventfd_handler() (test_mem)")
def ioeventfd_does_nothing_while_memory_is_off(t: Test) -> None:
    """An ioeventfd signalled while memory decoding is off writes nothing, then or later; once decoding is on,
    the next signal writes."""
    with opened(t, t.device("edu")) as device, device.bar() as bar:
        event = Event()
        command = device.read_config(PCI_COMMAND, 2)
        where = device.region(BAR0).offset + edu.REG_LIVENESS
        device.call(vfio.DEVICE_IOEVENTFD, vfio.Ioeventfd(flags=4, offset=where, data=5, fd=event.fd))
        bar.write32(edu.REG_LIVENESS, 0)
        device.write_config(PCI_COMMAND, 2, command & ~vfio.PCI_COMMAND_MEMORY)
        event.signal()
        time.sleep(SETTLE)
        device.write_config(PCI_COMMAND, 2, command)
        t.equal(bar.read32(edu.REG_LIVENESS), 0xFFFFFFFF, "the register after the signal")
        event.signal()
        t.wait_until(lambda: bar.read32(edu.REG_LIVENESS) == 0xFFFFFFFA, "the write to the register")
