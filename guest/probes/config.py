# SPDX-License-Identifier: GPL-2.0-only
"""Configuration space: which bits are the device's own, which are virtual, and which are read-only.

The device's own values come from sysfs `config`, which bypasses VFIO.
"""

from __future__ import annotations

import errno
import os
import struct

from guest import edu, igb, pci, vfio
from guest.case import Test, case
from guest.opened import Event, opened, reopened
from guest.vfio import CONFIG, PCI_COMMAND, PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY, ROM

EDU = ("noiommu", "edu", "!viommu")
IGB = ("noiommu", "igb", "!viommu")

# include/uapi/linux/pci_regs.h
PCI_COMMAND_IO = 1
CACHE_LINE_SIZE = 0x0C
BAR0, ROM_ADDRESS = 0x10, 0x30
BARS = range(BAR0, BAR0 + 6 * 4)
INTERRUPT_LINE = 0x3C
EXT_CAPS, EXT_CAP_ERRORS, EXT_CAP_SRIOV = 0x100, 0x01, 0x10
ERROR_REGISTERS = {
    "which uncorrectable errors are masked": (0x08, 0x4000),  # completion timeout
    "which are fatal": (0x0C, 0x4000),
    "which correctable errors are masked": (0x14, 0x1000),  # replay timer timeout
    "whether end-to-end checksums are made": (0x18, 0x40),
}
"""Meaning -> (offset in the capability, one bit there)."""
PM_PMC, PM_CTRL = 2, 4
EXPRESS_DEVCTL, EXPRESS_LNKCTL = 8, 0x10
DEVCTL_PAYLOAD, DEVCTL_READ_REQUEST = 0xE0, 0x7000
MSI_FLAGS = 2
MSI_ENABLE = 1
MSI_CAPABLE, MSI_ENABLED_VECTORS, MSI_64BIT = 0x0E, 0x70, 0x80
MSIX_ENABLE, MSIX_MASK_ALL = 0x8000, 0x4000
SRIOV_CTRL, SRIOV_NUM_VF, SRIOV_PAGE_SIZE = 0x08, 0x10, 0x20
SRIOV_ENABLE = 0x19  # VF enable, VF memory enable, ARI

HEADER = 0x40


def _read(device: vfio.Device, offset: int, size: int) -> bytes:
    return os.pread(device.fd, size, device.region(CONFIG).offset + offset)


def _write(device: vfio.Device, offset: int, data: bytes) -> int:
    return os.pwrite(device.fd, data, device.region(CONFIG).offset + offset)


def _extended(space: bytes) -> list[tuple[int, int]]:
    """Return (id, offset) of each extended capability of *space*."""
    found: list[tuple[int, int]] = []
    offset = EXT_CAPS
    while offset and len(found) < 960:
        (header,) = struct.unpack_from("<I", space, offset)
        found.append((header & 0xFFFF, offset))
        offset = header >> 20
    return found


def _slices_agree(t: Test, kind: str) -> None:
    with opened(t, t.device(kind)) as device:
        size = device.region(CONFIG).size
        whole = _read(device, 0, size)
        t.equal(len(whole), size, "bytes of one read of everything")
        for _ in range(60):
            start = t.random.randrange(size)
            length = min(t.random.choice((1, 2, 3, 4, 5, 8, 13, 64)), size - start)
            t.equal(_read(device, start, length), whole[start : start + length], f"{length} at {start:#x}")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_config.c vfio_pci_config_rw(), vfio_pci_config_rw_single()")
def slices_agree_with_the_whole(t: Test) -> None:
    """Any part of configuration space, aligned or not, reads the same as in one read of the whole."""
    _slices_agree(t, "edu")


@case(
    needs=IGB, cites="drivers/vfio/pci/vfio_pci_config.c vfio_pci_config_rw(), vfio_pci_cap_remaining_dword()"
)
def slices_of_extended_space_agree(t: Test) -> None:
    """Any part of a PCI Express device's 4096 bytes, aligned or not, reads the same as in one read of the
    whole."""
    _slices_agree(t, "igb")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_config.c vfio_config_init(), vfio_cap_init()")
def plain_device_is_shown_as_it_is(t: Test) -> None:
    """For a device with nothing that VFIO hides, every byte of configuration space is the device's own."""
    bdf = t.device("edu")
    with opened(t, bdf) as device:
        shown, real = _read(device, 0, 256), pci.config(bdf, 0, 256)
        t.equal([offset for offset in range(256) if shown[offset] != real[offset]], [], "offsets that differ")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_config.c vfio_cap_init(), vfio_ecap_init()")
def capabilities_are_shown_as_they_are(t: Test) -> None:
    """Both capability lists of a card and every other byte are the card's own, except the BARs and the wake
    event bits of power management."""
    bdf = t.device("igb")
    with opened(t, bdf) as device:
        shown, real = _read(device, 0, 4096), pci.config(bdf, 0, 4096)
        capabilities, extended = pci.capabilities(real), _extended(real)
        t.check(
            {pci.CAP_POWER, pci.CAP_MSI, pci.CAP_EXPRESS, pci.CAP_MSIX} <= {one for one, _at in capabilities},
            "the card lacks capabilities that this case expects",
        )
        t.equal(pci.capabilities(shown), capabilities, "the capabilities")
        t.equal(_extended(shown), extended, "the extended capabilities")
        pm = dict(capabilities)[pci.CAP_POWER]
        wake = {pm + PM_PMC + 1, pm + PM_CTRL + 1}
        differ = {offset for offset in range(4096) if shown[offset] != real[offset]}
        # BARs are virtual; after a hotplug, one for which the bridge has no room is not shown at all.
        t.equal(sorted(differ - wake - set(BARS)), [], "other offsets that differ")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_config.c init_pci_cap_basic_perm()")
def header_is_out_of_reach(t: Test) -> None:
    """No write to the header changes the device's own, except the command register and cache line size; all
    but these, the BARs and the interrupt line read back unchanged."""
    bdf = t.device("edu")
    free = {*range(PCI_COMMAND, PCI_COMMAND + 2), CACHE_LINE_SIZE, 0x0D, 0x0F}
    virtual = {*range(BAR0, BAR0 + 24), *range(ROM_ADDRESS, ROM_ADDRESS + 4), INTERRUPT_LINE}
    with opened(t, bdf) as device:
        real, shown = pci.config(bdf, 0, HEADER), _read(device, 0, HEADER)
        for offset in sorted(set(range(HEADER)) - free):
            _write(device, offset, bytes([shown[offset] ^ 0xFF]))
            if offset not in virtual:
                t.equal(
                    _read(device, offset, 1), shown[offset : offset + 1], f"the byte shown at {offset:#x}"
                )
        _write(device, 0, bytes(byte ^ 0xFF for byte in shown[:4]))
        t.equal(_read(device, 0, 4), shown[:4], "vendor and device id after writing both")
        _write(device, 8, b"\xff" * 4)
        _write(device, 0x28, b"\xff" * 8)
        t.equal(pci.config(bdf, 0, HEADER), real, "the device's own header")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_config.c vfio_basic_config_write()")
def command_bits_reach_the_device(t: Test) -> None:
    """The I/O, memory, bus master and interrupt disable bits written to the command register read back and
    reach the device, the last also without an interrupt set up."""
    bdf = t.device("edu")
    bits = (PCI_COMMAND_IO, PCI_COMMAND_MEMORY, PCI_COMMAND_MASTER, vfio.PCI_COMMAND_INTX_DISABLE)
    with opened(t, bdf) as device:
        first = device.read_config(PCI_COMMAND, 2)
        for value in (*bits, 0, sum(bits), first):
            device.write_config(PCI_COMMAND, 2, value)
            got = device.read_config(PCI_COMMAND, 2) & sum(bits)
            t.equal(got, value & sum(bits), f"bits shown after writing {value:#x}")
            t.equal(
                pci.config_number(bdf, PCI_COMMAND, 2) & sum(bits), got, f"the device's bits after {value:#x}"
            )


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_disable() (pci_restore_state())")
def next_user_finds_the_old_configuration(t: Test) -> None:
    """A write to the cache line size reaches the device; for the next user it is reset, and so are the BARs
    and the interrupt line."""
    bdf = t.device("edu")
    with pci.bound(bdf):
        with reopened(t, bdf) as device:
            before = _read(device, 0, HEADER)
            size = before[CACHE_LINE_SIZE] ^ 0x10
            _write(device, CACHE_LINE_SIZE, bytes([size]))
            t.equal(pci.config_number(bdf, CACHE_LINE_SIZE, 1), size, "the device's own cache line size")
            _write(device, BAR0, b"\xff" * 24)
            _write(device, INTERRUPT_LINE, b"\x99")
            command = device.read_config(PCI_COMMAND, 2)
            device.write_config(PCI_COMMAND, 2, command & ~PCI_COMMAND_MEMORY | vfio.PCI_COMMAND_INTX_DISABLE)
        with reopened(t, bdf) as device:
            t.equal(_read(device, 0, HEADER), before, "the header for the next user")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_config.c vfio_pci_config_rw_single() (cfg_size)")
def write_over_the_end_writes_nothing(t: Test) -> None:
    """Writes between capabilities reach the device up to the last byte; a write across the end is refused as
    a whole."""
    bdf = t.device("edu")
    with opened(t, bdf) as device:
        last = pci.config(bdf, 252, 4)
        other = bytes(byte ^ 0x5A for byte in last)
        t.errno(errno.EFAULT, _write, device, 252, other + b"\0\0\0\0")
        t.errno(errno.EFAULT, _write, device, 252, other + b"\0")
        t.errno(errno.EFAULT, _write, device, 256, other)
        t.equal(pci.config(bdf, 252, 4), last, "the last bytes after refused writes")
        t.equal(_write(device, 252, other), 4, "bytes written at the end")
        t.equal(pci.config(bdf, 252, 4), other, "the device's last bytes")
        t.equal(_read(device, 252, 4), other, "the last bytes shown")
        t.equal(_write(device, 253, last[1:]), 3, "three bytes written unaligned")
        t.equal(pci.config(bdf, 252, 4), other[:1] + last[1:], "the device's last bytes after that")
        _write(device, 252, last)


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_config.c vfio_default_config_write(), vfio_bar_fixup()")
def bars_are_written_by_the_byte(t: Test) -> None:
    """A write of any width and alignment to a virtual BAR changes exactly the bytes written, as far as the
    BAR's size allows."""
    with opened(t, t.device("edu")) as device:
        for offset, data, want in (
            (BAR0, b"\xff\xff\xff\xff", 0xFFF00000),
            (BAR0 + 3, b"\xd0", 0xD0F00000),
            (BAR0 + 1, b"\xff\xa0\xb0", 0xB0A00000),
            (BAR0 + 1, b"\xff\xcf", 0xB0C00000),
            (BAR0 - 1, b"\xff\xff\xff\x10\xc0\xff", 0xC0100000),
            (BAR0 - 4, b"\0\0\0\0\0\0\0\0", 0),
        ):
            t.equal(_write(device, offset, data), len(data), f"bytes written at {offset:#x}")
            t.equal(device.read_config(BAR0, 4), want, f"the BAR after {data.hex()} at {offset:#x}")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_config.c vfio_bar_fixup(), vfio_generate_bar_flags()")
def bars_of_every_kind_are_sized(t: Test) -> None:
    """Ones written to all BARs at once read back as the size and type of each (memory, I/O, 64-bit), and the
    card's own BARs do not change."""
    bdf = t.device("igb")
    with opened(t, bdf) as device:
        real = struct.unpack("<6I", pci.config(bdf, BAR0, 24))
        t.equal(_write(device, BAR0, b"\xff" * 24), 24, "bytes written")
        want, upper = [], False
        for index, bar in enumerate(real):
            size = device.region(index).size
            if upper:
                want.append(0xFFFFFFFF)
                upper = False
                continue
            kind = bar & (3 if bar & 1 else 0xF)
            want.append(-size & 0xFFFFFFFF | kind if size else 0)
            upper = bool(size) and kind & 7 == 4
        t.equal(list(struct.unpack("<6I", _read(device, BAR0, 24))), want, "the BARs after writing ones")
        t.equal(struct.unpack("<6I", pci.config(bdf, BAR0, 24)), real, "the card's own BARs")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_config.c vfio_need_bar_restore(), vfio_bar_restore()")
def lost_bars_are_put_back(t: Test) -> None:
    """If a device loses its BARs without VFIO's knowledge, the next write to the command register restores
    them and access to its registers."""
    bdf = t.device("edu")
    with opened(t, bdf) as device, device.bar() as bar:
        real = pci.config(bdf, BAR0, 4)
        pci.write_config(bdf, BAR0, bytes(4))
        t.equal(pci.config_number(bdf, BAR0, 4), 0, "the device's own BAR, lost")
        device.write_config(PCI_COMMAND, 2, device.read_config(PCI_COMMAND, 2))
        t.equal(pci.config(bdf, BAR0, 4), real, "the device's own BAR after the write")
        t.check(edu.Edu(bar).is_edu(), "the mapped BAR no longer leads to the device")
        t.check(any("restoring BARs" in line for line in t.dmesg()), "the kernel did not log the restore")


@case(
    needs=EDU,
    cites="drivers/vfio/pci/vfio_pci_config.c vfio_msi_config_read(); PCI Local Bus 3.0 section 6.8.1.3",
)
def msi_capabilities_cannot_be_written(t: Test) -> None:
    """The user cannot change the number of MSI vectors that the device supports, nor its 64-bit address
    bit."""
    bdf = t.device("edu")
    with opened(t, bdf) as device:
        flags = pci.capability(bdf, pci.CAP_MSI) + MSI_FLAGS
        before = device.read_config(flags, 2)
        device.write_config(flags, 2, before ^ (MSI_CAPABLE | MSI_64BIT))
        got = device.read_config(flags, 2)
        t.equal(
            got & MSI_CAPABLE, before & MSI_CAPABLE, "the number of vectors that the device is capable of"
        )
        t.equal(got & MSI_64BIT, before & MSI_64BIT, "the 64-bit bit")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_config.c vfio_msi_config_write() (msi_qmax)")
def msi_vectors_are_enabled_by_set_irqs_alone(t: Test) -> None:
    """Configuration space cannot enable more MSI vectors than SET_IRQS has; after its enable bit is cleared
    there, SET_IRQS can still disable MSI."""
    bdf = t.device("edu")
    with opened(t, bdf) as device:
        flags = pci.capability(bdf, pci.CAP_MSI) + MSI_FLAGS
        for enabled in (False, True):
            if enabled:
                device.set_eventfds(vfio.MSI, Event().fd)
            for vectors in (0x10, 0x70):
                before = device.read_config(flags, 2) & ~MSI_ENABLED_VECTORS
                device.write_config(flags, 2, before | vectors)
                t.equal(device.read_config(flags, 2) & MSI_ENABLED_VECTORS, 0, "vectors shown")
                t.equal(
                    pci.config_number(bdf, flags, 2) & MSI_ENABLED_VECTORS, 0, "vectors enabled in the device"
                )
        device.disable_irqs(vfio.MSI)
        t.equal(pci.config_number(bdf, flags, 2) & 1, 0, "the device's enable bit after SET_IRQS")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_config.c init_pci_cap_exp_perm(), vfio_exp_config_write()")
def payload_size_is_virtual(t: Test) -> None:
    """The payload and read request sizes read back as written, the card keeps its own payload size, and the
    next user reads the card's; link control is read-only."""
    bdf = t.device("igb")
    with pci.bound(bdf):
        express = pci.capability(bdf, pci.CAP_EXPRESS)
        control, link = express + EXPRESS_DEVCTL, express + EXPRESS_LNKCTL
        with reopened(t, bdf) as device:
            before, real = device.read_config(control, 2), pci.config_number(bdf, control, 2)
            wanted = before ^ (DEVCTL_PAYLOAD | DEVCTL_READ_REQUEST & 0x5000)
            device.write_config(control, 2, wanted)
            t.equal(device.read_config(control, 2), wanted, "what the user sees of his own write")
            got = pci.config_number(bdf, control, 2) & DEVCTL_PAYLOAD
            t.equal(got, real & DEVCTL_PAYLOAD, "the card's payload size")
            wide = pci.config_number(bdf, link, 2)
            device.write_config(link, 2, wide ^ 0x43)
            t.equal(
                (device.read_config(link, 2), pci.config_number(bdf, link, 2)), (wide, wide), "link control"
            )
        with reopened(t, bdf) as device:
            t.equal(device.read_config(control, 2), before, "what the next user sees")
            t.equal(pci.config_number(bdf, control, 2), real, "the card's own register for the next user")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_config.c cap_perms (read only by default)")
def msix_capability_is_read_only(t: Test) -> None:
    """The user cannot enable or mask MSI-X in configuration space, nor disable there what SET_IRQS enabled,
    nor move the table."""
    bdf = t.device("igb")
    with opened(t, bdf) as device:
        cap = pci.capability(bdf, pci.CAP_MSIX)
        control = pci.config_number(bdf, cap + 2, 2)
        t.check(not control & MSIX_ENABLE, "MSI-X is enabled after open")
        for value in (control | MSIX_ENABLE, control | MSIX_MASK_ALL, 0xFFFF):
            device.write_config(cap + 2, 2, value)
            t.equal(device.read_config(cap + 2, 2), control, f"message control shown after {value:#x}")
            t.equal(
                pci.config_number(bdf, cap + 2, 2), control, f"the card's message control after {value:#x}"
            )
        for offset in (cap + 4, cap + 8):
            place = pci.config_number(bdf, offset, 4)
            device.write_config(offset, 4, place ^ 0x1FFF)
            t.equal(
                (device.read_config(offset, 4), pci.config_number(bdf, offset, 4)),
                (place, place),
                "table and PBA",
            )
        device.set_eventfds(vfio.MSIX, Event().fd)
        device.write_config(cap + 2, 2, control)
        t.check(pci.config_number(bdf, cap + 2, 2) & MSIX_ENABLE, "the user switched MSI-X off")
        t.check(device.read_config(cap + 2, 2) & MSIX_ENABLE, "MSI-X is not shown as enabled")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_config.c init_pci_ext_cap_err_perm()")
def error_reports_are_the_users(t: Test) -> None:
    """The user can change which errors the card reports and how, but not the capability's header, and the
    next user finds the original values."""
    bdf = t.device("igb")
    with pci.bound(bdf):
        cap = dict(_extended(pci.config(bdf, 0, 4096)))[EXT_CAP_ERRORS]
        header = pci.config(bdf, cap, 4)
        before = {what: pci.config_number(bdf, cap + at, 4) for what, (at, _) in ERROR_REGISTERS.items()}
        with reopened(t, bdf) as device:
            _write(device, cap, b"\xff" * 4)
            t.equal(_read(device, cap, 4), header, "the header shown")
            for what, (at, bit) in ERROR_REGISTERS.items():
                device.write_config(cap + at, 4, before[what] ^ bit)
                t.equal(device.read_config(cap + at, 4), before[what] ^ bit, f"{what}, as shown")
                t.equal(pci.config_number(bdf, cap + at, 4), before[what] ^ bit, f"{what}, on the card")
        with reopened(t, bdf) as device:
            for what, (at, _) in ERROR_REGISTERS.items():
                t.equal(device.read_config(cap + at, 4), before[what], f"{what}, for the next user")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_config.c ecap_perms (read only by default)")
def user_makes_no_virtual_functions(t: Test) -> None:
    """No write to the SR-IOV capability reaches the card: no virtual function appears."""
    bdf = t.device("igb")
    with opened(t, bdf) as device:
        caps = dict(_extended(pci.config(bdf, 0, 4096)))
        t.check(EXT_CAP_SRIOV in caps, "the card has no SR-IOV capability")
        cap = caps[EXT_CAP_SRIOV]
        before = pci.config(bdf, cap, 0x40)
        _write(device, cap + SRIOV_NUM_VF, struct.pack("<H", 2))
        _write(device, cap + SRIOV_PAGE_SIZE, b"\xff" * 4)
        _write(device, cap + 0x24, b"\xff" * 24)
        _write(device, cap + SRIOV_CTRL, struct.pack("<H", SRIOV_ENABLE))
        t.equal(pci.config(bdf, cap, 0x40), before, "the card's own capability")
        t.equal(_read(device, cap, 0x40), before, "the capability shown")
        _write(device, cap, before)
        t.equal(len(t.devices("igb-vf")), 0, "virtual functions")


@case(
    needs=EDU,
    cites="drivers/vfio/pci/vfio_pci_config.c vfio_pci_config_rw_single(); vfio_pci_core.c vfio_pci_rw()",
)
def config_space_has_an_end(t: Test) -> None:
    """Configuration space reads as the device's up to its last byte; access beyond it, to an empty region or
    to a region that does not exist is refused."""
    bdf = t.device("edu")
    with opened(t, bdf) as device:
        offset = device.region(CONFIG).offset
        t.equal(device.read_config(vfio.PCI_VENDOR_ID, 4), 0x11E81234, "vendor and device id")
        t.equal(len(os.pread(device.fd, 1, offset + 255)), 1, "bytes read at the end")
        t.errno(errno.EFAULT, os.pread, device.fd, 1, offset + 256)
        t.errno(errno.EFAULT, os.pread, device.fd, 8, offset + 252)
        t.errno(errno.EFAULT, os.pwrite, device.fd, b"\0", offset + 256)
        t.errno(errno.EINVAL, os.pread, device.fd, 4, 9 << vfio.OFFSET_SHIFT)
        t.errno(errno.EINVAL, os.pread, device.fd, 4, vfio.BAR1 << vfio.OFFSET_SHIFT)
        t.errno(errno.EINVAL, os.pwrite, device.fd, b"\0", ROM << vfio.OFFSET_SHIFT)


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_config.c vfio_bar_fixup(), init_pci_cap_basic_perm()")
def bars_are_virtual(t: Test) -> None:
    """The user can size and move a BAR in configuration space as on hardware, while the device's own BAR
    stays and keeps working."""
    bdf = t.device("edu")
    with opened(t, bdf) as device, device.bar() as bar:
        real = pci.config_number(bdf, BAR0, 4)
        t.equal(device.read_config(BAR0, 4), real, "the virtual BAR after open")
        device.write_config(BAR0, 4, 0xFFFFFFFF)
        t.equal(device.read_config(BAR0, 4), 0xFFF00000, "the size mask of a 1 MiB memory BAR")
        device.write_config(BAR0, 4, 0xD0000000)
        t.equal(device.read_config(BAR0, 4), 0xD0000000, "the virtual BAR after moving it")
        t.equal(pci.config_number(bdf, BAR0, 4), real, "the device's own BAR")
        t.check(edu.Edu(bar).is_edu(), "the mapped BAR no longer leads to the device")
        device.write_config(BAR0 + 4, 4, 0xFFFFFFFF)
        t.equal(device.read_config(BAR0 + 4, 4), 0, "a BAR that the device does not have")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_config.c init_pci_cap_basic_perm()")
def interrupt_line_is_virtual(t: Test) -> None:
    """A write to the interrupt line reads back but does not reach the device; the interrupt pin ignores
    writes."""
    bdf = t.device("edu")
    with opened(t, bdf) as device:
        line = pci.config_number(bdf, INTERRUPT_LINE, 1)
        device.write_config(INTERRUPT_LINE, 2, 0x0299)
        t.equal(device.read_config(INTERRUPT_LINE, 2), 0x0199, "interrupt line and pin")
        t.equal(pci.config_number(bdf, INTERRUPT_LINE, 1), line, "the device's own interrupt line")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_config.c vfio_msi_config_write()")
def msi_enable_bit_is_not_the_users(t: Test) -> None:
    """Only SET_IRQS enables MSI: writing the enable bit before has no effect, and a message address written
    by the user does not reach the device."""
    bdf = t.device("edu")
    with opened(t, bdf) as device:
        cap = device.read_config(pci.CAP_LIST, 1)
        t.equal(device.read_config(cap, 1), 5, "id of edu's first capability (MSI)")
        device.write_config(cap + 2, 2, device.read_config(cap + 2, 2) | MSI_ENABLE)
        t.equal(device.read_config(cap + 2, 2) & MSI_ENABLE, 0, "the enable bit after writing it")
        t.equal(pci.config_number(bdf, cap + 2, 2) & MSI_ENABLE, 0, "the device's own enable bit")
        address = pci.config_number(bdf, cap + 4, 4)
        device.write_config(cap + 4, 4, 0xFEE01230)
        t.equal(device.read_config(cap + 4, 4), 0xFEE01230, "the virtual message address")
        t.equal(pci.config_number(bdf, cap + 4, 4), address, "the device's own message address")
        device.set_eventfds(vfio.MSI, Event().fd)
        t.equal(pci.config_number(bdf, cap + 2, 2) & MSI_ENABLE, 1, "the device's enable bit after SET_IRQS")
        t.check(
            pci.config_number(bdf, cap + 4, 4) != 0xFEE01230, "the user's message address reached the device"
        )


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_config.c vfio_ecap_init(), vfio_pci_config_rw_single()")
def config_space_is_extended(t: Test) -> None:
    """The configuration space of a PCI Express device has exactly 4096 bytes, including its extended
    capabilities."""
    with opened(t, t.device("igb")) as device:
        region = device.region(CONFIG)
        t.equal(region.size, 4096, "size of configuration space")
        t.equal(device.read_config(0, 4), igb.DEVICE_ID << 16 | igb.VENDOR_ID, "device and vendor id")
        t.equal(device.read_config(0x100, 4) & 0xFFFF, 1, "id of the first extended capability (AER)")
        t.equal(len(os.pread(device.fd, 4, region.offset + 4092)), 4, "bytes read at the end")
        t.errno(errno.EFAULT, os.pread, device.fd, 4, region.offset + 4096)
