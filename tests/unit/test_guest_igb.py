# SPDX-License-Identifier: GPL-2.0-only
"""The igb driver against a register model of the device: order, layout and refusals."""

from __future__ import annotations

import struct

import pytest

from guest import igb

RING_BYTES = 8 * igb.DESCRIPTOR_SIZE


class FakeIgb:
    """Registers that keep their values, are ready at once, and never loop back a frame by themselves."""

    def __init__(self) -> None:
        self.registers: dict[int, int] = {}
        self.writes: list[tuple[int, int]] = []

    def read32(self, offset: int) -> int:
        if offset == igb.STATUS:
            return igb.STATUS_LU
        value = self.registers.get(offset, 0)
        return value | igb.MDIC_READY if offset == igb.MDIC else value & ~igb.CTRL_RST

    def write32(self, offset: int, value: int) -> None:
        assert 0 <= value <= 0xFFFFFFFF
        self.registers[offset] = value
        self.writes.append((offset, value))


def buffer(size: int, address: int) -> igb.DmaBuffer:
    """Return `size` zero bytes that the device sees at `address`."""
    return igb.DmaBuffer(memoryview(bytearray(size)), address)


def rings(fake: FakeIgb) -> tuple[igb.Rings, igb.DmaBuffer, igb.DmaBuffer]:
    """Return running rings of eight descriptors above 4 GiB."""
    transmit, receive = buffer(RING_BYTES, 0x1_2345_6000), buffer(RING_BYTES, 0x2_0000_1000)
    return igb.Igb(fake).start_rings(transmit, receive), transmit, receive


def test_reset_masks_everything() -> None:
    """After a reset every interrupt cause is masked."""
    fake = FakeIgb()
    igb.Igb(fake).reset()
    assert fake.registers[igb.IMC] == fake.registers[igb.EIMC] == 0xFFFFFFFF
    assert fake.writes[0] == (igb.CTRL, igb.CTRL_RST)


def test_ring_addresses_are_split_into_their_halves() -> None:
    """The high half matters: without an IOMMU a ring may be above 4 GiB."""
    fake = FakeIgb()
    rings(fake)
    assert (fake.registers[igb.TDBAH], fake.registers[igb.TDBAL]) == (1, 0x23456000)
    assert (fake.registers[igb.RDBAH], fake.registers[igb.RDBAL]) == (2, 0x1000)
    assert fake.registers[igb.RDLEN] == fake.registers[igb.TDLEN] == RING_BYTES


@pytest.mark.parametrize("size", [0, 64, 100, 130])
def test_a_ring_the_device_cannot_express_is_refused(size: int) -> None:
    """RDLEN and TDLEN count units of 128 bytes."""
    with pytest.raises(ValueError, match="multiple of 128"):
        igb.Igb(FakeIgb()).start_rings(buffer(size, 0), buffer(RING_BYTES, 0))


def test_post_fills_both_descriptors_before_the_tails() -> None:
    """Writing the tails starts the device, so they are written last, the receive tail first."""
    fake = FakeIgb()
    running, transmit, receive = rings(fake)
    slot = running.post(0xABCD000, 0x1_0000_0000, 64)
    assert slot == 0
    assert [offset for offset, _value in fake.writes[-2:]] == [igb.RDT, igb.TDT]
    assert bytes(transmit.view[:16]) == igb.transmit_descriptor(0xABCD000, 64)
    assert struct.unpack("<QQ", receive.view[:16]) == (0x1_0000_0000, 0)


def test_post_wraps_round_the_ring() -> None:
    """The ninth frame of a ring of eight uses slot 0 again."""
    fake = FakeIgb()
    running, _transmit, _receive = rings(fake)
    assert [running.post(0, 0, 60) for _ in range(9)] == [0, 1, 2, 3, 4, 5, 6, 7, 0]
    assert fake.registers[igb.TDT] == 1


@pytest.mark.parametrize("size", [59, 1025, 0])
def test_a_frame_of_impossible_size_is_refused(size: int) -> None:
    """The device pads shorter frames, and longer ones do not fit the receive buffer: neither would compare
    equal."""
    fake = FakeIgb()
    running, _transmit, _receive = rings(fake)
    with pytest.raises(ValueError, match="must be 60 to 1024"):
        running.post(0, 0, size)


def test_received_only_after_the_write_back() -> None:
    """A descriptor in read format never counts as done, even if bits of its address look like a status."""
    fake = FakeIgb()
    running, _transmit, receive = rings(fake)
    slot = running.post(0, 0xFFFFFFFF_FFFFF000, 60)
    assert running.received(slot) is None
    receive.view[:16] = struct.pack("<HHIIHH", 0, 0, 0, igb.RXD_STAT_DD | 1 << 1, 60, 0)
    assert running.wait_received(slot) == 60


def test_waiting_gives_up() -> None:
    """A frame that never arrives is an error that names the descriptor."""
    running, _transmit, _receive = rings(FakeIgb())
    slot = running.post(0, 0, 60)
    with pytest.raises(TimeoutError, match="descriptor 0"):
        running.wait_received(slot, 0.02)


def test_vectors_are_enabled_in_msix_mode() -> None:
    """Multiple-MSI-X mode is set before causes are unmasked."""
    fake = FakeIgb()
    igb.Igb(fake).enable_vectors(0b101)
    offsets = [offset for offset, _value in fake.writes]
    assert offsets.index(igb.GPIE) < offsets.index(igb.EIMS)
    assert fake.registers[igb.EIMS] == fake.registers[igb.EIAC] == 0b101
