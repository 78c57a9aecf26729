# SPDX-License-Identifier: GPL-2.0-only
"""Refuse a topology that cannot work before anything boots, with file, line and reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness.base.errors import UsageError, nearest
from harness.kernel.arch import Arch
from harness.machine.devices import ROOT_BUS, Backend, Device, Topology
from harness.machine.qemu import Qemu

_IGB_FIRST_OVERFLOW = 0x10
"""The first slot in which igb's VFs, at devfn + 0x80, do not fit on the bus (QEMU hw/net/igb_core:
IGB_VF_OFFSET).
"""

_SINCE = {"igb": "8.0", "pvpanic-pci": "6.0", "virtio-iommu-pci": "7.0", "nvme-ns": "5.2"}

_Fault = tuple[int, str, str | None]
"""Line, reason and hint."""


def refuse_impossible(topology: Topology, arch: Arch) -> None:
    """Raise UsageError for a topology that no QEMU of *arch* can build as its file describes it."""
    _refuse_first(topology, _impossible(topology, arch))


def refuse_unavailable(topology: Topology, qemu: Qemu) -> None:
    """Raise UsageError for devices and properties that *qemu* lacks; InfraError when it does not answer."""
    _refuse_first(topology, _unavailable(topology, qemu))


def _refuse_first(topology: Topology, faults: Iterator[_Fault]) -> None:
    for line, why, hint in faults:
        raise UsageError(f"{topology.where}:{line}: {why}", hint=hint)


def _impossible(topology: Topology, arch: Arch) -> Iterator[_Fault]:
    yield from _names(topology)
    for name in topology.machine:
        if name not in arch.machine_properties:
            why = f"the {arch.machine['type']} machine has no property {name!r}"
            yield 1, why, nearest(name, arch.machine_properties)
    for device in topology.devices:
        if device.bus == ROOT_BUS:
            yield from _on_root_bus(device, arch.slots.topology)
        elif device.bus is not None:
            yield from _behind_bridge(topology, device)
    yield from _collisions(topology)
    yield from _iommus(topology, arch)
    yield from _claims(topology, arch)


def _names(topology: Topology) -> Iterator[_Fault]:
    seen: dict[str, int] = {}
    things: tuple[Backend | Device, ...] = (*topology.backends, *topology.devices)
    for thing in things:
        if thing.id in seen:
            yield thing.line, f"the id {thing.id!r} is already taken in line {seen[thing.id]}", None
        seen[thing.id] = thing.line
    backends = {backend.id for backend in topology.backends}
    for device in topology.devices:
        for name in ("netdev", "drive"):
            wanted = device.props.get(name)
            if wanted is not None and wanted not in backends:
                why = f"{device.id!r} wants the {name} {wanted!r}"
                yield device.line, why, nearest(str(wanted), backends)


def _on_root_bus(device: Device, slots: range) -> Iterator[_Fault]:
    slot, _ = device.addr
    if slot not in slots:
        why = f"{device.id!r} cannot have slot {slot:#x} of {ROOT_BUS}"
        hint = f"use {slots[0]:#x} to {slots[-1]:#x}; the others are the machine's own and the harness's"
        yield device.line, why, hint
    if device.driver == "igb" and slot >= _IGB_FIRST_OVERFLOW:
        why = (
            f"igb {device.id!r} in slot {slot:#x} of {ROOT_BUS}: its virtual functions do not fit on the bus"
        )
        yield device.line, why, f"use a slot below {_IGB_FIRST_OVERFLOW:#x} or a root port"
    if not device.plugged:
        why = f"{device.id!r} cannot be plugged later: {ROOT_BUS} has no hot-plug"
        yield device.line, why, "use a root port"


def _behind_bridge(topology: Topology, device: Device) -> Iterator[_Fault]:
    slot, _ = device.addr
    buses = {bridge.id: bridge for bridge in topology.devices if bridge.is_bridge}
    bus = buses.get(str(device.bus))
    if bus is None:
        hint = nearest(str(device.bus), {ROOT_BUS, *buses})
        yield device.line, f"there is no bus {device.bus!r}", hint
        return
    if bus.line >= device.line:
        why = f"{device.id!r} is declared before its bus {bus.id!r}"
        yield device.line, why, "QEMU reads from the top"
    if bus.driver == "pcie-root-port" and slot != 0:
        yield device.line, f"{device.id!r} has slot {slot:#x}, but a root port has slot 0 only", None
    if not device.plugged and bus.driver == "pxb-pcie":
        why = f"{device.id!r} cannot be plugged later: pxb-pcie has no hot-plug"
        yield device.line, why, "use a root port"
    if bus.driver == "pxb-pcie" and not isinstance(bus.props.get("bus_nr"), int):
        yield bus.line, f"pxb-pcie {bus.id!r} needs 'bus_nr' in its props, a whole number", None


def _collisions(topology: Topology) -> Iterator[_Fault]:
    taken: dict[tuple[str, tuple[int, int]], Device] = {}
    for device in topology.devices:
        if device.bus is None:
            continue
        other = taken.setdefault((device.bus, device.addr), device)
        if other is not device:
            slot = f"{device.addr[0]:02x}.{device.addr[1]}"
            yield device.line, f"{device.id!r} and {other.id!r} both have slot {slot} of {device.bus}", None


def _iommus(topology: Topology, arch: Arch) -> Iterator[_Fault]:
    iommus = [device for device in topology.devices if device.is_iommu]
    built_in = topology.machine.get("iommu")
    if built_in is not None and built_in not in arch.iommus:
        yield 1, f"{arch.name} machines have no IOMMU {built_in!r}", nearest(str(built_in), arch.iommus)
    if len(iommus) > (built_in is None):
        first = repr(iommus[0].id) if built_in is None else "'iommu' of the machine"
        why = f"a {arch.machine['type']} machine has one IOMMU, and {first} is one already"
        yield iommus[-1].line, why, None
    for iommu in iommus:
        row = arch.iommus.get(iommu.driver)
        if row is None:
            why = f"{arch.name} machines have no {iommu.driver}"
            yield iommu.line, why, nearest(iommu.driver, arch.iommus)
        elif row.needs_split_irqchip and topology.machine.get("kernel-irqchip") != "split":
            why = f"{iommu.driver} cannot remap interrupts with KVM's own interrupt controller"
            yield iommu.line, why, "write `kernel-irqchip: split` under `machine`"
        if topology.devices[0] is not iommu:
            why = f"{iommu.id!r} must come first: devices created before their IOMMU bypass it"
            yield iommu.line, why, None


def _claims(topology: Topology, arch: Arch) -> Iterator[_Fault]:
    # EDK2 gives a further root only what its devices need at boot: what comes later gets no memory window.
    if "hotplug" in topology.claims and topology.has_more_roots and arch.roots_firmware is not None:
        yield 1, f"the firmware of {arch.name} machines leaves no room to plug in below a pxb-pcie", None
    ports = {device.id for device in topology.devices if device.driver == "pcie-root-port"}
    if "hotplug" in topology.claims and not any(device.bus in ports for device in topology.endpoints):
        yield 1, "'hotplug' is a feature of the file, but no device sits in a pcie-root-port", None
    if "sriov" in topology.claims and not any(device.driver == "igb" for device in topology.endpoints):
        yield 1, "'sriov' is a feature of the file, but no device here has virtual functions", "add an igb"


def _unavailable(topology: Topology, qemu: Qemu) -> Iterator[_Fault]:
    firmware = qemu.arch.roots_firmware
    if topology.has_more_roots and firmware is not None and not Path(firmware[0]).is_file():
        line = next(device.line for device in topology.devices if device.driver == "pxb-pcie")
        why = f"a pxb-pcie of {qemu.arch.name} machines needs {firmware[0]}, which is not there"
        yield line, why, f"install {firmware[1]}, or run: {qemu.arch.doctor}"
    for device in topology.devices:
        if device.driver not in qemu.devices:
            since = _SINCE.get(device.driver)
            hint = f"it came with QEMU {since}" if since else nearest(device.driver, qemu.devices)
            yield device.line, f"QEMU {qemu.version_text} has no device {device.driver!r}", hint
        known = qemu.properties(device.driver)
        for name in device.props:
            if name not in known or name in ("id", "bus", "addr"):
                hint = f"write {name!r} beside 'driver'" if name in known else nearest(name, known)
                yield device.line, f"{device.driver!r} has no property {name!r}", hint
