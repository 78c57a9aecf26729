# SPDX-License-Identifier: GPL-2.0-only
"""Virtual functions that vfio-pci itself creates, without an IOMMU: their capture, their token, their end."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

from guest import igb, libc, pci, vfio
from guest.case import Test, case
from guest.opened import Event, reopened, reopened_by_cdev, reopened_by_group

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
    """Have *pf* bound to vfio-pci with *count* virtual functions, whose BDFs are yielded."""
    with _allowed(), pci.bound(pf):
        pci.set_virtual_functions(pf, count)
        yield _found(pf, count)
        if pci.driver(pf) is not None:
            pci.set_virtual_functions(pf, 0)


def _found(pf: str, count: int) -> list[str]:
    return [os.path.basename(os.readlink(pci.path_of(pf) / f"virtfn{n}")) for n in range(count)]


def _number(pf: str) -> str:
    return pci.read(pci.path_of(pf) / "sriov_numvfs")


def _token(t: Test) -> uuid.UUID:
    return uuid.UUID(int=t.random.getrandbits(128), version=4)


def _try(t: Test, bdf: str, token: Optional[uuid.UUID] = None) -> None:
    with reopened(t, bdf, token):
        pass


def _try_group(bdf: str, token: str) -> None:
    with vfio.open_container() as container, vfio.open_group(bdf) as group:
        group.set_container(container)
        container.set_iommu(vfio.NOIOMMU_IOMMU)
        group.device(f"{bdf}{token}").close()


@case(needs=SRIOV, cites="drivers/vfio/pci/vfio_pci.c vfio_pci_sriov_configure()")
def functions_need_permission(t: Test) -> None:
    """vfio-pci creates virtual functions only while its parameter enable_sriov is on (ENOENT otherwise), and
    takes away no more than it creates while it is off."""
    pf = t.device("igb")
    with pci.bound(pf):
        t.equal(pci.read(ALLOWED), "N", "enable_sriov at first")
        t.errno(errno.ENOENT, pci.set_virtual_functions, pf, 1)
        t.equal((_number(pf), pci.find("igb-vf")), ("0", []), "functions after the refusal")
        with _allowed():
            pci.set_virtual_functions(pf, 1)
        t.errno(errno.ENOENT, pci.set_virtual_functions, pf, 0)
        t.equal((_number(pf), len(pci.find("igb-vf"))), ("1", 1), "functions after permission has gone")
        pci.unbind(pf)
        t.equal((_number(pf), pci.find("igb-vf")), ("0", []), "functions after their PF was unbound")


@case(
    needs=SRIOV,
    cites="drivers/pci/iov.c sriov_numvfs_store(); vfio/pci/vfio_pci_core.c vfio_pci_core_sriov_configure()",
)
def number_of_functions_is_bounded(t: Test) -> None:
    """More functions than the card has are ERANGE, another number than there are is EBUSY; both change
    nothing, the same number again is no error, and none and all can be had in turn."""
    pf = t.device("igb")
    total = int(pci.read(pci.path_of(pf) / "sriov_totalvfs"))
    with _functions(pf, 1) as functions:
        t.errno(errno.ERANGE, pci.set_virtual_functions, pf, total + 1)
        t.errno(errno.EBUSY, pci.set_virtual_functions, pf, 2)
        pci.set_virtual_functions(pf, 1)
        t.equal(pci.find("igb-vf"), functions, "functions after the refusals")
        pci.set_virtual_functions(pf, 0)
        t.equal(pci.find("igb-vf"), [], "functions after all were taken away")
        pci.set_virtual_functions(pf, total)
        t.equal(len(pci.find("igb-vf")), total, "functions when all are wanted")
        t.equal({pci.driver(vf) for vf in _found(pf, total)}, {pci.VFIO_PCI}, "their drivers")


@case(needs=SRIOV, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_bus_notifier(), vfio_pci_vf_init()")
def functions_are_captured(t: Test) -> None:
    """A function that vfio-pci creates is overridden to vfio-pci and bound by it at once, under a no-IOMMU
    name and a group of its own, which go when it is taken away."""
    pf = t.device("igb")
    with _functions(pf, 2) as functions:
        nodes = [pci.vfio_nodes(bdf) for bdf in (pf, *functions)]
        for bdf in functions:
            t.equal((pci.override(bdf), pci.driver(bdf)), (pci.VFIO_PCI, pci.VFIO_PCI), f"capture of {bdf}")
            want = f"Captured SR-IOV VF {bdf} driver_override"
            t.check(any(want in line for line in t.dmesg()), f"no line {want!r}")
        made = [node for both in nodes for node in both.made]
        t.equal(len(set(made)), len(made), "different nodes of a PF and its functions")
        t.check(made, "there are no nodes")
        t.check(all(node.name.startswith("noiommu-") for node in made), f"names of the nodes: {made}")
        t.check(all(node.exists() for node in made), f"not all of {made} exist")
        pci.set_virtual_functions(pf, 0)
        own = nodes[0].made
        t.equal([node for node in made if node.exists()], own, "nodes left when the functions are gone")


@case(
    needs=SRIOV,
    cites="drivers/vfio/group.c vfio_group_find_or_alloc(); pci/vfio_pci_core.c "
    "vfio_pci_core_register_device()",
)
def functions_obey_the_mode(t: Test) -> None:
    """Functions created with no-IOMMU mode off are captured but get no driver, until the mode is on."""
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
    """A function is opened only with the token that its PF's user has set (EACCES without one, or with
    another), which nobody knows before, and which outlives that user."""
    pf, token, other = t.device("igb"), _token(t), _token(t)
    with _functions(pf, 1) as (vf,):
        t.errno(errno.EACCES, _try, t, vf)
        t.errno(errno.EACCES, _try, t, vf, token)
        t.errno(errno.EACCES, _try, t, vf, uuid.UUID(int=0))
        with reopened(t, pf, token):
            t.errno(errno.EACCES, _try, t, vf)
            t.errno(errno.EACCES, _try, t, vf, other)
            t.errno(errno.EACCES, _try, t, vf, uuid.UUID(int=token.int ^ 1))
            with reopened(t, vf, token) as device:
                t.equal(device.read_config(0, 4), igb.FUNCTION_IDS, "device and vendor of the function")
        with reopened(t, vf, token):
            pass
        t.errno(errno.EACCES, _try, t, vf, other)


@case(needs=SRIOV, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_match_token_uuid() (users)")
def pf_opens_beside_its_functions_with_the_token(t: Test) -> None:
    """While a function is in use its PF is opened only with the token (EACCES otherwise), and such an
    attempt does not change it; once no function is in use, anybody opens the PF and sets another."""
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
    """The user of a PF replaces the token by a feature that can be set and not read, in use or not; a
    function does not have that feature (ENOTTY)."""
    pf, token, other = t.device("igb"), _token(t), _token(t)
    with _functions(pf, 1) as (vf,), reopened(t, pf, token) as device:
        device.feature(vfio.FEATURE_PROBE | vfio.FEATURE_SET | vfio.FEATURE_VF_TOKEN)
        t.errno(errno.EINVAL, device.feature, vfio.FEATURE_GET | vfio.FEATURE_VF_TOKEN, bytes(16))
        t.errno(errno.EINVAL, device.feature, vfio.FEATURE_SET | vfio.FEATURE_VF_TOKEN, bytes(15))
        with reopened(t, vf, token) as function:
            device.feature(vfio.FEATURE_SET | vfio.FEATURE_VF_TOKEN, other.bytes)
            attempt = vfio.FEATURE_SET | vfio.FEATURE_VF_TOKEN
            t.errno(errno.ENOTTY, function.feature, attempt, token.bytes)
            t.equal(
                function.read_config(0, 4), igb.FUNCTION_IDS, "the function of one who came by the old token"
            )
        t.errno(errno.EACCES, _try, t, vf, token)
        with reopened(t, vf, other):
            pass


@case(
    needs=(*SRIOV, "noiommu-group", "container"),
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_match()",
)
def token_in_a_device_name_is_parsed(t: Test) -> None:
    """The name given to a group may carry one whole UUID as vf_token= after spaces; a short one, a bad one,
    two, or another option is EINVAL, and a name that goes on without a space is ENODEV."""
    pf, token = t.device("igb"), _token(t)
    with _functions(pf, 1) as (vf,):
        with reopened_by_group(pf, token):
            pass
        for wrong in (
            f" vf_token={str(token)[:-1]}",
            f" vf_token={str(token)[:-1]}g",
            f" vf_token={token} vf_token={token}",
            f" vf_token={token}0",
            f" other={token}",
            " x",
        ):
            t.errno(errno.EINVAL, _try_group, vf, wrong)
        t.errno(errno.ENODEV, _try_group, vf, f"vf_token={token}")
        t.errno(errno.EACCES, _try_group, vf, " ")
        _try_group(vf, f"  vf_token={str(token).upper()} ")


@case(
    needs=(*SRIOV, "noiommu-cdev", "noiommu-group", "container"),
    cites="drivers/vfio/device_cdev.c vfio_df_check_token(); pci/vfio_pci_core.c vfio_pci_core_match()",
)
def both_doors_ask_for_one_token(t: Test) -> None:
    """The token set by either door is the one that the other asks for, byte for byte."""
    pf = t.device("igb")
    with _functions(pf, 1) as (vf,):
        for first, second in ((reopened_by_cdev, reopened_by_group), (reopened_by_group, reopened_by_cdev)):
            token = _token(t)
            with first(pf, token):
                pass
            with second(vf, token) as device:
                t.equal(device.read_config(0, 4), igb.FUNCTION_IDS, "the function by the other door")
            swapped = uuid.UUID(bytes=token.bytes_le)
            t.errno(errno.EACCES, _try, t, vf, swapped)


@case(needs=SRIOV, cites="drivers/vfio/pci/vfio_pci_config.c vfio_config_init() (is_virtfn); QEMU igbvf.c")
def function_looks_like_a_device(t: Test) -> None:
    """What a function lacks in configuration space VFIO makes up: its ids, memory decoding that is on; it
    has no INTx and the vectors of its own table."""
    pf, token = t.device("igb"), _token(t)
    with _functions(pf, 1) as (vf,), reopened(t, pf, token), reopened(t, vf, token) as device:
        t.equal(pci.config_number(vf, 0, 4), 0xFFFFFFFF, "the ids without VFIO")
        t.equal(device.read_config(0, 4), igb.FUNCTION_IDS, "the ids by VFIO")
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
    """A function can be reset on its own: it keeps its user's bus mastering, and its PF and the other
    functions answer as before."""
    pf, token = t.device("igb"), _token(t)
    with _functions(pf, 2) as (vf, other), reopened(t, pf, token), reopened(t, vf, token) as device:
        t.check(device.info().flags & vfio.DEVICE_FLAGS_RESET, "the function does not claim that it can be")
        device.set_bus_master()
        device.reset()
        t.equal(
            pci.config_number(vf, vfio.PCI_COMMAND, 2) & vfio.PCI_COMMAND_MASTER,
            vfio.PCI_COMMAND_MASTER,
            "bus master",
        )
        t.equal(
            [pci.config_number(bdf, CLASS, 2) for bdf in (pf, vf, other)], [0x0200] * 3, "classes on the bus"
        )


@case(needs=SRIOV, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_disable(); drivers/pci/iov.c")
def functions_outlive_the_user_of_their_pf(t: Test) -> None:
    """When a PF's user closes, which resets it, its functions are on the bus as before and answer their
    users."""
    pf, token = t.device("igb"), _token(t)
    with _functions(pf, 1) as (vf,):
        with reopened(t, pf, token) as master, reopened(t, vf, token) as device:
            master.close()
            t.equal((_number(pf), pci.find("igb-vf")), ("1", [vf]), "functions after the close")
            t.equal(pci.config_number(vf, CLASS, 2), 0x0200, "class of the function on the bus")
            t.check(device.info().flags & vfio.DEVICE_FLAGS_PCI, "the function does not answer")
            device.reset()
        with reopened(t, vf, token) as device:
            t.equal(device.read_config(0, 4), igb.FUNCTION_IDS, "the function for its next user")


@case(needs=SRIOV, cites="drivers/vfio/vfio_main.c vfio_unregister_group_dev(); drivers/pci/iov.c")
def functions_in_use_are_waited_for(t: Test) -> None:
    """Taking functions away asks the user of one through its REQ eventfd and waits for it; the PF's user is
    not asked."""
    pf, token = t.device("igb"), _token(t)
    with _functions(pf, 1) as (vf,), reopened(t, pf, token) as master, reopened(t, vf, token) as device:
        asked, unasked = Event(), Event()
        device.set_eventfds(vfio.REQ, asked.fd)
        master.set_eventfds(vfio.REQ, unasked.fd)
        writer = pci.PendingWrite(pci.path_of(pf) / "sriov_numvfs", "0")
        t.equal(asked.arrives(), 1, "requests to the function's user")
        t.check(not writer.done and pci.exists(vf), "the function went while it was in use")
        t.equal(device.read_config(0, 4), igb.FUNCTION_IDS, "the function during the wait")
        device.close()
        writer.wait(GOES)
        t.check(not pci.exists(vf), "the function is still there")
        t.equal(libc.eventfd_count(unasked.fd), 0, "requests to the PF's user")


@case(needs=SRIOV, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_unregister_device()")
def unbinding_a_pf_takes_its_functions_first(t: Test) -> None:
    """Unbinding a PF waits for the user of a function before it asks the PF's own, and ends with neither."""
    pf, token = t.device("igb"), _token(t)
    with _functions(pf, 1) as (vf,), reopened(t, pf, token) as master, reopened(t, vf, token) as device:
        first, second = Event(), Event()
        device.set_eventfds(vfio.REQ, first.fd)
        master.set_eventfds(vfio.REQ, second.fd)
        writer = pci.start_unbind(pf)
        t.equal(first.arrives(), 1, "requests to the function's user")
        t.equal(libc.eventfd_count(second.fd), 0, "requests to the PF's user while a function is in use")
        device.close()
        t.equal(second.arrives(), 1, "requests to the PF's user once the function is free")
        t.check(not pci.exists(vf), "the function is still there")
        t.check(not writer.done, "the unbind did not wait for the PF's user")
        master.close()
        writer.wait(GOES)
        t.equal((pci.driver(pf), _number(pf)), (None, "0"), "driver and functions afterwards")


def _power_state(bdf: str) -> int:
    """The power state of *bdf*, past VFIO."""
    return pci.config_number(bdf, pci.capability(bdf, pci.CAP_POWER) + POWER_CONTROL, 1) & POWER_STATE


@case(needs=SRIOV, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_set_power_state() (sriov_active)")
def pf_with_functions_stays_awake(t: Test) -> None:
    """A PF that has functions cannot be put to sleep by its user, and creating functions wakes it up."""
    pf, token = t.device("igb"), _token(t)
    with _functions(pf, 1), reopened(t, pf, token) as device:
        control = pci.capability(pf, pci.CAP_POWER) + POWER_CONTROL
        t.equal(_power_state(pf), 0, "power state at first")
        device.write_config(control, 2, 3)
        t.equal(_power_state(pf), 0, "power state after D3 was asked for")
        with device.bar() as bar:
            t.check(bar.read32(igb.STATUS) != 0xFFFFFFFF, "the registers are out of reach")
        pci.set_virtual_functions(pf, 0)
        device.write_config(control, 2, 3)
        t.equal(_power_state(pf), 3, "power state once there are no functions")
        pci.set_virtual_functions(pf, 1)
        t.equal(_power_state(pf), 0, "power state after functions were created")


@case(needs=SRIOV, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_sriov_configure() (pm_runtime)")
def idle_pf_sleeps_only_without_functions(t: Test) -> None:
    """A PF that nobody uses is suspended, except as long as it has functions."""
    pf = t.device("igb")
    status = pci.path_of(pf) / "power" / "runtime_status"
    with _allowed(), pci.bound(pf):
        for _ in range(2):
            t.wait_until(lambda: pci.read(status) == "suspended", "the suspend of an idle PF", GOES)
            pci.set_virtual_functions(pf, 1)
            t.equal(pci.read(status), "active", "its state with a function")
            pci.set_virtual_functions(pf, 0)
        t.wait_until(lambda: pci.read(status) == "suspended", "the suspend without functions", GOES)
