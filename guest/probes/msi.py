# SPDX-License-Identifier: GPL-2.0-only
"""MSI and MSI-X, the vectors that a device signals by writing: edu's one and igb's ten."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from guest import edu, igb, libc, memory, pci, vfio
from guest.case import Test, case
from guest.memory import PAGE
from guest.opened import Event, opened, opened_any_edu, opened_edu, opened_igb, silent, through_cdev
from guest.vfio import INTX, MSI, MSIX

EDU = ("noiommu", "edu", "!viommu")
IGB = ("noiommu", "igb", "!viommu")
ANY = ("edu", "!mixed")

NONE_TRIGGER = vfio.SET_DATA_NONE | vfio.SET_ACTION_TRIGGER
BOOL_TRIGGER = vfio.SET_DATA_BOOL | vfio.SET_ACTION_TRIGGER
NONE_MASK = vfio.SET_DATA_NONE | vfio.SET_ACTION_MASK
NONE_UNMASK = vfio.SET_DATA_NONE | vfio.SET_ACTION_UNMASK


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_msihandler(); QEMU docs/specs/edu.rst")
def each_msi_is_an_event(t: Test) -> None:
    """An MSI is not masked by its delivery: every raise is one more event, and INTx does not fire."""
    with opened_edu(t) as (device, one):
        event = Event()
        device.set_eventfds(MSI, event.fd)
        device.set_bus_master()
        t.check(event.silent(), "an event before the device raised anything")
        for cause in (1, 2, 4):
            one.raise_irq(cause)
            t.equal(event.arrives(), 1, "events for one raise")


@case(
    needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_enable(); PCI Local Bus 3.0 section 6.8"
)
def msi_needs_bus_master(t: Test) -> None:
    """An MSI is a write by the device: it is lost with bus mastering off and arrives with it on."""
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
        t.check(event.silent(), "an MSI arrived after bus mastering was turned off again")


@case(needs=EDU, cites="drivers/vfio/vfio_main.c vfio_set_irqs_validate_and_prepare(); pci/vfio_pci_intrs.c")
def msi_refusals(t: Test) -> None:
    """edu has one MSI vector: a second vector, masking, files that are no eventfds and a trigger before
    enabling are refused, and a refused request leaves MSI disabled."""
    with opened(t, t.device("edu")) as device:
        event = Event()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        t.errno(errno.EINVAL, device.trigger, MSI)
        t.errno(errno.EINVAL, device.set_eventfds, MSI, event.fd, event.fd)
        t.errno(errno.EINVAL, device.set_eventfds, MSI, event.fd, start=1)
        t.errno(errno.EBADF, device.set_eventfds, MSI, 999)
        t.errno(errno.EINVAL, device.set_eventfds, MSI, null)
        t.errno(errno.EINVAL, device.set_eventfds, MSIX, event.fd)
        device.set_eventfds(INTX, event.fd)  # refused if MSI were half enabled
        device.disable_irqs(INTX)
        device.set_eventfds(MSI, event.fd)
        t.errno(errno.ENOTTY, device.set_irqs, MSI, NONE_MASK)
        t.errno(errno.ENOTTY, device.set_irqs, MSI, NONE_UNMASK)
        device.trigger(MSI)
        t.equal(event.arrives(), 1, "loopback events after the refused calls")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_disable()")
def interrupt_line_goes_with_the_file(t: Test) -> None:
    """An enabled MSI has a line in /proc/interrupts until its user closes the device."""
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
    """A transfer with an interrupt raises its MSI when the data is in memory; one without raises none."""
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
        t.equal(buffer.read(PAGE, 512), data, "memory when the event arrived")
        t.equal(one.irq_status(), edu.IRQ_DMA, "interrupt causes")


@case(needs=(*ANY, "intx"), cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_msi_enable(), vfio_msi_disable()")
def msi_survives_going_off_and_on(t: Test) -> None:
    """However often MSI is disabled and enabled, with INTx in between, each raise reaches the eventfd set at
    that time, and no raise arrives while it is disabled."""
    with opened_any_edu(t) as (device, one):
        last = Event()
        device.set_bus_master()
        for turn in range(3):
            event, line = Event(), Event()
            device.set_eventfds(MSI, event.fd)
            one.raise_irq(1)
            t.equal(event.arrives(), 1, f"MSIs in round {turn}")
            one.ack_irq()
            device.disable_irqs(MSI)
            device.set_eventfds(INTX, line.fd)
            one.raise_irq(1)
            t.equal(line.arrives(), 1, f"INTx in round {turn}")
            one.ack_irq()
            device.disable_irqs(INTX)
            t.check(silent(event, last), f"an event at an earlier eventfd in round {turn}")
            last = event


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_get_irq_info()")
def msix_can_be_resized(t: Test) -> None:
    """The number of enabled MSI-X vectors of igb can grow up to ten: IRQ_INFO sets NORESIZE for its MSI but
    not for its MSI-X."""
    with opened(t, t.device("igb")) as device:
        info = device.irq_info(MSIX)
        t.equal((info.flags, info.count), (vfio.IRQ_EVENTFD, igb.VECTORS), "flags and count of MSI-X")
        t.check(device.irq_info(MSI).flags & vfio.IRQ_NORESIZE, "MSI claims to be resizable")


@case(
    needs=IGB, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_msi_set_block(); 82576 datasheet 7.3", timeout=60
)
def msix_vectors_are_independent(t: Test) -> None:
    """An interrupt cause of the device signals the eventfd of its own vector and no other."""
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
        t.check(events[1].silent(), "an event of a cause masked in the device")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_msi_alloc_irq()", timeout=45)
def msix_grows_while_enabled(t: Test) -> None:
    """Vectors can be added after MSI-X is enabled without disturbing the first ones, up to the size of the
    table and no further."""
    with opened_igb(t) as (device, card):
        first, last = Event(), Event()
        device.set_eventfds(MSIX, first.fd)
        card.enable_vectors(1 | 1 << igb.VECTORS - 1)
        t.errno(errno.EINVAL, device.set_eventfds, MSIX, last.fd, start=igb.VECTORS)
        t.errno(errno.EINVAL, device.set_eventfds, MSIX, last.fd, last.fd, start=igb.VECTORS - 1)
        device.set_eventfds(MSIX, last.fd, start=igb.VECTORS - 1)
        card.raise_causes(1 << igb.VECTORS - 1)
        t.equal(last.arrives(), 1, "events of the added vector")
        t.check(first.silent(), "the first vector was signalled with the added one")
        card.raise_causes(1)
        t.equal(first.arrives(), 1, "events of the first vector after growing")
        device.set_eventfds(MSIX, -1, start=igb.VECTORS - 1)
        card.raise_causes(1 << igb.VECTORS - 1)
        t.check(last.silent(), "an event of the removed vector")
        card.raise_causes(1)
        t.equal(first.arrives(), 1, "events of the first vector after another was removed")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_msi_set_block()", timeout=45)
def msix_refusals(t: Test) -> None:
    """A bad file among the eventfds refuses the whole request and disables its vectors; masking is not
    supported; a vector without an eventfd ignores TRIGGER."""
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
        t.check(silent(one, two), "TRIGGER of a vector without eventfd signalled another")
        t.errno(errno.EINVAL, device.set_eventfds, MSIX, two.fd, null, start=2)
        card.raise_causes(0b100)
        t.check(two.silent(), "an event of a vector in the refused request")
        card.raise_causes(0b001)
        t.equal(one.arrives(), 1, "events of a vector outside the refused request")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_msi_set_vector_signal()", timeout=45)
def vectors_may_share_an_eventfd(t: Test) -> None:
    """The events of two vectors with the same eventfd add up in it."""
    with opened_igb(t) as (device, card):
        both = Event()
        device.set_eventfds(MSIX, both.fd, both.fd)
        card.enable_vectors(0b11)
        card.raise_causes(0b11)
        t.equal(both.arrives(), 2, "events of two vectors in one eventfd")
        device.set_eventfds(MSIX, -1)
        card.raise_causes(0b11)
        t.equal(both.arrives(), 1, "events after one of the two vectors was removed")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_pci_set_msi_trigger() (bools, start, count)")
def loopback_picks_its_vectors(t: Test) -> None:
    """A TRIGGER of several vectors signals those in its range, and with bytes those whose byte is nonzero; a
    range past the table is refused and signals none."""
    with opened_igb(t) as (device, _card):
        events = [Event() for _ in range(igb.VECTORS)]
        device.set_eventfds(MSIX, *(event.fd for event in events))

        def counts() -> list[int]:
            return [libc.eventfd_count(event.fd) for event in events]

        device.set_irqs(MSIX, NONE_TRIGGER, 2, 3)
        t.equal(counts(), [0, 0, 1, 1, 1, 0, 0, 0, 0, 0], "events of vectors 2 to 4")
        device.set_irqs(MSIX, BOOL_TRIGGER, 5, 4, b"\1\0\0\x80")
        t.equal(counts(), [0, 0, 0, 0, 0, 1, 0, 0, 1, 0], "events of vectors 5 and 8")
        t.errno(errno.EINVAL, device.set_irqs, MSIX, NONE_TRIGGER, 8, 3)
        t.errno(errno.EINVAL, device.set_irqs, MSIX, BOOL_TRIGGER, 0, 4, b"\1\1\1")
        t.equal(counts(), [0] * igb.VECTORS, "events after two refused calls")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_msi_enable(), vfio_msi_disable()", timeout=45)
def msix_and_msi_take_turns(t: Test) -> None:
    """MSI is refused while MSI-X is enabled and the other way round; after switching, the earlier vectors are
    gone and the newly set up ones fire."""
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
        t.equal(second.arrives(), 1, "events of the one vector set up")
        t.check(silent(first, third), "an event at an earlier eventfd")


@case(needs=(*IGB, "edu"), cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_memory_unlock_and_restore()")
def vectors_leave_memory_decoding_off(t: Test) -> None:
    """MSI, and MSI-X whose table is in a BAR, can be set up, changed and disabled while memory decoding is
    off, and it stays off in the device after each step."""
    for kind, index in (("edu", MSI), ("igb", MSI), ("igb", MSIX)):
        bdf = t.device(kind)
        with opened(t, bdf) as device:
            command = device.read_config(vfio.PCI_COMMAND, 2)
            device.write_config(vfio.PCI_COMMAND, 2, command & ~vfio.PCI_COMMAND_MEMORY)
            event = Event()
            for fd in (event.fd, -1, event.fd):
                device.set_eventfds(index, fd)
                own = pci.config_number(bdf, vfio.PCI_COMMAND, 2)
                t.check(
                    not own & vfio.PCI_COMMAND_MEMORY,
                    f"{kind} decodes memory after interrupt {index} was set up",
                )
            device.trigger(index)
            t.equal(event.arrives(), 1, f"loopback events of interrupt {index} of {kind}")
            device.disable_irqs(index)
            own = pci.config_number(bdf, vfio.PCI_COMMAND, 2)
            t.check(
                not own & vfio.PCI_COMMAND_MEMORY,
                f"{kind} decodes memory after interrupt {index} was disabled",
            )


def _lines_of(name: str) -> list[str]:
    return [
        line for line in Path("/proc/interrupts").read_text(encoding="ascii").splitlines() if name in line
    ]


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_rdwr.c vfio_pci_bar_rw(); PCI Local Bus 3.0 section 6.8.2")
def msix_table_is_out_of_reach(t: Test) -> None:
    """The MSI-X capability describes the ten vectors that IRQ_INFO counts; through the file, the vector table
    reads as ones and ignores writes, so that an enabled vector keeps working, while the rest of that BAR is
    accessible."""
    with opened(t, t.device("igb")) as device, device.bar() as bar:
        cap = pci.capability(t.device("igb"), pci.CAP_MSIX)
        control, table = device.read_config(cap + 2, 2), device.read_config(cap + 4, 4)
        t.equal((control & 0x7FF) + 1, igb.VECTORS, "size of the vector table")
        t.equal(device.irq_info(MSIX).count, igb.VECTORS, "vectors according to IRQ_INFO")
        t.equal(table & 7, igb.TABLE_BAR, "the BAR of the vector table")
        start = device.region(igb.TABLE_BAR).offset + (table & ~7)
        t.equal(
            os.pread(device.fd, 16 * igb.VECTORS, start),
            b"\xff" * 16 * igb.VECTORS,
            "the table read through the file",
        )
        pending = device.read_config(cap + 8, 4)
        t.equal(pending & 7, igb.TABLE_BAR, "the BAR of the pending bits")
        behind = os.pread(device.fd, 8, device.region(igb.TABLE_BAR).offset + (pending & ~7))
        t.equal(behind, bytes(8), "the pending bits, which are behind the table")
        event, card = Event(), igb.Igb(bar)
        device.set_bus_master()
        device.set_eventfds(MSIX, event.fd)
        t.equal(
            os.pwrite(device.fd, bytes(16), start),
            16,
            "bytes of the table's first entry written through the file",
        )
        card.enable_vectors(1)
        card.raise_causes(1)
        t.equal(event.arrives(), 1, "events of a vector after a write to its table entry through the file")
