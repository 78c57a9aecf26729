# SPDX-License-Identifier: GPL-2.0-only
"""Interrupts as eventfds: edu's INTx and MSI, igb's MSI-X, and the loopback that needs no device."""

from __future__ import annotations

import errno
import os
import struct
import threading
from pathlib import Path

from guest import edu, libc, memory, pci, vfio
from guest.case import Test, case
from guest.iommufd import Iommufd
from guest.memory import PAGE
from guest.opened import Event, opened, opened_any_edu, opened_edu, opened_igb, silent, through_cdev
from guest.vfio import ERR, INTX, MSI, MSIX, REQ

EDU = ("noiommu", "edu", "!viommu")
IGB = ("noiommu", "igb", "!viommu")
ANY = ("edu", "!mixed")
ANY_INTX = ("edu", "intx")
INTX_ARRIVES = (*EDU, "intx")

NONE_TRIGGER = vfio.SET_DATA_NONE | vfio.SET_ACTION_TRIGGER
BOOL_TRIGGER = vfio.SET_DATA_BOOL | vfio.SET_ACTION_TRIGGER
EVENTFD_TRIGGER = vfio.SET_DATA_EVENTFD | vfio.SET_ACTION_TRIGGER
NONE_MASK = vfio.SET_DATA_NONE | vfio.SET_ACTION_MASK
NONE_UNMASK = vfio.SET_DATA_NONE | vfio.SET_ACTION_UNMASK
EVENTFD_MASK = vfio.SET_DATA_EVENTFD | vfio.SET_ACTION_MASK
EVENTFD_UNMASK = vfio.SET_DATA_EVENTFD | vfio.SET_ACTION_UNMASK

# QEMU's igb: hw/net/igb.c IGB_MSIX_VEC_NUM
IGB_VECTORS = 10

TRIGGERS = 300


def _lines_of(name: str) -> list[str]:
    return [
        line for line in Path("/proc/interrupts").read_text(encoding="ascii").splitlines() if name in line
    ]


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_get_irq_info()")
def irq_info_of_edu(t: Test) -> None:
    """edu has one maskable, automasked INTx, one MSI that cannot be resized, no MSI-X, and the two
    interrupts that VFIO adds; a sixth kind does not exist."""
    with opened(t, t.device("edu")) as device:
        fixed = vfio.IRQ_EVENTFD | vfio.IRQ_NORESIZE
        want = {
            INTX: (vfio.IRQ_EVENTFD | vfio.IRQ_MASKABLE | vfio.IRQ_AUTOMASKED, 1),
            MSI: (fixed, 1),
            MSIX: (fixed, 0),
            ERR: (fixed, 1),
            REQ: (fixed, 1),
        }
        for index, (flags, count) in want.items():
            info = device.irq_info(index)
            t.equal((info.flags, info.count), (flags, count), f"flags and count of interrupt {index}")
        t.errno(errno.EINVAL, device.irq_info, 5)


@case(needs=INTX_ARRIVES, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_intx_handler()")
def intx_masks_itself(t: Test) -> None:
    """An INTx is reported once and masked: nothing more comes, however often the device raises it, until
    its user unmasks it."""
    with opened_edu(t) as (device, one):
        event = Event()
        device.set_eventfds(INTX, event.fd)
        t.check(event.silent(), "an event before the device did anything")
        one.raise_irq(1)
        t.equal(event.arrives(), 1, "events for one raise")
        one.ack_irq()
        one.raise_irq(2)
        t.check(event.silent(), "a second event while the interrupt is masked")
        one.ack_irq()
        device.set_irqs(INTX, NONE_UNMASK)
        t.check(event.silent(), "an event after everything was acknowledged and unmasked")
        one.raise_irq(4)
        t.equal(event.arrives(), 1, "events for a raise after unmasking")


@case(needs=INTX_ARRIVES, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_pci_intx_unmask_handler()")
def intx_still_pending_fires_at_unmask(t: Test) -> None:
    """Unmasking an INTx that the device still asserts reports it again at once, and each time anew."""
    with opened_edu(t) as (device, one):
        event = Event()
        device.set_eventfds(INTX, event.fd)
        one.raise_irq(1)
        t.equal(event.arrives(), 1, "events for one raise")
        for _ in range(2):
            device.set_irqs(INTX, NONE_UNMASK)
            t.equal(event.arrives(), 1, "events at unmasking with the line still high")
        one.ack_irq()
        device.set_irqs(INTX, NONE_UNMASK)
        t.check(event.silent(), "an event at unmasking with the line low")


@case(
    needs=EDU, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_pci_set_intx_mask(), vfio_pci_set_intx_unmask()"
)
def intx_waits_behind_a_mask(t: Test) -> None:
    """A masked INTx is held back and delivered when unmasked; the BOOL forms act only on a nonzero byte."""
    with opened_edu(t) as (device, one):
        event = Event()
        device.set_eventfds(INTX, event.fd)
        device.set_irqs(INTX, NONE_MASK)
        one.raise_irq(1)
        t.check(event.silent(), "an event through the mask")
        device.set_irqs(INTX, vfio.SET_DATA_BOOL | vfio.SET_ACTION_UNMASK, data=b"\0")
        t.check(event.silent(), "an event after UNMASK with a zero byte")
        device.set_irqs(INTX, vfio.SET_DATA_BOOL | vfio.SET_ACTION_UNMASK, data=b"\1")
        t.equal(event.arrives(), 1, "events after UNMASK")


@case(
    needs=INTX_ARRIVES,
    cites="drivers/vfio/virqfd.c vfio_virqfd_enable(); vfio_pci_intrs.c vfio_pci_set_intx_unmask()",
)
def intx_resamples_by_eventfd(t: Test) -> None:
    """An eventfd given to UNMASK unmasks the INTx whenever it is signalled, and resamples a line still
    high."""
    with opened_edu(t) as (device, one):
        event, unmask = Event(), Event()
        device.set_eventfds(INTX, event.fd)
        device.set_irqs(INTX, EVENTFD_UNMASK, data=struct.pack("<i", unmask.fd))
        one.raise_irq(1)
        t.equal(event.arrives(), 1, "events for one raise")
        unmask.signal()
        t.equal(event.arrives(), 1, "events after the resample eventfd with the line still high")
        one.ack_irq()
        unmask.signal()
        t.check(event.silent(), "an event after the resample eventfd with the line low")
        one.raise_irq(1)
        t.equal(event.arrives(), 1, "events for a raise after resampling")
        device.set_irqs(INTX, EVENTFD_UNMASK, data=struct.pack("<i", -1))
        unmask.signal()
        t.check(event.silent(), "the resample eventfd still works after it was taken away")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_config.c vfio_basic_config_write()")
def intx_disable_bit_masks(t: Test) -> None:
    """Setting the INTx disable bit of the command register masks the interrupt; clearing it lets a pending
    one through."""
    with opened_edu(t) as (device, one):
        event = Event()
        device.set_eventfds(INTX, event.fd)
        command = device.read_config(vfio.PCI_COMMAND, 2)
        t.check(not command & vfio.PCI_COMMAND_INTX_DISABLE, "INTx disable is set after open")
        device.write_config(vfio.PCI_COMMAND, 2, command | vfio.PCI_COMMAND_INTX_DISABLE)
        one.raise_irq(1)
        t.check(event.silent(), "an event with INTx disabled")
        device.set_irqs(INTX, NONE_UNMASK)
        t.check(event.silent(), "UNMASK overrides the disable bit")
        device.write_config(vfio.PCI_COMMAND, 2, command)
        t.equal(event.arrives(), 1, "events once INTx is enabled again")


@case(
    needs=(*INTX_ARRIVES, "noiommu-cdev"),
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_enable() (virq_disabled)",
)
def next_user_inherits_no_disable_bit(t: Test) -> None:
    """An INTx that one user disabled in the command register arrives at the next one, who touches nothing."""
    bdf = t.device("edu")
    with pci.bound(bdf):
        with Iommufd() as iommufd, vfio.open_cdev(bdf) as device:
            device.bind_iommufd(iommufd.fd)
            command = device.read_config(vfio.PCI_COMMAND, 2)
            device.write_config(vfio.PCI_COMMAND, 2, command | vfio.PCI_COMMAND_INTX_DISABLE)
        with Iommufd() as iommufd, vfio.open_cdev(bdf) as device:
            device.bind_iommufd(iommufd.fd)
            with device.bar() as bar:
                event = Event()
                device.set_eventfds(INTX, event.fd)
                edu.Edu(bar).raise_irq(1)
                t.equal(event.arrives(), 1, "events for one raise")
                edu.Edu(bar).ack_irq()


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_pci_set_intx_trigger(), vfio_intx_enable()")
def intx_refusals(t: Test) -> None:
    """What is no request for an INTx is refused with its own errno: masking by eventfd, a second vector, a
    file that is no eventfd, anything but enabling while it is off."""
    with opened(t, t.device("edu")) as device:
        event = Event()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        fd = struct.pack("<i", event.fd)
        for flags in (NONE_MASK, NONE_UNMASK, NONE_TRIGGER):
            t.errno(errno.EINVAL, device.set_irqs, INTX, flags)
        t.errno(errno.EINVAL, device.set_eventfds, INTX, null)
        t.errno(errno.EBADF, device.set_eventfds, INTX, 999)
        t.errno(errno.EINVAL, device.set_eventfds, INTX, event.fd, event.fd)
        t.errno(errno.EINVAL, device.set_eventfds, INTX, event.fd, start=1)
        t.errno(errno.EINVAL, device.set_eventfds, 5, event.fd)
        t.errno(errno.EINVAL, device.set_irqs, INTX, EVENTFD_TRIGGER, data=b"")
        t.errno(errno.EINVAL, device.set_irqs, INTX, EVENTFD_TRIGGER | 64, data=fd)
        t.errno(errno.EINVAL, device.set_irqs, INTX, EVENTFD_TRIGGER | vfio.SET_DATA_NONE, data=fd)
        device.set_eventfds(INTX, event.fd)
        t.errno(errno.ENOTTY, device.set_irqs, INTX, EVENTFD_MASK, data=fd)
        t.errno(errno.ENOTTY, device.set_irqs, INTX, EVENTFD_TRIGGER | vfio.SET_ACTION_MASK, data=fd)
        device.trigger(INTX)
        t.equal(event.arrives(), 1, "events by loopback after the refusals")


@case(
    needs=EDU,
    cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_pci_set_intx_trigger(), vfio_pci_set_msi_trigger()",
)
def one_kind_of_interrupt_at_a_time(t: Test) -> None:
    """While INTx is on MSI is refused and the other way round; once one is off the other can be switched
    on."""
    with opened(t, t.device("edu")) as device:
        first, second = Event(), Event()
        device.set_eventfds(INTX, first.fd)
        t.errno(errno.EINVAL, device.set_eventfds, MSI, second.fd)
        device.disable_irqs(INTX)
        device.set_eventfds(MSI, second.fd)
        t.errno(errno.EINVAL, device.set_eventfds, INTX, first.fd)
        device.trigger(MSI)
        t.equal(second.arrives(), 1, "events by loopback through MSI")
        device.disable_irqs(MSI)
        t.errno(errno.EINVAL, device.trigger, MSI)
        device.set_eventfds(INTX, first.fd)
        device.trigger(INTX)
        t.equal(first.arrives(), 1, "events by loopback through INTx")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_msihandler(); QEMU docs/specs/edu.rst")
def each_msi_is_an_event(t: Test) -> None:
    """An MSI is not masked by its delivery: every raise is one more event, and INTx stays out of it."""
    with opened_edu(t) as (device, one):
        event = Event()
        device.set_eventfds(MSI, event.fd)
        device.set_bus_master()
        t.check(event.silent(), "an event before the device did anything")
        for cause in (1, 2, 4):
            one.raise_irq(cause)
            t.equal(event.arrives(), 1, "events for one raise")


@case(
    needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_enable(); PCI Local Bus 3.0 section 6.8"
)
def msi_needs_bus_master(t: Test) -> None:
    """An MSI is a write by the device: with bus mastering off it is lost, with it on it arrives."""
    with opened_edu(t) as (device, one):
        event = Event()
        device.set_eventfds(MSI, event.fd)
        one.raise_irq(1)
        t.check(event.silent(), "an MSI arrived with bus mastering off")
        device.set_bus_master()
        one.raise_irq(1)
        t.equal(event.arrives(), 1, "events with bus mastering on")
        device.set_bus_master(False)
        one.raise_irq(1)
        t.check(event.silent(), "an MSI arrived after bus mastering was switched off")


@case(needs=EDU, cites="drivers/vfio/vfio_main.c vfio_set_irqs_validate_and_prepare(); pci/vfio_pci_intrs.c")
def msi_refusals(t: Test) -> None:
    """edu has one MSI vector: a second one, masking, files that are no eventfds and a trigger before
    enabling are refused, and a refused request leaves the interrupt off."""
    with opened(t, t.device("edu")) as device:
        event = Event()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        t.errno(errno.EINVAL, device.trigger, MSI)
        t.errno(errno.EINVAL, device.set_eventfds, MSI, event.fd, event.fd)
        t.errno(errno.EINVAL, device.set_eventfds, MSI, event.fd, start=1)
        t.errno(errno.EBADF, device.set_eventfds, MSI, 999)
        t.errno(errno.EINVAL, device.set_eventfds, MSI, null)
        t.errno(errno.EINVAL, device.set_eventfds, MSIX, event.fd)
        device.set_eventfds(INTX, event.fd)  # which a half-enabled MSI would refuse
        device.disable_irqs(INTX)
        device.set_eventfds(MSI, event.fd)
        t.errno(errno.ENOTTY, device.set_irqs, MSI, NONE_MASK)
        t.errno(errno.ENOTTY, device.set_irqs, MSI, NONE_UNMASK)
        device.trigger(MSI)
        t.equal(event.arrives(), 1, "events by loopback after the refusals")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_pci_set_ctx_trigger_single()")
def loopback_signals_without_the_device(t: Test) -> None:
    """TRIGGER with no data, or with a nonzero byte, signals the eventfd of any interrupt; a zero byte does
    not."""
    with opened(t, t.device("edu")) as device:
        for index in (INTX, MSI, ERR, REQ):
            event = Event()
            device.set_eventfds(index, event.fd)
            device.trigger(index)
            t.equal(event.arrives(), 1, f"events by loopback without data through interrupt {index}")
            device.set_irqs(index, BOOL_TRIGGER, data=b"\1")
            t.equal(event.arrives(), 1, f"events by loopback with a byte through interrupt {index}")
            device.set_irqs(index, BOOL_TRIGGER, data=b"\0")
            t.check(event.silent(), f"an event by loopback with a zero byte through interrupt {index}")
            device.disable_irqs(index)
            t.errno(errno.EINVAL, device.trigger, index)


@case(
    needs=EDU, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_intx_set_signal(), vfio_msi_set_vector_signal()"
)
def new_eventfd_replaces_the_old(t: Test) -> None:
    """Setting another eventfd for a live interrupt moves its events there: the old one hears nothing more."""
    with opened(t, t.device("edu")) as device:
        for index in (INTX, MSI, REQ):
            old, new = Event(), Event()
            device.set_eventfds(index, old.fd)
            device.set_eventfds(index, new.fd)
            device.trigger(index)
            t.equal(new.arrives(), 1, f"events at the new eventfd of interrupt {index}")
            t.check(old.silent(), f"the old eventfd of interrupt {index} was signalled")
            device.disable_irqs(index)


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_disable()")
def interrupt_line_goes_with_the_file(t: Test) -> None:
    """An enabled MSI is a line of /proc/interrupts until its user closes the device, and not after it."""
    bdf = t.device("edu")
    name = f"vfio-msi[0]({bdf})"
    with opened(t, bdf) as device:
        t.equal(_lines_of(name), [], "interrupt lines before enabling")
        device.set_eventfds(MSI, Event().fd)
        t.equal(len(_lines_of(name)), 1, f"lines of {name} while enabled")
    t.equal(_lines_of(name), [], "interrupt lines after the device was closed")


@case(
    needs=("noiommu-cdev", "edu", "!viommu"),
    cites="QEMU docs/specs/edu.rst; drivers/vfio/pci/vfio_pci_intrs.c",
)
def dma_ends_with_its_interrupt(t: Test) -> None:
    """A transfer with interrupt raises its MSI when the data is in memory, one without raises none."""
    iova = 0x20_0000
    with (
        through_cdev(t.device("edu")) as user,
        user.device.bar() as bar,
        memory.anonymous(2 * PAGE) as buffer,
    ):
        one, event = edu.Edu(bar), Event()
        data = bytes(t.random.randrange(1, 256) for _ in range(512))
        buffer.fill(0)
        buffer.write(data)
        user.map(buffer, iova)
        user.device.set_eventfds(MSI, event.fd)
        user.device.set_bus_master()
        one.copy_from_ram(user.physical(iova, 512), 512)
        t.check(event.silent(), "an event for a transfer without interrupt")
        one.start_to_ram(user.physical(iova + PAGE, 512), 512, interrupt=True)
        t.equal(event.arrives(), 1, "events for a transfer with interrupt")
        t.equal(buffer.read(PAGE, 512), data, "memory when the event was there")
        t.equal(one.irq_status(), edu.IRQ_DMA, "interrupt causes")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_get_irq_info()")
def msix_can_be_resized(t: Test) -> None:
    """igb's ten MSI-X vectors may grow while enabled: their info lacks the NORESIZE flag that its MSI has."""
    with opened(t, t.device("igb")) as device:
        info = device.irq_info(MSIX)
        t.equal((info.flags, info.count), (vfio.IRQ_EVENTFD, IGB_VECTORS), "flags and count of MSI-X")
        t.check(device.irq_info(MSI).flags & vfio.IRQ_NORESIZE, "MSI claims to be resizable")


@case(
    needs=IGB, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_msi_set_block(); 82576 datasheet 7.3", timeout=60
)
def msix_vectors_are_independent(t: Test) -> None:
    """A cause of the device signals the eventfd of its own vector and of no other."""
    with opened_igb(t) as (device, card):
        events = [Event() for _ in range(4)]
        device.set_eventfds(MSIX, *(event.fd for event in events))
        card.enable_vectors(0b1111)
        for vector in (2, 0, 3, 1):
            card.raise_causes(1 << vector)
            t.equal(events[vector].arrives(), 1, f"events of vector {vector}")
            others = [event for event in events if event is not events[vector]]
            t.check(silent(*others), f"another vector was signalled with vector {vector}")
        card.raise_causes(0b0101)
        t.equal([events[0].arrives(), events[2].arrives()], [1, 1], "events of two causes raised at once")
        card.disable_vectors()
        card.raise_causes(0b1111)
        t.check(events[1].silent(), "an event of a cause that the device masks")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_msi_alloc_irq()", timeout=45)
def msix_grows_while_enabled(t: Test) -> None:
    """Vectors beyond those enabled first are added without disturbing them, up to the size of the table and
    no further."""
    with opened_igb(t) as (device, card):
        first, last = Event(), Event()
        device.set_eventfds(MSIX, first.fd)
        card.enable_vectors(1 | 1 << IGB_VECTORS - 1)
        t.errno(errno.EINVAL, device.set_eventfds, MSIX, last.fd, start=IGB_VECTORS)
        t.errno(errno.EINVAL, device.set_eventfds, MSIX, last.fd, last.fd, start=IGB_VECTORS - 1)
        device.set_eventfds(MSIX, last.fd, start=IGB_VECTORS - 1)
        card.raise_causes(1 << IGB_VECTORS - 1)
        t.equal(last.arrives(), 1, "events of the vector that was added")
        t.check(first.silent(), "the first vector was signalled with it")
        card.raise_causes(1)
        t.equal(first.arrives(), 1, "events of the first vector after growing")
        device.set_eventfds(MSIX, -1, start=IGB_VECTORS - 1)
        card.raise_causes(1 << IGB_VECTORS - 1)
        t.check(last.silent(), "an event of the vector that was taken away")
        card.raise_causes(1)
        t.equal(first.arrives(), 1, "events of the first vector after another was taken away")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_msi_set_block()", timeout=45)
def msix_refusals(t: Test) -> None:
    """A bad file among the eventfds refuses the whole request and switches its vectors off; masking is not
    supported; a vector without an eventfd ignores the loopback."""
    with opened_igb(t) as (device, card):
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        one, two = Event(), Event()
        t.errno(errno.EBADF, device.set_eventfds, MSIX, one.fd, 999)
        t.errno(errno.EINVAL, device.set_eventfds, MSIX, null)
        t.errno(errno.EINVAL, device.trigger, MSIX)
        device.set_eventfds(MSIX, one.fd, -1, two.fd)
        card.enable_vectors(0b111)
        t.errno(errno.ENOTTY, device.set_irqs, MSIX, NONE_MASK)
        device.trigger(MSIX, 1)
        t.check(silent(one, two), "the loopback of a vector without eventfd signalled another")
        t.errno(errno.EINVAL, device.set_eventfds, MSIX, two.fd, null, start=2)
        card.raise_causes(0b100)
        t.check(two.silent(), "an event of a vector whose request was refused")
        card.raise_causes(0b001)
        t.equal(one.arrives(), 1, "events of a vector that was no part of the refused request")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_msi_set_vector_signal()", timeout=45)
def vectors_may_share_an_eventfd(t: Test) -> None:
    """Two vectors with the same eventfd add up in it."""
    with opened_igb(t) as (device, card):
        both = Event()
        device.set_eventfds(MSIX, both.fd, both.fd)
        card.enable_vectors(0b11)
        card.raise_causes(0b11)
        t.equal(both.arrives(), 2, "events of two vectors in one eventfd")
        device.set_eventfds(MSIX, -1)
        card.raise_causes(0b11)
        t.equal(both.arrives(), 1, "events after one of the two vectors was taken away")


@case(needs=ANY_INTX, cites="drivers/vfio/pci/vfio_pci_intrs.c __vfio_pci_intx_mask() (masked is no counter)")
def intx_masks_do_not_nest(t: Test) -> None:
    """Masking twice takes one unmask, and unmasking twice one mask."""
    with opened_any_edu(t) as (device, one):
        event = Event()
        device.set_eventfds(INTX, event.fd)
        device.set_irqs(INTX, NONE_MASK)
        device.set_irqs(INTX, NONE_MASK)
        one.raise_irq(1)
        device.set_irqs(INTX, NONE_UNMASK)
        t.equal(event.arrives(), 1, "events after two masks and one unmask")
        one.ack_irq()
        device.set_irqs(INTX, NONE_UNMASK)
        device.set_irqs(INTX, NONE_UNMASK)
        device.set_irqs(INTX, NONE_MASK)
        one.raise_irq(1)
        t.check(event.silent(), "an event through one mask after two unmasks")


@case(needs=ANY_INTX, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_intx_enable() (virq_disabled)")
def intx_enabled_behind_the_disable_bit_waits(t: Test) -> None:
    """An INTx enabled while the command register's disable bit is set is held back until the bit is
    cleared."""
    with opened_any_edu(t) as (device, one):
        event = Event()
        command = device.read_config(vfio.PCI_COMMAND, 2)
        device.write_config(vfio.PCI_COMMAND, 2, command | vfio.PCI_COMMAND_INTX_DISABLE)
        device.set_eventfds(INTX, event.fd)
        one.raise_irq(1)
        t.check(event.silent(), "an event with INTx disabled before enabling")
        device.write_config(vfio.PCI_COMMAND, 2, command)
        t.equal(event.arrives(), 1, "events once the bit is cleared")


@case(needs=ANY_INTX, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_intx_set_signal()")
def intx_keeps_its_mask_with_a_new_eventfd(t: Test) -> None:
    """A new eventfd for an INTx does not unmask it: nothing comes until the unmask, and then at the new one;
    with none at all an interrupt is taken and told to nobody."""
    with opened_any_edu(t) as (device, one):
        old, new = Event(), Event()
        device.set_eventfds(INTX, old.fd)
        one.raise_irq(1)
        t.equal(old.arrives(), 1, "events at the old eventfd")
        device.set_eventfds(INTX, new.fd)
        t.check(silent(old, new), "an event with the interrupt masked")
        device.set_irqs(INTX, NONE_UNMASK)
        t.equal(new.arrives(), 1, "events at the new eventfd after the unmask")
        device.set_eventfds(INTX, -1)
        device.set_irqs(INTX, NONE_UNMASK)
        device.trigger(INTX)
        t.check(silent(old, new), "an event after the eventfd was taken away")
        device.set_eventfds(INTX, new.fd)
        device.set_irqs(INTX, NONE_UNMASK)
        t.equal(new.arrives(), 1, "events once there is an eventfd again")


@case(needs=ANY_INTX, cites="drivers/vfio/virqfd.c vfio_virqfd_enable(); vfio_intx_disable()")
def intx_has_one_resample_eventfd(t: Test) -> None:
    """A second resample eventfd is EBUSY while one is set and leaves that one working; switching INTx off
    takes it away."""
    with opened_any_edu(t) as (device, one):
        event, first, second = Event(), Event(), Event()
        data = [struct.pack("<i", one_of.fd) for one_of in (first, second)]
        device.set_eventfds(INTX, event.fd)
        device.set_irqs(INTX, EVENTFD_UNMASK, data=data[0])
        t.errno(errno.EBUSY, device.set_irqs, INTX, EVENTFD_UNMASK, data=data[1])
        one.raise_irq(1)
        t.equal(event.arrives(), 1, "events for one raise")
        second.signal()
        t.check(event.silent(), "the eventfd that was refused resamples")
        first.signal()
        t.equal(event.arrives(), 1, "events after the one that was taken")
        device.disable_irqs(INTX)
        one.ack_irq()
        device.set_eventfds(INTX, event.fd)
        one.raise_irq(1)
        t.equal(event.arrives(), 1, "events for a raise after switching off and on")
        first.signal()
        t.check(event.silent(), "the resample eventfd outlived the interrupt it was for")
        libc.eventfd_count(second.fd)
        device.set_irqs(INTX, EVENTFD_UNMASK, data=data[1])
        second.signal()
        t.equal(event.arrives(), 1, "events after a resample eventfd set anew")


@case(needs=ANY, cites="drivers/vfio/pci/vfio_pci_intrs.c eventfd_ctx_fdget(), eventfd_ctx_put()")
def interrupt_keeps_its_own_reference(t: Test) -> None:
    """An eventfd closed under a live interrupt costs nothing: its duplicate still hears, whoever gets its
    number hears nothing, and a new one takes over."""
    with opened_any_edu(t) as (device, _one):
        for index in (INTX, MSI, REQ):
            event = Event()
            number, copy = event.fd, os.dup(event.fd)
            device.set_eventfds(index, number)
            os.close(number)
            heir = Event()
            t.equal(heir.fd, number, "the number of the next eventfd")
            device.trigger(index)
            t.equal(libc.eventfd_count(copy), 1, f"events at the duplicate through interrupt {index}")
            os.close(copy)
            device.trigger(index)
            t.equal(libc.eventfd_count(heir.fd), 0, f"events at a stranger through interrupt {index}")
            device.set_eventfds(index, heir.fd)
            device.trigger(index)
            t.equal(libc.eventfd_count(heir.fd), 1, f"events at the new eventfd of interrupt {index}")
            device.disable_irqs(index)


def _fire(device: vfio.Device, index: int) -> None:
    for _ in range(TRIGGERS):
        device.trigger(index)


@case(needs=(*ANY, "smp"), cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_pci_set_msi_trigger() (igate)")
def signals_are_neither_lost_nor_doubled(t: Test) -> None:
    """While one task moves a live interrupt between two eventfds another triggers it: every trigger is in
    exactly one of them."""
    with opened_any_edu(t) as (device, _one):
        for index in (INTX, MSI):
            events = (Event(), Event())
            device.set_eventfds(index, events[0].fd)
            thread = threading.Thread(target=_fire, args=(device, index))
            thread.start()
            moves = 0
            while thread.is_alive():
                moves += 1
                device.set_eventfds(index, events[moves % 2].fd)
            thread.join()
            counts = [libc.eventfd_count(event.fd) for event in events]
            t.equal(
                sum(counts), TRIGGERS, f"signals of interrupt {index} in both after {moves} moves: {counts}"
            )
            device.disable_irqs(index)


@case(needs=ANY, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_msi_enable(), vfio_msi_disable()")
def msi_survives_going_off_and_on(t: Test) -> None:
    """However often MSI is switched off and on, with INTx in between, each raise reaches the eventfd of the
    moment, and while it is off none does."""
    with opened_any_edu(t) as (device, one):
        last = Event()
        device.set_bus_master()
        for turn in range(3):
            event, line = Event(), Event()
            device.set_eventfds(MSI, event.fd)
            one.raise_irq(1)
            t.equal(event.arrives(), 1, f"MSIs in turn {turn}")
            one.ack_irq()
            device.disable_irqs(MSI)
            device.set_eventfds(INTX, line.fd)
            one.raise_irq(1)
            t.equal(line.arrives(), 1, f"INTx in turn {turn}")
            one.ack_irq()
            device.disable_irqs(INTX)
            t.check(silent(event, last), f"an event at an eventfd of the past in turn {turn}")
            last = event


@case(
    needs=ANY,
    cites="drivers/vfio/vfio_main.c vfio_unregister_group_dev(); pci/vfio_pci_core.c vfio_pci_core_disable()",
)
def interrupts_go_on_while_an_unbind_waits(t: Test) -> None:
    """An unbind that waits for the user takes no interrupt from him: what was set up fires, and can be set up
    anew, until he closes the device."""
    bdf = t.device("edu")
    with opened_any_edu(t) as (device, one):
        event, request, line = Event(), Event(), Event()
        device.set_bus_master()
        device.set_eventfds(MSI, event.fd)
        device.set_eventfds(REQ, request.fd)
        unbind = pci.start_unbind(bdf)
        t.check(request.arrives(), "the unbind did not ask for the device")
        one.raise_irq(1)
        t.equal(event.arrives(), 1, "MSIs while the unbind waits")
        one.ack_irq()
        device.disable_irqs(MSI)
        device.set_eventfds(INTX, line.fd)
        one.raise_irq(1)
        t.equal(line.arrives(), 1, "INTx set up while the unbind waits")
        t.check(not unbind.done, "the unbind did not wait")
    unbind.wait()


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_pci_set_msi_trigger() (bools, start, count)")
def loopback_picks_its_vectors(t: Test) -> None:
    """A trigger of several vectors signals those in its range, and with bytes those whose byte is not zero;
    one that leaves the table is refused and signals none."""
    with opened_igb(t) as (device, _card):
        events = [Event() for _ in range(IGB_VECTORS)]
        device.set_eventfds(MSIX, *(event.fd for event in events))

        def counts() -> list[int]:
            return [libc.eventfd_count(event.fd) for event in events]

        device.set_irqs(MSIX, NONE_TRIGGER, 2, 3)
        t.equal(counts(), [0, 0, 1, 1, 1, 0, 0, 0, 0, 0], "events of vectors 2 to 4")
        device.set_irqs(MSIX, BOOL_TRIGGER, 5, 4, b"\1\0\0\x80")
        t.equal(counts(), [0, 0, 0, 0, 0, 1, 0, 0, 1, 0], "events of vectors 5 and 8")
        t.errno(errno.EINVAL, device.set_irqs, MSIX, NONE_TRIGGER, 8, 3)
        t.errno(errno.EINVAL, device.set_irqs, MSIX, BOOL_TRIGGER, 0, 4, b"\1\1\1")
        t.equal(counts(), [0] * IGB_VECTORS, "events after two refusals")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_msi_enable(), vfio_msi_disable()", timeout=45)
def msix_and_msi_take_turns(t: Test) -> None:
    """MSI is refused while MSI-X is on and the other way round; switched over, the vectors of before are gone
    and those set up anew fire."""
    with opened_igb(t) as (device, card):
        first, second, third = Event(), Event(), Event()
        device.set_eventfds(MSIX, first.fd, second.fd)
        t.errno(errno.EINVAL, device.set_eventfds, MSI, third.fd)
        t.errno(errno.EINVAL, device.disable_irqs, MSI)
        device.disable_irqs(MSIX)
        device.set_eventfds(MSI, third.fd)
        t.errno(errno.EINVAL, device.set_eventfds, MSIX, first.fd)
        t.errno(errno.EINVAL, device.trigger, MSIX)
        device.disable_irqs(MSI)
        device.set_eventfds(MSIX, second.fd)
        card.enable_vectors(0b11)
        card.raise_causes(0b11)
        t.equal(second.arrives(), 1, "events of the one vector that is set up")
        t.check(silent(first, third), "an event at an eventfd of the past")
