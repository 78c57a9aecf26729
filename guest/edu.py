# SPDX-License-Identifier: GPL-2.0-only
"""Drive QEMU's educational PCI device at register level from user space.

This module knows edu's registers and how to program a transfer, but nothing of VFIO: it takes any object with
32- and 64-bit accessors over BAR0, and passes every address to the device unchanged (a physical address
without an IOMMU, an IOVA behind one).

Register offsets and bits: QEMU's docs/specs/edu.rst and hw/misc/edu.c.
"""

from __future__ import annotations

import time
from typing import Protocol

VENDOR_ID = 0x1234
BAR_SIZE = 0x100000

# Fixed part of the identification register; the upper half carries the revision (0xRRrr00ed).
IDENTIFICATION = 0x00ED
IDENTIFICATION_MASK = 0xFFFF
IDENTIFIES = 0x0100_00ED
"""The whole register, in QEMU's revision of the device."""

REG_IDENTIFICATION = 0x00
REG_LIVENESS = 0x04
REG_FACTORIAL = 0x08
REG_STATUS = 0x20
REG_IRQ_STATUS = 0x24
REG_IRQ_RAISE = 0x60
REG_IRQ_ACK = 0x64
REG_DMA_SOURCE = 0x80
REG_DMA_DESTINATION = 0x88
REG_DMA_COUNT = 0x90
REG_DMA_COMMAND = 0x98

STATUS_COMPUTING = 0x01

IRQ_DMA = 0x100
IRQ_ALL = 0xFFFFFFFF

DMA_RUN = 0x1
DMA_TO_RAM = 0x2
DMA_IRQ = 0x4

BUFFER_BASE = 0x40000
BUFFER_SIZE = 4096

# A transfer takes 100 ms of QEMU's virtual clock (edu.c dma_rw()), and far longer with TCG on a busy host.
DMA_TIMEOUT = 10.0
FACTORIAL_TIMEOUT = 10.0
POLL_INTERVAL = 0.005


class Registers(Protocol):
    """BAR0 as little-endian registers; each call must be one access of exactly that width."""

    def read32(self, offset: int) -> int: ...

    def write32(self, offset: int, value: int) -> None: ...

    def write64(self, offset: int, value: int) -> None: ...


class Edu:
    """One edu device behind BAR0 `registers`.

    The caller enables bus mastering; while it is off, DMA is dropped without an error.
    """

    def __init__(self, registers: Registers) -> None:
        self._registers = registers

    def identification(self) -> int:
        """Return the whole identification register, 0xRRrr00ed with RR.rr the device's version."""
        return self._registers.read32(REG_IDENTIFICATION)

    def is_edu(self) -> bool:
        """Return whether the identification register names an edu."""
        return self.identification() & IDENTIFICATION_MASK == IDENTIFICATION

    def factorial(self, number: int, timeout: float = FACTORIAL_TIMEOUT) -> int:
        """Return `number` factorial modulo 2**32, computed by the device.

        Raises TimeoutError after `timeout` seconds.
        """
        self._registers.write32(REG_FACTORIAL, number)
        deadline = time.monotonic() + timeout
        while self._registers.read32(REG_STATUS) & STATUS_COMPUTING:
            _pause(deadline, f"edu still computes {number}! after {timeout:g} s")
        return self._registers.read32(REG_FACTORIAL)

    def irq_status(self) -> int:
        """Return the interrupt causes that are raised and not yet acknowledged."""
        return self._registers.read32(REG_IRQ_STATUS)

    def raise_irq(self, causes: int = 1) -> None:
        """OR `causes` into the interrupt status, then assert INTx, or send one MSI when MSI is enabled."""
        self._registers.write32(REG_IRQ_RAISE, causes)

    def ack_irq(self, causes: int = IRQ_ALL) -> None:
        """Clear `causes`; INTx is deasserted when no cause is left."""
        self._registers.write32(REG_IRQ_ACK, causes)

    def dma_busy(self) -> bool:
        """Return whether a transfer is running."""
        return bool(self._registers.read32(REG_DMA_COMMAND) & DMA_RUN)

    def start_from_ram(self, address: int, count: int, offset: int = 0, interrupt: bool = False) -> None:
        """Start copying `count` bytes at bus address `address` into the device's buffer at `offset`.

        Raises ValueError if the transfer exceeds the 4096-byte buffer, because QEMU then copies out of
        bounds.
        """
        internal = _buffer_address(offset, count)
        self._start(address, internal, count, DMA_RUN | (DMA_IRQ if interrupt else 0))

    def start_to_ram(self, address: int, count: int, offset: int = 0, interrupt: bool = False) -> None:
        """Start copying `count` bytes of the device's buffer from `offset` on to bus address `address`.

        Raises ValueError as start_from_ram() does.
        """
        internal = _buffer_address(offset, count)
        self._start(internal, address, count, DMA_RUN | DMA_TO_RAM | (DMA_IRQ if interrupt else 0))

    def wait_dma(self, timeout: float = DMA_TIMEOUT) -> None:
        """Return when the transfer is done. Raises TimeoutError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.dma_busy():
            _pause(deadline, f"edu DMA still running after {timeout:g} s")

    def copy_from_ram(self, address: int, count: int, offset: int = 0) -> None:
        """Call start_from_ram(), then wait_dma()."""
        self.start_from_ram(address, count, offset)
        self.wait_dma()

    def copy_to_ram(self, address: int, count: int, offset: int = 0) -> None:
        """Call start_to_ram(), then wait_dma()."""
        self.start_to_ram(address, count, offset)
        self.wait_dma()

    def _start(self, source: int, destination: int, count: int, command: int) -> None:
        if self.dma_busy():
            raise RuntimeError("edu ignores register writes while a transfer is running")
        self._registers.write64(REG_DMA_SOURCE, source)
        self._registers.write64(REG_DMA_DESTINATION, destination)
        self._registers.write64(REG_DMA_COUNT, count)
        self._registers.write32(REG_DMA_COMMAND, command)


def _buffer_address(offset: int, count: int) -> int:
    if offset < 0 or count < 1 or offset + count > BUFFER_SIZE:
        raise ValueError(f"{count} bytes at {offset} leave edu's buffer of {BUFFER_SIZE} bytes")
    return BUFFER_BASE + offset


def _pause(deadline: float, message: str) -> None:
    if time.monotonic() >= deadline:
        raise TimeoutError(message)
    time.sleep(POLL_INTERVAL)
