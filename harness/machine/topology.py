# SPDX-License-Identifier: GPL-2.0-only
"""Read a Topology from YAML that uses QEMU's own names; refuse what is wrong in it with file and line.

A file is read once, where a job is planned.  From there on the Topology travels as its name and text.
"""

from __future__ import annotations

import contextlib
import functools
import re
from pathlib import Path
from types import MappingProxyType

from harness.base import yamlfile
from harness.base.errors import UsageError, nearest
from harness.kernel.arch import ARCHES, IOMMUS, Arch, host_arch
from harness.machine import refusals
from harness.machine.devices import BRIDGES, ROOT_BUS, Backend, Device, Topology
from harness.machine.qemu import Qemu

SHIPPED = Path(__file__).resolve().parent / "topologies"

CLAIMS = frozenset({"hotplug", "sriov"})
"""Features that a file must state; the others follow from its devices."""

_SUFFIXES = (".yaml", ".yml")
_SLOT = re.compile(r"(?:0x)?([0-9a-fA-F]{1,2})(?:\.([0-7]))?$")
_UNHEARABLE = re.compile(r"8250\.(nr_uarts=0\b|skip)|initcall_blacklist=.*\b(serial8250|univ8250|console)\w*")
_MOST_KERNEL_ARGS = 1024
"""Half of COMMAND_LINE_SIZE; the other half is for the harness's own and the root's."""

_PCI_ID = re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}$")


def shipped_topologies() -> tuple[str, ...]:
    """Return the names of the topologies that come with the harness."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.yaml")))


def load_topology(name_or_path: str | Path, qemu: Qemu | None = None, arch: Arch | None = None) -> Topology:
    """Return read_topology() of *name_or_path*, refused if machines of *arch* cannot have it.

    The default is the architecture of *qemu*, else of this host.  With *qemu*, devices and properties that
    this QEMU lacks are refused as well.  Raises UsageError with file and line for everything that is wrong.
    """
    topology = read_topology(name_or_path)
    arch = arch or (qemu.arch if qemu is not None else host_arch())
    try:
        refusals.refuse_impossible(topology, arch)
    except UsageError as error:
        with contextlib.suppress(UsageError):
            on = arches_of(topology)
            error.hint = f"{' and '.join(on)} machines can have it: --arch {on[0]}"
        raise
    if qemu is not None:
        refusals.refuse_unavailable(topology, qemu)
    return topology


def arches_of(topology: Topology) -> tuple[str, ...]:
    """Return the names of the architectures whose machines can have *topology*.

    Raises UsageError as load_topology() if none can.
    """
    found, errors = [], []
    for arch in ARCHES.values():
        try:
            refusals.refuse_impossible(topology, arch)
        except UsageError as error:
            errors.append(error)
        else:
            found.append(arch.name)
    if not found:
        raise errors[0]
    return tuple(found)


def read_topology(name_or_path: str | Path) -> Topology:
    """Read a shipped topology by name, or any file by its path (something with a `/` or ending in .yaml).

    A path may leave out .yaml.  Raises UsageError with file and line if it is no topology.
    """
    text = str(name_or_path)
    if "/" in text or text.endswith(_SUFFIXES):
        path = _with_suffix(Path(text).absolute())
    else:
        path = SHIPPED / f"{text}.yaml"
        if text not in shipped_topologies():
            raise UsageError(f"there is no topology {text!r}", hint=nearest(text, shipped_topologies()))
    return parse_topology(path.stem, yamlfile.read(path), str(path))


def topology_in_results(topology: Topology) -> str:
    """Return the name in results: a shipped topology's own, with a digest for any other of that name.

    Two files of one name would share their history otherwise.
    """
    if topology.text == _shipped_text(topology.name):
        return topology.name
    return f"{topology.name}@{topology.digest[:6]}"


@functools.cache
def _shipped_text(name: str) -> str | None:
    path = SHIPPED / f"{name}.yaml"
    return yamlfile.read(path) if path.is_file() else None


def _with_suffix(path: Path) -> Path:
    """Return *path*, with the suffix that it leaves out."""
    longer = (path.with_name(path.name + suffix) for suffix in _SUFFIXES)
    return path if path.is_file() else next((other for other in longer if other.is_file()), path)


@functools.lru_cache(maxsize=256)
def parse_topology(name: str, text: str, where: str) -> Topology:
    """Return the Topology called *name* that *text* describes; messages call the text *where*.

    Raises UsageError with file and line if *text* is no topology.  harness.machine.refusals checks what the
    architecture allows.
    """
    top = yamlfile.parse(text, where)
    claims = frozenset(top.texts("features", ()))
    _refuse_kernel_args(top)
    for claim in sorted(claims - CLAIMS):
        raise UsageError(
            f"{top.where('features')}: a topology cannot list the feature {claim!r}",
            hint=f"list only {' or '.join(sorted(CLAIMS))}; the rest follows from the devices",
        )
    topology = Topology(
        name=name,
        text=text,
        where=where,
        summary=top.text("summary"),
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


def _refuse_kernel_args(top: yamlfile.Section) -> None:
    """Refuse kernel arguments that disable the harness's own or the serial console."""
    words = top.texts("kernel_args", ())
    for word in words:
        if _UNHEARABLE.match(word):
            why = f"the kernel argument {word!r} in 'kernel_args' would take the serial console away"
        elif word.split() == ["--"] or '"' in word or not word.strip():
            why = f"{word!r} in 'kernel_args' would end or swallow the kernel arguments after it"
        else:
            continue
        raise UsageError(
            f"{top.where('kernel_args')}: {why}",
            hint="the harness reads the kernel's messages from the serial console",
        )
    if (length := len(" ".join(words).encode())) > _MOST_KERNEL_ARGS:
        why = f"'kernel_args' are {length} bytes long, more than {_MOST_KERNEL_ARGS}"
        raise UsageError(f"{top.where('kernel_args')}: {why}", hint="the kernel would cut off what follows")


def _read_backend(section: yamlfile.Section, option: str) -> Backend:
    kind, name = ("driver", "node-name") if option == "-blockdev" else ("type", "id")
    props: dict[str, str | int | bool] = {kind: section.text(kind), name: section.text(name)}
    props.update(section.scalars("props"))
    section.done()
    return Backend(option=option, props=MappingProxyType(props), line=section.line)


def _read_device(section: yamlfile.Section) -> Device:
    driver = section.text("driver")
    on_pci = driver not in IOMMUS or IOMMUS[driver].on_pci
    pci = section.text("pci") if "pci" in section else None
    if pci is not None and not _PCI_ID.match(pci):
        raise UsageError(f"{section.where('pci')}: 'pci' must read vvvv:dddd in lower-case hex, not {pci!r}")
    if pci is None and driver not in IOMMUS and driver not in BRIDGES:
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
