# SPDX-License-Identifier: GPL-2.0-only
"""Devices that go away while in use: unbinding, rebinding, removal, and killed users.

Every write that may block runs in its own process, and every wait has a timeout.
"""

from __future__ import annotations

import errno
import os
import signal
import time

from guest import caps, edu, forked, libc, memory, pci, vfio
from guest.case import Test, case
from guest.iommufd import Iommufd
from guest.opened import Event, opened, reopened_by_cdev, silent, through_cdev, through_group

BARE = ("noiommu-cdev", "edu", "!viommu")

BLOCKED = 0.3
"""Seconds after which a write that has not returned is blocked; unbinding a free device takes 0.03 on TCG."""


def _start_blocked_unbind(t: Test, bdf: str) -> pci.PendingWrite:
    writer = pci.start_unbind(bdf)
    time.sleep(BLOCKED)
    t.check(not writer.done, "unbinding an open device did not wait for its user")
    return writer


@case(needs=BARE, cites="drivers/vfio/vfio_main.c vfio_unregister_group_dev()")
def unbind_waits_for_a_bound_user(t: Test) -> None:
    """Unbinding waits until the user closes the device; meanwhile its node is gone and the open device
    works."""
    bdf = t.device("edu", iommu=False)
    with through_cdev(bdf) as user:
        node = pci.cdev_node(bdf)
        assert node is not None
        writer = _start_blocked_unbind(t, bdf)
        t.wait_until(lambda: not node.exists(), f"the removal of {node}")
        t.equal(user.device.read_config(vfio.PCI_VENDOR_ID, 2), 0x1234, "the vendor read during the unbind")
        t.check(user.device.info().flags & vfio.DEVICE_FLAGS_PCI, "the device does not answer")
        t.check(not writer.done, "the unbind did not wait for the user")
        user.device.close()
        writer.wait(5)
    t.equal(pci.driver(bdf), None, "the driver after the unbind")


@case(
    needs=BARE,
    cites="drivers/vfio/device_cdev.c vfio_device_fops_cdev_open(); vfio_main.c "
    "vfio_device_try_get_registration()",
)
def unbind_waits_for_an_open_file(t: Test) -> None:
    """A cdev that is open but not bound blocks the unbind as well."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf), vfio.open_cdev(bdf) as device:
        writer = _start_blocked_unbind(t, bdf)
        device.close()
        writer.wait(5)
    t.equal(pci.vfio_dev_name(bdf), None, "the vfio-dev device after the unbind")


@case(
    needs=("noiommu", "edu", "!viommu"),
    cites="drivers/vfio/device_cdev.c vfio_device_fops_cdev_open() (err_put_registration); group.c "
    "vfio_group_fops_open(), vfio_group_ioctl_get_device_fd()",
)
def refused_opener_does_not_hold_the_device(t: Test) -> None:
    """A task that was refused a device because it lacks CAP_SYS_RAWIO does not block its unbind."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf) as nodes:

        def refused() -> None:
            caps.drop(caps.CAP_SYS_RAWIO)
            for node in nodes.made:
                t.errno(errno.EPERM, vfio.try_open, node)

        t.in_child(refused)
        if nodes.group is not None:
            with vfio.open_group(bdf) as group:
                t.errno(errno.EINVAL, group.device, bdf)  # it is in no container
        writer = pci.start_unbind(bdf)
        t.wait_until(lambda: writer.done, "the unbind of a device that no task could open", 5)


@case(needs=BARE, cites="drivers/vfio/vfio_main.c vfio_device_fops_mmap() (the mapping holds the file)")
def unbind_waits_for_a_mapped_bar(t: Test) -> None:
    """A mapped BAR alone blocks the unbind, and works until it is unmapped."""
    bdf = t.device("edu", iommu=False)
    with through_cdev(bdf) as user:
        bar = user.device.bar(length=memory.PAGE)
        user.device.close()
        writer = _start_blocked_unbind(t, bdf)
        t.equal(bar.read32(0), edu.IDENTIFIES, "edu's identification register during the unbind")
        bar.close()
        writer.wait(5)


@case(
    needs=BARE,
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_request(); vfio_main.c vfio_unregister_group_dev()",
)
def unbind_asks_through_the_req_eventfd(t: Test) -> None:
    """An unbind signals the user's REQ eventfd at once, and the log says so."""
    bdf = t.device("edu", iommu=False)
    with through_cdev(bdf) as user:
        event = libc.eventfd()
        user.device.set_eventfds(vfio.REQ, event)
        t.equal(libc.eventfd_count(event), 0, "signals before the unbind")
        writer = _start_blocked_unbind(t, bdf)
        t.equal(libc.eventfd_count(event), 1, "signals right after the unbind began")
        t.check(
            any("Relaying device request to user (#0)" in line for line in t.dmesg()),
            "the kernel did not log that it asked the user",
        )
        user.device.close()
        writer.wait(5)
        os.close(event)


@case(needs=BARE, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_close_device() (err_, req_trigger)")
def channels_end_with_their_user(t: Test) -> None:
    """After a user closes a device, its next user has no REQ or ERR eventfd set up, and an unbind that waits
    for the next user signals no earlier one."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf):
        request, error = Event(), Event()
        with reopened_by_cdev(bdf) as device:
            device.set_eventfds(vfio.REQ, request.fd)
            device.set_eventfds(vfio.ERR, error.fd)
        with reopened_by_cdev(bdf) as device:
            for index in (vfio.REQ, vfio.ERR):
                t.errno(errno.EINVAL, device.trigger, index)
            writer = _start_blocked_unbind(t, bdf)
            t.check(silent(request, error), "the device signalled the eventfd of a closed file")
            device.close()
            writer.wait(5)


@case(needs=BARE, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_request()")
def unbind_without_a_channel_is_logged(t: Test) -> None:
    """If the user has set no REQ eventfd, the log says that there is no channel to ask it through."""
    bdf = t.device("edu", iommu=False)
    with through_cdev(bdf) as user:
        writer = _start_blocked_unbind(t, bdf)
        want = "No device request channel registered, blocked until released by user"
        t.wait_until(lambda: any(want in line for line in t.dmesg()), f"a line with {want!r}")
        user.device.close()
        writer.wait(5)


@case(needs=BARE, cites="drivers/vfio/vfio_main.c vfio_unregister_group_dev() (interrupted)")
def signal_does_not_free_the_device(t: Test) -> None:
    """Killing a process that waits to unbind is logged with its pid, and the unbind goes on until the user
    closes the device."""
    bdf = t.device("edu", iommu=False)
    with through_cdev(bdf) as user:
        writer = _start_blocked_unbind(t, bdf)
        os.kill(writer.pid, signal.SIGTERM)
        want = f"({writer.pid}) blocked until device is released"
        t.wait_until(lambda: any(want in line for line in t.dmesg()), f"a line with {want!r}")
        t.check(not writer.done, "the signal ended the unbind")
        t.check(user.device.info().flags & vfio.DEVICE_FLAGS_PCI, "the device does not answer")
        user.device.close()
        t.equal(writer.errno(15), errno.EINTR, "the errno of the unbind that was signalled")
    t.equal(pci.driver(bdf), None, "the driver after the unbind")


@case(
    needs=("noiommu-group", "container", "edu", "!viommu"),
    cites="drivers/vfio/vfio_main.c vfio_unregister_group_dev()",
)
def unbind_waits_for_a_group_device(t: Test) -> None:
    """A device opened through its group blocks the unbind until its file is closed."""
    bdf = t.device("edu", iommu=False)
    with through_group(bdf) as user:
        writer = _start_blocked_unbind(t, bdf)
        t.check(user.device.info().flags & vfio.DEVICE_FLAGS_PCI, "the device does not answer")
        t.errno(errno.ENODEV, user.group.device, bdf)
        user.device.close()
        writer.wait(5)


@case(
    needs=("noiommu-group", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_device_remove_group(), vfio_group_ioctl_get_status()",
)
def open_group_does_not_hold_the_device(t: Test) -> None:
    """An open group file without an open device does not block the unbind, and is ENODEV afterwards."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf) as nodes, vfio.open_group(bdf) as group, vfio.open_container() as container:
        pci.unbind(bdf, timeout=5)
        t.check(nodes.group is not None and not nodes.group.exists(), f"{nodes.group} is still there")
        t.errno(errno.ENODEV, group.status)
        t.errno(errno.ENODEV, group.set_container, container)
        t.errno(errno.ENODEV, group.device, bdf)


@case(needs=BARE, cites="drivers/vfio/vfio_main.c vfio_unregister_group_dev(); vfio.h vfio_device_del()")
def nothing_opens_during_an_unbind(t: Test) -> None:
    """While an unbind waits, the device cannot be opened again, even by its old device number."""
    bdf = t.device("edu", iommu=False)
    with through_cdev(bdf) as user:
        node = pci.cdev_node(bdf)
        assert node is not None
        number = os.stat(node).st_rdev
        writer = _start_blocked_unbind(t, bdf)
        t.errno(errno.ENOENT, os.open, node, os.O_RDWR)
        with pci.kept_node(number) as kept:
            t.errno((errno.ENXIO, errno.ENODEV), os.open, kept, os.O_RDWR)
        user.device.close()
        writer.wait(5)


@case(
    needs=("noiommu", "edu", "!viommu"), cites="drivers/vfio/vfio_main.c vfio_init_device() (ida)", timeout=40
)
def rebinding_keeps_the_names(t: Test) -> None:
    """A device that is unbound and bound repeatedly gets the same names every time."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf) as nodes:
        first = (nodes, pci.vfio_dev_name(bdf))
    for turn in range(10):
        with pci.bound(bdf) as nodes:
            t.equal((nodes, pci.vfio_dev_name(bdf)), first, f"the names after bind {turn}")


@case(
    needs=("noiommu", "edu", "!viommu"), cites="drivers/pci/pci-driver.c pci_match_device() (driver_override)"
)
def override_decides_who_may_bind(t: Test) -> None:
    """vfio-pci binds a device whose driver_override names it, and no other device (ENODEV)."""
    bdf = t.device("edu", iommu=False)
    pci.set_parameter(True)
    bind = pci.BUS / "drivers" / pci.VFIO_PCI / "bind"
    t.errno(errno.ENODEV, pci.write, bind, bdf)
    pci.set_override(bdf, "no-such-driver")
    t.errno(errno.ENODEV, pci.write, bind, bdf)
    pci.write(pci.BUS / "drivers_probe", bdf)
    t.equal(pci.driver(bdf), None, "the driver after probing with another driver's override")
    pci.set_override(bdf, pci.VFIO_PCI)
    pci.write(pci.BUS / "drivers_probe", bdf)
    t.equal(pci.driver(bdf), pci.VFIO_PCI, "the driver after probing with the override")
    pci.release(bdf)
    pci.set_parameter(False)


@case(needs=("noiommu", "edu", "!viommu"), cites="drivers/base/bus.c drivers_probe_store(), bind_store()")
def probing_hides_the_refusal(t: Test) -> None:
    """With the mode off, drivers_probe succeeds without binding, while bind returns the errno."""
    bdf = t.device("edu", iommu=False)
    pci.set_override(bdf, pci.VFIO_PCI)
    pci.write(pci.BUS / "drivers_probe", bdf)
    t.equal(pci.driver(bdf), None, "the driver after drivers_probe")
    t.errno(errno.EINVAL, pci.write, pci.BUS / "drivers" / pci.VFIO_PCI / "bind", bdf)
    pci.release(bdf)


@case(
    needs=BARE,
    cites="drivers/vfio/vfio_main.c vfio_device_fops_release(); vfio_pci_core.c vfio_pci_core_disable()",
)
def killed_user_leaves_nothing(t: Test) -> None:
    """Killing a user that has a device bound, attached and bus mastering frees the device: it unbinds at
    once, with bus mastering off."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf):
        reader, writer = os.pipe()

        def use() -> None:
            device, iommufd = vfio.open_cdev(bdf), Iommufd()
            device.bind_iommufd(iommufd.fd)
            ioas = iommufd.ioas_alloc()
            device.attach(ioas)
            buffer = memory.anonymous(16 * memory.PAGE)
            buffer.touch()
            iommufd.map(ioas, buffer.address, buffer.length, 0)
            device.set_bus_master()
            device.bar()
            os.write(writer, b"x")
            time.sleep(60)

        with forked.Child(use) as child:
            os.read(reader, 1)
            t.equal(
                pci.config_number(bdf, vfio.PCI_COMMAND, 2) & vfio.PCI_COMMAND_MASTER,
                vfio.PCI_COMMAND_MASTER,
                "bus mastering before the kill",
            )
            child.kill()
            status = child.wait()
        t.equal(os.WTERMSIG(status), signal.SIGKILL, "the signal that ended the user")
        t.equal(
            pci.config_number(bdf, vfio.PCI_COMMAND, 2) & vfio.PCI_COMMAND_MASTER,
            0,
            "bus mastering after the kill",
        )
        with vfio.open_cdev(bdf) as device, Iommufd() as iommufd:
            t.check(device.bind_iommufd(iommufd.fd) > 0, "BIND_IOMMUFD returned no ID")
        pci.unbind(bdf, timeout=5)


@case(needs=("noiommu", "edu", "!viommu"), cites="drivers/pci/pci-sysfs.c remove_store(), rescan_store()")
def removed_device_comes_back(t: Test) -> None:
    """A device that is removed and found again by a rescan binds as before."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf) as nodes:
        first = nodes
        pci.remove(bdf)
        t.equal([str(node) for node in first.made if node.exists()], [], "nodes left after the removal")
    pci.rescan()
    t.check(pci.exists(bdf), "the rescan did not find the device")
    with pci.bound(bdf) as nodes:
        t.equal(nodes, first, "the nodes of the device after the rescan")


@case(
    needs=("viommu", "viommu-intel", "cdev", "iommufd", "edu"),
    cites="vfio_main.c vfio_unregister_group_dev()",
)
def unbind_waits_behind_an_iommu_too(t: Test) -> None:
    """Behind an IOMMU an unbind waits for the user in the same way."""
    bdf = t.device("edu", iommu=True)
    with through_cdev(bdf) as user:
        writer = _start_blocked_unbind(t, bdf)
        t.equal(user.device.read_config(vfio.PCI_VENDOR_ID, 2), 0x1234, "the vendor read during the unbind")
        user.device.close()
        writer.wait(5)


@case(needs=BARE, timeout=60, cites="drivers/vfio/vfio_main.c vfio_unregister_group_dev() (HZ * 10)")
def request_is_repeated(t: Test) -> None:
    """A user that keeps the device is asked again about every ten seconds, and the log has the first request
    only."""
    bdf = t.device("edu", iommu=False)
    with through_cdev(bdf) as user:
        event = Event()
        user.device.set_eventfds(vfio.REQ, event.fd)
        start = time.monotonic()
        writer = pci.start_unbind(bdf)
        t.equal(event.arrives(8), 1, "requests right after the unbind began")
        t.equal(event.arrives(30), 1, "requests after about ten seconds")
        waited = time.monotonic() - start
        t.check(waited > 9.9, f"the second request came {waited:.1f} s after the unbind began")
        told = [line for line in t.dmesg() if "Relaying device request to user" in line]
        t.equal(len(told), 1, "log lines about requests")
        user.device.close()
        writer.wait(5)


@case(needs=BARE, cites="drivers/vfio/vfio_main.c vfio_device_fops_release(), vfio_unregister_group_dev()")
def killed_user_ends_the_wait(t: Test) -> None:
    """An unbind that waits for a user ends as soon as that user is killed."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf):
        reader, writer = os.pipe()

        def use() -> None:
            device, iommufd = vfio.open_cdev(bdf), Iommufd()
            device.bind_iommufd(iommufd.fd)
            device.attach(iommufd.ioas_alloc())
            device.bar().read32(0)
            os.write(writer, b"x")
            time.sleep(60)

        with forked.Child(use) as child:
            os.read(reader, 1)
            unbind = _start_blocked_unbind(t, bdf)
            child.kill()
            child.wait()
            unbind.wait(5)
        t.equal(pci.driver(bdf), None, "the driver after the unbind")


@case(needs=BARE, cites="drivers/vfio/iommufd.c vfio_iommufd_physical_unbind(); vfio_main.c vfio_df_close()")
def memory_and_eventfds_do_not_hold_the_device(t: Test) -> None:
    """After a user closes the device file, its open iommufd with pinned memory and its eventfds do not block
    the unbind, and the iommufd keeps working."""
    bdf = t.device("edu", iommu=False)
    with through_cdev(bdf) as user, memory.anonymous(4 * memory.PAGE) as buffer:
        user.map(buffer, 0)
        request, interrupt = Event(), Event()
        user.device.set_eventfds(vfio.REQ, request.fd)
        user.device.set_eventfds(vfio.INTX, interrupt.fd)
        user.device.close()
        pci.unbind(bdf, timeout=5)
        t.check(request.silent(), "the REQ eventfd was signalled although nobody used the device")
        t.errno(errno.ENOENT, user.iommufd.destroy, user.devid)
        t.equal(
            user.iommufd.unmap(user.ioas, 0, buffer.length), buffer.length, "bytes unmapped after the unbind"
        )
        user.map(buffer, 0)
        pci.set_parameter(True)
        pci.bind(bdf)
        with vfio.open_cdev(bdf) as again:
            again.bind_iommufd(user.iommufd.fd)
            again.attach(user.ioas)
            t.equal(user.physical(0, memory.PAGE), buffer.physical(), "physical address for the next device")


@case(needs=BARE, cites="drivers/vfio/vfio_main.c vfio_device_fops_release()")
def every_copy_of_the_file_holds_the_device(t: Test) -> None:
    """An unbind waits for the last copy of the device's file, and the copies work until then, even if the
    iommufd was closed before."""
    bdf = t.device("edu", iommu=False)
    with through_cdev(bdf) as user:
        copy = vfio.Device(os.dup(user.device.fd))
        user.iommufd.close()
        user.device.close()
        writer = _start_blocked_unbind(t, bdf)
        t.equal(copy.read_config(vfio.PCI_VENDOR_ID, 2), 0x1234, "the vendor read through the copy")
        copy.close()
        writer.wait(5)


@case(
    needs=("noiommu", "edu", "igb", "!viommu"),
    cites="drivers/vfio/vfio_main.c vfio_init_device(), vfio_device_release() (ida)",
)
def names_are_free_once_their_owner_is_gone(t: Test) -> None:
    """While an unbind waits, no other device gets the names of the departing device; afterwards the next
    device gets them."""
    bdf, other = t.device("edu", iommu=False), t.device("igb")
    with opened(t, bdf) as device:
        name, number = pci.vfio_dev_name(bdf), pci.iommu_group(bdf)
        event = Event()
        device.set_eventfds(vfio.REQ, event.fd)
        writer = pci.start_unbind(bdf)
        t.equal(event.arrives(), 1, "requests to the user")
        with pci.bound(other):
            t.check(pci.vfio_dev_name(other) != name, f"another device got {name} while its owner was in use")
            if number is not None:
                t.check(pci.iommu_group(other) != number, f"another device got group {number}")
        device.close()
        writer.wait(5)
    with pci.bound(other):
        t.equal((pci.vfio_dev_name(other), pci.iommu_group(other)), (name, number), "the next device's names")


@case(needs=("noiommu", "edu", "!viommu"), cites="drivers/pci/pci-sysfs.c driver_override; drivers/base/dd.c")
def override_does_not_move_a_bound_device(t: Test) -> None:
    """Changing or clearing the override of a bound device leaves it bound and in use; the next bind obeys
    it."""
    bdf = t.device("edu", iommu=False)
    with opened(t, bdf) as device:
        for name in ("no-such-driver", ""):
            pci.set_override(bdf, name)
            pci.write(pci.BUS / "drivers_probe", bdf)
            t.equal((pci.driver(bdf), pci.override(bdf)), (pci.VFIO_PCI, name), "driver and override")
            t.equal(device.read_config(vfio.PCI_VENDOR_ID, 2), 0x1234, "the vendor")
        device.close()
        pci.unbind(bdf)
        t.errno(errno.ENODEV, pci.write, pci.BUS / "drivers" / pci.VFIO_PCI / "bind", bdf)


@case(needs=("noiommu", "edu", "!viommu"), cites="drivers/pci/pci-driver.c new_id_store(), remove_id_store()")
def new_id_takes_devices_without_override(t: Test) -> None:
    """Writing an ID to vfio-pci's new_id binds the free devices of that ID at once, as no-IOMMU devices,
    until the ID is removed; with the mode off it binds none and returns no error."""
    bdf = t.device("edu", iommu=False)
    new, gone = (pci.BUS / "drivers" / pci.VFIO_PCI / name for name in ("new_id", "remove_id"))
    bind = pci.BUS / "drivers" / pci.VFIO_PCI / "bind"
    pci.write(new, "1234 11e8")
    try:
        t.equal(pci.driver(bdf), None, "the driver with the mode off")
        t.errno(errno.EEXIST, pci.write, new, "1234 11e8")
        t.errno(errno.EINVAL, pci.write, bind, bdf)
        pci.set_parameter(True)
        pci.write(bind, bdf)
        t.equal(
            (pci.driver(bdf), pci.override(bdf)), (pci.VFIO_PCI, ""), "driver and override with the mode on"
        )
        made = pci.vfio_nodes(bdf).made
        names = [node.name for node in made if not node.name.startswith("noiommu-")]
        t.equal(names, [], "nodes without noiommu- in their name")
    finally:
        pci.write(gone, "1234 11e8")
    t.equal(pci.driver(bdf), pci.VFIO_PCI, "the driver of a bound device after its ID was removed")
    pci.unbind(bdf)
    t.errno(errno.ENODEV, pci.write, bind, bdf)
    t.errno(errno.ENODEV, pci.write, gone, "1234 11e8")
    pci.set_parameter(False)


@case(needs=BARE, cites="drivers/pci/pci-sysfs.c remove_store(); vfio_main.c vfio_unregister_group_dev()")
def removal_waits_for_a_user(t: Test) -> None:
    """Removing a device from its bus signals its user and waits for it; a rescan then finds the device
    free."""
    bdf = t.device("edu", iommu=False)
    with through_cdev(bdf) as user:
        event = Event()
        user.device.set_eventfds(vfio.REQ, event.fd)
        writer = pci.PendingWrite(pci.path_of(bdf) / "remove", "1")
        t.equal(event.arrives(), 1, "requests to the user")
        time.sleep(BLOCKED)
        t.check(pci.exists(bdf) and not writer.done, "the device was removed while in use")
        t.equal(user.device.read_config(vfio.PCI_VENDOR_ID, 2), 0x1234, "the vendor during the removal")
        user.device.close()
        writer.wait(5)
        t.check(not pci.exists(bdf), "the device is still there")
    pci.rescan()
    t.equal((pci.driver(bdf), pci.override(bdf)), (None, ""), "driver and override after the rescan")
    with through_cdev(bdf) as user:
        t.equal(user.device.read_config(vfio.PCI_VENDOR_ID, 2), 0x1234, "the vendor for the next user")


@case(
    needs=("noiommu-group", "container", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_device_remove_group(), vfio_group_find_or_alloc()",
)
def dead_group_file_stays_dead(t: Test) -> None:
    """A group file opened before an unbind stays ENODEV: a new bind creates a new group, which works and
    which the old file does not occupy."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf) as nodes, vfio.open_group(bdf) as stale:
        pci.unbind(bdf, timeout=5)
        pci.bind(bdf)
        t.equal(pci.vfio_nodes(bdf), nodes, "the nodes after the next bind")
        with vfio.open_container() as container, vfio.open_group(bdf) as group:
            group.set_container(container)
            container.set_iommu(vfio.NOIOMMU_IOMMU)
            t.errno(errno.ENODEV, stale.status)
            t.errno(errno.ENODEV, stale.device, bdf)
            with group.device(bdf) as device:
                t.equal(
                    device.read_config(vfio.PCI_VENDOR_ID, 2), 0x1234, "the vendor read through the new group"
                )
