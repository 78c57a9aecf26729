# SPDX-License-Identifier: GPL-2.0-only
"""Power states and resets without an IOMMU: idle devices sleep, users send theirs to sleep and wake them."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from guest import edu, igb, pci, vfio
from guest.case import Test, case
from guest.iommufd import Iommufd
from guest.opened import Event, opened, reopened, sigbus

EDU = ("noiommu", "edu", "!viommu")
IGB = ("noiommu", "igb", "!viommu")

SET = vfio.FEATURE_SET


POWER_CONTROL, POWER_STATE = 4, 3
POWER_PME_ENABLE = 0x100
D0, D3 = 0, 3

IDLE_D3_OFF = Path("/sys/module/vfio_pci/parameters/disable_idle_d3")

GOES = 10.0


def _status(bdf: str) -> str:
    return pci.read(pci.path_of(bdf) / "power" / "runtime_status")


def _wait_status(t: Test, bdf: str, want: str) -> None:
    t.wait_until(lambda: _status(bdf) == want, f"runtime status {want} of {bdf}", GOES)


@case(
    needs=(*EDU, "igb"),
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_enable(), _disable() (pm_runtime)",
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


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_config.c vfio_pm_config_write()")
def user_puts_the_device_to_sleep(t: Test) -> None:
    """Writing D3 to the power management capability puts the device there: its registers are out of reach by
    mapping (SIGBUS) and by file (EIO) until D0 is written, and then are where they were."""
    bdf = t.device("igb")
    with opened(t, bdf) as device, device.bar() as bar:
        control = pci.capability(bdf, pci.CAP_POWER) + POWER_CONTROL
        device.set_bus_master()
        command, base = pci.config_number(bdf, vfio.PCI_COMMAND, 2), pci.config_number(bdf, 0x10, 4)
        status = bar.read32(igb.STATUS)
        device.write_config(control, 2, D3)
        t.equal(device.read_config(control, 2) & POWER_STATE, D3, "the state that the user reads")
        t.equal(pci.config_number(bdf, control, 2) & POWER_STATE, D3, "the state of the device")
        t.equal(device.read_config(0, 4), igb.DEVICE_ID << 16 | igb.VENDOR_ID, "the ids in D3")
        sigbus(t, lambda: bar.read32(0), "a load by the mapping in D3")
        t.errno(errno.EIO, os.pread, device.fd, 4, device.region(vfio.BAR0).offset)
        device.write_config(control, 2, D0)
        t.equal(
            pci.config_number(bdf, control, 2) & POWER_STATE,
            D0,
            "the state of the device after D0 was written",
        )
        t.equal(bar.read32(igb.STATUS), status, "a register by the mapping made before")
        t.equal(pci.config_number(bdf, vfio.PCI_COMMAND, 2), command, "the command register")
        t.equal(pci.config_number(bdf, 0x10, 4), base, "the first base address")


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


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_disable() (vfio_pci_set_power_state)")
def next_user_finds_the_device_awake(t: Test) -> None:
    """A device that its user leaves in D3, or in low power, is in D0 and works for the next one."""
    bdf = t.device("igb")
    with pci.bound(bdf):
        for leave in (D3, vfio.LOW_POWER_ENTRY):
            with reopened(t, bdf) as device:
                control = pci.capability(bdf, pci.CAP_POWER) + POWER_CONTROL
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
            _wait_status(t, bdf, "suspended")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_config.c init_pci_cap_pm_perm(), vfio_cap_init()")
def wake_events_stay_off(t: Test) -> None:
    """No user switches wake events on, or sees that somebody did."""
    bdf = t.device("igb")
    with opened(t, bdf) as device:
        control = pci.capability(bdf, pci.CAP_POWER) + POWER_CONTROL
        device.write_config(control, 2, POWER_PME_ENABLE)
        t.equal(pci.config_number(bdf, control, 2) & POWER_PME_ENABLE, 0, "what reached the device")
        pci.write_config(bdf, control, POWER_PME_ENABLE.to_bytes(2, "little"))
        t.equal(
            pci.config_number(bdf, control, 2), POWER_PME_ENABLE, "what the device has once it was written"
        )
        t.equal(device.read_config(control, 2) & POWER_PME_ENABLE, 0, "what the user reads then")
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
        device.feature(SET | vfio.LOW_POWER_EXIT)
        t.equal(_status(bdf), "active", "runtime status after the exit")
        t.equal(bar.read32(0), edu.IDENTIFIES, "a register by mapping after the exit")


def _wakeup(fd: int) -> bytes:
    return struct.pack("<iI", fd, 0)


@case(needs=EDU, cites="include/uapi/linux/vfio.h VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP")
def wakeup_is_announced_and_ends_low_power(t: Test) -> None:
    """Entered with an eventfd, low power ends at the first access by file, which signals it once; the device
    then stays awake and its mappings work without an exit."""
    bdf = t.device("edu", iommu=False)
    with opened(t, bdf) as device, device.bar() as bar:
        event = Event()
        for _ in range(2):
            device.feature(SET | vfio.LOW_POWER_ENTRY_WAKEUP, _wakeup(event.fd))
            _wait_status(t, bdf, "suspended")
            sigbus(t, lambda: bar.read32(0), "a load by the mapping in low power")
            t.check(event.silent(), "an access by mapping was announced as a wakeup")
            t.equal(device.read_config(0, 2), edu.VENDOR_ID, "the vendor")
            t.equal(event.arrives(), 1, "signals of the wakeup")
            t.equal(_status(bdf), "active", "runtime status after the wakeup")
            t.equal(bar.read32(0), edu.IDENTIFIES, "a register by mapping after the wakeup")
        device.feature(SET | vfio.LOW_POWER_EXIT)
        t.check(event.silent(), "an exit from no low power was announced")


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
    """Low power with wakeup wants a whole argument and an eventfd; what is refused does not enter it."""
    with opened(t, t.device("edu", iommu=False)) as device, device.bar() as bar:
        entry = SET | vfio.LOW_POWER_ENTRY_WAKEUP
        t.errno(errno.EINVAL, device.feature, entry)
        t.errno(errno.EINVAL, device.feature, entry, _wakeup(Event().fd)[:7])
        t.errno(errno.EINVAL, device.feature, entry, _wakeup(-1))
        t.errno(errno.EBADF, device.feature, entry, _wakeup(999))
        t.errno(errno.EINVAL, device.feature, entry, _wakeup(device.fd))
        t.equal(bar.read32(0), edu.IDENTIFIES, "a register by mapping after the refusals")


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


@contextlib.contextmanager
def _no_reset(bdf: str) -> Iterator[None]:
    method = pci.path_of(bdf) / "reset_method"
    pci.write(method, "\n")
    try:
        yield
    finally:
        pci.write(method, "default")


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_enable() (reset_works)")
def reset_is_offered_where_it_works(t: Test) -> None:
    """Whether a device can be reset is found out when it is opened: the flag and the ioctl (EINVAL) agree."""
    bdf = t.device("igb")
    with pci.bound(bdf):
        with _no_reset(bdf), reopened(t, bdf) as device:
            t.check(
                not device.info().flags & vfio.DEVICE_FLAGS_RESET, "a reset that nobody can do is offered"
            )
            t.errno(errno.EINVAL, device.reset)
        with reopened(t, bdf) as device:
            t.check(device.info().flags & vfio.DEVICE_FLAGS_RESET, "no reset is offered where there is one")
            device.reset()


@case(needs=IGB, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_reset(); pci_try_reset_function()")
def reset_does_not_wait_for_an_unbind(t: Test) -> None:
    """While an unbind waits for the device's user, that user's RESET is refused with EAGAIN at once, and
    closing the device ends the unbind all the same."""
    bdf = t.device("igb")
    with opened(t, bdf) as device:
        event = Event()
        device.set_eventfds(vfio.REQ, event.fd)
        writer = pci.start_unbind(bdf)
        t.equal(event.arrives(), 1, "requests to the user")
        t.errno(errno.EAGAIN, device.reset)
        t.check(device.info().flags & vfio.DEVICE_FLAGS_PCI, "the device does not answer")
        device.close()
        writer.wait(GOES)
    t.equal(pci.driver(bdf), None, "the driver afterwards")


@case(needs=(*IGB, "noiommu-cdev"), cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_enable() (-EAGAIN)")
def nobody_begins_to_use_a_device_that_leaves(t: Test) -> None:
    """A file opened before an unbind cannot bind a device that has to be reset for it (EAGAIN) while the
    unbind waits, and the attempt holds nothing."""
    bdf = t.device("igb")
    with pci.bound(bdf), vfio.open_cdev(bdf) as device, Iommufd() as iommufd:
        writer = pci.start_unbind(bdf)
        node = pci.vfio_nodes(bdf).cdev
        t.wait_until(lambda: pci.vfio_dev_name(bdf) is None, f"the end of {node}", GOES)
        t.errno(errno.EAGAIN, device.bind_iommufd, iommufd.fd)
        t.check(not writer.done, "the unbind did not wait for the open file")
        device.close()
        writer.wait(GOES)
