# SPDX-License-Identifier: GPL-2.0-only
"""Which accelerator runs the guests: KVM once it is proven to work on this host, else TCG, never silently.

/dev/kvm may open, and KVM_CREATE_VM succeed, on hosts where every guest dies.  So KVM counts only after guest
code has run on it: first a boot sector that leaves QEMU through isa-debug-exit, and then, when a kernel is at
hand, that kernel up to the panic for want of a root file system.  The kernel is the one under test and may be
broken itself: KVM is to blame only for what goes better on TCG.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import tempfile
from pathlib import Path

from harness import paths, process
from harness.deadline import Deadline
from harness.errors import InfraError, UsageError, nearest
from harness.machine.qemu import Qemu, read_note, write_note

KVM_DEVICE = Path("/dev/kvm")

_SECTOR_SECONDS = 5.0
_KERNEL_SECONDS = 15.0
"""On KVM; TCG multiplies it."""

_KERNEL_MIB = 1024
"""What guests get by default; a kernel with KASAN and page_owner dies of less than half of it."""

_PROOF = 2
"""Raise it when what proves or disproves KVM changes: older notes are asked again then."""

_EXIT_PORT = 0x501
_EXIT_VALUE = 0x2A
_EXIT_STATUS = (_EXIT_VALUE << 1) | 1
"""What QEMU's exit status becomes when the guest writes the value (QEMU hw/misc/debugexit.c)."""

BOOT_SECTOR = (
    bytes((0xBA, _EXIT_PORT & 0xFF, _EXIT_PORT >> 8))  # mov dx, 0x501
    + bytes((0xB0, _EXIT_VALUE))  # mov al, 0x2a
    + b"\xee"  # out dx, al
    + b"\xf4\xeb\xfd"  # halt for ever, should the write not end us
).ljust(510, b"\0") + b"\x55\xaa"

_SPEAKS = "Linux version "
_PANICS = "Kernel panic - not syncing"
_NO_ROOT = "VFS: Unable to mount root fs"

_SLOW_HOST = (
    "no_timer_check",  # counts ticks against the TSC; on a busy host: "timer doesn't work" and a panic
    # A processor that is slow to answer makes the clocksource watchdog wait for it with interrupts off.  When
    # jiffies are the clock, as they are early in boot, that wait has no end, and a processor that is in
    # stop_machine() to switch the clock never answers: Linux 7.3 hangs (kernel/time/clocksource.c
    # watchdog_wait_seq(); seen in 1 boot of some 100).  Emulated TSCs all show the host's clock anyway.
    "tsc=nowatchdog",
    "rcupdate.rcu_cpu_stall_timeout=120",
    "watchdog_thresh=60",
)


class Accel(enum.StrEnum):
    """What executes guest code."""

    KVM = "kvm"
    TCG = "tcg"

    @property
    def timeout_factor(self) -> float:
        """What every time limit is multiplied by; emulation is some four times slower and less even."""
        return 4.0 if self is Accel.TCG else 1.0

    @property
    def cpu(self) -> str:
        """The CPU model guests get: everything the accelerator can do.

        But for page tables of five levels, which an emulator walks one level longer at every miss.
        """
        return "host" if self is Accel.KVM else "max,la57=off"

    @property
    def kernel_args(self) -> tuple[str, ...]:
        """What the guest's kernel must be told, lest it takes a slow host for broken hardware."""
        return _SLOW_HOST if self is Accel.TCG else ()

    @property
    def arguments(self) -> tuple[str, ...]:
        words = "tcg,thread=multi" if self is Accel.TCG else "kvm"
        return ("-accel", words, "-cpu", self.cpu)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The accelerator that will be used, and why, in words for the first line of a report."""

    accel: Accel
    reason: str


def choose_accel(wish: str, qemu: Qemu, vmlinux: Path | None = None) -> Choice:
    """Decide between KVM and TCG; *wish* is `auto`, `kvm` or `tcg`.

    Raises UsageError for another wish, InfraError when `kvm` is demanded and does not work.
    """
    wishes = ("auto", *(accel.value for accel in Accel))
    if wish not in wishes:
        raise UsageError(f"there is no accelerator {wish!r}", hint=nearest(wish, wishes))
    if wish == Accel.TCG:
        return Choice(accel=Accel.TCG, reason="TCG (emulation), as asked")
    fault = kvm_fault(qemu, vmlinux)
    if fault is None:
        return Choice(accel=Accel.KVM, reason="KVM, proven by a guest that ran")
    if wish == Accel.KVM:
        raise InfraError(f"KVM does not work here: {fault}", hint="use --accel tcg")
    return Choice(accel=Accel.TCG, reason=f"TCG (emulation, slow): KVM does not work here: {fault}")


def kvm_fault(qemu: Qemu, vmlinux: Path | None = None) -> str | None:
    """Why KVM cannot be used, None when a guest has run on it.

    The answer is remembered until the host boots again or QEMU changes; a proof by boot sector alone does not
    stand in for one with a kernel, and nothing is remembered against KVM on the word of a kernel that does
    not boot on TCG either.  Raises InfraError when QEMU cannot be started at all.
    """
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return f"{KVM_DEVICE} {'may not be opened' if KVM_DEVICE.exists() else 'does not exist'}"
    note = paths.cache_dir() / "host" / "kvm.json"
    host = {"proof": _PROOF, "boot": _boot_id(), "qemu": qemu.identity, "uid": os.getuid()}
    known = read_note(note)
    if known.get("host") == host:
        fault = known.get("fault")
        if isinstance(fault, str):
            return fault
        if vmlinux is None or known.get("kernel") is True:
            return None
    fault = _try_sector(qemu)
    if fault is not None or vmlinux is None:
        write_note(note, {"host": host, "fault": fault, "kernel": False})
        return fault
    fault, sound = _judge(qemu, vmlinux)
    write_note(note, {"host": host, "fault": fault if sound else None, "kernel": sound})
    return fault


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _base(qemu: Qemu, accel: Accel) -> list[str]:
    words = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35"]
    return [str(qemu.path), *words, *accel.arguments]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Ran:
    """A QEMU that came to its end, or was ended."""

    status: int | None
    """None: its time was over."""
    serial: str
    stderr: str

    @property
    def complaint(self) -> str:
        """What it has to say for itself."""
        lines = [line for line in self.stderr.splitlines() if line.strip()]
        told = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "no message")
        ending = process.Completed((), self.status or 0, "", "").ending
        return f"QEMU {ending}: {told.removeprefix('qemu-system-x86_64: ').strip()}"


def _run_guest(argv: list[str], seconds: float) -> _Ran:
    """Run QEMU with the guest's serial port as its standard output, for at most *seconds*.

    Raises InfraError when QEMU cannot be started.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with process.spawn(argv, stdout=out, stderr=err) as child:
            status = child.wait(Deadline.after(seconds))
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return _Ran(status=status, serial=texts[0], stderr=texts[1])


def _try_sector(qemu: Qemu, accel: Accel = Accel.KVM) -> str | None:
    """Run the boot sector; what went wrong, or None."""
    with tempfile.NamedTemporaryFile(suffix=".img") as image:
        image.write(BOOT_SECTOR.ljust(1024 * 1024, b"\0"))
        image.flush()
        argv = [
            *_base(qemu, accel),
            *("-m", "64"),
            *("-device", f"isa-debug-exit,iobase={_EXIT_PORT:#x},iosize=1"),
            *("-drive", f"if=none,id=sector,format=raw,readonly=on,file={image.name}"),
            *("-device", "virtio-blk-pci,drive=sector"),
        ]
        ran = _run_guest(argv, _SECTOR_SECONDS)
    if ran.status is None:
        return f"a boot sector did not finish in {_SECTOR_SECONDS:.0f} s"
    return None if ran.status == _EXIT_STATUS else ran.complaint


class _Reach(enum.IntEnum):
    """How far a kernel came."""

    NOWHERE = 0
    SPOKE = 1
    PANICKED = 2
    """Of its own accord: whatever ran it, ran it well enough for that."""
    ROOT = 3
    """To the panic for want of a root file system: all the way."""


def _judge(qemu: Qemu, vmlinux: Path) -> tuple[str | None, bool]:
    """Why KVM does not carry *vmlinux* although TCG does, and whether that kernel is sound.

    A kernel that comes no further on TCG says nothing about KVM.
    """
    reach, complaint = _try_kernel(qemu, vmlinux, Accel.KVM)
    if reach is _Reach.ROOT:
        return None, True
    emulated, _ = _try_kernel(qemu, vmlinux, Accel.TCG)
    return (complaint if emulated > reach else None), emulated is _Reach.ROOT


def _try_kernel(qemu: Qemu, vmlinux: Path, accel: Accel) -> tuple[_Reach, str]:
    """Boot *vmlinux* without a root; how far it came, and what ended it before its end."""
    words = ("console=ttyS0", "panic=-1", "root=/dev/none", *accel.kernel_args)
    argv = [
        *_base(qemu, accel),
        *("-m", str(_KERNEL_MIB), "-serial", "stdio", "-kernel", str(vmlinux)),
        *("-append", " ".join(words)),
    ]
    seconds = _KERNEL_SECONDS * accel.timeout_factor
    ran = _run_guest(argv, seconds)
    if _NO_ROOT in ran.serial:
        return _Reach.ROOT, ""
    if _PANICS in ran.serial:
        title = ran.serial.partition(_PANICS)[2].partition("\n")[0]
        return _Reach.PANICKED, f"{vmlinux.name} panicked{title.rstrip()}"
    reach = _Reach.SPOKE if _SPEAKS in ran.serial else _Reach.NOWHERE
    if ran.status is None:
        return reach, f"{vmlinux.name} did not boot in {seconds:.0f} s"
    return reach, ran.complaint
