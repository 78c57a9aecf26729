# SPDX-License-Identifier: GPL-2.0-only
"""What a host has that jobs need: as a value that travels, and as resources that a scheduler can count."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import socket
from collections.abc import Iterable, Mapping

from harness.base.errors import HarnessError
from harness.base.host import total_mib
from harness.kernel.arch import ARCHES
from harness.lab.admission import RESERVE_MIB
from harness.machine.accel import choose_accel
from harness.machine.qemu import find_qemu
from harness.machine.topology import read_topology, shipped_topologies
from harness.plan import Job

KVM = "kvm"
_MEMORY = "MiB of memory"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Emulator:
    """The QEMU of a host for one architecture, and how it runs guests."""

    version: str
    devices: tuple[str, ...]
    accel: str
    reason: str
    """Why this accelerator."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What decides which jobs a host can run."""

    host: str
    memory_mib: int
    emulators: Mapping[str, Emulator]
    """By the names of architectures."""

    @property
    def resources(self) -> dict[str, float]:
        """What resources_of() may ask for -> how much of it there is."""
        found: dict[str, float] = {_MEMORY: self.memory_mib}
        for arch, emulator in self.emulators.items():
            found[arch] = 1
            found |= {f"{KVM} {arch}": 1} if emulator.accel == KVM else {}
            found |= {_device(arch, name): 1 for name in _shipped_devices() & set(emulator.devices)}
        return found

    @property
    def summary(self) -> str:
        """The host in a few words, for people."""
        kinds = (f"{arch} by {one.accel.upper()}, QEMU {one.version}" for arch, one in self.emulators.items())
        return f"{self.host}: {'; '.join(kinds) or 'no QEMU'}; {self.memory_mib} MiB"


def resources_of(job: Job) -> dict[str, float]:
    """Return what a host needs to run *job*: name -> how much, the names as in `no worker has ...`.

    Of the devices, those of shipped topologies: a host would have hundreds of others to name.
    """
    return resources_for(job.arch, job.accel, job.qemu.devices, job.memory_mib)


def resources_for(arch: str, accel: str, devices: Iterable[str], memory_mib: int) -> dict[str, float]:
    """Return the same for guests of *arch* by *accel*, as `--accel` has it, with *devices* and memory."""
    needed: dict[str, float] = {arch: 1, _MEMORY: memory_mib}
    needed |= {f"{KVM} {arch}": 1} if accel == KVM else {}
    return needed | {_device(arch, name): 1 for name in _shipped_devices() & set(devices)}


def _device(arch: str, name: str) -> str:
    return f"{arch} device {name}"


@functools.cache
def _shipped_devices() -> frozenset[str]:
    shipped = map(read_topology, shipped_topologies())
    return frozenset(device.driver for topology in shipped for device in topology.devices)


def own_abilities() -> Abilities:
    """Return those of this host; each accelerator is proven, which takes seconds the first time."""
    emulators: dict[str, Emulator] = {}
    for arch in ARCHES.values():
        # VFIO_HARNESS_QEMU may name the QEMU of another one.
        with contextlib.suppress(HarnessError):
            qemu = find_qemu(arch=arch)
            choice = choose_accel("auto", qemu)
            emulators[arch.name] = Emulator(
                version=qemu.version_text,
                devices=tuple(sorted(qemu.devices)),
                accel=choice.accel.value,
                reason=choice.reason,
            )
    return Abilities(host=socket.gethostname(), memory_mib=total_mib() - RESERVE_MIB, emulators=emulators)
