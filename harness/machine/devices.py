# SPDX-License-Identifier: GPL-2.0-only
"""The values that describe a machine's buses: Device, Backend, Topology, Location.

They give their QEMU options, where the guest will see each device, and the features that cases may need.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping

from harness.kernel.arch import IOMMUS

ROOT_BUS = "pcie.0"
"""The name that QEMU gives the first root complex."""

BRIDGES = frozenset(
    {"pcie-root-port", "ioh3420", "pxb-pcie", "pcie-pci-bridge", "x3130-upstream", "xio3130-downstream"}
)
"""Device models that offer a bus of their own, named by their id."""

Props = Mapping[str, str | int | bool]


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Location:
    """Where a PCI function sits: by slots, because the guest chooses the bus numbers."""

    root: int
    """Number of the root bus: 0, or the `bus_nr` of a pxb-pcie."""
    path: tuple[tuple[int, int], ...]
    """(slot, function) of each bridge on the way and last of the device itself."""

    @property
    def bdf(self) -> str | None:
        """The address in the guest; None behind a bridge, where the guest chooses the bus number."""
        if len(self.path) != 1:
            return None
        slot, function = self.path[0]
        return f"0000:{self.root:02x}:{slot:02x}.{function}"

    def __str__(self) -> str:
        return f"{self.root:02x}:" + "/".join(f"{slot:02x}.{function}" for slot, function in self.path)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One `-device`: an endpoint, a bridge, a root complex or an IOMMU."""

    id: str
    driver: str
    bus: str | None
    """The bus it is plugged into; None for a device that is not on a PCI bus."""
    addr: tuple[int, int]
    """Slot and function; (-1, 0) when `bus` is None."""
    props: Props
    pci: str | None
    """The `vendor:device` that the guest must see; None for bridges and IOMMUs, which are not compared."""
    plugged: bool
    """Whether it is present at boot; otherwise it is plugged in when a case requests it."""
    line: int
    """Where the file declares it, for messages."""

    @property
    def is_bridge(self) -> bool:
        return self.driver in BRIDGES

    @property
    def is_iommu(self) -> bool:
        return self.driver in IOMMUS

    def arguments(self) -> dict[str, str]:
        """Return driver, id, bus, slot and properties for `-device` and device_add alike."""
        words = {"driver": self.driver, "id": self.id}
        if self.bus is not None:
            words["bus"] = self.bus
            words["addr"] = f"{self.addr[0]:02x}.{self.addr[1]}"
        words.update((name, qemu_value(value)) for name, value in self.props.items())
        return words


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """The host side of a device: a `-netdev` or a `-blockdev`."""

    option: str
    props: Props
    """The properties in QEMU's order: `type` or `driver` first."""
    line: int

    @property
    def id(self) -> str:
        return str(self.props["node-name" if self.option == "-blockdev" else "id"])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """The devices on the machine's buses."""

    name: str
    text: str = dataclasses.field(repr=False)
    """The YAML it was read from, all of it."""
    where: str = dataclasses.field(compare=False)
    """Where the text is from, for messages: the path of a file on this host, or a name."""
    summary: str
    min_memory: int
    """The least guest memory that this topology can be used with, in MiB."""
    claims: frozenset[str]
    machine: Props
    """Properties of the QEMU machine."""
    kernel_args: tuple[str, ...]
    backends: tuple[Backend, ...]
    devices: tuple[Device, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of its text, in hex."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def device(self, device_id: str) -> Device:
        """Return the device called *device_id*."""
        return next(device for device in self.devices if device.id == device_id)

    @property
    def iommu(self) -> str | None:
        """The model of its IOMMU, a device or part of the machine; None without one."""
        models = (*(device.driver for device in self.devices), str(self.machine.get("iommu")))
        return next((model for model in models if model in IOMMUS), None)

    @property
    def has_more_roots(self) -> bool:
        """Whether there are further root complexes, whose windows not every firmware sets up."""
        return any(device.driver == "pxb-pcie" for device in self.devices)

    @property
    def endpoints(self) -> tuple[Device, ...]:
        """The devices that cases are about."""
        return tuple(d for d in self.devices if not d.is_bridge and not d.is_iommu)

    def location(self, device: Device) -> Location:
        """Return where the guest will see *device*."""
        path = [device.addr]
        while device.bus not in (None, ROOT_BUS):
            device = self.device(str(device.bus))
            if device.driver == "pxb-pcie":
                return Location(int(device.props["bus_nr"]), tuple(reversed(path)))
            path.append(device.addr)
        return Location(0, tuple(reversed(path)))

    def behind_viommu(self, device: Device) -> bool:
        """Whether the kernel will translate this device's DMA."""
        if self.iommu is None:
            return False
        if self.location(device).root == 0:
            return self.machine.get("default-bus-bypass-iommu") is not True
        complexes = (d for d in self.devices if d.driver == "pxb-pcie")
        root = next(d for d in complexes if d.props["bus_nr"] == self.location(device).root)
        return root.props.get("bypass_iommu") is not True

    @property
    def features(self) -> frozenset[str]:
        """The features of guest/needs.py that hold on this topology.

        A mixed machine is not `viommu`, which means that every device is behind the IOMMU.
        """
        return self.claims | frozenset(self._implied())

    def _implied(self) -> Iterator[str]:
        present = [device for device in self.endpoints if device.plugged]
        sides = {self.behind_viommu(device) for device in present}
        if len(sides) == 2:
            yield "mixed"
        elif True in sides and self.iommu is not None:
            yield "viommu"
            yield IOMMUS[self.iommu].feature
        drivers = [device.driver for device in present]
        yield from {"edu", "igb", "nvme"} & set(drivers)
        if drivers.count("edu") >= 2:
            yield "edu2"
        roots = {self.location(device).root for device in present if device.driver == "edu"}
        if roots == {0}:
            yield "intx"
        if any(device.driver == "igb" and "netdev" in device.props for device in present):
            yield "link-peer"
        if any(device.props.get("aer") is True for device in present):
            yield "aer"
        ports = {device.id for device in self.devices if device.driver == "pcie-root-port"}
        taken = [device.bus for device in present if device.bus in ports]
        if len(taken) > len(set(taken)):
            yield "shared-port"


def qemu_value(value: str | int | bool) -> str:
    """Return a YAML value as QEMU's option parser wants it: commas are doubled."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value).replace(",", ",,")
