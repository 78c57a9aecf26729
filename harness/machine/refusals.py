# SPDX-License-Identifier: GPL-2.0-only
"""What cannot work, said before anything boots: with the file, the line and the reason."""

from __future__ import annotations

from typing import NoReturn

from harness.errors import UsageError, nearest
from harness.machine.devices import ROOT_BUS, Backend, Device, Topology
from harness.machine.qemu import Qemu

FIRST_SLOT, LAST_SLOT = 0x02, 0x17
"""Slots of pcie.0 a topology may use.

0x00 is the host bridge, 0x01 goes to amd-iommu's own PCI function, 0x18 to 0x1e hold the harness's network
card, ports and shares (harness.machine.machine), 0x1f is the ICH9.
"""

_IGB_FIRST_OVERFLOW = 0x10
"""igb's VFs sit at devfn + 0x80 (QEMU hw/net/igb_core: IGB_VF_OFFSET): here they leave the bus."""

_SINCE = {"igb": "8.0", "pvpanic-pci": "6.0", "virtio-iommu-pci": "7.0 (on q35)", "nvme-ns": "5.2"}

_MACHINE_EXTRAS = frozenset(
    {
        "kernel-irqchip",
        "default-bus-bypass-iommu",
        "vmport",
        "smm",
        "hpet",
        "pit",
        "sata",
        "smbus",
        "i8042",
        "usb",
    }
)
"""Machine properties we know of; `-machine q35,help` leaves some of them out."""


def _refuse(topology: Topology, line: int, why: str, hint: str | None = None) -> NoReturn:
    raise UsageError(f"{topology.path}:{line}: {why}", hint=hint)


def refuse_impossible(topology: Topology) -> None:
    """Refuse what no QEMU can do, or what would not be what the file says.

    Raises UsageError.
    """
    _check_names(topology)
    for device in topology.devices:
        if device.bus is not None:
            _check_place(topology, device)
    _check_collisions(topology)
    _check_iommu(topology)
    _check_claims(topology)


def _check_names(topology: Topology) -> None:
    seen: dict[str, int] = {}
    things: tuple[Backend | Device, ...] = (*topology.backends, *topology.devices)
    for thing in things:
        if thing.id in seen:
            _refuse(topology, thing.line, f"the id {thing.id!r} is already taken in line {seen[thing.id]}")
        seen[thing.id] = thing.line
    backends = {backend.id for backend in topology.backends}
    for device in topology.devices:
        for name in ("netdev", "drive"):
            wanted = device.props.get(name)
            if wanted is not None and wanted not in backends:
                _refuse(
                    topology,
                    device.line,
                    f"{device.id!r} wants the {name} {wanted!r}",
                    nearest(str(wanted), backends),
                )


def _check_place(topology: Topology, device: Device) -> None:
    slot, _ = device.addr
    if device.bus == ROOT_BUS:
        if not FIRST_SLOT <= slot <= LAST_SLOT:
            _refuse(
                topology,
                device.line,
                f"{device.id!r} cannot have slot {slot:#x} of pcie.0",
                f"use {FIRST_SLOT:#x} to {LAST_SLOT:#x}; the others are the machine's own and the harness's",
            )
        if device.driver == "igb" and slot >= _IGB_FIRST_OVERFLOW:
            _refuse(
                topology,
                device.line,
                f"igb {device.id!r} in slot {slot:#x} of pcie.0: its virtual functions do not fit on the bus",
                f"use a slot below {_IGB_FIRST_OVERFLOW:#x} or a root port",
            )
        if not device.plugged:
            _refuse(
                topology,
                device.line,
                f"{device.id!r} cannot be plugged later: pcie.0 has no hot-plug",
                "use a root port",
            )
        return
    buses = {bridge.id: bridge for bridge in topology.devices if bridge.is_bridge}
    if device.bus not in buses:
        _refuse(
            topology,
            device.line,
            f"there is no bus {device.bus!r}",
            nearest(str(device.bus), {ROOT_BUS, *buses}),
        )
    bus = buses[str(device.bus)]
    if bus.line >= device.line:
        _refuse(
            topology,
            device.line,
            f"{device.id!r} is declared before its bus {bus.id!r}",
            "QEMU reads from the top",
        )
    if bus.driver == "pcie-root-port" and slot != 0:
        _refuse(topology, device.line, f"{device.id!r} has slot {slot:#x}, but a root port has slot 0 only")
    if not device.plugged and bus.driver == "pxb-pcie":
        _refuse(
            topology,
            device.line,
            f"{device.id!r} cannot be plugged later: pxb-pcie has no hot-plug",
            "use a root port",
        )
    if bus.driver == "pxb-pcie" and not isinstance(bus.props.get("bus_nr"), int):
        _refuse(topology, bus.line, f"pxb-pcie {bus.id!r} needs 'bus_nr' in its props, a whole number")


def _check_collisions(topology: Topology) -> None:
    taken: dict[tuple[str, tuple[int, int]], Device] = {}
    for device in topology.devices:
        if device.bus is None:
            continue
        place = (device.bus, device.addr)
        if place in taken:
            slot = f"{device.addr[0]:02x}.{device.addr[1]}"
            _refuse(
                topology,
                device.line,
                f"{device.id!r} and {taken[place].id!r} both have slot {slot} of {device.bus}",
            )
        taken[place] = device


def _check_iommu(topology: Topology) -> None:
    iommus = [device for device in topology.devices if device.is_iommu]
    if len(iommus) > 1:
        _refuse(topology, iommus[1].line, f"a q35 machine has one IOMMU, and {iommus[0].id!r} is one already")
    for iommu in iommus:
        split = topology.machine.get("kernel-irqchip") == "split"
        if iommu.driver in ("intel-iommu", "amd-iommu") and not split:
            _refuse(
                topology,
                iommu.line,
                f"{iommu.driver} cannot remap interrupts with KVM's own interrupt controller",
                "write `kernel-irqchip: split` under `machine`",
            )
        if topology.devices[0] is not iommu:
            _refuse(
                topology,
                iommu.line,
                f"{iommu.id!r} must come first: devices created before their IOMMU bypass it",
            )


def _check_claims(topology: Topology) -> None:
    ports = {device.id for device in topology.devices if device.driver == "pcie-root-port"}
    if "hotplug" in topology.claims and not any(device.bus in ports for device in topology.endpoints):
        _refuse(topology, 1, "'hotplug' is stated, but no device sits in a pcie-root-port")
    if "sriov" in topology.claims and not any(device.driver == "igb" for device in topology.endpoints):
        _refuse(topology, 1, "'sriov' is stated, but no device here has virtual functions", "add an igb")


def refuse_unavailable(topology: Topology, qemu: Qemu) -> None:
    """Refuse devices and properties that *qemu* does not have.

    Raises UsageError; InfraError when QEMU does not answer.
    """
    for device in topology.devices:
        if device.driver not in qemu.devices:
            since = _SINCE.get(device.driver)
            known = f"it came with QEMU {since}" if since else nearest(device.driver, qemu.devices)
            _refuse(topology, device.line, f"QEMU {qemu.version_text} has no device {device.driver!r}", known)
        known_props = qemu.properties(device.driver)
        for name in device.props:
            if name not in known_props or name in ("id", "bus", "addr"):
                hint = (
                    f"write {name!r} beside 'driver'" if name in known_props else nearest(name, known_props)
                )
                _refuse(topology, device.line, f"{device.driver!r} has no property {name!r}", hint)
    for name in topology.machine:
        if name not in _MACHINE_EXTRAS:
            _refuse(topology, 1, f"the q35 machine has no property {name!r}", nearest(name, _MACHINE_EXTRAS))
