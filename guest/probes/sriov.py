# SPDX-License-Identifier: GPL-2.0-only
"""Virtual functions that vfio-pci creates, without an IOMMU: their driver, their VF token, and their
removal."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

from guest import igb, libc, pci, vfio
from guest.case import Test, case
from guest.opened import Event, reopened, reopened_by_cdev, reopened_by_group, uuid_of

SRIOV = ("noiommu", "igb", "sriov", "!viommu")

ALLOWED = Path("/sys/module/vfio_pci/parameters/enable_sriov")
CLASS = 0x0A

# include/uapi/linux/pci_regs.h
POWER_CONTROL, POWER_STATE = 4, 3

GOES = 10.0


@contextlib.contextmanager
def _allowed() -> Iterator[None]:
    """Let vfio-pci create virtual functions inside the block."""
    pci.write(ALLOWED, "Y")
    try:
        yield
    finally:
        pci.write(ALLOWED, "N")


@contextlib.contextmanager
def _functions(pf: str, count: int) -> Iterator[list[str]]:
    """Bind *pf* to vfio-pci with *count* virtual functions, and yield their BDFs."""
    with _allowed(), pci.bound(pf):
        pci.set_virtual_functions(pf, count)
        yield _found(pf, count)
        if pci.driver(pf) is not None:
            pci.set_virtual_functions(pf, 0)


def _found(pf: str, count: int) -> list[str]:
    return [os.path.basename(os.readlink(pci.path_of(pf) / f"virtfn{n}")) for n in range(count)]


def _number(pf: str) -> str:
    return pci.read(pci.path_of(pf) / "sriov_numvfs")


def _token(t: Test) -> bytes:
    return t.random.getrandbits(128).to_bytes(16, "big")


def _try(t: Test, bdf: str, token: Optional[bytes] = None) -> None:
    with reopened(t, bdf, token):
        pass


def _try_group(bdf: str, token: str) -> None:
    with vfio.open_container() as container, vfio.open_group(bdf) as group:
        group.set_container(container)
        container.set_iommu(vfio.NOIOMMU_IOMMU)
        group.device(f"{bdf}{token}").close()


@case(needs=SRIOV, cites="drivers/vfio/pci/vfio_pci.c vfio_pci_sriov_configure()")
def functions_need_permission(t: Test) -> None:
    """vfio-pci creates and removes virtual functions through sriov_numvfs only while its parameter
    enable_sriov is on (ENOENT otherwise)."""
    pf = t.device("igb")
    with pci.bound(pf):
        t.equal(pci.read(ALLOWED), "N", "enable_sriov at the start")
        t.errno(errno.ENOENT, pci.set_virtual_functions, pf, 1)
        t.equal((_number(pf), pci.find("igb-vf")), ("0", []), "VFs after the refused call")
        with _allowed():
            pci.set_virtual_functions(pf, 1)
        t.errno(errno.ENOENT, pci.set_virtual_functions, pf, 0)
        t.equal((_number(pf), len(pci.find("igb-vf"))), ("1", 1), "VFs after enable_sriov was turned off")
        pci.unbind(pf)
        t.equal((_number(pf), pci.find("igb-vf")), ("0", []), "VFs after their PF was unbound")


@case(
    needs=SRIOV,
    cites="drivers/pci/iov.c sriov_numvfs_store(); vfio/pci/vfio_pci_core.c vfio_pci_core_sriov_configure()",
)
def number_of_functions_is_bounded(t: Test) -> None:
    """Asking for more VFs than the card has is ERANGE, and for a number other than the current one EBUSY;
    both change nothing, the current number is accepted, and zero and the maximum can be set in turn."""
    pf = t.device("igb")
    total = int(pci.read(pci.path_of(pf) / "sriov_totalvfs"))
    with _functions(pf, 1) as functions:
        t.errno(errno.ERANGE, pci.set_virtual_functions, pf, total + 1)
        t.errno(errno.EBUSY, pci.set_virtual_functions, pf, 2)
        pci.set_virtual_functions(pf, 1)
        t.equal(pci.find("igb-vf"), functions, "VFs after the refused calls")
        pci.set_virtual_functions(pf, 0)
        t.equal(pci.find("igb-vf"), [], "VFs after setting zero")
        pci.set_virtual_functions(pf, total)
        t.equal(len(pci.find("igb-vf")), total, "VFs after setting the maximum")
        t.equal({pci.driver(vf) for vf in _found(pf, total)}, {pci.VFIO_PCI}, "their drivers")


@case(needs=SRIOV, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_bus_notifier(), vfio_pci_vf_init()")
def functions_are_captured(t: Test) -> None:
    """A VF that vfio-pci creates is overridden to vfio-pci and bound by it at once, with a no-IOMMU name and
    its own group, which are removed with the VF."""
    pf = t.device("igb")
    with _functions(pf, 2) as functions:
        nodes = [pci.vfio_nodes(bdf) for bdf in (pf, *functions)]
        for bdf in functions:
            t.equal(
                (pci.override(bdf), pci.driver(bdf)),
                (pci.VFIO_PCI, pci.VFIO_PCI),
                f"override and driver of {bdf}",
            )
            want = f"Captured SR-IOV VF {bdf} driver_override"
            t.check(any(want in line for line in t.dmesg()), f"no line {want!r}")
        made = [node for both in nodes for node in both.made]
        t.equal(len(set(made)), len(made), "number of different nodes of a PF and its VFs")
        t.check(made, "there are no nodes")
        t.check(all(node.name.startswith("noiommu-") for node in made), f"names of the nodes: {made}")
        t.check(all(node.exists() for node in made), f"not all of {made} exist")
        pci.set_virtual_functions(pf, 0)
        own = nodes[0].made
        t.equal([node for node in made if node.exists()], own, "nodes left after removing the VFs")


@case(
    needs=SRIOV,
    cites="drivers/vfio/group.c vfio_group_find_or_alloc(); pci/vfio_pci_core.c "
    "vfio_pci_core_register_device()",
)
def functions_obey_the_mode(t: Test) -> None:
    """VFs created with no-IOMMU mode off are overridden to vfio-pci but not bound until the mode is on."""
    pf = t.device("igb")
    with _allowed(), pci.bound(pf):
        pci.set_parameter(False)
        pci.set_virtual_functions(pf, 1)
        (vf,) = _found(pf, 1)
        t.equal((pci.override(vf), pci.driver(vf)), (pci.VFIO_PCI, None), "override and driver")
        t.equal(pci.vfio_nodes(vf), pci.Nodes(group=None, cdev=None), "nodes")
        t.errno(errno.EINVAL, pci.bind, vf)
        pci.set_parameter(True)
        pci.bind(vf)
        t.check((pci.vfio_dev_name(vf) or "").replace("noiommu-", "").startswith("vfio"), "no VFIO device")
        t.errno(errno.EACCES, _try, t, vf)
        pci.set_virtual_functions(pf, 0)


@case(needs=SRIOV, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_match_token_uuid()")
def function_opens_with_the_token_alone(t: Test) -> None:
    """A VF opens only with the token that its PF's user has set (EACCES with none or another); before it is
    set no token opens the VF, and it stays valid after that user closes the PF."""
    pf, token, other = t.device("igb"), _token(t), _token(t)
    with _functions(pf, 1) as (vf,):
        t.errno(errno.EACCES, _try, t, vf)
        t.errno(errno.EACCES, _try, t, vf, token)
        t.errno(errno.EACCES, _try, t, vf, bytes(16))
        with reopened(t, pf, token):
            t.errno(errno.EACCES, _try, t, vf)
            t.errno(errno.EACCES, _try, t, vf, other)
            t.errno(errno.EACCES, _try, t, vf, token[:-1] + bytes((token[-1] ^ 1,)))
            with reopened(t, vf, token) as device:
                t.equal(device.read_config(0, 4), igb.FUNCTION_IDS, "vendor and device ID of the VF")
        with reopened(t, vf, token):
            pass
        t.errno(errno.EACCES, _try, t, vf, other)


@case(needs=SRIOV, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_match_token_uuid() (users)")
def pf_opens_beside_its_functions_with_the_token(t: Test) -> None:
    """While a VF is in use, its PF opens only with the token (EACCES otherwise), and a refused attempt does
    not change the token; while no VF is in use, the PF opens without the token and a new token can be set."""
    pf, token, other = t.device("igb"), _token(t), _token(t)
    with _functions(pf, 2) as (vf, second):
        with reopened(t, pf, token):
            pass
        with reopened(t, vf, token):
            t.errno(errno.EACCES, _try, t, pf)
            t.errno(errno.EACCES, _try, t, pf, other)
            with reopened(t, second, token):
                pass
            t.errno(errno.EACCES, _try, t, pf)
            with reopened(t, pf, token):
                pass
        with reopened(t, pf):
            pass
        with reopened(t, pf, other):
            pass
        t.errno(errno.EACCES, _try, t, vf, token)
        with reopened(t, vf, other):
            pass


@case(needs=SRIOV, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_feature_token()")
def token_is_a_feature_of_the_pf(t: Test) -> None:
    """The user of a PF replaces the token with a feature that can be set but not read, whether or not a VF is
    in use; a VF does not have that feature (ENOTTY)."""
    pf, token, other = t.device("igb"), _token(t), _token(t)
    with _functions(pf, 1) as (vf,), reopened(t, pf, token) as device:
        device.feature(vfio.FEATURE_PROBE | vfio.FEATURE_SET | vfio.FEATURE_VF_TOKEN)
        t.errno(errno.EINVAL, device.feature, vfio.FEATURE_GET | vfio.FEATURE_VF_TOKEN, bytes(16))
        t.errno(errno.EINVAL, device.feature, vfio.FEATURE_SET | vfio.FEATURE_VF_TOKEN, bytes(15))
        with reopened(t, vf, token) as function:
            device.feature(vfio.FEATURE_SET | vfio.FEATURE_VF_TOKEN, other)
            attempt = vfio.FEATURE_SET | vfio.FEATURE_VF_TOKEN
            t.errno(errno.ENOTTY, function.feature, attempt, token)
            t.equal(function.read_config(0, 4), igb.FUNCTION_IDS, "the VF opened with the old token")
        t.errno(errno.EACCES, _try, t, vf, token)
        with reopened(t, vf, other):
            pass


@case(
    needs=(*SRIOV, "noiommu-group", "container"),
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_match()",
)
def token_in_a_device_name_is_parsed(t: Test) -> None:
    """The device name given to a group may have one complete UUID as vf_token= after spaces; a short or
    invalid UUID, two of them, or another option is EINVAL, and text after the name without a space is
    ENODEV."""
    pf, token = t.device("igb"), _token(t)
    uuid = uuid_of(token)
    with _functions(pf, 1) as (vf,):
        with reopened_by_group(pf, token):
            pass
        for wrong in (
            f" vf_token={uuid[:-1]}",
            f" vf_token={uuid[:-1]}g",
            f" vf_token={uuid} vf_token={uuid}",
            f" vf_token={uuid}0",
            f" other={uuid}",
            " x",
        ):
            t.errno(errno.EINVAL, _try_group, vf, wrong)
        t.errno(errno.ENODEV, _try_group, vf, f"vf_token={uuid}")
        t.errno(errno.EACCES, _try_group, vf, " ")
        _try_group(vf, f"  vf_token={uuid.upper()} ")


@case(
    needs=(*SRIOV, "noiommu-cdev", "noiommu-group", "container"),
    cites="drivers/vfio/device_cdev.c vfio_df_check_token(); pci/vfio_pci_core.c vfio_pci_core_match()",
)
def both_doors_ask_for_one_token(t: Test) -> None:
    """A token set through the cdev is required through the group and the other way round, byte for byte."""
    pf = t.device("igb")
    with _functions(pf, 1) as (vf,):
        for first, second in ((reopened_by_cdev, reopened_by_group), (reopened_by_group, reopened_by_cdev)):
            token = _token(t)
            with first(pf, token):
                pass
            with second(vf, token) as device:
                t.equal(device.read_config(0, 4), igb.FUNCTION_IDS, "the VF opened the other way")
            # As if the first three numbers of the UUID were little-endian.
            swapped = token[3::-1] + token[5:3:-1] + token[7:5:-1] + token[8:]
            t.errno(errno.EACCES, _try, t, vf, swapped)


@case(needs=SRIOV, cites="drivers/vfio/pci/vfio_pci_config.c vfio_config_init() (is_virtfn); QEMU igbvf.c")
def function_looks_like_a_device(t: Test) -> None:
    """VFIO emulates what a VF lacks in configuration space, its IDs and enabled memory decoding; the VF has
    no INTx and the number of vectors of its own MSI-X table."""
    pf, token = t.device("igb"), _token(t)
    with _functions(pf, 1) as (vf,), reopened(t, pf, token), reopened(t, vf, token) as device:
        t.equal(pci.config_number(vf, 0, 4), 0xFFFFFFFF, "vendor and device ID without VFIO")
        t.equal(device.read_config(0, 4), igb.FUNCTION_IDS, "vendor and device ID through VFIO")
        t.equal(device.irq_info(vfio.INTX).count, 0, "INTx interrupts")
        t.equal(device.irq_info(vfio.MSIX).count, 3, "MSI-X vectors")
        t.errno(errno.EINVAL, device.set_eventfds, vfio.INTX, Event().fd)
        device.write_config(vfio.PCI_COMMAND, 2, 0)
        where = device.region(vfio.BAR0).offset
        t.equal(len(os.pread(device.fd, 4, where)), 4, "bytes of BAR0 with every command bit cleared")


@case(
    needs=SRIOV, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_reset(); drivers/pci/pci.c pcie_flr()"
)
def function_can_be_reset(t: Test) -> None:
    """A VF can be reset on its own: it keeps its user's bus mastering, and its PF and the other VFs work as
    before."""
    pf, token = t.device("igb"), _token(t)
    with _functions(pf, 2) as (vf, other), reopened(t, pf, token), reopened(t, vf, token) as device:
        t.check(device.info().flags & vfio.DEVICE_FLAGS_RESET, "the VF does not claim that it can be reset")
        device.set_bus_master()
        device.reset()
        t.equal(
            pci.config_number(vf, vfio.PCI_COMMAND, 2) & vfio.PCI_COMMAND_MASTER,
            vfio.PCI_COMMAND_MASTER,
            "bus mastering",
        )
        t.equal(
            [pci.config_number(bdf, CLASS, 2) for bdf in (pf, vf, other)], [0x0200] * 3, "classes on the bus"
        )


@case(needs=SRIOV, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_disable(); drivers/pci/iov.c")
def functions_outlive_the_user_of_their_pf(t: Test) -> None:
    """When a PF's user closes it, which resets it, its VFs stay on the bus and keep working for their
    users."""
    pf, token = t.device("igb"), _token(t)
    with _functions(pf, 1) as (vf,):
        with reopened(t, pf, token) as master, reopened(t, vf, token) as device:
            master.close()
            t.equal((_number(pf), pci.find("igb-vf")), ("1", [vf]), "VFs after the close")
            t.equal(pci.config_number(vf, CLASS, 2), 0x0200, "class of the VF on the bus")
            t.check(device.info().flags & vfio.DEVICE_FLAGS_PCI, "the VF does not answer")
            device.reset()
        with reopened(t, vf, token) as device:
            t.equal(
                device.read_config(0, 4), igb.FUNCTION_IDS, "vendor and device ID of the VF for its next user"
            )


@case(needs=SRIOV, cites="drivers/vfio/vfio_main.c vfio_unregister_group_dev(); drivers/pci/iov.c")
def functions_in_use_are_waited_for(t: Test) -> None:
    """Removing VFs signals the REQ eventfd of a VF's user and waits for that user; the PF's user is not
    signalled."""
    pf, token = t.device("igb"), _token(t)
    with _functions(pf, 1) as (vf,), reopened(t, pf, token) as master, reopened(t, vf, token) as device:
        asked, unasked = Event(), Event()
        device.set_eventfds(vfio.REQ, asked.fd)
        master.set_eventfds(vfio.REQ, unasked.fd)
        writer = pci.PendingWrite(pci.path_of(pf) / "sriov_numvfs", "0")
        t.equal(asked.arrives(), 1, "requests to the VF's user")
        t.check(not writer.done and pci.exists(vf), "the VF was removed while in use")
        t.equal(device.read_config(0, 4), igb.FUNCTION_IDS, "vendor and device ID of the VF during the wait")
        device.close()
        writer.wait(GOES)
        t.check(not pci.exists(vf), "the VF still exists")
        t.equal(libc.eventfd_count(unasked.fd), 0, "requests to the PF's user")


@case(needs=SRIOV, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_unregister_device()")
def unbinding_a_pf_takes_its_functions_first(t: Test) -> None:
    """Unbinding a PF waits for the user of a VF first, then asks the PF's own user, and ends when both have
    closed."""
    pf, token = t.device("igb"), _token(t)
    with _functions(pf, 1) as (vf,), reopened(t, pf, token) as master, reopened(t, vf, token) as device:
        first, second = Event(), Event()
        device.set_eventfds(vfio.REQ, first.fd)
        master.set_eventfds(vfio.REQ, second.fd)
        writer = pci.start_unbind(pf)
        t.equal(first.arrives(), 1, "requests to the VF's user")
        t.equal(libc.eventfd_count(second.fd), 0, "requests to the PF's user while a VF is in use")
        device.close()
        t.equal(second.arrives(), 1, "requests to the PF's user after the VF was closed")
        t.check(not pci.exists(vf), "the VF still exists")
        t.check(not writer.done, "the unbind did not wait for the PF's user")
        master.close()
        writer.wait(GOES)
        t.equal((pci.driver(pf), _number(pf)), (None, "0"), "driver and number of VFs afterwards")


def _power_state(bdf: str) -> int:
    """Return the power state of *bdf*, read without VFIO."""
    return pci.config_number(bdf, pci.capability(bdf, pci.CAP_POWER) + POWER_CONTROL, 1) & POWER_STATE


@case(needs=SRIOV, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_set_power_state() (sriov_active)")
def pf_with_functions_stays_awake(t: Test) -> None:
    """The user of a PF with VFs cannot put it in D3, and creating VFs wakes a PF in D3."""
    pf, token = t.device("igb"), _token(t)
    with _functions(pf, 1), reopened(t, pf, token) as device:
        control = pci.capability(pf, pci.CAP_POWER) + POWER_CONTROL
        t.equal(_power_state(pf), 0, "power state at the start")
        device.write_config(control, 2, 3)
        t.equal(_power_state(pf), 0, "power state after writing D3")
        with device.bar() as bar:
            t.check(bar.read32(igb.STATUS) != 0xFFFFFFFF, "the registers read as ones")
        pci.set_virtual_functions(pf, 0)
        device.write_config(control, 2, 3)
        t.equal(_power_state(pf), 3, "power state after writing D3 without VFs")
        pci.set_virtual_functions(pf, 1)
        t.equal(_power_state(pf), 0, "power state after VFs were created")


@case(needs=SRIOV, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_sriov_configure() (pm_runtime)")
def idle_pf_sleeps_only_without_functions(t: Test) -> None:
    """An idle PF is suspended only while it has no VFs."""
    pf = t.device("igb")
    status = pci.path_of(pf) / "power" / "runtime_status"
    with _allowed(), pci.bound(pf):
        for _ in range(2):
            t.wait_until(lambda: pci.read(status) == "suspended", "the suspend of an idle PF", GOES)
            pci.set_virtual_functions(pf, 1)
            t.equal(pci.read(status), "active", "runtime status of the PF with a VF")
            pci.set_virtual_functions(pf, 0)
        t.wait_until(lambda: pci.read(status) == "suspended", "the suspend of the PF without VFs", GOES)
