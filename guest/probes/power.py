# SPDX-License-Identifier: GPL-2.0-only
"""Power states without an IOMMU: idle devices suspend, and users put their devices to sleep and wake them."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from guest import edu, igb, libc, pci, vfio
from guest.brink import Brink
from guest.case import Test, case
from guest.opened import Event, opened, reopened, sigbus

EDU = ("noiommu", "edu", "!viommu")
IGB = ("noiommu", "igb", "!viommu")

SET = vfio.FEATURE_SET

# include/uapi/linux/pci_regs.h
POWER_CONTROL, POWER_STATE = 4, 3
POWER_PME_ENABLE = 0x100
D0, D1, D3 = 0, 1, 3

IDLE_D3_OFF = Path("/sys/module/vfio_pci/parameters/disable_idle_d3")

GOES = 10.0


def _status(bdf: str) -> str:
    return pci.read(pci.path_of(bdf) / "power" / "runtime_status")


def _wait_status(t: Test, bdf: str, want: str) -> None:
    t.wait_until(lambda: _status(bdf) == want, f"runtime status {want} of {bdf}", GOES)


@case(
    needs=(*EDU, "igb"),
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_enable(), vfio_pci_core_disable() (pm_runtime)",
)
def idle_devices_sleep(t: Test) -> None:
    """A bound device is suspended, in D3 if it supports it, while it is not in use, and active while it
    is."""
    for kind, state in (("edu", None), ("igb", "D3hot")):
        bdf = t.device(kind)
        with pci.bound(bdf):
            for _ in range(2):
                _wait_status(t, bdf, "suspended")
                if state is not None:
                    t.equal(
                        pci.read(pci.path_of(bdf) / "power_state"), state, f"power state of an idle {kind}"
                    )
                with reopened(t, bdf) as device:
                    t.equal(_status(bdf), "active", f"runtime status of {kind} in use")
                    t.equal(device.read_config(0, 2), pci.ids(bdf)[0], f"vendor of {kind} in use")


@contextlib.contextmanager
def _idle_d3_off() -> Iterator[None]:
    pci.write(IDLE_D3_OFF, "Y")
    try:
        yield
    finally:
        pci.write(IDLE_D3_OFF, "N")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci.c vfio_pci_init_dev() (disable_idle_d3)")
def idle_sleep_is_settled_at_bind(t: Test) -> None:
    """A device bound with disable_idle_d3 on never suspends, even if the parameter is turned off later, and a
    device bound before keeps suspending."""
    bdf = t.device("igb")
    with _idle_d3_off(), pci.bound(bdf):
        pci.write(IDLE_D3_OFF, "N")
        t.equal(_status(bdf), "active", "runtime status of an idle device bound with disable_idle_d3 on")
        with reopened(t, bdf):
            pass
        t.equal(_status(bdf), "active", "runtime status after the device was used")
    with pci.bound(bdf):
        pci.write(IDLE_D3_OFF, "Y")
        with reopened(t, bdf):
            pass
        _wait_status(t, bdf, "suspended")
        pci.write(IDLE_D3_OFF, "N")


@case(
    needs=IGB,
    cites="drivers/vfio/pci/vfio_pci_config.c vfio_pm_config_write(); vfio_pci_core.c "
    "vfio_pci_set_power_state()",
)
def user_puts_the_device_to_sleep(t: Test) -> None:
    """Writing D3 to the power management capability puts the device in D3: until D0 is written, access to its
    registers fails by mapping (SIGBUS) and by file (EIO), memory decoding or not, and afterwards the
    registers are at the same place."""
    bdf = t.device("igb")
    with opened(t, bdf) as device, device.bar() as bar:
        control, offset = pci.capability(bdf, pci.CAP_POWER) + POWER_CONTROL, device.region(vfio.BAR0).offset
        device.set_bus_master()
        header, status = pci.config(bdf, vfio.PCI_COMMAND, 0x30), bar.read32(igb.STATUS)
        device.write_config(control, 2, D3)
        t.equal(device.read_config(control, 2) & POWER_STATE, D3, "the power state that the user reads")
        t.equal(pci.config_number(bdf, control, 2) & POWER_STATE, D3, "the power state of the device")
        t.equal(device.read_config(0, 4), igb.DEVICE_ID << 16 | igb.VENDOR_ID, "vendor and device ID in D3")
        sigbus(t, lambda: bar.read32(igb.STATUS), "a load through the mapping in D3")
        command = device.read_config(vfio.PCI_COMMAND, 2)
        for value in (command, command | vfio.PCI_COMMAND_MEMORY):
            device.write_config(vfio.PCI_COMMAND, 2, value)
            t.errno(errno.EIO, os.pread, device.fd, 4, offset + igb.STATUS)
            t.errno(errno.EIO, os.pwrite, device.fd, bytes(4), offset)
        device.write_config(control, 2, D0)
        t.equal(
            device.read_config(control, 2) & POWER_STATE, D0, "the power state that the user reads after D0"
        )
        t.equal(
            pci.config_number(bdf, control, 2) & POWER_STATE, D0, "the power state of the device after D0"
        )
        t.equal(bar.read32(igb.STATUS), status, "a register through the mapping made before")
        t.equal(pci.config(bdf, vfio.PCI_COMMAND, 0x30), header, "the header in the device itself")


@case(
    needs=IGB,
    cites="drivers/vfio/pci/vfio_pci_config.c vfio_pm_config_write(); pci.c pci_set_low_power_state()",
)
def states_that_the_device_lacks_are_ignored(t: Test) -> None:
    """Writing a power state that the card does not support leaves it in D0."""
    bdf = t.device("igb")
    with opened(t, bdf) as device, device.bar() as bar:
        control = pci.capability(bdf, pci.CAP_POWER) + POWER_CONTROL
        device.write_config(control, 2, D1)
        t.equal(device.read_config(control, 2) & POWER_STATE, D0, "the power state after writing D1")
        t.check(bar.read32(igb.STATUS) != 0xFFFFFFFF, "the registers read as ones")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_reset() (power state)")
def reset_wakes_the_device(t: Test) -> None:
    """RESET of a device in D3 succeeds and leaves it in D0 with its registers at their defaults."""
    bdf = t.device("igb")
    with opened(t, bdf) as device, device.bar() as bar:
        control = pci.capability(bdf, pci.CAP_POWER) + POWER_CONTROL
        default = bar.read32(igb.RDLEN)
        bar.write32(igb.RDLEN, 4096)
        device.write_config(control, 2, D3)
        device.reset()
        t.equal(device.read_config(control, 2) & POWER_STATE, D0, "power state after the reset")
        t.equal(bar.read32(igb.RDLEN), default, "a register after the reset")
        t.check(bar.read32(igb.STATUS) != 0xFFFFFFFF, "the status register reads as ones after the reset")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_disable() (vfio_pci_set_power_state)")
def next_user_finds_the_device_awake(t: Test) -> None:
    """A device that its user leaves in D3, or in low power, is in D0 and works for the next user."""
    bdf = t.device("igb")
    with pci.bound(bdf):
        control = pci.capability(bdf, pci.CAP_POWER) + POWER_CONTROL
        for leave in (D3, vfio.LOW_POWER_ENTRY):
            with reopened(t, bdf) as device:
                if leave == D3:
                    device.write_config(control, 2, D3)
                else:
                    device.feature(SET | vfio.LOW_POWER_ENTRY)
            with reopened(t, bdf) as device, device.bar() as bar:
                t.equal(device.read_config(control, 2) & POWER_STATE, D0, "the power state at the next open")
                bar.write32(igb.RDLEN, 4096)
                t.equal(bar.read32(igb.RDLEN), 4096, "a register of the next user")
                by_file = os.pread(device.fd, 4, device.region(vfio.BAR0).offset + igb.RDLEN)
                t.equal(by_file, struct.pack("<I", 4096), "the register read through the file")
            _wait_status(t, bdf, "suspended")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_disable(), vfio_pci_runtime_pm_exit()")
def low_power_ends_with_its_user(t: Test) -> None:
    """Closing a device in low power ends low power: the next user's mapping works, and that user can enter
    low power again."""
    bdf = t.device("edu")
    with pci.bound(bdf):
        for _ in range(2):
            with reopened(t, bdf) as device, device.bar() as bar:
                t.equal(bar.read32(0), edu.IDENTIFIES, "a register through the mapping")
                device.feature(SET | vfio.LOW_POWER_ENTRY)


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_config.c init_pci_cap_pm_perm()")
def wake_events_are_not_the_users(t: Test) -> None:
    """The PME enable bit reads as zero whatever the card or the user writes, and the user can neither set nor
    clear the card's own bit."""
    bdf = t.device("igb")
    with opened(t, bdf) as device:
        control = pci.capability(bdf, pci.CAP_POWER) + POWER_CONTROL
        for real in (0, POWER_PME_ENABLE):
            pci.write_config(bdf, control, struct.pack("<H", real))
            t.equal(
                pci.config_number(bdf, control, 2) & POWER_PME_ENABLE,
                real,
                "the card's own bit, set without VFIO",
            )
            for size, offset, value in (
                (2, 0, real ^ POWER_PME_ENABLE),
                (4, 0, POWER_PME_ENABLE),
                (1, 1, 0),
                (1, 1, 1),
            ):
                device.write_config(control + offset, size, value)
                t.equal(device.read_config(control, 2) & POWER_PME_ENABLE, 0, "the bit that the user reads")
                t.equal(pci.config_number(bdf, control, 2) & POWER_PME_ENABLE, real, "the card's own bit")
        pci.write_config(bdf, control, bytes(2))


@case(needs=EDU, cites="include/uapi/linux/vfio.h VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY; vfio_pci_core.c")
def low_power_lasts_until_the_exit(t: Test) -> None:
    """A device in low power is suspended until its user ends low power; an access through its file wakes it
    for the time of that access, and an access through a mapping is SIGBUS."""
    bdf = t.device("edu", iommu=False)
    with opened(t, bdf) as device, device.bar() as bar:
        t.equal(bar.read32(0), edu.IDENTIFIES, "a register through the mapping before low power")
        where = device.region(vfio.BAR0).offset
        device.feature(SET | vfio.LOW_POWER_ENTRY)
        for turn in range(2):
            _wait_status(t, bdf, "suspended")
            sigbus(t, lambda: bar.read32(0), f"a load through the mapping in low power, round {turn}")
            t.equal(_status(bdf), "suspended", "runtime status after an access through the mapping")
            t.equal(
                os.pread(device.fd, 4, where),
                struct.pack("<I", edu.IDENTIFIES),
                "a register read through the file",
            )
        _wait_status(t, bdf, "suspended")
        t.equal(device.read_config(0, 2), edu.VENDOR_ID, "the vendor in low power")
        sigbus(t, lambda: bar.read32(0), "a load in low power after reading configuration space")
        device.feature(SET | vfio.LOW_POWER_EXIT)
        t.equal(_status(bdf), "active", "runtime status after the exit")
        t.equal(bar.read32(0), edu.IDENTIFIES, "a register through the mapping after the exit")


def _wakeup(fd: int) -> bytes:
    return struct.pack("<iI", fd, 0)


def _wakes_up(t: Test, bdf: str, register: int) -> None:
    """Suspend the device at *bdf* with a wakeup eventfd and wake it, twice; *register* keeps its value."""
    vendor = pci.ids(bdf)[0]
    with opened(t, bdf) as device, device.bar() as bar:
        event = Event()
        before = bar.read32(register)
        for _ in range(2):
            device.feature(SET | vfio.LOW_POWER_ENTRY_WAKEUP, _wakeup(event.fd))
            _wait_status(t, bdf, "suspended")
            sigbus(t, lambda: bar.read32(register), "a load through the mapping in low power")
            t.check(event.silent(), "the suspend or an access through the mapping signalled a wakeup")
            t.equal(device.read_config(0, 2), vendor, "the vendor")
            t.equal(event.arrives(), 1, "signals of the wakeup")
            t.equal(_status(bdf), "active", "runtime status after the wakeup")
            t.equal(bar.read32(register), before, "a register through the mapping after the wakeup")
        device.feature(SET | vfio.LOW_POWER_EXIT)
        device.feature(SET | vfio.LOW_POWER_ENTRY)
        device.feature(SET | vfio.LOW_POWER_EXIT)
        t.check(
            event.silent(), "a LOW_POWER_EXIT outside low power, or from low power without wakeup, signalled"
        )


@case(needs=EDU, cites="include/uapi/linux/vfio.h VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP")
def wakeup_is_announced_and_ends_low_power(t: Test) -> None:
    """If low power was entered with an eventfd, the first access through the device file ends it and signals
    the eventfd once; the device then stays awake and its mappings work without LOW_POWER_EXIT."""
    _wakes_up(t, t.device("edu", iommu=False), edu.REG_IDENTIFICATION)


@case(
    needs=IGB, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_runtime_resume() (pm_wake_eventfd_ctx)"
)
def wakeup_from_d3_is_announced(t: Test) -> None:
    """For a card that supports D3 the wakeup signals the eventfd and ends low power, as for a device that
    does not."""
    _wakes_up(t, t.device("igb", iommu=False), igb.STATUS)


@case(needs=EDU, cites="include/uapi/linux/vfio.h VFIO_DEVICE_FEATURE_LOW_POWER_EXIT; vfio_pci_core.c")
def exit_announces_a_wakeup(t: Test) -> None:
    """LOW_POWER_EXIT counts as a wakeup and signals the eventfd once."""
    bdf = t.device("edu", iommu=False)
    with opened(t, bdf) as device, device.bar() as bar:
        event = Event()
        device.feature(SET | vfio.LOW_POWER_ENTRY_WAKEUP, _wakeup(event.fd))
        _wait_status(t, bdf, "suspended")
        device.feature(SET | vfio.LOW_POWER_EXIT)
        t.equal(event.arrives(), 1, "signals of the exit")
        t.equal(bar.read32(0), edu.IDENTIFIES, "a register through the mapping after the exit")


@case(needs=EDU, cites="include/uapi/linux/vfio.h VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP")
def no_wakeup_without_sleep(t: Test) -> None:
    """A device that the kernel keeps active does not suspend in low power: no wakeup is signalled, and low
    power ends only with LOW_POWER_EXIT."""
    bdf = t.device("edu", iommu=False)
    with opened(t, bdf) as device, device.bar() as bar:
        control = pci.path_of(bdf) / "power" / "control"
        pci.write(control, "on")
        event = Event()
        device.feature(SET | vfio.LOW_POWER_ENTRY_WAKEUP, _wakeup(event.fd))
        t.equal(device.read_config(0, 2), edu.VENDOR_ID, "the vendor")
        t.equal(_status(bdf), "active", "runtime status of a device kept active")
        t.errno(errno.EINVAL, device.feature, SET | vfio.LOW_POWER_ENTRY)
        sigbus(t, lambda: bar.read32(0), "a load through the mapping in low power without a suspend")
        device.feature(SET | vfio.LOW_POWER_EXIT)
        t.equal(bar.read32(0), edu.IDENTIFIES, "a register through the mapping after the exit")
        t.check(event.silent(), "a wakeup was signalled although the device never suspended")
        pci.write(control, "auto")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_pm_entry_with_wakeup()")
def wakeup_needs_an_eventfd(t: Test) -> None:
    """Low power with wakeup requires a complete payload with an eventfd; after every refusal the device is
    awake and can enter and leave low power; a payload that is too long is ignored."""
    with opened(t, t.device("edu")) as device, device.bar() as bar, Brink() as edge:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        entry = SET | vfio.LOW_POWER_ENTRY_WAKEUP
        event = Event()
        t.errno(errno.EINVAL, device.feature, entry, _wakeup(event.fd)[:7])
        t.errno(errno.EINVAL, device.feature, entry)
        t.errno(errno.EINVAL, device.feature, entry, _wakeup(-1))
        t.errno(errno.EBADF, device.feature, entry, _wakeup(999))
        for stranger in (null, device.fd):
            t.errno(errno.EINVAL, device.feature, entry, _wakeup(stranger))
        cut = edge.put(struct.pack("<II", 16, entry))
        t.errno(errno.EFAULT, libc.ioctl, device.fd, vfio.DEVICE_FEATURE, cut)
        t.equal(bar.read32(0), edu.IDENTIFIES, "identification after the refused calls")
        device.feature(entry, _wakeup(event.fd))
        device.feature(SET | vfio.LOW_POWER_EXIT)
        t.equal(bar.read32(0), edu.IDENTIFIES, "identification after low power")
        device.feature(SET | vfio.LOW_POWER_ENTRY, bytes(64))
        device.feature(SET | vfio.LOW_POWER_EXIT, bytes(64))


@case(
    needs=(*EDU, "intx"),
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_runtime_suspend() (pm_intx_masked)",
)
def interrupts_survive_low_power(t: Test) -> None:
    """INTx is masked in low power and unmasked afterwards, unless its user had masked it before."""
    bdf = t.device("edu", iommu=False)
    with opened(t, bdf) as device, device.bar() as bar:
        card, event = edu.Edu(bar), Event()
        device.set_eventfds(vfio.INTX, event.fd)
        _sleep_and_wake(t, bdf, device)
        card.raise_irq()
        t.equal(event.arrives(), 1, "interrupts after low power")
        card.ack_irq()
        _sleep_and_wake(t, bdf, device)
        card.raise_irq()
        t.check(event.silent(), "leaving low power unmasked an INTx that the user had masked")
        device.set_irqs(vfio.INTX, vfio.SET_DATA_NONE | vfio.SET_ACTION_UNMASK)
        t.equal(event.arrives(), 1, "interrupts after unmasking")
        card.ack_irq()


def _sleep_and_wake(t: Test, bdf: str, device: vfio.Device) -> None:
    device.feature(SET | vfio.LOW_POWER_ENTRY)
    _wait_status(t, bdf, "suspended")
    device.feature(SET | vfio.LOW_POWER_EXIT)


@case(
    needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_runtime_pm_entry(), vfio_pci_core_pm_exit()"
)
def low_power_is_entered_once(t: Test) -> None:
    """A device in low power cannot enter it again; after leaving low power, once or repeatedly, it works as
    before."""
    with opened(t, t.device("edu")) as device, device.bar() as bar:
        device.feature(SET | vfio.LOW_POWER_ENTRY)
        t.errno(errno.EINVAL, device.feature, SET | vfio.LOW_POWER_ENTRY)
        device.feature(SET | vfio.LOW_POWER_EXIT)
        device.feature(SET | vfio.LOW_POWER_EXIT)
        t.equal(bar.read32(edu.REG_IDENTIFICATION), edu.IDENTIFIES, "identification after low power")
        device.feature(SET | vfio.LOW_POWER_ENTRY)
        device.feature(SET | vfio.LOW_POWER_EXIT)
