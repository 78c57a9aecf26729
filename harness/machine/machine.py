# SPDX-License-Identifier: GPL-2.0-only
"""Machine: everything needed to boot, as a value that renders to a QEMU command line.

The same Machine always gives the same command line.  Paths of the VM's own files in it are relative to the
VM's directory, which is QEMU's working directory: the path of a socket is limited to 107 bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from harness.base import paths
from harness.base.errors import UsageError
from harness.kernel.arch import Arch, host_arch
from harness.machine.accel import Accel
from harness.machine.devices import Device, Props, Topology, qemu_value
from harness.machine.qemu import Qemu
from harness.machine.rootparts import Root, RootParts
from harness.machine.shares import Share, arguments

QMP_SOCKET = "qmp.sock"
HOSTLINK_SOCKET = "hostlink.sock"
GDB_SOCKET = "gdb.sock"
CONSOLE_LOG = "console.log"

CONSOLE_ID = "console"
SSH_NETDEV = "ssh"
HOSTLINK_PORT = "vfio-harness.hostlink"

FW_CFG_PREFIX = "opt/vfio-harness"
FW_CFG_FILES = ("authorized_keys", "host_key", "dropbear_key")
"""Files in the VM's directory that the guest reads through fw_cfg."""

FW_CFG_NONCE = "nonce"
"""The fw_cfg item with a random word that identifies the VM."""

_MEMORY_ID = "memory"
_SSH_MAC = "52:54:00:76:66:00"
_GIB = 1024

BASE_KERNEL_ARGS = (
    "oops=panic",  # after an oops no result can be trusted
    "panic=-1",  # reboot at once, which ends QEMU because of -no-reboot
    "hung_task_panic=0",  # by design VFIO's unbind waits for the user of the device
    "net.ifnames=0",
)

AUDIBLE_KERNEL_ARGS = (
    "printk.time=1",  # only kernel messages have time stamps
    "printk.devkmsg=on",  # the case markers must not be rate limited
    "loglevel=7",
    "printk.ignore_loglevel=1",  # a sysctl or a case may change the level
)
"""They follow the topology's, because the last argument wins; splats are read from the console."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The file with the guest's memory, for a VM that can be saved or is restored."""

    path: str
    """The path with which QEMU opens it."""
    saved: bool
    """Whether the file belongs to a snapshot: QEMU then maps it copy-on-write and waits for the device state.
    """

    def options(self, mib: int) -> tuple[str, ...]:
        share = "off" if self.saved else "on"
        backend = f"memory-backend-file,id={_MEMORY_ID},size={mib}M,mem-path={self.path},share={share}"
        return ("-object", backend, *(("-incoming", "defer") if self.saved else ()))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A Kernel, a Topology and everything else that a boot needs."""

    arch: Arch = dataclasses.field(default_factory=host_arch)
    image: Path
    """The kernel's boot image."""
    modules_dir: Path | None = None
    """`lib/modules/<release>` of that kernel, None when nothing is modular."""
    selftests_dir: Path | None = None
    """The selftests of that kernel, None when none are wanted."""
    topology: Topology
    cpus: int = 1
    memory_mib: int = 1024
    accel: Accel
    root: Root
    gdb: bool = False
    """Whether to offer a gdb server on the unix socket GDB_SOCKET, and to turn address randomisation off."""
    shares: tuple[Share, ...] = ()
    """What the guest can mount of this host; start_vm() makes the links."""

    def __post_init__(self) -> None:
        if self.cpus < 1:
            raise UsageError(f"a machine needs at least one vCPU, not {self.cpus}")
        if self.memory_mib < self.topology.min_memory:
            raise UsageError(
                f"topology {self.topology.name!r} needs {self.topology.min_memory} MiB, not {self.memory_mib}"
            )

    def parts(self) -> RootParts:
        """Return what its root adds.  Raises InfraError when the host lacks something for it."""
        return self.root.parts(paths.guest_dir(), self.modules_dir, self.selftests_dir)

    def command_line(self, parts: RootParts) -> str:
        """Return the kernel's command line."""
        words = [f"console={self.arch.console}", *BASE_KERNEL_ARGS, *self.arch.machine_args]
        words += self.accel.kernel_args(self.arch)
        if self.gdb:
            words.append("nokaslr")
        # The first console of a name fixes its options, the last one becomes /dev/console.
        words += [*self.topology.kernel_args, *AUDIBLE_KERNEL_ARGS, f"console={self.arch.console}"]
        words += parts.kernel_args
        return " ".join(f'"{word}"' if word.split() != [word] else word for word in words)

    def argv(self, qemu: Qemu, parts: RootParts, nonce: str, memory: Memory | None = None) -> tuple[str, ...]:
        """Return the QEMU command line, to be run in the VM's directory.

        The guest's memory is in *memory*; None: in QEMU's own.
        Raises UsageError when the root needs more slots than there are.
        """
        return (
            str(qemu.path),
            *self._machine(memory),
            *self._firmware(qemu),
            *self._kernel(parts, nonce),
            *self._host_ends(),
            *(word for backend in self.topology.backends for word in _option(backend.option, backend.props)),
            *parts.options,
            # The topology's devices come first: a device before the IOMMU would bypass it.
            *(word for device in self.topology.devices if device.plugged for word in device_words(device)),
            *self._own_devices(),
            *self._root_devices(parts),
            *arguments(self.shares, self.arch.slots.shares),
        )

    def _firmware(self, qemu: Qemu) -> Iterator[str]:
        if self.topology.has_more_roots:
            yield from ("-bios", self.arch.roots_firmware[0]) if self.arch.roots_firmware else ()
        elif self.arch.firmware is not None and qemu.has_firmware:
            yield from ("-bios", self.arch.firmware)

    def _machine(self, memory: Memory | None) -> Iterator[str]:
        yield from ("-name", f"{self.topology.name},process=vfio-harness")
        yield from ("-nodefaults", "-no-user-config", "-display", "none")
        yield from ("-no-reboot", "-action", "panic=exit-failure")
        props: dict[str, str | int | bool] = {**self.arch.machine, **self.topology.machine}
        props |= {"memory-backend": _MEMORY_ID} if memory else {}
        yield from _option("-machine", props)
        yield from self.accel.arguments(self.arch)
        yield from ("-smp", str(self.cpus), "-m", f"{self.memory_mib}M")
        yield from memory.options(self.memory_mib) if memory else ()

    def _kernel(self, parts: RootParts, nonce: str) -> Iterator[str]:
        yield from ("-kernel", str(self.image), "-append", self.command_line(parts))
        for name in FW_CFG_FILES:
            yield from ("-fw_cfg", f"name={FW_CFG_PREFIX}/{name},file={name}")
        yield from ("-fw_cfg", f"name={FW_CFG_PREFIX}/{FW_CFG_NONCE},string={nonce}")

    def _host_ends(self) -> Iterator[str]:
        server = "server=on,wait=off"
        yield from ("-qmp", f"unix:{QMP_SOCKET},{server}")
        # Not a socket with a logfile: when its reader is slow or goes, QEMU drops or doubles characters.
        yield from ("-chardev", f"stdio,id={CONSOLE_ID}", "-serial", f"chardev:{CONSOLE_ID}")
        yield from ("-chardev", f"socket,id=hostlink,path={HOSTLINK_SOCKET},{server}")
        # Port 0: the host's kernel chooses one, which is read back over QMP.
        yield from ("-netdev", f"user,id={SSH_NETDEV},restrict=on,hostfwd=tcp:127.0.0.1:0-:22")
        if self.gdb:
            yield from ("-gdb", f"unix:{GDB_SOCKET},{server}")

    def _own_devices(self) -> Iterator[str]:
        # Emulators lose an interrupt now and then.  With event indices the network would be dead after that:
        # QEMU would not interrupt again before the guest has taken the packet.  Without, every packet does.
        network = f"virtio-net-pci,netdev={SSH_NETDEV},mac={_SSH_MAC},romfile=,event_idx=off"
        yield from _placed(network, self.arch.slots.network)
        yield from _placed("virtio-serial-pci,id=ports", self.arch.slots.ports)
        yield from ("-device", f"virtserialport,bus=ports.0,chardev=hostlink,name={HOSTLINK_PORT}")
        yield from _placed(self.arch.panic_device, self.arch.slots.panic)
        # Through it the kernel tells QEMU where its VMCOREINFO is, without which nobody can read a dump.
        yield from ("-device", "vmcoreinfo")

    def _root_devices(self, parts: RootParts) -> Iterator[str]:
        slots = self.arch.slots.root
        if len(parts.devices) > len(slots):
            raise UsageError(
                f"root {self.root.name!r} needs {len(parts.devices)} slots, but only {len(slots)} are free"
            )
        for device, slot in zip(parts.devices, slots, strict=False):
            yield from _placed(device, slot)


def machine_features(topology: Topology, arch: Arch, *, cpus: int, memory_mib: int) -> frozenset[str]:
    """Return the features of *topology* and of the machine; those of the kernel are not known here."""
    own = {"smp": cpus >= 2, "mem-4g": memory_mib >= 4 * _GIB}
    return topology.features | arch.features | {name for name, holds in own.items() if holds}


def device_words(device: Device) -> tuple[str, str]:
    """Return `-device` and its value."""
    words = device.arguments()
    driver = words.pop("driver")
    return "-device", ",".join([driver, *(f"{name}={value}" for name, value in words.items())])


def _option(option: str, props: Props) -> tuple[str, str]:
    return option, ",".join(f"{name}={qemu_value(value)}" for name, value in props.items())


def _placed(device: str, slot: int) -> tuple[str, str]:
    return "-device", f"{device},bus=pcie.0,addr={slot:#x}"
