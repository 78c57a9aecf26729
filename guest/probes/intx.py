# SPDX-License-Identifier: GPL-2.0-only
"""INTx: masked at each delivery, masked and unmasked by its user, resampled by eventfd."""

from __future__ import annotations

import errno
import os
import struct

from guest import edu, libc, pci, vfio
from guest.case import Test, case
from guest.iommufd import Iommufd
from guest.opened import Event, opened, opened_any_edu, opened_edu, silent
from guest.vfio import INTX

EDU = ("noiommu", "edu", "!viommu")
ANY_INTX = ("edu", "intx")
INTX_ARRIVES = (*EDU, "intx")

NONE_TRIGGER = vfio.SET_DATA_NONE | vfio.SET_ACTION_TRIGGER
EVENTFD_TRIGGER = vfio.SET_DATA_EVENTFD | vfio.SET_ACTION_TRIGGER
NONE_MASK = vfio.SET_DATA_NONE | vfio.SET_ACTION_MASK
NONE_UNMASK = vfio.SET_DATA_NONE | vfio.SET_ACTION_UNMASK
EVENTFD_MASK = vfio.SET_DATA_EVENTFD | vfio.SET_ACTION_MASK
EVENTFD_UNMASK = vfio.SET_DATA_EVENTFD | vfio.SET_ACTION_UNMASK


@case(needs=INTX_ARRIVES, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_intx_handler()")
def intx_masks_itself(t: Test) -> None:
    """An INTx is delivered once and then masked: however often the device raises it, nothing more arrives
    until its user unmasks it."""
    with opened_edu(t) as (device, one):
        event = Event()
        device.set_eventfds(INTX, event.fd)
        t.check(event.silent(), "an event before the device raised anything")
        one.raise_irq(1)
        t.equal(event.arrives(), 1, "events for one raise")
        one.ack_irq()
        one.raise_irq(2)
        t.check(event.silent(), "a second event while the interrupt is masked")
        one.ack_irq()
        device.set_irqs(INTX, NONE_UNMASK)
        t.check(event.silent(), "an event after acknowledging and unmasking")
        one.raise_irq(4)
        t.equal(event.arrives(), 1, "events for a raise after unmasking")


@case(needs=INTX_ARRIVES, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_pci_intx_unmask_handler()")
def intx_still_pending_fires_at_unmask(t: Test) -> None:
    """Unmasking an INTx that the device still asserts delivers it again at once, each time."""
    with opened_edu(t) as (device, one):
        event = Event()
        device.set_eventfds(INTX, event.fd)
        one.raise_irq(1)
        t.equal(event.arrives(), 1, "events for one raise")
        for _ in range(2):
            device.set_irqs(INTX, NONE_UNMASK)
            t.equal(event.arrives(), 1, "events after unmasking with the line still high")
        one.ack_irq()
        device.set_irqs(INTX, NONE_UNMASK)
        t.check(event.silent(), "an event after unmasking with the line low")


@case(
    needs=(*EDU, "intx"),
    cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_pci_set_intx_mask(), vfio_pci_set_intx_unmask()",
)
def intx_waits_behind_a_mask(t: Test) -> None:
    """A masked INTx is held back and delivered when unmasked; the BOOL forms act only on a nonzero byte."""
    with opened_edu(t) as (device, one):
        event = Event()
        device.set_eventfds(INTX, event.fd)
        device.set_irqs(INTX, NONE_MASK)
        one.raise_irq(1)
        t.check(event.silent(), "an event while masked")
        device.set_irqs(INTX, vfio.SET_DATA_BOOL | vfio.SET_ACTION_UNMASK, data=b"\0")
        t.check(event.silent(), "an event after UNMASK with a zero byte")
        device.set_irqs(INTX, vfio.SET_DATA_BOOL | vfio.SET_ACTION_UNMASK, data=b"\1")
        t.equal(event.arrives(), 1, "events after UNMASK")
        one.ack_irq()
        device.set_irqs(INTX, NONE_UNMASK)
        device.set_irqs(INTX, vfio.SET_DATA_BOOL | vfio.SET_ACTION_MASK, data=b"\0")
        one.raise_irq(1)
        t.equal(event.arrives(), 1, "events after MASK with a zero byte")
        one.ack_irq()
        device.set_irqs(INTX, NONE_UNMASK)
        device.set_irqs(INTX, vfio.SET_DATA_BOOL | vfio.SET_ACTION_MASK, data=b"\1")
        one.raise_irq(1)
        t.check(event.silent(), "an event after MASK with a nonzero byte")


@case(
    needs=INTX_ARRIVES,
    cites="drivers/vfio/virqfd.c vfio_virqfd_enable(); vfio_pci_intrs.c vfio_pci_set_intx_unmask()",
)
def intx_resamples_by_eventfd(t: Test) -> None:
    """An eventfd given to UNMASK unmasks the INTx whenever it is signalled, and an INTx whose line is still
    high is delivered again."""
    with opened_edu(t) as (device, one):
        event, unmask = Event(), Event()
        device.set_eventfds(INTX, event.fd)
        device.set_irqs(INTX, EVENTFD_UNMASK, data=struct.pack("<i", unmask.fd))
        one.raise_irq(1)
        t.equal(event.arrives(), 1, "events for one raise")
        unmask.signal()
        t.equal(event.arrives(), 1, "events after signalling the resample eventfd with the line still high")
        one.ack_irq()
        unmask.signal()
        t.check(event.silent(), "an event after signalling the resample eventfd with the line low")
        one.raise_irq(1)
        t.equal(event.arrives(), 1, "events for a raise after resampling")
        device.set_irqs(INTX, EVENTFD_UNMASK, data=struct.pack("<i", -1))
        unmask.signal()
        t.check(event.silent(), "the resample eventfd still works after its removal")


@case(needs=INTX_ARRIVES, cites="drivers/vfio/virqfd.c vfio_virqfd_enable() (an event already pending)")
def intx_resamples_at_once_for_an_eventfd_that_was_signalled(t: Test) -> None:
    """An eventfd already signalled when it is given to UNMASK unmasks the INTx at once: a line still high
    interrupts again."""
    with opened_edu(t) as (device, one):
        event, unmask = Event(), Event()
        device.set_eventfds(INTX, event.fd)
        one.raise_irq(1)
        t.equal(event.arrives(), 1, "events for one raise")
        unmask.signal()
        device.set_irqs(INTX, EVENTFD_UNMASK, data=struct.pack("<i", unmask.fd))
        t.equal(event.arrives(), 1, "events after setting the signalled eventfd")
        one.ack_irq()


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_config.c vfio_basic_config_write()")
def intx_disable_bit_masks(t: Test) -> None:
    """Setting the INTx disable bit of the command register masks the interrupt; clearing it delivers a
    pending one."""
    with opened_edu(t) as (device, one):
        event = Event()
        device.set_eventfds(INTX, event.fd)
        command = device.read_config(vfio.PCI_COMMAND, 2)
        t.check(not command & vfio.PCI_COMMAND_INTX_DISABLE, "the INTx disable bit is set after open")
        device.write_config(vfio.PCI_COMMAND, 2, command | vfio.PCI_COMMAND_INTX_DISABLE)
        device.set_irqs(INTX, NONE_UNMASK)
        own = pci.config_number(t.device("edu"), vfio.PCI_COMMAND, 2)
        t.check(own & vfio.PCI_COMMAND_INTX_DISABLE, "UNMASK cleared the device's own disable bit")
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
    """If one user disables INTx in the command register, INTx still arrives for the next user without any
    action by that user."""
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
    """Invalid INTx requests are refused, each with its own errno: masking by eventfd, a second vector, a file
    that is no eventfd, anything but enabling while it is off, and disabling with anything but no data."""
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
        for flags in (EVENTFD_TRIGGER, vfio.SET_DATA_BOOL | vfio.SET_ACTION_TRIGGER):
            t.errno(errno.EINVAL, device.set_irqs, INTX, flags, 0, 0)
        device.trigger(INTX)
        t.equal(event.arrives(), 1, "loopback events after the refused calls")


@case(needs=ANY_INTX, cites="drivers/vfio/pci/vfio_pci_intrs.c __vfio_pci_intx_mask() (masked is no counter)")
def intx_masks_do_not_nest(t: Test) -> None:
    """One UNMASK undoes two MASKs, and one MASK undoes two UNMASKs."""
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
        t.check(event.silent(), "an event after two unmasks and one mask")


@case(needs=ANY_INTX, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_intx_enable() (virq_disabled)")
def intx_enabled_behind_the_disable_bit_waits(t: Test) -> None:
    """An INTx enabled while the INTx disable bit of the command register is set is held back until the bit is
    cleared."""
    with opened_any_edu(t) as (device, one):
        event = Event()
        command = device.read_config(vfio.PCI_COMMAND, 2)
        device.write_config(vfio.PCI_COMMAND, 2, command | vfio.PCI_COMMAND_INTX_DISABLE)
        device.set_eventfds(INTX, event.fd)
        own = pci.config_number(t.device("edu"), vfio.PCI_COMMAND, 2)
        t.check(own & vfio.PCI_COMMAND_INTX_DISABLE, "enabling cleared the device's own disable bit")
        one.raise_irq(1)
        t.check(event.silent(), "an event of an INTx enabled with the disable bit set")
        device.write_config(vfio.PCI_COMMAND, 2, command)
        t.equal(event.arrives(), 1, "events once the bit is cleared")


@case(needs=ANY_INTX, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_intx_set_signal()")
def intx_keeps_its_mask_with_a_new_eventfd(t: Test) -> None:
    """A new eventfd for an INTx leaves it masked: events come only after the unmask, at the new eventfd;
    without any eventfd an interrupt is handled and signals nothing."""
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
        t.check(silent(old, new), "an event after the eventfd was removed")
        device.set_eventfds(INTX, new.fd)
        device.set_irqs(INTX, NONE_UNMASK)
        t.equal(new.arrives(), 1, "events after an eventfd was set again")


@case(
    needs=ANY_INTX,
    cites="drivers/vfio/virqfd.c vfio_virqfd_enable(); pci/vfio_pci_intrs.c vfio_intx_disable()",
)
def intx_has_one_resample_eventfd(t: Test) -> None:
    """A second resample eventfd is EBUSY while one is set and leaves the first working; disabling INTx
    removes it."""
    with opened_any_edu(t) as (device, one):
        event, first, second = Event(), Event(), Event()
        data = [struct.pack("<i", one_of.fd) for one_of in (first, second)]
        device.set_eventfds(INTX, event.fd)
        device.set_irqs(INTX, EVENTFD_UNMASK, data=data[0])
        t.errno(errno.EBUSY, device.set_irqs, INTX, EVENTFD_UNMASK, data=data[1])
        one.raise_irq(1)
        t.equal(event.arrives(), 1, "events for one raise")
        second.signal()
        t.check(event.silent(), "the refused resample eventfd unmasks")
        first.signal()
        t.equal(event.arrives(), 1, "events after signalling the accepted resample eventfd")
        device.disable_irqs(INTX)
        one.ack_irq()
        device.set_eventfds(INTX, event.fd)
        one.raise_irq(1)
        t.equal(event.arrives(), 1, "events for a raise after disabling and enabling INTx")
        first.signal()
        t.check(event.silent(), "the resample eventfd still works after its INTx was disabled")
        libc.eventfd_count(second.fd)
        device.set_irqs(INTX, EVENTFD_UNMASK, data=data[1])
        second.signal()
        t.equal(event.arrives(), 1, "events after signalling a newly set resample eventfd")


@case(needs=ANY_INTX, cites="drivers/vfio/virqfd.c virqfd_wakeup() (EPOLLHUP)")
def closed_resample_eventfd_makes_room_for_another(t: Test) -> None:
    """Closing a resample eventfd removes it and leaves INTx enabled: another one can be set at once, and
    works."""
    with opened_any_edu(t) as (device, one):
        event = Event()
        device.set_eventfds(INTX, event.fd)
        for turn in ("first", "second", "third"):
            resample = Event()
            device.set_irqs(INTX, EVENTFD_UNMASK, data=struct.pack("<i", resample.fd))
            one.raise_irq(1)
            t.equal(event.arrives(), 1, f"events for a raise with the {turn} resample eventfd")
            resample.signal()
            t.equal(
                event.arrives(),
                1,
                f"events after signalling the {turn} resample eventfd with the line still high",
            )
            one.ack_irq()
            resample.signal()
            t.check(
                event.silent(), f"an event after signalling the {turn} resample eventfd with the line low"
            )
            os.close(resample.fd)
