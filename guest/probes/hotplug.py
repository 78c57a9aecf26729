# SPDX-License-Identifier: GPL-2.0-only
"""Devices that the host unplugs and plugs: the same promises as for an unbind.

The cases ask the host through the virtio-serial port. They name QEMU's devices by their ids in the topology
`hotplug`: edu0 is present at boot, edu1 is not.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from guest import edu, igb, libc, memory, pci, vfio
from guest.case import Test, case
from guest.opened import Event, through_cdev

SLOT = ("noiommu-cdev", "edu", "hotplug", "!viommu")

PRESENT = "edu0"
CARD = "igb0"
ABSENT = "edu1"

GOES = 30.0
"""Seconds that pciehp may take: it waits 5 after the attention button (drivers/pci/hotplug/pciehp_ctrl.c).

In topology hotplug ACPI drives the slots, without a delay; in topology pciehp Linux drives them."""

# include/uapi/linux/pci_regs.h
CLASS = 0x0A
SLOT_CONTROL, SLOT_TELL_PRESENCE, SLOT_TELL, SLOT_OFF = 24, 0x0008, 0x0020, 0x0700
SLOT_INDICATOR, SLOT_BLINKS = 0x0300, 0x0200

SETTLES = 1.0
"""Seconds after which the indicator of a filled slot is on, unless pciehp is about to power the slot off.

QEMU presses the attention button of a slot that it fills.  If pciehp has seen the link first, the slot is on
by then, and the press switches it off 5 seconds later (pciehp_handle_button_press())."""

PRESSES = 3

HOLDS = 8.0
"""Seconds within which a removal that does not wait for a user is done."""


def _wait_for_return(t: Test, bdf: str) -> None:
    """Wait until *bdf* exists and can be bound.

    A bind is ENODEV while the slot's driver still sets the device up, under the lock that a rescan takes.
    """
    t.wait_until(lambda: pci.exists(bdf), "the return", GOES)
    pci.rescan()


@case(needs=SLOT, timeout=90, cites="drivers/vfio/vfio_main.c vfio_unregister_group_dev(); pciehp_ctrl.c")
def unused_device_goes_with_its_nodes(t: Test) -> None:
    """Unplugging a bound device that is not in use removes its nodes; plugged in again, it has neither driver
    nor VFIO device."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf) as nodes:
        cdev = nodes.cdev
        assert cdev is not None
        t.host.unplug(PRESENT)
        t.wait_until(lambda: not pci.exists(bdf), "the removal", GOES)
        t.check(not cdev.exists(), f"{cdev} outlived its device")
        t.host.plug(PRESENT)
        _wait_for_return(t, bdf)
        t.equal(pci.driver(bdf), None, "the driver after the return")
        t.equal(pci.vfio_dev_name(bdf), None, "the VFIO device after the return")


@case(
    needs=SLOT,
    timeout=120,
    cites="drivers/vfio/vfio_main.c vfio_unregister_group_dev() (wait loop); pci/vfio_pci_core.c "
    "vfio_pci_core_request()",
)
def used_device_waits_for_its_user(t: Test) -> None:
    """Unplugging a device in use asks its user through the REQ eventfd and waits until the device is
    closed."""
    bdf = t.device("edu", iommu=False)
    with through_cdev(bdf) as user:
        event = libc.eventfd()
        user.device.set_eventfds(vfio.REQ, event)
        t.host.unplug(PRESENT)
        t.wait_until(lambda: libc.eventfd_count(event) > 0, "the request to the user", GOES)
        time.sleep(HOLDS)
        t.check(pci.exists(bdf), "the device was removed while in use")
        t.check(user.device.info().flags & vfio.DEVICE_FLAGS_PCI, "the device no longer answers")
        user.device.close()
        t.wait_until(lambda: not pci.exists(bdf), "the removal after the close", GOES)
        os.close(event)
    t.host.plug(PRESENT)
    _wait_for_return(t, bdf)


@case(needs=SLOT, timeout=90, cites="drivers/vfio/vfio_main.c __vfio_register_dev(); pciehp_ctrl.c")
def newcomer_is_a_noiommu_device_too(t: Test) -> None:
    """A device that is plugged in later can be bound as a no-IOMMU device like one present at boot."""
    before = set(pci.find("edu"))
    t.host.plug(ABSENT)
    t.wait_until(lambda: set(pci.find("edu")) != before, "the arrival", GOES)
    (bdf,) = set(pci.find("edu")) - before
    _wait_for_return(t, bdf)
    with through_cdev(bdf) as user:
        t.equal(user.device.read_config(vfio.PCI_VENDOR_ID, 2), 0x1234, "the newcomer's vendor")
        name = pci.vfio_dev_name(bdf)
        t.check(name is not None and name.startswith("noiommu-"), f"its VFIO device is named {name!r}")
    t.host.unplug(ABSENT)
    t.wait_until(lambda: not pci.exists(bdf), "the removal", GOES)


@case(needs=SLOT, timeout=120, cites="drivers/vfio/vfio_main.c vfio_unregister_group_dev(); vfio_pci_core.c")
def leaving_device_works_on(t: Test) -> None:
    """A device whose removal waits for its user keeps working (DMA, interrupts, registers), and a mapping of
    its registers alone delays the removal."""
    bdf = t.device("edu", iommu=False)
    with through_cdev(bdf) as user, user.device.bar() as bar, memory.anonymous(2 * memory.PAGE) as buffer:
        card, asked, event = edu.Edu(bar), Event(), Event()
        buffer.touch()
        user.map(buffer, 0)
        user.device.set_bus_master()
        user.device.set_eventfds(vfio.REQ, asked.fd)
        t.host.unplug(PRESENT)
        t.equal(asked.arrives(GOES), 1, "requests to the user")
        data = bytes(t.random.randrange(256) for _ in range(256))
        buffer.write(data)
        card.copy_from_ram(user.physical(0, 256), 256)
        card.copy_to_ram(user.physical(memory.PAGE, 256), 256)
        t.equal(buffer.read(memory.PAGE, 256), data, "the data of a round trip during the removal")
        user.device.set_eventfds(vfio.MSI, event.fd)
        card.raise_irq()
        t.equal(event.arrives(), 1, "interrupts set up during the removal")
        user.device.close()
        time.sleep(0.5)
        t.check(pci.exists(bdf), "the device was removed while its registers are mapped")
        t.check(card.is_edu(), "the registers do not answer")
        bar.close()
        t.wait_until(lambda: not pci.exists(bdf), "the removal after the unmapping", GOES)
    t.host.plug(PRESENT)
    _wait_for_return(t, bdf)


class _Slot:
    """A slot driven by pciehp, not by ACPI, controlled through its port's Slot Control register."""

    def __init__(self, t: Test, bdf: str) -> None:
        port = pci.path_of(bdf).resolve().parent
        if not Path(f"/sys/bus/pci_express/drivers/pciehp/{port.name}:pcie004").exists():
            t.skip(f"pciehp does not drive the port {port.name}; use topology pciehp")
        self._port = port.name
        self._where = pci.capability(self._port, pci.CAP_EXPRESS) + SLOT_CONTROL

    def _control(self) -> int:
        return pci.config_number(self._port, self._where, 2)

    def _set_control(self, value: int) -> None:
        pci.write_config(self._port, self._where, value.to_bytes(2, "little"))

    def tear_out(self, t: Test, asked: Event) -> None:
        """Power the slot off without its driver, and wait until the device's user is *asked* to release it.

        QEMU removes the device at once. The power is then switched on again, so that pciehp does not take the
        slot for one that it has switched off itself. Presence changes are enabled for that moment, because
        pciehp does not enable them where there is an attention button (pcie_enable_notification()).
        """
        control = self._control()
        self._set_control(control & ~SLOT_TELL | SLOT_OFF)
        self._set_control(control | SLOT_TELL_PRESENCE)
        t.equal(asked.arrives(GOES), 1, "requests to the user")
        self._set_control(control)

    def refill(self, t: Test, device: str, bdf: str) -> None:
        """Plug *device* in again after pciehp has switched the slot off, which would also remove a new
        device."""
        for _ in range(PRESSES):
            t.wait_until(lambda: self._control() & SLOT_OFF == SLOT_OFF, "the slot's power-off", GOES)
            t.host.plug(device)
            _wait_for_return(t, bdf)
            time.sleep(SETTLES)
            if self._control() & SLOT_INDICATOR != SLOT_BLINKS:
                return
            t.log("pciehp saw the link before the button press and will power the slot off")
        t.fail(f"pciehp powered the slot off after each of {PRESSES} plugs")


@case(needs=SLOT, timeout=120, cites="drivers/pci/hotplug/pciehp_ctrl.c; drivers/vfio/pci/vfio_pci_core.c")
def torn_out_device_lets_its_user_go(t: Test) -> None:
    """After a surprise removal the user is asked to release the device, its configuration reads as ones, its
    memory can be unmapped, and closing it completes the removal."""
    bdf = t.device("edu", iommu=False)
    slot = _Slot(t, bdf)
    with through_cdev(bdf) as user, user.device.bar() as bar, memory.anonymous() as buffer:
        user.map(buffer, 0)
        user.device.set_bus_master()
        asked, interrupt = Event(), Event()
        user.device.set_eventfds(vfio.REQ, asked.fd)
        user.device.set_eventfds(vfio.MSI, interrupt.fd)
        slot.tear_out(t, asked)
        t.check(pci.exists(bdf), "the device was removed before its user closed it")
        t.equal(user.device.read_config(CLASS, 2), 0xFFFF, "the class read from the removed device")
        t.check(not edu.Edu(bar).is_edu(), "the registers of the removed device still answer")
        t.equal(
            len(os.pread(user.device.fd, 4, user.device.region(vfio.BAR0).offset)), 4, "bytes read by file"
        )
        t.check(user.device.info().flags & vfio.DEVICE_FLAGS_PCI, "GET_INFO does not answer")
        t.equal(user.iommufd.unmap(user.ioas, 0, buffer.length), buffer.length, "bytes unmapped")
        user.device.disable_irqs(vfio.MSI)
        bar.close()
        user.device.close()
        t.wait_until(lambda: not pci.exists(bdf), "the removal after the close", GOES)
    slot.refill(t, PRESENT, bdf)
    with through_cdev(bdf) as user:
        t.equal(user.device.read_config(vfio.PCI_VENDOR_ID, 2), edu.VENDOR_ID, "the vendor after the return")


@case(
    needs=("noiommu-cdev", "igb", "hotplug", "!viommu"),
    timeout=120,
    cites="drivers/pci/hotplug/pciehp_ctrl.c; drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_disable()",
)
def torn_out_card_comes_back_fresh(t: Test) -> None:
    """After a surprise removal with interrupts enabled, a reset is EAGAIN while the card is open, and the
    card comes back in its initial state."""
    bdf = t.device("igb")
    slot = _Slot(t, bdf)
    with through_cdev(bdf) as user, user.device.bar() as bar:
        default = bar.read32(igb.RDLEN)
        bar.write32(igb.RDLEN, 4096)
        asked, interrupt = Event(), Event()
        user.device.set_bus_master()
        user.device.set_eventfds(vfio.REQ, asked.fd)
        user.device.set_eventfds(vfio.MSIX, interrupt.fd)
        slot.tear_out(t, asked)
        t.equal(user.device.read_config(CLASS, 2), 0xFFFF, "the class read from the removed device")
        t.errno(errno.EAGAIN, user.device.reset)
        bar.close()
        user.device.close()
        t.wait_until(lambda: not pci.exists(bdf), "the removal after the close", GOES)
    slot.refill(t, CARD, bdf)
    with through_cdev(bdf) as user, user.device.bar() as bar:
        t.equal(bar.read32(igb.RDLEN), default, "a register after the return")
        user.device.reset()
