# SPDX-License-Identifier: GPL-2.0-only
"""VFIO as modules: what holds a module, what unloading frees, what loading finds, and a card's native
driver."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from guest import igb, libc, pci, vfio
from guest.case import Test, case
from guest.forked import Child
from guest.iommufd import Iommufd
from guest.opened import Event, opened

MODULAR = ("modular", "noiommu-cdev", "noiommu-group", "edu", "!viommu")
NATIVE = ("modular", "noiommu-cdev", "igb", "!viommu")

STACK = ("vfio_pci", "vfio_pci_core", "vfio_iommu_type1", "vfio", "iommufd")
"""The modules of VFIO, in the order in which they can be unloaded."""


GOES = 10.0


def _unload(name: str) -> None:
    libc.call("delete_module", ctypes.c_char_p(name.encode()), ctypes.c_uint(os.O_NONBLOCK))


def _load(*words: str) -> int:
    """Run modprobe and return its exit status."""
    return os.spawnlp(os.P_WAIT, "modprobe", "modprobe", *words)


def _loaded(name: str) -> bool:
    return Path(f"/sys/module/{name}/refcnt").exists()


def _users(name: str) -> int:
    return int(pci.read(Path(f"/sys/module/{name}/refcnt")))


@contextlib.contextmanager
def _stack_back() -> Iterator[None]:
    """Have every module of VFIO loaded after the block, with vfio at its defaults."""
    try:
        yield
    finally:
        if pci.parameter() and _loaded("vfio"):
            pci.set_parameter(False)
        for name in reversed(STACK):
            _load(name)


def _unload_stack() -> None:
    for name in STACK:
        if _loaded(name):
            _unload(name)


@case(needs=MODULAR, cites="drivers/vfio/vfio_main.c vfio_df_device_first_open() (try_module_get)")
def use_holds_the_driver(t: Test) -> None:
    """vfio-pci cannot be unloaded while one of its devices is in use (EWOULDBLOCK), however often the device
    was opened; a device that is bound to it but not open does not hold it."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf):
        t.equal(_users("vfio_pci"), 0, "users of vfio-pci with an idle device")
        with vfio.open_container() as container, vfio.open_group(bdf) as group:
            group.set_container(container)
            container.set_iommu(vfio.NOIOMMU_IOMMU)
            with group.device(bdf), group.device(bdf):
                t.equal(
                    _users("vfio_pci"), 1, "users of vfio-pci with a device opened twice through its group"
                )
                t.errno(errno.EWOULDBLOCK, _unload, "vfio_pci")
            t.equal(_users("vfio_pci"), 0, "users after both files were closed")
        with vfio.open_cdev(bdf) as device, Iommufd() as iommufd:
            t.equal(_users("vfio_pci"), 0, "users of vfio-pci with an open device node")
            device.bind_iommufd(iommufd.fd)
            t.equal(_users("vfio_pci"), 1, "users of vfio-pci with a bound device node")
            t.errno(errno.EWOULDBLOCK, _unload, "vfio_pci")
            t.equal(device.read_config(0, 2), 0x1234, "the vendor after the refused unload")
        t.equal(_users("vfio_pci"), 0, "users after everything was closed")


@case(needs=MODULAR, timeout=60, cites="drivers/vfio/pci/vfio_pci.c vfio_pci_cleanup(), vfio_pci_init()")
def unloading_frees_the_devices(t: Test) -> None:
    """Unloading vfio-pci unbinds its devices and removes their nodes; loading it again binds the devices
    whose driver_override still names it, under the same names."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf) as nodes, _stack_back():
        made = nodes.made
        pci.set_parameter(True)
        for turn in range(3):
            _unload("vfio_pci")
            t.equal((pci.driver(bdf), pci.override(bdf)), (None, pci.VFIO_PCI), "driver and override")
            t.equal([node for node in made if node.exists()], [], f"nodes left after unload {turn}")
            t.check(not (pci.BUS / "drivers" / pci.VFIO_PCI).exists(), "the driver is still there")
            t.equal(_load("vfio-pci"), 0, "exit status of loading vfio-pci again")
            t.equal(
                (pci.driver(bdf), pci.vfio_nodes(bdf)),
                (pci.VFIO_PCI, nodes),
                f"driver and nodes after load {turn}",
            )
            with vfio.open_cdev(bdf) as device, Iommufd() as iommufd:
                device.bind_iommufd(iommufd.fd)
                t.equal(device.read_config(0, 2), 0x1234, f"the vendor after load {turn}")


@case(needs=MODULAR, cites="drivers/vfio/group.c vfio_group_find_or_alloc(); pci/vfio_pci.c vfio_pci_init()")
def loading_takes_nothing_while_off(t: Test) -> None:
    """With no-IOMMU mode off, loading vfio-pci succeeds and binds none of the devices overridden to it."""
    bdf = t.device("edu", iommu=False)
    with _stack_back():
        _unload("vfio_pci")
        pci.set_override(bdf, pci.VFIO_PCI)
        t.equal(_load("vfio-pci"), 0, "exit status of loading vfio-pci")
        t.equal((pci.driver(bdf), pci.vfio_dev_name(bdf)), (None, None), "driver and VFIO device")
    pci.release(bdf)


@case(needs=MODULAR, timeout=60, cites="drivers/vfio/vfio_main.c vfio_unregister_group_dev(); device_cdev.c")
def unloading_waits_for_an_open_node(t: Test) -> None:
    """A device node that is open but not bound does not prevent unloading vfio-pci, but the unload waits
    until it is closed."""
    bdf = t.device("edu", iommu=False)
    with _stack_back(), pci.bound(bdf) as nodes, vfio.open_cdev(bdf) as device:
        node = nodes.cdev
        assert node is not None

        def unload() -> None:
            os.close(device.fd)
            _unload("vfio_pci")

        with Child(unload) as child:
            t.wait_until(lambda: not node.exists(), f"the removal of {node}", GOES)
            t.check(not child.ended(), "unloading did not wait for the open file")
            t.equal(pci.read(Path("/sys/module/vfio_pci/initstate")), "going", "state of the module")
            device.close()
            child.result(GOES)
        t.check(not _loaded("vfio_pci"), "vfio-pci is still loaded")


@case(
    needs=MODULAR,
    cites="drivers/vfio/vfio_main.c vfio_cleanup(); container.c, group.c, iommufd/main.c (owner)",
)
def modules_hold_each_other(t: Test) -> None:
    """No VFIO module can be unloaded (EWOULDBLOCK) before the modules that use it are unloaded and the files
    that it serves are closed."""
    with _stack_back():
        for name in ("vfio_pci_core", "vfio", "iommufd"):
            t.errno(errno.EWOULDBLOCK, _unload, name)
        with Iommufd():
            with vfio.open_container():
                for name in ("vfio_pci", "vfio_pci_core", "vfio_iommu_type1"):
                    _unload(name)
                t.errno(errno.EWOULDBLOCK, _unload, "vfio")
            _unload("vfio")
            t.errno(errno.EWOULDBLOCK, _unload, "iommufd")
        _unload("iommufd")
        t.equal([name for name in STACK if _loaded(name)], [], "modules left")
        left = [path for path in (vfio.CONTAINER, "/dev/iommu", str(pci.PARAMETER)) if os.path.exists(path)]
        t.equal(left, [], "files left")


@case(
    needs=MODULAR, cites="drivers/vfio/group.c vfio_group_fops (owner); device_cdev.c vfio_init_device_cdev()"
)
def open_nodes_hold_the_core(t: Test) -> None:
    """Each open device node and each open group counts as a user of vfio until it is closed."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf):
        before = _users("vfio")
        with vfio.open_group(bdf):
            t.check(_users("vfio") > before, "an open group does not count as a user of vfio")
        t.equal(_users("vfio"), before, "users of vfio after the group was closed")
        with vfio.open_cdev(bdf):
            once = _users("vfio")
            t.check(once > before, "an open device node does not count as a user of vfio")
            with vfio.open_cdev(bdf):
                t.check(_users("vfio") > once, "a device node opened twice counts as one user of vfio")
            t.equal(_users("vfio"), once, "users of vfio after one of two files was closed")
        t.equal(_users("vfio"), before, "users of vfio after both were closed")


@case(
    needs=MODULAR,
    timeout=60,
    cites="drivers/vfio/vfio_main.c enable_unsafe_noiommu_mode (module_param_named)",
)
def mode_is_set_while_loading(t: Test) -> None:
    """vfio loads with no-IOMMU mode off unless its option turns it on; it does not load with a value that is
    no boolean, and an earlier load has no effect."""
    bdf = t.device("edu", iommu=False)
    option = "enable_unsafe_noiommu_mode"
    with _stack_back():
        pci.set_parameter(True)
        _unload_stack()
        t.check(_load("vfio", f"{option}=perhaps") != 0, "vfio loaded with a mode that is no boolean")
        t.check(not _loaded("vfio"), "vfio is loaded after the refused option")
        for words, want in (
            ((), False),
            ((f"{option}=1",), True),
            ((option,), True),
            ((f"{option}=N",), False),
        ):
            t.equal(_load("vfio", *words), 0, f"exit status of loading vfio with {words}")
            t.equal(pci.parameter(), want, f"the mode of vfio loaded with {words}")
            t.equal(_load("vfio-pci"), 0, "exit status of loading vfio-pci")
            if want:
                pci.bind(bdf)
                t.check((pci.vfio_dev_name(bdf) or "").startswith("noiommu-"), "not a no-IOMMU device")
            else:
                t.errno(errno.EINVAL, pci.bind, bdf)
            pci.release(bdf)
            _unload_stack()


@case(needs=MODULAR, cites="drivers/vfio/pci/vfio_pci.c vfio_pci_fill_ids()")
def ids_are_taken_while_loading(t: Test) -> None:
    """vfio-pci binds the devices whose IDs it is loaded with, without an override, and logs the IDs that it
    cannot parse."""
    bdf = t.device("edu", iommu=False)
    with _stack_back():
        pci.set_parameter(True)
        _unload("vfio_pci")
        t.equal(_load("vfio-pci", "ids=nonsense,1234:11e8"), 0, "exit status of loading vfio-pci with IDs")
        t.equal((pci.driver(bdf), pci.override(bdf)), (pci.VFIO_PCI, ""), "driver and override")
        log = t.dmesg()
        for want in ('invalid id string "nonsense"', "add [1234:11e8["):
            t.check(any(want in line for line in log), f"no line with {want!r}")
        _unload("vfio_pci")
        t.equal(pci.driver(bdf), None, "the driver after the unload")
        t.equal(_load("vfio-pci"), 0, "exit status of loading vfio-pci without IDs")
        t.equal(pci.driver(bdf), None, "the driver after vfio-pci was loaded without IDs")


@contextlib.contextmanager
def _native() -> Iterator[None]:
    """Have the card's native driver loaded inside the block."""
    if _load("igb"):
        raise AssertionError("cannot load igb, the card's native driver")
    try:
        yield
    finally:
        _unload("igb")


def _interfaces(bdf: str) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return os.listdir(pci.path_of(bdf) / "net")
    return []


@case(
    needs=NATIVE,
    timeout=90,
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_disable(); igb_main.c igb_probe()",
)
def native_driver_gets_the_card_back(t: Test) -> None:
    """A card that a VFIO user left in D3, bus mastering and misprogrammed works with its native driver, and
    with VFIO again after that."""
    bdf = t.device("igb")
    with _native():
        for _ in range(2):
            with opened(t, bdf) as device, device.bar() as bar:
                t.equal(_interfaces(bdf), [], "network interfaces while VFIO has the card")
                device.set_bus_master()
                bar.write32(igb.RDLEN, 4096)
                bar.write32(igb.CTRL, bar.read32(igb.CTRL) | igb.CTRL_FRCSPD)
                device.feature(vfio.FEATURE_SET | 3)
            pci.bind(bdf, "igb")
            t.equal((pci.driver(bdf), len(_interfaces(bdf))), ("igb", 1), "driver and number of interfaces")
            t.equal(pci.vfio_nodes(bdf), pci.Nodes(group=None, cdev=None), "VFIO's nodes of the card")
            t.equal(pci.iommu_group(bdf), None, "group of the card")
            pci.release(bdf)


@case(needs=NATIVE, timeout=60, cites="drivers/pci/pci-driver.c pci_match_device(); drivers/base/dd.c")
def native_driver_cannot_take_a_bound_card(t: Test) -> None:
    """Loading the card's native driver does not affect a card that is bound to vfio-pci, in use or idle, or
    overridden to it without being bound."""
    bdf = t.device("igb")
    with opened(t, bdf) as device, _native():
        t.equal(pci.driver(bdf), pci.VFIO_PCI, "driver of a card in use")
        t.errno(errno.ENODEV, pci.write, pci.BUS / "drivers" / "igb" / "bind", bdf)
        t.equal(device.read_config(0, 2), igb.VENDOR_ID, "vendor of the card in use")
    pci.set_override(bdf, pci.VFIO_PCI)
    with _native():
        t.equal(pci.driver(bdf), None, "driver of a card overridden to vfio-pci")
    pci.release(bdf)


@contextlib.contextmanager
def _native_function(pf: str) -> Iterator[str]:
    """Have the card's native driver create one virtual function, and yield its BDF."""
    with _native():
        pci.bind(pf, "igb")
        pci.set_virtual_functions(pf, 1)
        yield os.path.basename(os.readlink(pci.path_of(pf) / "virtfn0"))
        pci.release(pf)


@case(
    needs=(*NATIVE, "sriov"),
    timeout=90,
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_match_token_uuid()",
)
def function_of_a_native_pf_has_no_token(t: Test) -> None:
    """A VF whose PF has its native driver is bound to no driver at first, and opens in no-IOMMU mode without
    a token but not with one (EINVAL)."""
    pf, token = t.device("igb"), t.random.getrandbits(128).to_bytes(16, "big")
    with _native_function(pf) as vf:
        t.equal((pci.driver(vf), pci.override(vf)), (None, ""), "driver and override of a new VF")
        with pci.bound(vf), Iommufd() as iommufd, vfio.open_cdev(vf) as device:
            t.errno(errno.EINVAL, device.bind_iommufd, iommufd.fd, token=token)
            device.bind_iommufd(iommufd.fd)
            t.equal(device.read_config(0, 4), igb.FUNCTION_IDS, "vendor and device ID of the VF")
            t.errno(errno.ENOTTY, device.feature, vfio.FEATURE_SET, token)
        t.equal(len(_interfaces(pf)), 1, "network interfaces of the PF")


@case(
    needs=(*NATIVE, "sriov"),
    timeout=90,
    cites="drivers/vfio/vfio_main.c vfio_unregister_group_dev(); igb_main.c",
)
def native_pf_waits_for_the_user_of_its_function(t: Test) -> None:
    """Removing a VF through its PF's native driver waits until the VFIO user has closed the VF."""
    pf = t.device("igb")
    with _native_function(pf) as vf, opened(t, vf) as device:
        event = Event()
        device.set_eventfds(vfio.REQ, event.fd)
        writer = pci.PendingWrite(pci.path_of(pf) / "sriov_numvfs", "0")
        t.equal(event.arrives(), 1, "requests to the VF's user")
        t.check(pci.exists(vf) and not writer.done, "the VF was removed while in use")
        t.equal(device.read_config(0, 4), igb.FUNCTION_IDS, "vendor and device ID of the VF during the wait")
        device.close()
        writer.wait(GOES)
        t.check(not pci.exists(vf), "the VF still exists")
        t.equal((pci.driver(pf), len(_interfaces(pf))), ("igb", 1), "driver and interfaces of the PF")
