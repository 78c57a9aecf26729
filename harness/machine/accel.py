# SPDX-License-Identifier: GPL-2.0-only
"""Choose the accelerator: KVM if it is proven to work on this host, else TCG, and say which.

/dev/kvm may open, and KVM_CREATE_VM succeed, on hosts where every guest dies.  So KVM is used only after
guest code has run on it: a boot sector that ends QEMU, then, if there is a kernel, that kernel up to the
panic about its missing root file system.  The kernel is under test and may be broken: KVM is at fault only if
that kernel gets further on TCG.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import os
import platform
import tempfile
import time
from pathlib import Path

from harness.base import paths, process
from harness.base.deadline import Deadline
from harness.base.errors import HostError, UsageError, nearest
from harness.base.host import starvation
from harness.kernel.arch import Arch
from harness.machine.devices import qemu_value
from harness.machine.qemu import Qemu, read_note, write_note

KVM_DEVICE = Path("/dev/kvm")

_SECTOR_SECONDS = 5.0
_KERNEL_SECONDS = 15.0
"""Timeout on KVM; multiplied on TCG."""

_MOST_EXCUSED = 2.0
"""Most that a timeout is extended while the host gives QEMU no CPU, in multiples of its length."""

_KERNEL_MIB = 1024
"""Memory of the guest, the default; a kernel with KASAN and page_owner needs more than half of it."""

_PROOF = 3
"""Raise it when the proof of KVM changes: older notes do not count then."""

_SPEAKS = "Linux version "
_PANICS = "Kernel panic - not syncing"
_NO_ROOT = "VFS: Unable to mount root fs"

_EMULATED_ARGS = ("rcupdate.rcu_cpu_stall_timeout=120", "watchdog_thresh=60")
"""Kernel arguments for a slow, emulated machine of any architecture."""


class Accel(enum.StrEnum):
    """What executes guest code."""

    KVM = "kvm"
    TCG = "tcg"

    @property
    def timeout_factor(self) -> float:
        """Return the factor of every timeout; emulation is about four times slower, and less steady."""
        return 4.0 if self is Accel.TCG else 1.0

    def kernel_args(self, arch: Arch) -> tuple[str, ...]:
        """Return kernel arguments that keep the kernel from taking a slow host for broken hardware."""
        return (*arch.emulated_args, *_EMULATED_ARGS) if self is Accel.TCG else ()

    def arguments(self, arch: Arch) -> tuple[str, ...]:
        """Return QEMU's options for it."""
        words = "tcg,thread=multi" if self is Accel.TCG else "kvm"
        return ("-accel", words, "-cpu", arch.cpu[self])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The accelerator to use, and why, for the first line of a report."""

    accel: Accel
    reason: str


def choose_accel(wish: str, qemu: Qemu, image: Path | None = None) -> Choice:
    """Choose between KVM and TCG; *wish* is `auto`, `kvm` or `tcg`.

    Raises UsageError for another wish, HostError for `kvm` where it does not work.
    """
    wishes = ("auto", *(accel.value for accel in Accel))
    if wish not in wishes:
        raise UsageError(f"there is no accelerator {wish!r}", hint=nearest(wish, wishes))
    if wish == Accel.TCG:
        return Choice(accel=Accel.TCG, reason="TCG (emulation), as asked")
    fault = kvm_fault(qemu, image)
    if fault is None:
        what = "kernel" if read_note(_note()).get("kernel") is True else "boot sector"
        return Choice(accel=Accel.KVM, reason=f"KVM, proven with a {what} that ran")
    if wish == Accel.KVM:
        raise HostError(f"KVM does not work here: {fault}", hint="use --accel tcg")
    return Choice(accel=Accel.TCG, reason=f"TCG (emulation, slow): KVM does not work here: {fault}")


def kvm_fault(qemu: Qemu, image: Path | None = None) -> str | None:
    """Return why KVM cannot be used; None when a guest has run on it.

    The answer is remembered until the host reboots or QEMU changes.  A boot sector proves less than a kernel;
    a kernel that does not boot on TCG either proves nothing about other kernels.  A guest that ran out of
    time on a busy host is tried again the next time.
    Raises InfraError when QEMU cannot be started at all.
    """
    if platform.machine() not in qemu.arch.kvm_hosts:
        return f"this host is no {' or '.join(qemu.arch.kvm_hosts)}"
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return f"{KVM_DEVICE} {'may not be opened' if KVM_DEVICE.exists() else 'does not exist'}"
    note = _note()
    host = {"proof": _PROOF, "boot": _boot_id(), "qemu": qemu.identity, "uid": os.getuid()}
    known = read_note(note)
    tried = _stamp(image) if image is not None else None
    if known.get("host") == host:
        fault = known.get("fault")
        if isinstance(fault, str):
            return fault
        if image is None or known.get("kernel") is True:
            return None
        if known.get("unsound") == tried:
            blamed = known.get("blamed")
            return blamed if isinstance(blamed, str) else None
    sector = _try_sector(qemu, Accel.KVM)
    fault, sound = sector.fault, False
    proven = not sector.stopped or _is_proof(sector, _try_sector(qemu, Accel.TCG), _SECTOR_SECONDS)
    note_of: dict[str, object] = {"host": host, "fault": fault, "kernel": False}
    if fault is None and image is not None:
        fault, sound, proven = _blame(qemu, image)
        note_of = {
            "host": host,
            "fault": fault if sound else None,
            "kernel": sound,
            "unsound": tried,
            "blamed": fault,
        }
    if proven:
        write_note(note, note_of)
    return fault


def _note() -> Path:
    """Return where the answer of kvm_fault() is remembered, and whether a kernel gave it."""
    return paths.cache_dir() / "host" / "kvm.json"


def _stamp(image: Path) -> str:
    with contextlib.suppress(OSError):
        facts = image.stat()
        return f"{image} {facts.st_size} {facts.st_mtime_ns}"
    return str(image)


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _base(qemu: Qemu, accel: Accel) -> list[str]:
    words = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    # All of it: a host's KVM may have another interrupt controller alone.
    machine = ",".join(f"{name}={qemu_value(value)}" for name, value in qemu.arch.machine.items())
    return [str(qemu.path), *words, "-machine", machine, *accel.arguments(qemu.arch)]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Ran:
    """A QEMU that ended, or was stopped at its timeout."""

    status: int | None
    """The exit status; None: it was stopped."""
    serial: str
    stderr: str
    program: str
    """The name that QEMU puts before its messages."""
    seconds: float
    """Its run time, less the time for which it had no CPU."""
    starved: bool
    """Whether it was stopped although it had no CPU for most of the time."""

    @property
    def complaint(self) -> str:
        """How it ended, and its error message."""
        lines = [line for line in self.stderr.splitlines() if line.strip()]
        told = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "no message")
        ending = process.Completed((), self.status or 0, "", "").ending
        return f"QEMU {ending}: {told.removeprefix(f'{self.program}: ').strip()}"


def _run_guest(qemu: Qemu, argv: list[str], seconds: float) -> _Ran:
    """Run QEMU for at most *seconds*, with the guest's serial port as its standard output.

    Raises InfraError when QEMU cannot be started.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with process.spawn(argv, stdout=out, stderr=err) as child:
            began, excused, starved = time.monotonic(), _MOST_EXCUSED * seconds, starvation(child.pid)
            status = child.wait(Deadline.after(seconds).excusing(starved, excused))
            without_cpu = starved()
            taken = time.monotonic() - began
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return _Ran(
        status=status,
        serial=texts[0],
        stderr=texts[1],
        program=qemu.arch.qemu,
        seconds=taken - without_cpu,
        starved=status is None and without_cpu > excused,
    )


class _Reach(enum.IntEnum):
    """How far a guest got."""

    NOWHERE = 0
    SPOKE = 1
    PANICKED = 2
    """It panicked for another reason, so the accelerator works that far."""
    END = 3
    """All the way: a kernel to the panic about the missing root file system."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Try:
    """What a guest came to on one accelerator."""

    ran: _Ran
    reach: _Reach
    fault: str | None
    """Why it did not get to its end."""

    @property
    def stopped(self) -> bool:
        return self.fault is not None and self.ran.status is None


def _is_proof(on_kvm: _Try, on_tcg: _Try, seconds: float) -> bool:
    """Whether the tries of one guest say something about KVM, and not only that the host was busy.

    A guest that hangs on KVM proves something if TCG takes it further within the *seconds* that KVM had.
    """
    if on_kvm.ran.starved or on_tcg.ran.starved:
        return False
    return not on_kvm.stopped or on_tcg.reach <= on_kvm.reach or on_tcg.ran.seconds < seconds


def _try_sector(qemu: Qemu, accel: Accel) -> _Try:
    """Run the boot sector."""
    sector = qemu.arch.boot_sector
    with tempfile.NamedTemporaryFile(suffix=".img") as disk:
        disk.write(sector.code.ljust(1024 * 1024, b"\0"))
        disk.flush()
        argv = [
            *_base(qemu, accel),
            *("-m", "64"),
            *(word.format(file=disk.name) for word in sector.options),
        ]
        ran = _run_guest(qemu, argv, _SECTOR_SECONDS)
    if ran.status == sector.status:
        return _Try(ran, _Reach.END, None)
    slow = f"a boot sector did not finish in {_SECTOR_SECONDS:.0f} s"
    return _Try(ran, _Reach.NOWHERE, slow if ran.status is None else ran.complaint)


def _blame(qemu: Qemu, image: Path) -> tuple[str | None, bool, bool]:
    """Return why KVM does not run *image* although TCG does, whether that kernel is sound, and whether this
    is proven.

    A kernel that gets no further on TCG proves nothing about KVM.
    """
    on_kvm = _try_kernel(qemu, image, Accel.KVM)
    if on_kvm.fault is None:
        return None, True, True
    on_tcg = _try_kernel(qemu, image, Accel.TCG)
    fault = on_kvm.fault if on_tcg.reach > on_kvm.reach else None
    return fault, on_tcg.fault is None, _is_proof(on_kvm, on_tcg, _KERNEL_SECONDS)


def _try_kernel(qemu: Qemu, image: Path, accel: Accel) -> _Try:
    """Boot *image* without a root."""
    words = (f"console={qemu.arch.console}", "panic=-1", "root=/dev/none", *accel.kernel_args(qemu.arch))
    argv = [
        *_base(qemu, accel),
        *("-m", str(_KERNEL_MIB), "-serial", "stdio", "-kernel", str(image)),
        *("-append", " ".join(words)),
    ]
    seconds = _KERNEL_SECONDS * accel.timeout_factor
    ran = _run_guest(qemu, argv, seconds)
    if _NO_ROOT in ran.serial:
        return _Try(ran, _Reach.END, None)
    if _PANICS in ran.serial:
        title = ran.serial.partition(_PANICS)[2].partition("\n")[0]
        return _Try(ran, _Reach.PANICKED, f"{image.name} panicked{title.rstrip()}")
    reach = _Reach.SPOKE if _SPEAKS in ran.serial else _Reach.NOWHERE
    slow = f"{image.name} did not boot in {seconds:.0f} s"
    return _Try(ran, reach, slow if ran.status is None else ran.complaint)
