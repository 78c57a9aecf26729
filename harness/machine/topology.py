# SPDX-License-Identifier: GPL-2.0-only
"""Reads a Topology from YAML that uses QEMU's own names; refuses what is wrong in it with file and line."""

from __future__ import annotations

import re
from pathlib import Path
from types import MappingProxyType

from harness import yamlfile
from harness.errors import UsageError, nearest
from harness.machine import refusals
from harness.machine.devices import BRIDGES, IOMMU_DRIVERS, ROOT_BUS, Backend, Device, Topology
from harness.machine.qemu import Qemu

SHIPPED = Path(__file__).resolve().parent / "topologies"

CLAIMS = frozenset({"hotplug", "sriov"})
"""Features a file states itself, because devices alone do not tell; the others follow from them."""

_SUFFIXES = (".yaml", ".yml")
_SLOT = re.compile(r"(?:0x)?([0-9a-fA-F]{1,2})(?:\.([0-7]))?$")
_PCI_ID = re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}$")


def shipped_topologies() -> tuple[str, ...]:
    """The names of the topologies that come with the harness."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.yaml")))


def load_topology(name_or_path: str | Path, qemu: Qemu | None = None) -> Topology:
    """Read a shipped topology by name, or any file by its path (something with a `/` or ending in .yaml).

    A path may leave out .yaml.  The Topology's own path is absolute, so that it can be read again elsewhere.
    With *qemu*, devices and properties that this QEMU does not have are refused as well.
    Raises UsageError with file and line for everything that is wrong in it.
    """
    text = str(name_or_path)
    if "/" in text or text.endswith(_SUFFIXES):
        path = _with_suffix(Path(text).absolute())
    else:
        path = SHIPPED / f"{text}.yaml"
        if text not in shipped_topologies():
            raise UsageError(f"there is no topology {text!r}", hint=nearest(text, shipped_topologies()))
    topology = _read(path)
    refusals.refuse_impossible(topology)
    if qemu is not None:
        refusals.refuse_unavailable(topology, qemu)
    return topology


def _with_suffix(path: Path) -> Path:
    """*path*, or the same with the suffix that it leaves out."""
    longer = (path.with_name(path.name + suffix) for suffix in _SUFFIXES)
    return path if path.is_file() else next((other for other in longer if other.is_file()), path)


def _read(path: Path) -> Topology:
    top = yamlfile.load(path)
    claims = frozenset(top.texts("features", ()))
    for claim in sorted(claims - CLAIMS):
        raise UsageError(
            f"{top.where('features')}: {claim!r} is not stated in a topology",
            hint=f"state only {' or '.join(sorted(CLAIMS))}; the rest follows from the devices",
        )
    topology = Topology(
        name=path.stem,
        summary=top.text("summary"),
        path=path,
        min_memory=top.number("min_memory", 256),
        claims=claims,
        machine=MappingProxyType(top.scalars("machine")),
        kernel_args=top.texts("kernel_args", ()),
        backends=(
            *(_read_backend(section, "-netdev") for section in top.sections("netdevs")),
            *(_read_backend(section, "-blockdev") for section in top.sections("blockdevs")),
        ),
        devices=tuple(_read_device(section) for section in top.sections("devices")),
    )
    top.done()
    return topology


def _read_backend(section: yamlfile.Section, option: str) -> Backend:
    kind, name = ("driver", "node-name") if option == "-blockdev" else ("type", "id")
    props: dict[str, str | int | bool] = {kind: section.text(kind), name: section.text(name)}
    props.update(section.scalars("props"))
    section.done()
    return Backend(option=option, props=MappingProxyType(props), line=section.line)


def _read_device(section: yamlfile.Section) -> Device:
    driver = section.text("driver")
    on_pci = driver not in ("intel-iommu", "amd-iommu")
    pci = section.text("pci") if "pci" in section else None
    if pci is not None and not _PCI_ID.match(pci):
        raise UsageError(f"{section.where('pci')}: 'pci' must read vvvv:dddd in lower-case hex, not {pci!r}")
    if pci is None and driver not in IOMMU_DRIVERS and driver not in BRIDGES:
        raise UsageError(f"{section.where()}: {driver!r} needs 'pci', the vendor:device the guest will see")
    device = Device(
        id=section.text("id"),
        driver=driver,
        bus=section.text("bus", ROOT_BUS) if on_pci else None,
        addr=_slot(section.text("addr"), section.where("addr")) if on_pci else (-1, 0),
        props=MappingProxyType(section.scalars("props")),
        pci=pci,
        plugged=section.flag("plugged", True),
        line=section.line,
    )
    section.done()
    return device


def _slot(text: str, where: str) -> tuple[int, int]:
    match = _SLOT.match(text)
    if match is None or int(match[1], 16) > 0x1F:
        raise UsageError(f"{where}: 'addr' must be a slot in hex, '0x4' or '04.0', not {text!r}")
    return int(match[1], 16), int(match[2] or 0)
