# SPDX-License-Identifier: GPL-2.0-only
"""Devices that the host pulls out and puts in: the same promises as an unbind, from below.

The cases ask the host through the virtio-serial port; what QEMU's devices are called there is their id in the
topology `hotplug`: edu0 is there at boot, edu1 is not.
"""

from __future__ import annotations

import os
import time

from guest import libc, pci, vfio
from guest.case import Test, case
from guest.opened import through_cdev

SLOT = ("noiommu-cdev", "edu", "hotplug", "!viommu")

PRESENT = "edu0"
ABSENT = "edu1"

GOES = 30.0
"""Seconds that pciehp may take: it waits 5 after the attention button (drivers/pci/hotplug/pciehp_ctrl.c)."""

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
