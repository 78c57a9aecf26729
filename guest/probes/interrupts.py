# SPDX-License-Identifier: GPL-2.0-only
"""Interrupts of every type: IRQ_INFO, setup, and loopback triggers, which need no device."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
from collections.abc import Iterator

from guest import libc, pci, vfio
from guest.brink import Brink
from guest.case import Test, case
from guest.opened import Event, opened, opened_any_edu, silent
from guest.vfio import ERR, INTX, MSI, MSIX, REQ

EDU = ("noiommu", "edu", "!viommu")
ANY = ("edu", "!mixed")

BOOL_TRIGGER = vfio.SET_DATA_BOOL | vfio.SET_ACTION_TRIGGER

TRIGGERS = 300

# include/uapi/linux/pci_regs.h
BRIDGE_CONTROL, FORWARD_ERRORS = 0x3E, 0x02
COMMAND_TELL_ERRORS = 0x100
EXPRESS_DEVCTL, TELL_NON_FATAL = 8, 0x02

REPORTER = "balloon0"
"""The id of the device in topology aer."""


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_get_irq_info()")
def irq_info_of_edu(t: Test) -> None:
    """edu has one maskable, automasked INTx, one MSI that cannot be resized, no MSI-X, and the two interrupts
    that VFIO adds; a sixth index is refused."""
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


@case(
    needs=EDU,
    cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_pci_set_intx_trigger(), vfio_pci_set_msi_trigger()",
)
def one_kind_of_interrupt_at_a_time(t: Test) -> None:
    """MSI is refused while INTx is enabled, and INTx while MSI is; after one is disabled the other can be
    enabled."""
    with opened(t, t.device("edu")) as device:
        first, second = Event(), Event()
        device.set_eventfds(INTX, first.fd)
        t.errno(errno.EINVAL, device.set_eventfds, MSI, second.fd)
        device.disable_irqs(INTX)
        device.set_eventfds(MSI, second.fd)
        t.errno(errno.EINVAL, device.set_eventfds, INTX, first.fd)
        device.trigger(MSI)
        t.equal(second.arrives(), 1, "loopback events of MSI")
        device.disable_irqs(MSI)
        t.errno(errno.EINVAL, device.trigger, MSI)
        device.set_eventfds(INTX, first.fd)
        device.trigger(INTX)
        t.equal(first.arrives(), 1, "loopback events of INTx")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_pci_set_ctx_trigger_single()")
def loopback_signals_without_the_device(t: Test) -> None:
    """TRIGGER without data, or with a nonzero byte, signals the eventfd of any interrupt; a zero byte does
    not."""
    with opened(t, t.device("edu")) as device:
        for index in (INTX, MSI, ERR, REQ):
            event = Event()
            device.set_eventfds(index, event.fd)
            device.trigger(index)
            t.equal(event.arrives(), 1, f"events of interrupt {index} from TRIGGER without data")
            device.set_irqs(index, BOOL_TRIGGER, data=b"\1")
            t.equal(event.arrives(), 1, f"events of interrupt {index} from TRIGGER with a nonzero byte")
            device.set_irqs(index, BOOL_TRIGGER, data=b"\0")
            t.check(event.silent(), f"TRIGGER with a zero byte signalled interrupt {index}")
            device.disable_irqs(index)
            t.errno(errno.EINVAL, device.trigger, index)


@case(
    needs=EDU, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_intx_set_signal(), vfio_msi_set_vector_signal()"
)
def new_eventfd_replaces_the_old(t: Test) -> None:
    """Setting another eventfd for an enabled interrupt moves its events there; the old one gets no more."""
    with opened(t, t.device("edu")) as device:
        for index in (INTX, MSI, REQ):
            old, new = Event(), Event()
            device.set_eventfds(index, old.fd)
            device.set_eventfds(index, new.fd)
            device.trigger(index)
            t.equal(new.arrives(), 1, f"events of interrupt {index} at the new eventfd")
            t.check(old.silent(), f"the old eventfd of interrupt {index} was signalled")
            device.disable_irqs(index)


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_pci_set_ctx_trigger_single() (fd == -1)")
def minus_one_takes_the_eventfd_away(t: Test) -> None:
    """Setting -1 removes the eventfd of an interrupt that VFIO adds, which gets no more events, and TRIGGER
    is then EINVAL; any other negative number is EINVAL and removes nothing."""
    with opened(t, t.device("edu")) as device:
        for index in (ERR, REQ):
            event = Event()
            device.set_eventfds(index, event.fd)
            t.errno(errno.EINVAL, device.set_eventfds, index, -2)
            device.trigger(index)
            t.equal(event.arrives(), 1, f"events of interrupt {index} after the refused change")
            device.set_eventfds(index, -1)
            t.errno(errno.EINVAL, device.trigger, index)
            t.check(event.silent(), f"the eventfd removed from interrupt {index} was signalled")


@case(
    needs=ANY,
    cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_pci_set_ctx_trigger_single() (eventfd_ctx_fdget())",
)
def interrupt_keeps_its_own_reference(t: Test) -> None:
    """After the eventfd of an enabled interrupt is closed, its duplicate still gets events, a new eventfd
    with the same number gets none, and setting the new one moves the events to it."""
    with opened_any_edu(t) as (device, _one):
        for index in (INTX, MSI, REQ):
            event = Event()
            number, copy = event.fd, os.dup(event.fd)
            device.set_eventfds(index, number)
            os.close(number)
            heir = Event()
            t.equal(heir.fd, number, "the descriptor number of the next eventfd")
            device.trigger(index)
            t.equal(libc.eventfd_count(copy), 1, f"events of interrupt {index} at the duplicate")
            os.close(copy)
            device.trigger(index)
            t.equal(
                libc.eventfd_count(heir.fd),
                0,
                f"events of interrupt {index} at the unrelated eventfd of the same number",
            )
            device.set_eventfds(index, heir.fd)
            device.trigger(index)
            t.equal(libc.eventfd_count(heir.fd), 1, f"events of interrupt {index} at the new eventfd")
            device.disable_irqs(index)


def _fire(device: vfio.Device, index: int) -> None:
    for _ in range(TRIGGERS):
        device.trigger(index)


@case(needs=(*ANY, "smp"), cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_pci_set_msi_trigger() (igate)")
def signals_are_neither_lost_nor_doubled(t: Test) -> None:
    """While one task moves an enabled interrupt between two eventfds and another triggers it, every trigger
    reaches exactly one of them."""
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
                sum(counts),
                TRIGGERS,
                f"signals of interrupt {index} in both eventfds after {moves} moves: {counts}",
            )
            device.disable_irqs(index)


@case(
    needs=(*ANY, "intx"),
    cites="drivers/vfio/vfio_main.c vfio_unregister_group_dev(); pci/vfio_pci_core.c vfio_pci_core_disable()",
)
def interrupts_go_on_while_an_unbind_waits(t: Test) -> None:
    """While an unbind waits for the user, interrupts already set up fire and new ones can be set up, until
    the user closes the device."""
    bdf = t.device("edu")
    with opened_any_edu(t) as (device, one):
        event, request, line = Event(), Event(), Event()
        device.set_bus_master()
        device.set_eventfds(MSI, event.fd)
        device.set_eventfds(REQ, request.fd)
        unbind = pci.start_unbind(bdf)
        t.check(request.arrives(), "the unbind did not signal the REQ eventfd")
        one.raise_irq(1)
        t.equal(event.arrives(), 1, "MSIs while the unbind waits")
        one.ack_irq()
        device.disable_irqs(MSI)
        device.set_eventfds(INTX, line.fd)
        one.raise_irq(1)
        t.equal(line.arrives(), 1, "INTx set up while the unbind waits")
        t.check(not unbind.done, "the unbind did not wait for the user")
    unbind.wait()


@case(needs=EDU, cites="drivers/vfio/vfio_main.c vfio_set_irqs_validate_and_prepare()")
def set_irqs_counts_in_32_bits(t: Test) -> None:
    """SET_IRQS refuses every start and count outside the interrupts that exist, even if their sum overflows,
    and data cut short by argsz or unmapped memory; the interrupt set up before stays."""
    with opened(t, t.device("edu")) as device, Brink() as edge:
        event = Event()
        fd = struct.pack("<i", event.fd)
        device.set_eventfds(vfio.MSI, event.fd)
        eventfd = vfio.SET_DATA_EVENTFD | vfio.SET_ACTION_TRIGGER
        none = vfio.SET_DATA_NONE | vfio.SET_ACTION_TRIGGER
        most = 0xFFFFFFFF
        for start, count in (
            (0, 2),
            (1, 0),
            (1, 1),
            (0, most),
            (most, 0),
            (most, 1),
            (1, most),
            (2, most - 1),
        ):
            t.errno(errno.EINVAL, device.set_irqs, vfio.MSI, none, start, count)
            t.errno(errno.EINVAL, device.set_irqs, vfio.MSI, eventfd, start, count, fd * 2)
        for index in (5, 6, 1 << 31, most):
            t.errno(errno.EINVAL, device.set_irqs, index, none)
        for flags in (vfio.SET_ACTION_TRIGGER, 3 | vfio.SET_ACTION_TRIGGER, 7, none | 1 << 31):
            t.errno(errno.EINVAL, device.set_irqs, vfio.MSI, flags, 0, 1, fd)
        t.errno(errno.ENOTTY, device.set_irqs, vfio.MSI, vfio.SET_DATA_NONE)
        t.errno(errno.EINVAL, device.set_irqs, vfio.MSI, eventfd, 0, 1, fd[:3])
        cut = edge.put(vfio.IrqSet(argsz=24, flags=eventfd, index=vfio.MSI, count=1))
        t.errno(errno.EFAULT, libc.ioctl, device.fd, vfio.DEVICE_SET_IRQS, cut)
        device.trigger(vfio.MSI)
        t.equal(event.arrives(), 1, "loopback events after all refused calls")


@contextlib.contextmanager
def _errors_come_through(bdf: str) -> Iterator[None]:
    """Have the port above *bdf* forward its errors, as firmware would have set it up."""
    port = pci.path_of(bdf).resolve().parent.name
    before: dict[int, int] = {}
    for where, bit in ((vfio.PCI_COMMAND, COMMAND_TELL_ERRORS), (BRIDGE_CONTROL, FORWARD_ERRORS)):
        before[where] = pci.config_number(port, where, 2)
        pci.write_config(port, where, struct.pack("<H", before[where] | bit))
    try:
        yield
    finally:
        for where, value in before.items():
            pci.write_config(port, where, struct.pack("<H", value))


@case(
    needs=("noiommu", "aer", "!viommu"),
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_aer_err_detected(); include/uapi/linux/vfio.h "
    "VFIO_PCI_ERR_IRQ_INDEX",
    timeout=45,
)
def error_of_the_device_is_told(t: Test) -> None:
    """An uncorrectable error reported by a PCI Express device signals its user's ERR eventfd and no other,
    once per error, until the eventfd is removed, and the device keeps working."""
    bdf = t.device("virtio-balloon")
    control = pci.capability(bdf, pci.CAP_EXPRESS) + EXPRESS_DEVCTL
    with opened(t, bdf) as device, _errors_come_through(bdf):
        error, request = Event(), Event()
        device.set_eventfds(ERR, error.fd)
        device.set_eventfds(REQ, request.fd)
        for where, bit in ((vfio.PCI_COMMAND, COMMAND_TELL_ERRORS), (control, TELL_NON_FATAL)):
            device.write_config(where, 2, device.read_config(where, 2) | bit)
        identity = device.read_config(vfio.PCI_VENDOR_ID, 4)
        for _ in range(2):
            t.host.error(REPORTER)
            t.equal(error.arrives(), 1, "events after an error of the device")
        device.disable_irqs(ERR)
        t.host.error(REPORTER)
        t.check(silent(error, request), "an error signalled the removed ERR eventfd or the REQ eventfd")
        t.equal(
            device.read_config(vfio.PCI_VENDOR_ID, 4), identity, "vendor and device ID after three errors"
        )
