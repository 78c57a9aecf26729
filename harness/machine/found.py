# SPDX-License-Identifier: GPL-2.0-only
"""Compare the machine that a guest found, as guest.facts reports it, with its topology."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from harness.base.cause import Cause
from harness.base.errors import LostGuest
from harness.machine.devices import Device, Location, Topology


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FoundDevice:
    """One PCI function as the guest sees it."""

    bdf: str
    location: Location
    pci: str
    driver: str | None
    iommu_group: str | None
    noiommu: bool
    """Whether VFIO made the group because there is no IOMMU."""
    vfio_dev: tuple[str, ...]

    @property
    def translated(self) -> bool:
        """Whether the guest's kernel put it behind an IOMMU."""
        return self.iommu_group is not None and not self.noiommu


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Everything the guest sees."""

    text: str = dataclasses.field(compare=False, repr=False)
    """The whole report as text."""
    nonce: str = dataclasses.field(compare=False)
    """The nonce of the VM that answered."""
    uptime: float = dataclasses.field(compare=False)
    """Seconds since its kernel started, by its own clock."""
    notes: bytes
    """The ELF notes of the kernel that runs."""
    devices: tuple[FoundDevice, ...]
    vfio_nodes: tuple[str, ...]

    def same_machine(self, other: Found) -> bool:
        """Whether both have the same kernel, devices, drivers, groups and nodes."""
        return self == other

    def at(self, location: Location) -> FoundDevice | None:
        return next((device for device in self.devices if device.location == location), None)


def read_facts(text: str) -> Found:
    """Read the document that guest.facts printed; LostGuest when it is something else."""
    try:
        facts = json.loads(text)
        return Found(
            text=text,
            nonce=facts["nonce"],
            uptime=float(facts["uptime"]),
            notes=bytes.fromhex(facts["notes"]),
            devices=tuple(_device(device) for device in facts["devices"]),
            vfio_nodes=tuple(facts["vfio_nodes"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        message = f"the guest's facts about its devices are unreadable: {text[:120]!r}"
        raise LostGuest(message, cause=Cause.WRONG_GUEST) from error


def _device(facts: dict[str, Any]) -> FoundDevice:
    steps = tuple((int(slot, 16), int(function)) for slot, function in (s.split(".") for s in facts["path"]))
    return FoundDevice(
        bdf=facts["bdf"],
        location=Location(int(facts["root"].split(":")[1], 16), steps),
        pci=facts["pci"],
        driver=facts["driver"],
        iommu_group=facts["iommu_group"],
        noiommu=facts["noiommu"],
        vfio_dev=tuple(facts["vfio_dev"]),
    )


def mismatches(topology: Topology, found: Found) -> tuple[str, ...]:
    """Return how the machine differs from *topology*, in words; nothing if it does not.

    Only for a machine that has just booted, before any case has touched a device.
    """
    return tuple(_mismatches(topology, found))


def bdfs(topology: Topology, found: Found) -> dict[str, str]:
    """Return the PCI address in the guest of each device that is there, by its id."""
    places = {device.id: found.at(topology.location(device)) for device in topology.endpoints}
    return {name: device.bdf for name, device in places.items() if device is not None}


def _mismatches(topology: Topology, found: Found) -> Iterator[str]:
    expected = {topology.location(device): device for device in topology.endpoints}
    for location, device in expected.items():
        there = found.at(location)
        if there is None:
            if device.plugged:
                yield f"{device.id} ({device.driver}) is missing at {location}"
        elif not device.plugged:
            yield f"{device.id} ({device.driver}) is at {there.bdf} already, but was not to be plugged in yet"
        else:
            yield from _differences(topology, device, there)
    models = {device.pci for device in topology.endpoints}
    for stranger in found.devices:
        if stranger.pci in models and stranger.location not in expected:
            yield f"{stranger.bdf} is a {stranger.pci} that the topology does not have there"


def _differences(topology: Topology, device: Device, there: FoundDevice) -> Iterator[str]:
    if there.pci != device.pci:
        yield f"{device.id} at {there.bdf} is a {there.pci}, not a {device.pci}"
    if topology.behind_viommu(device) and not there.translated:
        yield f"{device.id} at {there.bdf} is not behind an IOMMU"
    if not topology.behind_viommu(device) and there.translated:
        yield f"{device.id} at {there.bdf} is in IOMMU group {there.iommu_group}, but should have no IOMMU"
