# SPDX-License-Identifier: GPL-2.0-only
"""Power states without an IOMMU: idle devices sleep, users send theirs to sleep and wake them."""

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
    """A bound device is suspended, in D3 where it can be, whenever nobody uses it, and awake as long as
    somebody does."""
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
    """With disable_idle_d3 on, a device that is bound then never sleeps, whatever the parameter becomes, and
    one that was bound before goes on doing so."""
    bdf = t.device("igb")
    with _idle_d3_off(), pci.bound(bdf):
        pci.write(IDLE_D3_OFF, "N")
        t.equal(_status(bdf), "active", "runtime status of an idle device with the option on")
        with reopened(t, bdf):
            pass
        t.equal(_status(bdf), "active", "runtime status after a use")
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
    """Writing D3 to the power management capability puts the device there: its registers are out of reach by
    mapping (SIGBUS) and by file (EIO), memory decoding or not, until D0 is written, and then are where they
    were."""
    bdf = t.device("igb")
    with opened(t, bdf) as device, device.bar() as bar:
        control, offset = pci.capability(bdf, pci.CAP_POWER) + POWER_CONTROL, device.region(vfio.BAR0).offset
        device.set_bus_master()
        header, status = pci.config(bdf, vfio.PCI_COMMAND, 0x30), bar.read32(igb.STATUS)
        device.write_config(control, 2, D3)
        t.equal(device.read_config(control, 2) & POWER_STATE, D3, "the state that the user reads")
        t.equal(pci.config_number(bdf, control, 2) & POWER_STATE, D3, "the state of the device")
        t.equal(device.read_config(0, 4), igb.DEVICE_ID << 16 | igb.VENDOR_ID, "the ids in D3")
        sigbus(t, lambda: bar.read32(igb.STATUS), "a load by the mapping in D3")
        command = device.read_config(vfio.PCI_COMMAND, 2)
        for value in (command, command | vfio.PCI_COMMAND_MEMORY):
            device.write_config(vfio.PCI_COMMAND, 2, value)
            t.errno(errno.EIO, os.pread, device.fd, 4, offset + igb.STATUS)
            t.errno(errno.EIO, os.pwrite, device.fd, bytes(4), offset)
        device.write_config(control, 2, D0)
        t.equal(device.read_config(control, 2) & POWER_STATE, D0, "the state that the user reads after D0")
        t.equal(pci.config_number(bdf, control, 2) & POWER_STATE, D0, "the state of the device after D0")
        t.equal(bar.read32(igb.STATUS), status, "a register by the mapping made before")
        t.equal(pci.config(bdf, vfio.PCI_COMMAND, 0x30), header, "the device's own header")


@case(
    needs=IGB,
    cites="drivers/vfio/pci/vfio_pci_config.c vfio_pm_config_write(); pci.c pci_set_low_power_state()",
)
def states_that_the_device_lacks_are_ignored(t: Test) -> None:
    """Writing a power state that the card does not have leaves it in D0."""
    bdf = t.device("igb")
    with opened(t, bdf) as device, device.bar() as bar:
        control = pci.capability(bdf, pci.CAP_POWER) + POWER_CONTROL
        device.write_config(control, 2, D1)
        t.equal(device.read_config(control, 2) & POWER_STATE, D0, "the state after writing D1")
        t.check(bar.read32(igb.STATUS) != 0xFFFFFFFF, "the registers are out of reach")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_reset() (power state)")
def reset_wakes_the_device(t: Test) -> None:
    """RESET of a device in D3 succeeds and leaves it in D0, with its registers at their defaults."""
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
    """A device that its user leaves in D3, or in low power, is in D0 and works for the next one."""
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
                t.equal(
                    device.read_config(control, 2) & POWER_STATE, D0, "the state that the next user finds"
                )
                bar.write32(igb.RDLEN, 4096)
                t.equal(bar.read32(igb.RDLEN), 4096, "a register of the next user")
                by_file = os.pread(device.fd, 4, device.region(vfio.BAR0).offset + igb.RDLEN)
                t.equal(by_file, struct.pack("<I", 4096), "the same by file")
            _wait_status(t, bdf, "suspended")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_disable(), vfio_pci_runtime_pm_exit()")
def low_power_ends_with_its_user(t: Test) -> None:
    """A user who closes a device in low power leaves it awake for the next one, whose mapping works, and who
    may do the same."""
    bdf = t.device("edu")
    with pci.bound(bdf):
        for _ in range(2):
            with reopened(t, bdf) as device, device.bar() as bar:
                t.equal(bar.read32(0), edu.IDENTIFIES, "a register by mapping")
                device.feature(SET | vfio.LOW_POWER_ENTRY)


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_config.c init_pci_cap_pm_perm()")
def wake_events_are_not_the_users(t: Test) -> None:
    """The bit that enables wake events reads as zero whatever the card or the user writes, and the user can
    neither set nor clear the card's."""
    bdf = t.device("igb")
    with opened(t, bdf) as device:
        control = pci.capability(bdf, pci.CAP_POWER) + POWER_CONTROL
        for real in (0, POWER_PME_ENABLE):
            pci.write_config(bdf, control, struct.pack("<H", real))
            t.equal(
                pci.config_number(bdf, control, 2) & POWER_PME_ENABLE,
                real,
                "the card's own bit, set past VFIO",
            )
            for size, offset, value in (
                (2, 0, real ^ POWER_PME_ENABLE),
                (4, 0, POWER_PME_ENABLE),
                (1, 1, 0),
                (1, 1, 1),
            ):
                device.write_config(control + offset, size, value)
                t.equal(device.read_config(control, 2) & POWER_PME_ENABLE, 0, "the bit shown")
                t.equal(pci.config_number(bdf, control, 2) & POWER_PME_ENABLE, real, "the card's own bit")
        pci.write_config(bdf, control, bytes(2))


@case(needs=EDU, cites="include/uapi/linux/vfio.h VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY; vfio_pci_core.c")
def low_power_lasts_until_the_exit(t: Test) -> None:
    """A device in low power is suspended; an access by its file wakes it up for as long as it takes, one by
    a mapping is SIGBUS, until its user ends low power."""
    bdf = t.device("edu", iommu=False)
    with opened(t, bdf) as device, device.bar() as bar:
        t.equal(bar.read32(0), edu.IDENTIFIES, "a register by mapping before")
        where = device.region(vfio.BAR0).offset
        device.feature(SET | vfio.LOW_POWER_ENTRY)
        for turn in range(2):
            _wait_status(t, bdf, "suspended")
            sigbus(t, lambda: bar.read32(0), f"a load by the mapping in low power at turn {turn}")
            t.equal(_status(bdf), "suspended", "runtime status after an access by mapping")
            t.equal(os.pread(device.fd, 4, where), struct.pack("<I", edu.IDENTIFIES), "a register by file")
        _wait_status(t, bdf, "suspended")
        t.equal(device.read_config(0, 2), edu.VENDOR_ID, "the vendor in low power")
        sigbus(t, lambda: bar.read32(0), "a load in low power after configuration space was read")
        device.feature(SET | vfio.LOW_POWER_EXIT)
        t.equal(_status(bdf), "active", "runtime status after the exit")
        t.equal(bar.read32(0), edu.IDENTIFIES, "a register by mapping after the exit")


def _wakeup(fd: int) -> bytes:
    return struct.pack("<iI", fd, 0)


def _wakes_up(t: Test, bdf: str, register: int) -> None:
    """Have the device at *bdf* sleep with an eventfd and wake up, twice; *register* is one that stays."""
    vendor = pci.ids(bdf)[0]
    with opened(t, bdf) as device, device.bar() as bar:
        event = Event()
        before = bar.read32(register)
        for _ in range(2):
            device.feature(SET | vfio.LOW_POWER_ENTRY_WAKEUP, _wakeup(event.fd))
            _wait_status(t, bdf, "suspended")
            sigbus(t, lambda: bar.read32(register), "a load by the mapping in low power")
            t.check(event.silent(), "the suspend or an access by mapping was announced as a wakeup")
            t.equal(device.read_config(0, 2), vendor, "the vendor")
            t.equal(event.arrives(), 1, "signals of the wakeup")
            t.equal(_status(bdf), "active", "runtime status after the wakeup")
            t.equal(bar.read32(register), before, "a register by mapping after the wakeup")
        device.feature(SET | vfio.LOW_POWER_EXIT)
        device.feature(SET | vfio.LOW_POWER_ENTRY)
        device.feature(SET | vfio.LOW_POWER_EXIT)
        t.check(event.silent(), "an exit from no low power, or from one without a wakeup, was announced")


@case(needs=EDU, cites="include/uapi/linux/vfio.h VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP")
def wakeup_is_announced_and_ends_low_power(t: Test) -> None:
    """Entered with an eventfd, low power ends at the first access by file, which signals it once; the device
    then stays awake and its mappings work without an exit."""
    _wakes_up(t, t.device("edu", iommu=False), edu.REG_IDENTIFICATION)


@case(
    needs=IGB, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_runtime_resume() (pm_wake_eventfd_ctx)"
)
def wakeup_from_d3_is_announced(t: Test) -> None:
    """The wakeup of a card that can be in D3 is announced and ends low power like that of a device that
    cannot."""
    _wakes_up(t, t.device("igb", iommu=False), igb.STATUS)


@case(needs=EDU, cites="include/uapi/linux/vfio.h VFIO_DEVICE_FEATURE_LOW_POWER_EXIT; vfio_pci_core.c")
def exit_announces_a_wakeup(t: Test) -> None:
    """The exit from low power is itself a wakeup and signals the eventfd, once."""
    bdf = t.device("edu", iommu=False)
    with opened(t, bdf) as device, device.bar() as bar:
        event = Event()
        device.feature(SET | vfio.LOW_POWER_ENTRY_WAKEUP, _wakeup(event.fd))
        _wait_status(t, bdf, "suspended")
        device.feature(SET | vfio.LOW_POWER_EXIT)
        t.equal(event.arrives(), 1, "signals of the exit")
        t.equal(bar.read32(0), edu.IDENTIFIES, "a register by mapping after the exit")


@case(needs=EDU, cites="include/uapi/linux/vfio.h VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP")
def no_wakeup_without_sleep(t: Test) -> None:
    """A device that the kernel is told to keep awake does not enter low power: nothing is announced, and low
    power is over only with the exit."""
    bdf = t.device("edu", iommu=False)
    with opened(t, bdf) as device, device.bar() as bar:
        control = pci.path_of(bdf) / "power" / "control"
        pci.write(control, "on")
        event = Event()
        device.feature(SET | vfio.LOW_POWER_ENTRY_WAKEUP, _wakeup(event.fd))
        t.equal(device.read_config(0, 2), edu.VENDOR_ID, "the vendor")
        t.equal(_status(bdf), "active", "runtime status of a device that is kept awake")
        t.errno(errno.EINVAL, device.feature, SET | vfio.LOW_POWER_ENTRY)
        sigbus(t, lambda: bar.read32(0), "a load by the mapping in low power that was not entered")
        device.feature(SET | vfio.LOW_POWER_EXIT)
        t.equal(bar.read32(0), edu.IDENTIFIES, "a register by mapping after the exit")
        t.check(event.silent(), "a wakeup was announced although the device never slept")
        pci.write(control, "auto")


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_pm_entry_with_wakeup()")
def wakeup_needs_an_eventfd(t: Test) -> None:
    """Low power with a wakeup wants a whole payload with an eventfd in it; every refusal leaves the device
    awake, and leaving it again works; a payload too long is ignored."""
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
        t.equal(bar.read32(0), edu.IDENTIFIES, "identification after the refusals")
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
    """INTx is masked in low power and unmasked after it, unless its user had masked it: that stays."""
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
        t.check(event.silent(), "low power unmasked an interrupt that was masked before")
        device.set_irqs(vfio.INTX, vfio.SET_DATA_NONE | vfio.SET_ACTION_UNMASK)
        t.equal(event.arrives(), 1, "interrupts once unmasked")
        card.ack_irq()


def _sleep_and_wake(t: Test, bdf: str, device: vfio.Device) -> None:
    device.feature(SET | vfio.LOW_POWER_ENTRY)
    _wait_status(t, bdf, "suspended")
    device.feature(SET | vfio.LOW_POWER_EXIT)


@case(
    needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_runtime_pm_entry(), vfio_pci_core_pm_exit()"
)
def low_power_is_entered_once(t: Test) -> None:
    """A device in low power cannot enter it again; after leaving it, however often, it works as before."""
    with opened(t, t.device("edu")) as device, device.bar() as bar:
        device.feature(SET | vfio.LOW_POWER_ENTRY)
        t.errno(errno.EINVAL, device.feature, SET | vfio.LOW_POWER_ENTRY)
        device.feature(SET | vfio.LOW_POWER_EXIT)
        device.feature(SET | vfio.LOW_POWER_EXIT)
        t.equal(bar.read32(edu.REG_IDENTIFICATION), edu.IDENTIFIES, "identification after low power")
        device.feature(SET | vfio.LOW_POWER_ENTRY)
        device.feature(SET | vfio.LOW_POWER_EXIT)
