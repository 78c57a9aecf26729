# SPDX-License-Identifier: GPL-2.0-only
"""Drive the Intel 82576 (QEMU's igb) at register level from user space: loopback DMA and MSI-X causes.

This module knows the registers, the descriptor layouts and how to program them, but nothing of VFIO: it takes
any object with 32-bit accessors over BAR0. A DmaBuffer's address goes to the device unchanged, so without an
IOMMU it must be a physical address.

Registers and bits: Intel 82576 datasheet; the order is that of the kernel's own selftest driver
(tools/testing/selftests/vfio/lib/drivers/igb/igb.c), plus what QEMU's hw/net/igb_core.c requires.
"""

from __future__ import annotations

import struct
import time
from typing import NamedTuple, Protocol

VENDOR_ID = 0x8086
DEVICE_ID = 0x10C9
FUNCTION_IDS = 0x10CA_8086
"""Device and vendor id of a virtual function."""

# QEMU's hw/net/igb.c: IGB_MSIX_VEC_NUM, and the BAR that begins with the vector table.
VECTORS = 10
TABLE_BAR = 3

CTRL = 0x0000
STATUS = 0x0008
CTRL_EXT = 0x0018
MDIC = 0x0020
VET = 0x0038
IMC = 0x00D8
RCTL = 0x0100
TCTL = 0x0400
GPIE = 0x1514
EICS = 0x1520
EIMS = 0x1524
EIMC = 0x1528
EIAC = 0x152C
EIAM = 0x1530
IVAR0 = 0x1700
RDBAL = 0x2800
RDBAH = 0x2804
RDLEN = 0x2808
SRRCTL = 0x280C
RDH = 0x2810
RDT = 0x2818
RXDCTL = 0x2828
TDBAL = 0x3800
TDBAH = 0x3804
TDLEN = 0x3808
TDH = 0x3810
TDT = 0x3818
TXDCTL = 0x3828

CTRL_FD = 1 << 0
CTRL_SLU = 1 << 6
CTRL_SPEED_MASK = 0x300
CTRL_SPEED_1000 = 0x200
CTRL_FRCSPD = 1 << 11
CTRL_FRCDPX = 1 << 12
CTRL_RST = 1 << 26
STATUS_LU = 1 << 1
CTRL_EXT_LINK_MODE_MASK = 0x00C00000
CTRL_EXT_DRV_LOAD = 1 << 28

MDIC_PHY_1 = 1 << 21
MDIC_REG_SHIFT = 16
MDIC_OP_WRITE = 1 << 26
MDIC_READY = 1 << 28
MDIC_ERROR = 1 << 30

# include/uapi/linux/mii.h
MII_BMCR = 0x00
BMCR_SPEED1000 = 0x0040
BMCR_FULLDPLX = 0x0100
BMCR_ANRESTART = 0x0200
BMCR_ANENABLE = 0x1000
BMCR_LOOPBACK = 0x4000

RCTL_EN = 1 << 1
RCTL_UPE = 1 << 3
RCTL_MPE = 1 << 4
RCTL_LBM_MAC = 1 << 6
RCTL_BAM = 1 << 15
RCTL_SECRC = 1 << 26
TCTL_EN = 1 << 1
TCTL_PSP = 1 << 3
SRRCTL_DESCTYPE_ADV_ONEBUF = 0x02000000
QUEUE_ENABLE = 1 << 25

GPIE_MSIX_MODE = 1 << 4
IVAR_VALID = 0x80
ALL_CAUSES = 0xFFFFFFFF

DESCRIPTOR_SIZE = 16
# RDLEN and TDLEN count bytes in units of 128 (82576 datasheet 8.10.7 and 8.12.10).
MIN_DESCRIPTORS = 8
ADVTXD_DTYP_DATA = 0x00300000
ADVTXD_EOP = 1 << 24
ADVTXD_IFCS = 1 << 25
ADVTXD_RS = 1 << 27
ADVTXD_DEXT = 1 << 29
ADVTXD_PAYLEN_SHIFT = 14
RXD_STAT_DD = 1 << 0

# The smallest Ethernet frame without its checksum, and the limit of the kernel's selftest driver.
MIN_FRAME = 60
MAX_FRAME = 1024

TIMEOUT = 10.0
POLL_INTERVAL = 0.005


class Registers(Protocol):
    """BAR0 as 32-bit little-endian registers."""

    def read32(self, offset: int) -> int: ...

    def write32(self, offset: int, value: int) -> None: ...


class DmaBuffer(NamedTuple):
    """Memory the CPU sees as `view` and the device at bus address `address`, contiguous throughout."""

    view: memoryview
    address: int


class Igb:
    """One 82576 function behind BAR0 `registers`; the caller enables memory decoding and bus mastering."""

    def __init__(self, registers: Registers) -> None:
        self._registers = registers

    def reset(self) -> None:
        """Reset the device by CTRL.RST, after which every interrupt cause is masked.

        Raises TimeoutError when CTRL.RST does not clear.
        """
        self._registers.write32(CTRL, self._registers.read32(CTRL) | CTRL_RST)
        time.sleep(0.001)
        self._wait(CTRL, CTRL_RST, 0, "CTRL.RST still set")
        self._registers.write32(IMC, ALL_CAUSES)
        self._registers.write32(EIMC, ALL_CAUSES)

    def enable_vectors(self, causes: int) -> None:
        """Let each bit n of `causes` interrupt through MSI-X vector n, auto-cleared and never auto-masked."""
        self._registers.write32(GPIE, GPIE_MSIX_MODE)
        self._registers.write32(EIAC, causes)
        self._registers.write32(EIAM, 0)
        self._registers.write32(EIMS, causes)

    def disable_vectors(self, causes: int = ALL_CAUSES) -> None:
        """Mask `causes`."""
        self._registers.write32(EIMC, causes)

    def route_receive(self, vector: int) -> None:
        """Deliver receive queue 0's cause through MSI-X vector `vector`."""
        self._registers.write32(IVAR0, IVAR_VALID | vector)

    def raise_causes(self, causes: int) -> None:
        """Software-trigger the extended causes `causes` (EICS): one message per enabled bit."""
        self._registers.write32(EICS, causes)

    def start_loopback(self) -> None:
        """Connect transmitter to receiver inside the device and wait for its link.

        QEMU raises STATUS.LU only from its autonegotiation timer, hence the restart before the loopback bit.
        Raises TimeoutError when the PHY does not answer or the link stays down (an igb with no netdev peer).
        """
        control = self._registers.read32(CTRL_EXT) & ~CTRL_EXT_LINK_MODE_MASK
        self._registers.write32(CTRL_EXT, control | CTRL_EXT_DRV_LOAD)
        self._write_phy(MII_BMCR, BMCR_ANENABLE | BMCR_ANRESTART)
        self._write_phy(MII_BMCR, BMCR_LOOPBACK | BMCR_SPEED1000 | BMCR_FULLDPLX)
        control = self._registers.read32(CTRL) & ~CTRL_SPEED_MASK
        forced = CTRL_FRCSPD | CTRL_FRCDPX | CTRL_SPEED_1000 | CTRL_FD | CTRL_SLU
        self._registers.write32(CTRL, control | forced)
        self._wait(STATUS, STATUS_LU, STATUS_LU, "no link")

    def start_rings(self, transmit: DmaBuffer, receive: DmaBuffer) -> Rings:
        """Set up queue 0's two descriptor rings and enable both directions.

        Raises ValueError for a ring size that the device does not support, TimeoutError when a queue stays
        disabled.
        """
        for ring in (transmit, receive):
            if len(ring.view) % (MIN_DESCRIPTORS * DESCRIPTOR_SIZE) or not len(ring.view):
                raise ValueError(f"a ring of {len(ring.view)} bytes: must be a multiple of 128")
        self._program_ring(transmit, TDBAL, TDBAH, TDLEN, TDH, TDT)
        self._registers.write32(TXDCTL, QUEUE_ENABLE)
        self._program_ring(receive, RDBAL, RDBAH, RDLEN, RDH, RDT)
        self._registers.write32(SRRCTL, SRRCTL_DESCTYPE_ADV_ONEBUF)
        self._registers.write32(RXDCTL, QUEUE_ENABLE)
        accept = RCTL_EN | RCTL_UPE | RCTL_MPE | RCTL_BAM
        self._registers.write32(RCTL, accept | RCTL_LBM_MAC | RCTL_SECRC)
        self._registers.write32(TCTL, TCTL_EN | TCTL_PSP)
        self._wait(TXDCTL, QUEUE_ENABLE, QUEUE_ENABLE, "transmit queue 0 stays disabled")
        self._wait(RXDCTL, QUEUE_ENABLE, QUEUE_ENABLE, "receive queue 0 stays disabled")
        return Rings(self._registers, transmit, receive)

    def stop(self) -> None:
        """Disable both directions; no descriptor is fetched afterwards."""
        self._registers.write32(RCTL, 0)
        self._registers.write32(TCTL, 0)

    def _program_ring(self, ring: DmaBuffer, low: int, high: int, length: int, head: int, tail: int) -> None:
        self._registers.write32(low, ring.address & 0xFFFFFFFF)
        self._registers.write32(high, ring.address >> 32)
        self._registers.write32(length, len(ring.view))
        self._registers.write32(head, 0)
        self._registers.write32(tail, 0)

    def _write_phy(self, register: int, value: int) -> None:
        command = value | register << MDIC_REG_SHIFT | MDIC_PHY_1 | MDIC_OP_WRITE
        self._registers.write32(MDIC, command)
        self._wait(MDIC, MDIC_READY, MDIC_READY, "the PHY does not answer")
        if self._registers.read32(MDIC) & MDIC_ERROR:
            raise OSError(f"the PHY refused register {register:#x}")

    def _wait(self, register: int, mask: int, value: int, message: str) -> None:
        deadline = time.monotonic() + TIMEOUT
        while self._registers.read32(register) & mask != value:
            if time.monotonic() >= deadline:
                raise TimeoutError(f"igb: {message} after {TIMEOUT:g} s")
            time.sleep(POLL_INTERVAL)


class Rings:
    """Queue 0's transmit and receive rings while they run; Igb.start_rings() makes one."""

    def __init__(self, registers: Registers, transmit: DmaBuffer, receive: DmaBuffer) -> None:
        self._registers = registers
        self._transmit = transmit
        self._receive = receive
        self._transmit_tail = 0
        self._receive_tail = 0

    def post(self, source: int, destination: int, size: int) -> int:
        """Send the `size` bytes at bus address `source`; receive them at bus address `destination`.

        Returns the receive slot, for received(). Raises ValueError for a size outside one frame.
        """
        if not MIN_FRAME <= size <= MAX_FRAME:
            raise ValueError(f"a frame of {size} bytes: must be {MIN_FRAME} to {MAX_FRAME}")
        slot = self._receive_tail
        _put(self._receive, slot, receive_descriptor(destination))
        _put(self._transmit, self._transmit_tail, transmit_descriptor(source, size))
        self._receive_tail = (slot + 1) % _slots(self._receive)
        self._transmit_tail = (self._transmit_tail + 1) % _slots(self._transmit)
        self._registers.write32(RDT, self._receive_tail)
        self._registers.write32(TDT, self._transmit_tail)
        return slot

    def received(self, slot: int) -> int | None:
        """Return the bytes received in slot `slot`, None until the device has written the descriptor back."""
        start = slot * DESCRIPTOR_SIZE
        return receive_length(bytes(self._receive.view[start : start + DESCRIPTOR_SIZE]))

    def wait_received(self, slot: int, timeout: float = TIMEOUT) -> int:
        """Wait until received() has an answer and return it. Raises TimeoutError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            length = self.received(slot)
            if length is not None:
                return length
            if time.monotonic() >= deadline:
                raise TimeoutError(f"igb: receive descriptor {slot} not written back after {timeout:g} s")
            time.sleep(POLL_INTERVAL)


def transmit_descriptor(source: int, size: int) -> bytes:
    """Return an advanced data descriptor (82576 datasheet 7.2.2.3) for one whole frame."""
    command = size | ADVTXD_DTYP_DATA | ADVTXD_DEXT | ADVTXD_IFCS | ADVTXD_EOP | ADVTXD_RS
    return struct.pack("<QII", source, command, size << ADVTXD_PAYLEN_SHIFT)


def receive_descriptor(destination: int) -> bytes:
    """Return an advanced one-buffer receive descriptor in its read format (82576 datasheet 7.1.5.1)."""
    return struct.pack("<QQ", destination, 0)


def receive_length(descriptor: bytes) -> int | None:
    """Return the frame length of a written-back receive descriptor (82576 datasheet 7.1.5.2), None before
    that."""
    _packet, _header, _hash, status, length, _vlan = struct.unpack("<HHIIHH", descriptor)
    return int(length) if status & RXD_STAT_DD else None


def _slots(ring: DmaBuffer) -> int:
    return len(ring.view) // DESCRIPTOR_SIZE


def _put(ring: DmaBuffer, slot: int, descriptor: bytes) -> None:
    start = slot * DESCRIPTOR_SIZE
    ring.view[start : start + DESCRIPTOR_SIZE] = descriptor
