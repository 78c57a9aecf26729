# SPDX-License-Identifier: GPL-2.0-only
"""enable_unsafe_noiommu_mode: its value after boot, who may change it, and what a change affects."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from pathlib import Path

from guest import caps, forked, libc, memory, pci, vfio
from guest.case import Test, case
from guest.iommufd import Iommufd
from guest.opened import opened

TOGGLE_SECONDS = 12.0
"""How long the parameter is toggled during binds; on TCG at least a tenth of the binds hit the window."""


def _write(text: str) -> None:
    with open(pci.PARAMETER, "w", encoding="ascii") as file:
        file.write(text)


@case(
    needs=("noiommu",),
    fresh=True,
    cites="drivers/vfio/vfio_main.c module_param_named(); Documentation/driver-api/vfio.rst",
)
def is_off_after_boot(t: Test) -> None:
    """The unsafe mode is off unless the kernel command line turns it on, and only root may write its file."""
    if "enable_unsafe_noiommu_mode" in Path("/proc/cmdline").read_text(encoding="utf-8"):
        t.skip("the kernel command line sets it")
    t.equal(pci.read(pci.PARAMETER), "N", "the parameter after boot")
    status = os.stat(pci.PARAMETER)
    t.equal(
        (oct(stat.S_IMODE(status.st_mode)), status.st_uid), ("0o644", 0), "mode and owner of the parameter"
    )


@case(
    needs=("noiommu",),
    cites="drivers/vfio/vfio_main.c module_param_named(); kernel/params.c param_set_bool()",
)
def takes_booleans_only(t: Test) -> None:
    """The parameter accepts any spelling of a boolean; anything else is EINVAL and changes nothing."""
    for text, want in (("Y", "Y"), ("N", "N"), ("1", "Y"), ("0", "N"), ("y", "Y"), ("n", "N"), ("on", "Y")):
        _write(text)
        t.equal(pci.read(pci.PARAMETER), want, f"the parameter after writing {text!r}")
    for text in ("2", "maybe"):
        t.errno(errno.EINVAL, _write, text)
        t.equal(pci.read(pci.PARAMETER), "Y", f"the parameter after writing {text!r}")


@case(needs=("noiommu",), cites="drivers/vfio/vfio_main.c module_param_named(, S_IRUGO | S_IWUSR)")
def is_readable_by_all_and_writable_by_root(t: Test) -> None:
    """An ordinary user can read the unsafe mode but not turn it on."""

    def as_nobody() -> None:
        caps.become()
        t.equal(pci.read(pci.PARAMETER), "N", "the parameter read by nobody")
        t.errno(errno.EACCES, _write, "Y")

    t.in_child(as_nobody)
    t.equal(pci.read(pci.PARAMETER), "N", "the parameter after the refused write")


@case(
    needs=("noiommu", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_group_find_or_alloc(); vfio_main.c __vfio_register_dev()",
)
def binding_is_refused_while_off(t: Test) -> None:
    """With the mode off, binding a device without an IOMMU is EINVAL and leaves nothing behind."""
    bdf = t.device("edu", iommu=False)
    pci.set_parameter(False)
    t.errno(errno.EINVAL, pci.bind, bdf)
    t.equal(pci.driver(bdf), None, "the device's driver")
    t.equal(pci.iommu_group(bdf), None, "the device's IOMMU group")
    t.equal(pci.vfio_dev_name(bdf), None, "the device's vfio-dev device")
    t.check(
        any(
            f"vfio-pci {bdf}: probe with driver vfio-pci failed with error -22" in line for line in t.dmesg()
        ),
        "the kernel did not report the failed probe",
    )
    pci.release(bdf)


@case(
    needs=("noiommu", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_group_find_or_alloc(); drivers/base/bus.c bind_store()",
)
def switching_on_changes_nothing_until_bound(t: Test) -> None:
    """After a refused bind, turning the mode on has no effect by itself; the next bind succeeds."""
    bdf = t.device("edu", iommu=False)
    t.errno(errno.EINVAL, pci.bind, bdf)
    pci.set_parameter(True)
    time.sleep(0.2)
    t.equal(pci.driver(bdf), None, "the device's driver after turning the mode on")
    with pci.bound(bdf):
        t.equal(pci.driver(bdf), "vfio-pci", "the device's driver after binding")
    pci.set_parameter(False)


@case(
    needs=("noiommu", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_group_find_or_alloc(); vfio_main.c __vfio_register_dev()",
)
def switching_off_refuses_the_next_bind(t: Test) -> None:
    """After the mode is turned off, binding a device that was bound before is refused."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf):
        pci.set_parameter(False)
    t.errno(errno.EINVAL, pci.bind, bdf)
    pci.release(bdf)


@case(
    needs=("viommu", "noiommu", "edu"),
    cites="drivers/vfio/group.c vfio_group_find_or_alloc(); vfio_main.c vfio_device_set_noiommu_and_name()",
)
def real_iommu_does_not_care(t: Test) -> None:
    """A device behind an IOMMU binds to vfio-pci in the same way with the mode off and on."""
    bdf = t.device("edu", iommu=True)
    names = []
    for on in (False, True):
        pci.set_parameter(on)
        with pci.bound(bdf, noiommu=False) as nodes:
            names.append((nodes, pci.vfio_dev_name(bdf)))
    t.equal(names[1], names[0], "nodes with the mode on, compared with those with it off")
    pci.set_parameter(False)


@case(
    needs=("noiommu-group", "noiommu-cdev", "edu", "smp", "!viommu"),
    cites="drivers/vfio/vfio_main.c vfio_device_set_noiommu_and_name(), group.c vfio_group_find_or_alloc()",
    timeout=40,
)
def name_tells_the_truth_while_it_toggles(t: Test) -> None:
    """However the parameter changes during a bind, a no-IOMMU device never appears as a plain vfioN."""
    bdf = t.device("edu", iommu=False)
    pci.set_override(bdf, pci.VFIO_PCI)
    binds, lies = 0, 0
    with forked.Child(_toggle):
        end = time.monotonic() + TOGGLE_SECONDS
        while time.monotonic() < end and not lies:
            if not _bind_at_once(bdf):
                continue
            binds += 1
            name = pci.vfio_dev_name(bdf) or ""
            lies += not name.startswith("noiommu-")
            pci.unbind(bdf)
    pci.release(bdf)
    pci.set_parameter(False)
    t.log(f"{binds} binds succeeded, {lies} of them with a plain name")
    t.check(binds > 0, "no bind succeeded")
    t.equal(lies, 0, "binds that gave a no-IOMMU device a plain name")


def _bind_at_once(bdf: str) -> bool:
    """Bind in this process, since starting another takes longer than the bind; return whether it
    succeeded."""
    with contextlib.suppress(OSError):
        with open(pci.BUS / "drivers" / pci.VFIO_PCI / "bind", "wb", buffering=0) as bind:
            bind.write(bdf.encode())
        return True
    return False


def _toggle() -> None:
    fd = os.open(pci.PARAMETER, os.O_WRONLY)
    while True:
        os.pwrite(fd, b"Y", 0)
        os.pwrite(fd, b"N", 0)


@case(
    needs=("noiommu",), cites="drivers/vfio/vfio_main.c module_param_named(); fs/namei.c (owner of the file)"
)
def user_namespace_root_cannot_switch_it(t: Test) -> None:
    """Root of a user namespace can read the unsafe mode but not turn it on."""
    if not Path("/proc/self/ns/user").exists():
        t.skip("this kernel has no user namespaces")

    def inside() -> None:
        caps.become()
        libc.unshare(libc.CLONE_NEWUSER)
        t.check(caps.has(caps.CAP_DAC_OVERRIDE), "the new user namespace grants no capabilities")
        t.errno(errno.EACCES, _write, "Y")

    t.in_child(inside)
    t.equal(pci.read(pci.PARAMETER), "N", "the parameter after the refused write")


@case(
    needs=("noiommu", "edu", "igb", "!viommu"),
    cites="drivers/vfio/group.c vfio_group_find_or_alloc(); vfio_main.c: read at each registration",
)
def switching_off_concerns_newcomers_only(t: Test) -> None:
    """After the mode is turned off, a device bound before stays in use, and binding another one is
    refused."""
    resident, newcomer = t.device("edu", iommu=False), t.device("igb", iommu=False)
    with opened(t, resident) as device:
        pci.set_parameter(False)
        t.errno(errno.EINVAL, pci.bind, newcomer)
        t.equal(pci.driver(newcomer), None, "the second device's driver")
        t.equal(pci.vfio_dev_name(newcomer), None, "the second device's vfio-dev device")
        t.equal(device.read_config(vfio.PCI_VENDOR_ID, 2), 0x1234, "vendor ID of the device bound before")
    pci.release(newcomer)


@case(
    needs=("mixed", "noiommu", "edu2"),
    cites="drivers/vfio/group.c vfio_group_find_or_alloc(); vfio_main.c vfio_device_set_noiommu_and_name()",
)
def is_asked_for_the_bare_device_only(t: Test) -> None:
    """In a machine with both kinds and the mode off, the device behind the IOMMU binds and works, and binding
    the other one is refused."""
    real, bare = t.device("edu", iommu=True), t.device("edu", iommu=False)
    pci.set_parameter(False)
    with pci.bound(real, noiommu=False) as nodes:
        t.check(nodes.group or nodes.cdev, "the device behind the IOMMU has no node")
        t.errno(errno.EINVAL, pci.bind, bare)
        t.equal(pci.driver(bare), None, "the driver of the device without an IOMMU")
    pci.release(bare)


@case(
    needs=("noiommu-cdev", "edu", "!viommu"),
    cites="drivers/vfio/vfio_main.c vfio_device_set_noiommu_and_name() (read at registration)",
)
def mode_matters_at_binding_alone(t: Test) -> None:
    """The mode only decides whether a device may be bound: changing it before any later step of the device's
    use has no effect."""
    bdf = t.device("edu", iommu=False)
    for first in (False, True):
        pci.set_parameter(True)
        pci.bind(bdf)
        pci.set_parameter(first)
        with vfio.open_cdev(bdf) as device, Iommufd() as iommufd, memory.anonymous() as buffer:
            buffer.touch()
            pci.set_parameter(not first)
            device.bind_iommufd(iommufd.fd)
            pci.set_parameter(first)
            ioas = iommufd.ioas_alloc()
            device.attach(ioas)
            pci.set_parameter(not first)
            iommufd.map(ioas, buffer.address, buffer.length, 0)
            pci.set_parameter(first)
            got = iommufd.get_pa(ioas, 0, memory.PAGE)
            t.equal(got, (buffer.physical(), memory.PAGE), f"GET_PA with the mode {first}")
            pci.set_parameter(not first)
            device.detach()
            pci.set_parameter(first)
            device.attach(ioas)
        pci.unbind(bdf, timeout=5)
        pci.set_parameter(False)
        t.errno(errno.EINVAL, pci.bind, bdf)
    pci.release(bdf)
