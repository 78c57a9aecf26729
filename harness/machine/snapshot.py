# SPDX-License-Identifier: GPL-2.0-only
"""Snapshots: machines saved when they were ready for their first case, to be had again in a moment.

    snapshots/KEY/ram        the guest's memory, sparse; a restored VM maps it copy-on-write, copying nothing
    snapshots/KEY/state      the devices, as QEMU migrates them
    snapshots/KEY/facts      what the guest said of itself; a restored one must say the same
    snapshots/KEY/host_key   the key its SSH server has loaded
    snapshots/KEY/console-boot.log   what the kernel said until then
    snapshots/KEY/refused    in place of all that: why QEMU does not save this machine

KEY is the digest of everything that decides what is in memory: QEMU and its command line, kernel, disks,
processor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from harness import paths
from harness.deadline import Deadline
from harness.locks import locked, locked_by, shared, try_locked
from harness.machine import keys
from harness.machine.accel import Accel
from harness.machine.devices import Topology
from harness.machine.machine import Machine
from harness.machine.qemu import Qemu
from harness.machine.roots import RootParts

RECIPE = 3
"""Raise it when saving or restoring changes: older snapshots are not found then."""

RAM = "ram"
STATE = "state"
FACTS = "facts"
BOOT_LOG = "console-boot.log"
_REFUSED = "refused"

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

MOST = 24
"""Snapshots that are kept, 60 to 150 MiB each: every edited kernel leaves one behind."""

OLDEST = (8, 2)
"""The QEMU that brought migration to a file (its change log)."""

_SAVED_MODELS = frozenset({"igb", "e1000e", "pcie-root-port", "pxb-pcie", "intel-iommu", "virtio-iommu-pci"})
"""Device models that QEMU saves and restores whole.  Another endpoint is taken from the guest before,
and found again after: edu, say, has no migration state (QEMU hw/misc/edu.c).  nvme and amd-iommu refuse."""


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """A place in the cache for one machine; what is there, if anything, is whole."""

    directory: Path

    def exists(self) -> bool:
        """Whether there is something to restore."""
        return (self.directory / STATE).is_file()

    def refusal(self) -> str | None:
        """Why this machine cannot be saved, as it turned out earlier."""
        with contextlib.suppress(OSError):
            return (self.directory / _REFUSED).read_text(encoding="utf-8")
        return None

    @property
    def facts(self) -> str:
        """What the guest said when it was saved."""
        return (self.directory / FACTS).read_text(encoding="utf-8")

    @contextlib.contextmanager
    def in_use(self) -> Iterator[bool]:
        """Keep the snapshot for as long as a VM starts from it; yields whether it is there."""
        with shared(self._lock, f"another process is saving {self.directory}"):
            yield self.exists()

    @contextlib.contextmanager
    def first_boot(self, limit: Deadline) -> Iterator[None]:
        """Let one process at a time boot this machine: it saves it, and the others restore what it saved.

        Where that would be in vain, for QEMU refuses, nobody waits; and nobody waits longer than until
        *limit*, for a kernel that hangs would keep everybody as often as it is tried.
        """
        with contextlib.ExitStack() as stack:
            if self.refusal() is None:
                stack.enter_context(locked_by(f"{self.directory.name}.boot", limit))
            yield

    @contextlib.contextmanager
    def making(self) -> Iterator[Path | None]:
        """A directory to fill, the snapshot once the block has ended well; None if others are at it."""
        with try_locked(self._lock) as ours:
            if not ours or self.exists():
                yield None
                return
            partial = self.directory.with_name(f".{self.directory.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True, mode=0o700)
            try:
                yield partial
                shutil.rmtree(self.directory, ignore_errors=True)
                partial.rename(self.directory)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        _forget_oldest(self.directory.parent)

    def refuse(self, reason: str) -> None:
        """Remember that this machine cannot be saved."""
        with self.making() as partial:
            if partial is not None:
                (partial / _REFUSED).write_text(reason, encoding="utf-8")

    def drop(self) -> None:
        """Remove a snapshot that proved bad."""
        with locked(self._lock, f"another process is starting from {self.directory}"):
            shutil.rmtree(self.directory, ignore_errors=True)

    def note_use(self) -> None:
        """Make it the last to be pruned."""
        with contextlib.suppress(OSError):
            os.utime(self.directory)

    @property
    def _lock(self) -> str:
        return self.directory.name


def _forget_oldest(place: Path) -> None:
    """Remove all but the MOST snapshots that were used last; one that a VM starts from stays."""
    with contextlib.suppress(OSError):
        there = [path for path in place.iterdir() if not path.name.startswith(".")]
        for path in sorted(there, key=lambda path: path.stat().st_mtime, reverse=True)[MOST:]:
            with try_locked(path.name) as ours:
                if ours:
                    shutil.rmtree(path, ignore_errors=True)


def snapshot_of(machine: Machine, qemu: Qemu, parts: RootParts) -> Snapshot | None:
    """Where *machine* is, or would be, saved; None for one that cannot be."""
    bridges = (device for device in machine.topology.devices if device.is_bridge or device.is_iommu)
    possible = (
        machine.root.frozen
        and not machine.gdb
        and qemu.version >= OLDEST
        and all(device.driver in _SAVED_MODELS or device.driver == "amd-iommu" for device in bridges)
    )
    if not possible:
        return None
    vmlinux = machine.vmlinux.stat()
    deciding = (
        str(RECIPE),
        qemu.identity,
        *machine.argv(qemu, parts, nonce=""),
        f"{vmlinux.st_size} {vmlinux.st_mtime_ns}",
        _processor() if machine.accel is Accel.KVM else "",
        # Nothing is synced to the disk, and a power cut may leave a file of the right size without its bytes.
        _BOOT_ID.read_text(encoding="ascii"),
    )
    key = hashlib.sha256("\0".join(deciding).encode(errors="surrogateescape")).hexdigest()[:24]
    return Snapshot(paths.cache_dir() / "snapshots" / key)


def unsaved_devices(topology: Topology) -> tuple[str, ...]:
    """The ids of the devices in *topology* that the guest must let go of while it is saved."""
    present = (device for device in topology.endpoints if device.plugged)
    return tuple(device.id for device in present if device.driver not in _SAVED_MODELS)


def _processor() -> str:
    """What KVM's guests see of the host's processor."""
    wanted = ("model name", "flags", "microcode")
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n", 1)[0].splitlines()
        return "\n".join(line for line in lines if line.startswith(wanted))
    return ""


def copy_sparse(source: int, target: Path) -> None:
    """Copy the file behind the descriptor *source*, holes as holes."""
    size = os.fstat(source).st_size
    with target.open("wb", buffering=0) as file:
        file.truncate(size)
        at = 0
        while at < size:
            try:
                at = os.lseek(source, at, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but holes to the end
                return
            end = os.lseek(source, at, os.SEEK_HOLE)
            file.seek(at)
            while at < end:
                at += os.sendfile(file.fileno(), source, at, end - at)


def keep_host_key(vm: Path, snapshot: Path) -> None:
    """Put the key of the VM in directory *vm* beside its snapshot."""
    shutil.copyfile(vm / keys.HOST_KEY, snapshot / keys.HOST_KEY)
    (snapshot / keys.HOST_KEY).chmod(0o600)
