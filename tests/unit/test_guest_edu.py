# SPDX-License-Identifier: GPL-2.0-only
"""The edu driver against a register model of the device written from QEMU's edu.rst."""

from __future__ import annotations

import pytest

from guest import edu

RAM_SIZE = 3 * 4096


class FakeEdu:
    """The registers documented in edu.rst, with `ram` as the memory that DMA reaches.

    `stuck` models a device whose transfers never end.
    """

    def __init__(self) -> None:
        self.ram = bytearray(RAM_SIZE)
        self.buffer = bytearray(edu.BUFFER_SIZE)
        self.registers = {edu.REG_IDENTIFICATION: 0x010000ED}
        self.irqs = 0
        self.stuck = False

    def read32(self, offset: int) -> int:
        if offset == edu.REG_IRQ_STATUS:
            return self.irqs
        return self.registers.get(offset, 0) & 0xFFFFFFFF

    def write32(self, offset: int, value: int) -> None:
        if offset == edu.REG_LIVENESS:
            value = ~value & 0xFFFFFFFF
        elif offset == edu.REG_IRQ_RAISE:
            self.irqs |= value
        elif offset == edu.REG_IRQ_ACK:
            self.irqs &= ~value
        self.registers[offset] = value
        if offset == edu.REG_DMA_COMMAND and not self.stuck:
            self._transfer(value)
            self.registers[offset] = value & ~edu.DMA_RUN

    def write64(self, offset: int, value: int) -> None:
        self.registers[offset] = value

    def _transfer(self, command: int) -> None:
        source, target, count = (self.registers[register] for register in (0x80, 0x88, 0x90))
        if command & edu.DMA_TO_RAM:
            source -= edu.BUFFER_BASE
            self.ram[target : target + count] = self.buffer[source : source + count]
        else:
            target -= edu.BUFFER_BASE
            self.buffer[target : target + count] = self.ram[source : source + count]
        if command & edu.DMA_IRQ:
            self.irqs |= edu.IRQ_DMA


def test_identification_ignores_the_revision() -> None:
    """Any revision of edu is accepted; another device is not."""
    fake = FakeEdu()
    assert edu.Edu(fake).is_edu()
    fake.registers[edu.REG_IDENTIFICATION] = 0x020500ED
    assert edu.Edu(fake).is_edu()
    fake.registers[edu.REG_IDENTIFICATION] = 0xFFFFFFFF
    assert not edu.Edu(fake).is_edu()


def test_round_trip_moves_the_bytes_through_the_buffer() -> None:
    """RAM -> device -> RAM writes the target and nothing else."""
    fake = FakeEdu()
    fake.ram[100:164] = bytes(range(64))
    device = edu.Edu(fake)
    device.copy_from_ram(100, 64, offset=32)
    device.copy_to_ram(8192, 64, offset=32)
    assert fake.ram[8192:8256] == bytes(range(64))
    assert not any(fake.ram[8256:])


def test_interrupt_is_asked_for_only_when_wanted() -> None:
    """A transfer without interrupt raises nothing; one with interrupt raises the DMA cause until
    acknowledged."""
    fake = FakeEdu()
    device = edu.Edu(fake)
    device.copy_from_ram(0, 16)
    assert device.irq_status() == 0
    device.start_to_ram(0, 16, interrupt=True)
    assert device.irq_status() == edu.IRQ_DMA
    device.ack_irq()
    assert device.irq_status() == 0


@pytest.mark.parametrize(("offset", "count"), [(0, 4097), (4096, 1), (-1, 4), (0, 0), (4000, 100)])
def test_a_transfer_may_not_leave_the_buffer(offset: int, count: int) -> None:
    """QEMU would copy out of bounds."""
    fake = FakeEdu()
    with pytest.raises(ValueError, match="leave edu's buffer"):
        edu.Edu(fake).start_from_ram(0, count, offset)
    with pytest.raises(ValueError, match="leave edu's buffer"):
        edu.Edu(fake).start_to_ram(0, count, offset)
    assert edu.REG_DMA_COMMAND not in fake.registers


def test_the_whole_buffer_is_a_legal_transfer() -> None:
    """The limit is the buffer's size, not one byte less."""
    fake = FakeEdu()
    fake.ram[:4096] = b"\x5a" * 4096
    edu.Edu(fake).copy_from_ram(0, 4096)
    assert fake.buffer == fake.ram[:4096]


def test_a_second_transfer_waits_its_turn() -> None:
    """The device ignores writes while it is busy, so programming it then is an error."""
    fake = FakeEdu()
    fake.stuck = True
    device = edu.Edu(fake)
    device.start_from_ram(0, 16)
    with pytest.raises(RuntimeError, match="while a transfer is running"):
        device.start_from_ram(0, 16)


def test_waiting_gives_up() -> None:
    """A transfer that never ends is an error that gives the time waited, not a hang."""
    fake = FakeEdu()
    fake.stuck = True
    device = edu.Edu(fake)
    device.start_from_ram(0, 16)
    with pytest.raises(TimeoutError, match=r"after 0\.02 s"):
        device.wait_dma(0.02)
    fake.registers[edu.REG_STATUS] = edu.STATUS_COMPUTING
    with pytest.raises(TimeoutError, match="still computes 5!"):
        device.factorial(5, timeout=0.02)
