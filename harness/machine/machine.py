# SPDX-License-Identifier: GPL-2.0-only
"""Machine: everything needed to boot, as a value; it renders to a QEMU command line.

The command line is pure: the same Machine gives the same words.  Every path of the VM's own in it is relative
to the VM's directory, which is QEMU's working directory, because a socket's path has room for 107 bytes only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from harness import paths
from harness.errors import UsageError
from harness.machine.accel import Accel
from harness.machine.devices import Device, Props, Topology, qemu_value
from harness.machine.qemu import Qemu
from harness.machine.roots import Root, RootParts

QMP_SOCKET = "qmp.sock"
CONSOLE_SOCKET = "console.sock"
HOSTLINK_SOCKET = "hostlink.sock"
GDB_SOCKET = "gdb.sock"
CONSOLE_LOG = "console.log"

CONSOLE_ID = "console"
SSH_NETDEV = "ssh"
HOSTLINK_PORT = "vfio-harness.hostlink"

FW_CFG_PREFIX = "opt/vfio-harness"
FW_CFG_FILES = ("authorized_keys", "host_key", "dropbear_key")
"""Files of the VM's directory that the guest reads through QEMU's firmware configuration."""

FW_CFG_NONCE = "nonce"
"""A word beside them that is another one for every VM."""

QBOOT = "qboot.rom"
"""Firmware that loads the kernel and leaves the buses to it: 0.15 s sooner than SeaBIOS under TCG."""

_NET_SLOT, _SERIAL_SLOT, _PANIC_SLOT = 0x18, 0x19, 0x1A
_ROOT_SLOTS = range(0x1B, 0x1F)
"""Slots of pcie.0 that no topology may use (harness.machine.refusals)."""

_MEMORY_ID = "memory"
_SSH_MAC = "52:54:00:76:66:00"
_GIB = 1024

BASE_KERNEL_ARGS = (
    "console=ttyS0",
    "loglevel=7",  # everything but debug reaches the console, where splats are looked for
    "oops=panic",  # a kernel that oopsed proves nothing more
    "panic=-1",  # reboot at once; -no-reboot makes that the end of QEMU
    "hung_task_panic=0",  # an unbind that waits for its user is VFIO as designed
    "net.ifnames=0",
    "printk.devkmsg=on",  # the case markers must not be rate limited
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """A file that holds the guest's memory, for a machine that is to be saved or was."""

    path: str
    """As QEMU opens it."""
    saved: bool
    """The file is a snapshot's: it is mapped copy-on-write, and QEMU waits for the state of the devices."""

    def options(self, mib: int) -> tuple[str, ...]:
        share = "off" if self.saved else "on"
        backend = f"memory-backend-file,id={_MEMORY_ID},size={mib}M,mem-path={self.path},share={share}"
        return ("-object", backend, *(("-incoming", "defer") if self.saved else ()))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A Kernel, a Topology and the rest of what a boot needs."""

    vmlinux: Path
    """The uncompressed kernel, entered through PVH; also what gdb and build-id are read from."""
    modules_dir: Path | None = None
    """`lib/modules/<release>` of that kernel, None when nothing is modular."""
    selftests_dir: Path | None = None
    """The selftests built for that kernel, None when none are wanted."""
    topology: Topology
    cpus: int = 1
    memory_mib: int = 1024
    accel: Accel
    root: Root
    gdb: bool = False
    """Offer a gdb server on the unix socket GDB_SOCKET, and turn address randomisation off."""

    def __post_init__(self) -> None:
        if self.cpus < 1:
            raise UsageError(f"a machine needs a processor, not {self.cpus}")
        if self.memory_mib < self.topology.min_memory:
            raise UsageError(
                f"topology {self.topology.name!r} needs {self.topology.min_memory} MiB, not {self.memory_mib}"
            )

    @property
    def features(self) -> frozenset[str]:
        """The topology's facts and the machine's own; the kernel's are not known here."""
        own = {"smp": self.cpus >= 2, "mem-4g": self.memory_mib >= 4 * _GIB}
        return self.topology.features | {name for name, holds in own.items() if holds}

    def parts(self) -> RootParts:
        """What its root adds.  Raises InfraError when the host lacks something for it."""
        return self.root.parts(paths.guest_dir(), self.modules_dir, self.selftests_dir)

    def command_line(self, parts: RootParts) -> str:
        """The kernel's command line."""
        words = [*BASE_KERNEL_ARGS, *self.accel.kernel_args]
        if self.gdb:
            words.append("nokaslr")
        words += [*self.topology.kernel_args, *parts.kernel_args]
        return " ".join(f'"{word}"' if " " in word else word for word in words)

    def argv(self, qemu: Qemu, parts: RootParts, nonce: str, memory: Memory | None = None) -> tuple[str, ...]:
        """The whole QEMU command line, to be run in the VM's directory.

        The guest's memory is in *memory*, or nowhere but in QEMU.
        Raises UsageError when the root needs more slots than there are.
        """
        return (
            str(qemu.path),
            *self._machine(memory),
            *(("-bios", QBOOT) if qemu.has_qboot and not self.topology.has_more_roots else ()),
            *self._kernel(parts, nonce),
            *self._host_ends(),
            *(word for backend in self.topology.backends for word in _option(backend.option, backend.props)),
            *parts.options,
            # The topology's devices come first: what precedes an IOMMU would bypass it.
            *(word for device in self.topology.devices if device.plugged for word in device_words(device)),
            *self._own_devices(),
            *self._root_devices(parts),
        )

    def _machine(self, memory: Memory | None) -> Iterator[str]:
        yield from ("-name", f"{self.topology.name},process=vfio-harness")
        yield from ("-nodefaults", "-no-user-config", "-display", "none")
        yield from ("-no-reboot", "-action", "panic=exit-failure")
        props = {"sata": False, "smbus": False, "vmport": False, "i8042": False, **self.topology.machine}
        props |= {"memory-backend": _MEMORY_ID} if memory else {}
        yield from _option("-machine", {"type": "q35", **props})
        yield from self.accel.arguments
        yield from ("-smp", str(self.cpus), "-m", f"{self.memory_mib}M")
        yield from memory.options(self.memory_mib) if memory else ()

    def _kernel(self, parts: RootParts, nonce: str) -> Iterator[str]:
        yield from ("-kernel", str(self.vmlinux), "-append", self.command_line(parts))
        for name in FW_CFG_FILES:
            yield from ("-fw_cfg", f"name={FW_CFG_PREFIX}/{name},file={name}")
        yield from ("-fw_cfg", f"name={FW_CFG_PREFIX}/{FW_CFG_NONCE},string={nonce}")

    def _host_ends(self) -> Iterator[str]:
        server = "server=on,wait=off"
        yield from ("-qmp", f"unix:{QMP_SOCKET},{server}")
        console = f"socket,id={CONSOLE_ID},path={CONSOLE_SOCKET},{server},logfile={CONSOLE_LOG},logappend=off"
        yield from ("-chardev", console, "-serial", f"chardev:{CONSOLE_ID}")
        yield from ("-chardev", f"socket,id=hostlink,path={HOSTLINK_SOCKET},{server}")
        # Port 0: the host's kernel chooses, and the choice is read back over QMP.
        yield from ("-netdev", f"user,id={SSH_NETDEV},restrict=on,hostfwd=tcp:127.0.0.1:0-:22")
        if self.gdb:
            yield from ("-gdb", f"unix:{GDB_SOCKET},{server}")

    def _own_devices(self) -> Iterator[str]:
        # Emulators lose an interrupt now and then.  With event indices the network is dead from then on, for
        # QEMU waits for the guest to take what it was never told of; without, the next packet interrupts too.
        network = f"virtio-net-pci,netdev={SSH_NETDEV},mac={_SSH_MAC},romfile=,event_idx=off"
        yield from _placed(network, _NET_SLOT)
        yield from _placed("virtio-serial-pci,id=ports", _SERIAL_SLOT)
        yield from ("-device", f"virtserialport,bus=ports.0,chardev=hostlink,name={HOSTLINK_PORT}")
        yield from _placed("pvpanic-pci", _PANIC_SLOT)

    def _root_devices(self, parts: RootParts) -> Iterator[str]:
        if len(parts.devices) > len(_ROOT_SLOTS):
            raise UsageError(
                f"root {self.root.name!r} needs {len(parts.devices)} slots of {len(_ROOT_SLOTS)}"
            )
        for device, slot in zip(parts.devices, _ROOT_SLOTS, strict=False):
            yield from _placed(device, slot)


def device_words(device: Device) -> tuple[str, str]:
    """`-device` and its value."""
    words = device.arguments()
    driver = words.pop("driver")
    return "-device", ",".join([driver, *(f"{name}={value}" for name, value in words.items())])


def _option(option: str, props: Props) -> tuple[str, str]:
    return option, ",".join(f"{name}={qemu_value(value)}" for name, value in props.items())


def _placed(device: str, slot: int) -> tuple[str, str]:
    return "-device", f"{device},bus=pcie.0,addr={slot:#x}"
