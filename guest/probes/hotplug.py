# SPDX-License-Identifier: GPL-2.0-only
"""Devices that the host pulls out and puts in: the same promises as an unbind, from below.

The cases ask the host through the virtio-serial port; what QEMU's devices are called there is their id in the
topology `hotplug`: edu0 is there at boot, edu1 is not.
"""

from __future__ import annotations

import errno
import os
import time

from guest import edu, igb, libc, memory, pci, vfio
from guest.case import Test, case
from guest.opened import Event, through_cdev

SLOT = ("noiommu-cdev", "edu", "hotplug", "!viommu")

PRESENT = "edu0"
CARD = "igb0"
ABSENT = "edu1"

GOES = 30.0
"""Seconds that pciehp may take: it waits 5 after the attention button (drivers/pci/hotplug/pciehp_ctrl.c)."""

# include/uapi/linux/pci_regs.h
CAP_LIST, CAP_EXPRESS = 0x34, 0x10
SLOT_CONTROL, SLOT_OFF, SLOT_LED_OFF = 24, 0x0400, 0x0300

HOLDS = 8.0
"""Seconds after the request within which a removal that nothing holds up is over."""


@case(needs=SLOT, timeout=90, cites="drivers/vfio/vfio_main.c vfio_unregister_group_dev(); pciehp_ctrl.c")
def unused_device_goes_with_its_nodes(t: Test) -> None:
    """Pulling out a bound device that nobody uses removes its nodes, and it comes back as a stranger."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf) as nodes:
        cdev = nodes.cdev
        assert cdev is not None
        t.host.unplug(PRESENT)
        t.wait_until(lambda: not pci.exists(bdf), "the removal", GOES)
        t.check(not cdev.exists(), f"{cdev} outlived its device")
        t.host.plug(PRESENT)
        t.wait_until(lambda: pci.exists(bdf), "the return", GOES)
        t.equal(pci.driver(bdf), None, "the driver after the return")
        t.equal(pci.vfio_dev_name(bdf), None, "the VFIO device after the return")


@case(
    needs=SLOT,
    timeout=120,
    cites="drivers/vfio/vfio_main.c vfio_unregister_group_dev() (wait loop); vfio_pci_core_request()",
)
def used_device_waits_for_its_user(t: Test) -> None:
    """Pulling out a device in use asks the user through the REQ eventfd and waits until it is closed."""
    bdf = t.device("edu", iommu=False)
    with through_cdev(bdf) as user:
        event = libc.eventfd()
        user.device.set_eventfds(vfio.REQ, event)
        t.host.unplug(PRESENT)
        t.wait_until(lambda: libc.eventfd_count(event) > 0, "the request to the user", GOES)
        time.sleep(HOLDS)
        t.check(pci.exists(bdf), "the device went although it was in use")
        t.check(user.device.info().flags & vfio.DEVICE_FLAGS_PCI, "the device does not answer any more")
        user.device.close()
        t.wait_until(lambda: not pci.exists(bdf), "the removal after the close", GOES)
        os.close(event)
    t.host.plug(PRESENT)
    t.wait_until(lambda: pci.exists(bdf), "the return", GOES)


@case(needs=SLOT, timeout=90, cites="drivers/vfio/vfio_main.c __vfio_register_dev(); pciehp_ctrl.c")
def newcomer_is_a_noiommu_device_too(t: Test) -> None:
    """A device that is plugged in later is bound as a no-IOMMU device like one from boot."""
    before = set(pci.find("edu"))
    t.host.plug(ABSENT)
    t.wait_until(lambda: set(pci.find("edu")) != before, "the arrival", GOES)
    (bdf,) = set(pci.find("edu")) - before
    with through_cdev(bdf) as user:
        t.equal(user.device.read_config(vfio.PCI_VENDOR_ID, 2), 0x1234, "the newcomer's vendor")
        name = pci.vfio_dev_name(bdf)
        t.check(name is not None and name.startswith("noiommu-"), f"its VFIO device is called {name!r}")
    t.host.unplug(ABSENT)
    t.wait_until(lambda: not pci.exists(bdf), "the removal", GOES)


@case(needs=SLOT, timeout=120, cites="drivers/vfio/vfio_main.c vfio_unregister_group_dev(); vfio_pci_core.c")
def leaving_device_works_on(t: Test) -> None:
    """A device whose removal waits for its user does DMA, raises interrupts and answers as before, and the
    last mapping of its registers alone keeps it."""
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
        t.check(pci.exists(bdf), "the device went although its registers are mapped")
        t.check(card.is_edu(), "the registers do not answer")
    t.wait_until(lambda: not pci.exists(bdf), "the removal after the unmapping", GOES)
    t.host.plug(PRESENT)
    t.wait_until(lambda: pci.exists(bdf), "the return", GOES)


def _tear_out(bdf: str) -> None:
    """Cut the power of the slot that *bdf* is in, past its driver: the device is gone before anybody asks."""
    with open(pci.path_of(bdf).resolve().parent / "config", "r+b", buffering=0) as config:
        space = os.pread(config.fileno(), 256, 0)
        cap = space[CAP_LIST]
        while space[cap] != CAP_EXPRESS:
            cap = space[cap + 1]
        control = int.from_bytes(space[cap + SLOT_CONTROL : cap + SLOT_CONTROL + 2], "little")
        os.pwrite(
            config.fileno(), (control | SLOT_OFF | SLOT_LED_OFF).to_bytes(2, "little"), cap + SLOT_CONTROL
        )


@case(needs=SLOT, timeout=120, cites="drivers/pci/hotplug/pciehp_ctrl.c; drivers/vfio/pci/vfio_pci_core.c")
def torn_out_device_lets_its_user_go(t: Test) -> None:
    """The user of a device that was torn out is asked for it; its configuration reads as ones, its memory
    can be unmapped, and closing it ends the removal."""
    bdf = t.device("edu", iommu=False)
    with through_cdev(bdf) as user, user.device.bar() as bar, memory.anonymous() as buffer:
        user.map(buffer, 0)
        user.device.set_bus_master()
        asked, interrupt = Event(), Event()
        user.device.set_eventfds(vfio.REQ, asked.fd)
        user.device.set_eventfds(vfio.MSI, interrupt.fd)
        _tear_out(bdf)
        t.equal(asked.arrives(GOES), 1, "requests to the user")
        t.check(pci.exists(bdf), "the device's entry went before its user")
        t.log(f"vendor {user.device.read_config(0, 4):#x} bar {bar.read32(0):#x}")
        t.log(os.pread(user.device.fd, 4, user.device.region(vfio.BAR0).offset))
        t.check(user.device.info().flags & vfio.DEVICE_FLAGS_PCI, "GET_INFO does not answer")
        t.equal(user.iommufd.unmap(user.ioas, 0, buffer.length), buffer.length, "bytes unmapped")
        user.device.disable_irqs(vfio.MSI)
        bar.close()
        user.device.close()
        t.wait_until(lambda: not pci.exists(bdf), "the removal after the close", GOES)
    t.host.plug(PRESENT)
    t.wait_until(lambda: pci.exists(bdf), "the return", GOES)
    with through_cdev(bdf) as user:
        t.equal(user.device.read_config(vfio.PCI_VENDOR_ID, 2), edu.VENDOR_ID, "the vendor after the return")


@case(
    needs=("noiommu-cdev", "igb", "hotplug", "!viommu"),
    timeout=120,
    cites="drivers/pci/hotplug/pciehp_ctrl.c; drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_disable()",
)
def torn_out_card_comes_back_fresh(t: Test) -> None:
    """A card torn out with its interrupts on and its user killed afterwards comes back as one that nobody
    has touched."""
    bdf = t.device("igb")
    with through_cdev(bdf) as user, user.device.bar() as bar:
        default = bar.read32(igb.RDLEN)
        bar.write32(igb.RDLEN, 4096)
        asked, interrupt = Event(), Event()
        user.device.set_bus_master()
        user.device.set_eventfds(vfio.REQ, asked.fd)
        user.device.set_eventfds(vfio.MSIX, interrupt.fd)
        _tear_out(bdf)
        t.equal(asked.arrives(GOES), 1, "requests to the user")
        t.log(user.device.read_config(0, 4))
        try:
            user.device.reset()
        except OSError as error:
            t.log(errno.errorcode[error.errno or 0])
        bar.close()
        user.device.close()
        t.wait_until(lambda: not pci.exists(bdf), "the removal after the close", GOES)
    t.host.plug(CARD)
    t.wait_until(lambda: pci.exists(bdf), "the return", GOES)
    with through_cdev(bdf) as user, user.device.bar() as bar:
        t.equal(bar.read32(igb.RDLEN), default, "a register after the return")
        user.device.reset()
