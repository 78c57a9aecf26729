# SPDX-License-Identifier: GPL-2.0-only
"""Device DMA without an IOMMU: QEMU's igb sends frames to itself by physical address."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import NamedTuple

from guest import igb, memory
from guest.case import Test, case
from guest.memory import PAGE
from guest.opened import CdevUser, Event, dma_buffer, through_cdev
from guest.vfio import MSIX

LOOPBACK = ("noiommu-cdev", "igb", "!viommu")

IOVA = 0x4000_0000
# The IEEE 802 ethertype for local experiments: nothing interprets such a frame.
ETHERTYPE = b"\x88\xb5"


class _Loop(NamedTuple):
    """The rings and pages of a card in loopback: page 0 has the rings, page 1 the source, page 2 the
    target."""

    card: igb.Igb
    rings: igb.Rings
    buffer: memory.Buffer
    source: int
    target: int


def _frame(t: Test, size: int) -> bytes:
    body = bytes(t.random.randrange(256) for _ in range(size - 14))
    return b"\x02\0\0\0\0\1" + b"\x02\0\0\0\0\2" + ETHERTYPE + body


@contextlib.contextmanager
def _loop(user: CdevUser, *, bus_master: bool = True) -> Iterator[_Loop]:
    with user.device.bar() as bar, memory.anonymous(3 * PAGE) as buffer:
        buffer.fill(0)
        user.map(buffer, IOVA)
        rings, source, target = (user.physical(IOVA + n * PAGE, PAGE) for n in range(3))
        user.device.set_bus_master(bus_master)
        card = igb.Igb(bar)
        card.reset()
        card.start_loopback()
        ring = igb.MIN_DESCRIPTORS * igb.DESCRIPTOR_SIZE
        whole = dma_buffer(buffer, rings)
        transmit = igb.DmaBuffer(whole.view[:ring], rings)
        receive = igb.DmaBuffer(whole.view[ring : 2 * ring], rings + ring)
        try:
            running = card.start_rings(transmit, receive)
            yield _Loop(card=card, rings=running, buffer=buffer, source=source, target=target)
        finally:
            card.stop()
            card.reset()


@case(
    needs=LOOPBACK,
    cites="drivers/iommu/iommufd/ioas.c iommufd_ioas_noiommu_get_pa(); 82576 datasheet 7.1, 7.2",
    timeout=60,
)
def frames_by_physical_address(t: Test) -> None:
    """Descriptors and frames that igb reads and writes at the addresses from GET_PA carry the data of the
    mapped pages, for more frames than a ring has slots."""
    with through_cdev(t.device("igb")) as user, _loop(user) as loop:
        for number in range(igb.MIN_DESCRIPTORS + 3):
            size = t.random.randrange(igb.MIN_FRAME, igb.MAX_FRAME + 1)
            frame = _frame(t, size)
            loop.buffer.write(frame, PAGE)
            loop.buffer.write(bytes(PAGE), 2 * PAGE)
            length = loop.rings.wait_received(loop.rings.post(loop.source, loop.target, size))
            t.equal(length, size, f"length of frame {number}")
            t.check(loop.buffer.read(2 * PAGE, size) == frame, f"frame {number} differs from what was sent")
            t.check(
                not any(loop.buffer.read(2 * PAGE + size, PAGE - size)), f"frame {number} wrote past its end"
            )


@case(
    needs=LOOPBACK,
    cites="drivers/vfio/pci/vfio_pci_intrs.c vfio_msihandler(); 82576 datasheet 7.3.1.2",
    timeout=60,
)
def frame_announces_itself(t: Test) -> None:
    """A received frame signals the MSI-X vector of its queue once, when the data is already in memory."""
    with through_cdev(t.device("igb")) as user, _loop(user) as loop:
        quiet, event = Event(), Event()
        user.device.set_eventfds(MSIX, quiet.fd, event.fd)
        loop.card.enable_vectors(0b11)
        loop.card.route_receive(1)
        t.check(event.silent(), "an event before any frame")
        frame = _frame(t, 256)
        loop.buffer.write(frame, PAGE)
        slot = loop.rings.post(loop.source, loop.target, 256)
        t.equal(event.arrives(), 1, "events of one frame")
        t.equal(loop.rings.received(slot), 256, "the length in the ring when the event arrived")
        t.equal(loop.buffer.read(2 * PAGE, 256), frame, "the frame received")
        t.check(quiet.silent(), "a vector with no cause routed to it was signalled")


@case(needs=LOOPBACK, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_enable()", timeout=60)
def no_frame_without_bus_master(t: Test) -> None:
    """With bus mastering off the card reads no descriptor and writes no frame."""
    with through_cdev(t.device("igb")) as user, _loop(user) as loop:
        frame = _frame(t, 128)
        loop.buffer.write(frame, PAGE)
        loop.rings.wait_received(loop.rings.post(loop.source, loop.target, 128))
        user.device.set_bus_master(False)
        loop.buffer.write(bytes(PAGE), 2 * PAGE)
        slot = loop.rings.post(loop.source, loop.target, 128)
        time.sleep(0.5)
        t.equal(loop.rings.received(slot), None, "the length in the ring with bus mastering off")
        t.check(not any(loop.buffer.read(2 * PAGE, PAGE)), "a frame was stored with bus mastering off")
