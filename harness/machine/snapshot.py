# SPDX-License-Identifier: GPL-2.0-only
"""Snapshots: machines saved when they were ready for their first case, to be restored in half a second.

    snapshots/KEY/ram        the guest's memory, sparse; a restored VM maps it copy-on-write, copying nothing
    snapshots/KEY/state      the devices, as QEMU migrates them
    snapshots/KEY/facts      what the guest reported about itself; a restored one must report the same
    snapshots/KEY/host_key   the key its SSH server has loaded
    snapshots/KEY/console-boot.log   what the kernel printed until then
    snapshots/KEY/refused    instead of all that: why QEMU does not save this machine

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

from harness.base import paths
from harness.base.deadline import Deadline
from harness.base.errors import InfraError
from harness.base.locks import locked, locked_by, shared, try_locked
from harness.machine import keys
from harness.machine.accel import Accel
from harness.machine.devices import Topology
from harness.machine.machine import Machine
from harness.machine.qemu import Qemu
from harness.machine.rootparts import RootParts

RECIPE = 3
"""Raise it when saving or restoring changes: older snapshots are not found then."""

RAM = "ram"
STATE = "state"
FACTS = "facts"
BOOT_LOG = "console-boot.log"
_REFUSED = "refused"

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

MOST = 24
"""How many snapshots are kept, 60 to 150 MiB each: every edited kernel leaves one."""

OLDEST = (8, 2)
"""The QEMU release that added migration to a file (its change log)."""

_SAVED_MODELS = frozenset({"igb", "e1000e", "pcie-root-port", "pxb-pcie", "intel-iommu", "virtio-iommu-pci"})
"""Device models that QEMU saves and restores whole.  The guest removes other endpoints before and rescans
after: edu has no migration state (QEMU hw/misc/edu.c).  nvme and amd-iommu refuse migration."""


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """The snapshot of one machine in the cache: whole or not there."""

    directory: Path

    def exists(self) -> bool:
        """Whether there is a snapshot to restore."""
        # The snapshots of another user are private: os.path says that they are not there, Path raises.
        return os.path.isfile(self.directory / STATE)  # noqa: PTH113

    def refusal(self) -> str | None:
        """Return why QEMU refused to save this machine earlier; None if it did not."""
        with contextlib.suppress(OSError):
            return (self.directory / _REFUSED).read_text(encoding="utf-8")
        return None

    @property
    def facts(self) -> str:
        """The facts that the guest reported when it was saved."""
        return (self.directory / FACTS).read_text(encoding="utf-8")

    @contextlib.contextmanager
    def in_use(self) -> Iterator[bool]:
        """Keep the snapshot from being removed; yield whether it is there."""
        with shared(self._lock, f"another process is saving {self.directory}"):
            yield self.exists()

    @contextlib.contextmanager
    def first_boot(self, limit: Deadline) -> Iterator[None]:
        """Let one process at a time boot this machine and save it; the others then restore it.

        No process waits if QEMU refuses to save it, or longer than until *limit*: a kernel may hang.
        """
        with contextlib.ExitStack() as stack:
            if self.refusal() is None:
                stack.enter_context(locked_by(f"{self.directory.name}.boot", limit))
            yield

    @contextlib.contextmanager
    def making(self) -> Iterator[Path | None]:
        """Yield a directory that becomes the snapshot if the block succeeds; None if another process makes
        it.
        """
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
        """Remember that QEMU refuses to save this machine."""
        with self.making() as partial:
            if partial is not None:
                (partial / _REFUSED).write_text(reason, encoding="utf-8")

    def drop(self) -> None:
        """Remove a bad snapshot; it stays where the cache cannot be written to."""
        with (
            contextlib.suppress(InfraError),
            locked(self._lock, f"another process is starting from {self.directory}"),
        ):
            shutil.rmtree(self.directory, ignore_errors=True)

    def note_use(self) -> None:
        """Make it the last to be pruned."""
        with contextlib.suppress(OSError):
            os.utime(self.directory)

    @property
    def _lock(self) -> str:
        return self.directory.name


def _forget_oldest(place: Path) -> None:
    """Remove all but the MOST last used snapshots; one that a VM starts from stays."""
    with contextlib.suppress(OSError):
        there = [path for path in place.iterdir() if not path.name.startswith(".")]
        for path in sorted(there, key=lambda path: path.stat().st_mtime, reverse=True)[MOST:]:
            with try_locked(path.name) as ours:
                if ours:
                    shutil.rmtree(path, ignore_errors=True)


def snapshot_of(machine: Machine, qemu: Qemu, parts: RootParts) -> Snapshot | None:
    """Return the snapshot of *machine*, there or not; None for a machine that cannot be saved."""
    bridges = (device for device in machine.topology.devices if device.is_bridge or device.is_iommu)
    possible = (
        machine.root.frozen
        and not machine.gdb
        and qemu.version >= OLDEST
        and all(device.driver in _SAVED_MODELS or device.driver == "amd-iommu" for device in bridges)
    )
    if not possible:
        return None
    image = machine.image.stat()
    deciding = (
        str(RECIPE),
        qemu.identity,
        *machine.argv(qemu, parts, nonce=""),
        f"{image.st_size} {image.st_mtime_ns}",
        _processor() if machine.accel is Accel.KVM else "",
        # Nothing is synced to the disk, and a power cut may leave a file of the right size without its bytes.
        _BOOT_ID.read_text(encoding="ascii"),
    )
    key = hashlib.sha256("\0".join(deciding).encode(errors="surrogateescape")).hexdigest()[:24]
    return Snapshot(paths.cache_dir() / "snapshots" / key)


def unsaved_devices(topology: Topology) -> tuple[str, ...]:
    """Return the ids of the devices in *topology* that the guest must remove before it is saved."""
    present = (device for device in topology.endpoints if device.plugged)
    return tuple(device.id for device in present if device.driver not in _SAVED_MODELS)


def _processor() -> str:
    """Return what guests on KVM see of the host's CPU."""
    wanted = ("model name", "flags", "microcode")
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n", 1)[0].splitlines()
        return "\n".join(line for line in lines if line.startswith(wanted))
    return ""


def copy_sparse(source: int, target: Path) -> None:
    """Copy the file behind the descriptor *source*, with its holes."""
    size = os.fstat(source).st_size
    with target.open("wb", buffering=0) as file:
        file.truncate(size)
        at = 0
        while at < size:
            try:
                at = os.lseek(source, at, os.SEEK_DATA)
            except OSError:  # ENXIO: only holes until the end
                return
            end = os.lseek(source, at, os.SEEK_HOLE)
            file.seek(at)
            while at < end:
                at += os.sendfile(file.fileno(), source, at, end - at)


def keep_host_key(vm: Path, snapshot: Path) -> None:
    """Copy the host key of the VM in directory *vm* to its snapshot."""
    shutil.copyfile(vm / keys.HOST_KEY, snapshot / keys.HOST_KEY)
    (snapshot / keys.HOST_KEY).chmod(0o600)
