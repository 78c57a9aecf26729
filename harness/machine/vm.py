# SPDX-License-Identifier: GPL-2.0-only
"""VM: a running Machine, from the start of QEMU to its end.

All files of a VM are in one directory: `qemu.cmd` (paste it into a shell), `qemu.stderr`, `console.log`,
the keys, the sockets, on request `diagnostics.txt` and `memory.kdump`; for a restored VM also
`console-boot.log`, the console of the boot that was saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from guest.resident import READY as AGENT_READY
from harness.base import process
from harness.base.cause import Cause
from harness.base.deadline import Deadline
from harness.base.endpoint import Endpoint
from harness.base.errors import InfraError, LostGuest
from harness.base.host import free_mib, starvation
from harness.kernel.arch import Arch
from harness.machine import diagnose, disks, keys
from harness.machine.console import POLL_SECONDS, Console
from harness.machine.dump import PANIC_EVENT, Dumper
from harness.machine.hostlink import Actions, HostLink
from harness.machine.machine import (
    CONSOLE_LOG,
    HOSTLINK_SOCKET,
    QMP_SOCKET,
    Machine,
    Memory,
)
from harness.machine.pulse import STILL_SECONDS, Pulse, all_tick
from harness.machine.qemu import Qemu, find_qemu
from harness.machine.qmp import Qmp, QmpError
from harness.machine.rootparts import RootParts
from harness.machine.shares import link
from harness.machine.snapshot import BOOT_LOG, RAM, STATE, Snapshot, copy_sparse, keep_host_key
from harness.machine.splatpolicy import message_of

PANIC = "Kernel panic - not syncing: "
COMMAND_FILE = "qemu.cmd"
STDERR_FILE = "qemu.stderr"

START_SECONDS = 30.0
"""Timeout for QEMU's first QMP answer, which takes 0.1 s on an idle host."""

STOP_SECONDS = 6.0
"""Timeout for QMP quit, SIGTERM and SIGKILL together."""

_SAVE_SECONDS = 20.0
"""Timeout for writing or reading the device state, a few hundred kilobytes."""

MOST_EXCUSED = 4.0
"""Most that a timeout is extended while the host gives QEMU no CPU, in multiples of its length."""

_STALE = (QMP_SOCKET, HOSTLINK_SOCKET, CONSOLE_LOG, BOOT_LOG, RAM, STATE)
"""What an earlier VM may have left in its directory."""

_LEAST_FREE_MIB = 8
"""Least free disk space for the console and the logs of one VM; a long-lived VM needs a tenth of it."""

_POLL_SECONDS = 0.01
_MIGRATION_POLL_SECONDS = 0.002
_BOOT_POLL_SECONDS = 0.02
_AGENT_CHECK_SECONDS = 0.5
_SILENT_SECONDS = 10.0
"""How long a kernel's first message may take to reach the console after process 1 wrote there."""

_UNHEARD = "no message on the console"
_BOOTED = "vfio-harness: ssh: "
_INIT_FAILED = re.compile(r"vfio-harness: init failed: (.*)")
_FORWARD = re.compile(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+22\s")


@dataclasses.dataclass(frozen=True, slots=True)
class Ending:
    """Why a VM no longer runs."""

    cause: Cause
    text: str
    """A message for people; with QEMU's last line on stderr if QEMU died."""


class VM:
    """A running Machine; made by start_vm()."""

    def __init__(
        self,
        machine: Machine,
        directory: Path,
        child: process.Process,
        qmp: Qmp,
        hostlink: HostLink,
        ssh: Endpoint,
        keyboard: int,
        ram: int | None,
    ) -> None:
        self.machine = machine
        self.directory = directory
        self.console = Console(directory / CONSOLE_LOG)
        self.keyboard = keyboard
        """The file descriptor of the serial port's input."""
        self.pid = child.pid
        self.qmp = qmp
        self.hostlink = hostlink
        self.ssh = ssh
        """Where and how to log in."""
        self._child = child
        self._ram = ram
        """The file with the guest's memory, for a VM that can be saved."""
        self._stopping = False
        self._pulse: Pulse | None = None
        self._watches_from = math.inf
        """When a boot counts as slow, and its vCPUs are watched."""
        self.dumper: Dumper | None = None
        """Dumps its memory when it panics or hangs; None if nobody wants that."""

    @property
    def cpu_seconds(self) -> float | None:
        """CPU time that QEMU has used; None once it is gone."""
        return self._child.cpu_seconds

    def patient(self, deadline: Deadline) -> Deadline:
        """Return *deadline*, extended by the time in which this host gives QEMU no CPU.

        A guest that is slow only because the host is busy is not lost.
        """
        return _patient(deadline, self.pid)

    @property
    def alive(self) -> bool:
        """Whether the guest runs: QEMU does, and the kernel did not panic."""
        return self._child.status is None and PANIC_EVENT not in _reasons(self.qmp)

    @property
    def ending(self) -> Ending | None:
        """Why the VM ended or is ending; None while it runs.

        QEMU's exit status does not suffice: after a panic it may be 0 (boot-utils #65).
        """
        reasons = _reasons(self.qmp)
        splats = self.console.splats()
        panicked = any(PANIC in line for splat in splats for line in splat.lines)
        if panicked or reasons & {PANIC_EVENT, "guest-panic"}:
            last = next((s.title for s in reversed(splats) if s.kind == "panic" or s.fatal), _UNHEARD)
            return Ending(Cause.PANICKED, f"the guest's kernel panicked: {last.removeprefix(PANIC)}")
        if self.alive:
            return None
        if self._stopping:
            return Ending(Cause.STOPPED, "the harness stopped the VM")
        if self._child.status != 0:
            said = _last_words(self.directory, self._child, self.machine.arch)
            return Ending(Cause.QEMU_DIED, f"QEMU died: {said}")
        if "guest-reset" in reasons:
            return Ending(Cause.GUEST_RESET, "the guest reset itself")
        return Ending(Cause.GUEST_OFF, "the guest powered off")

    def watch_vcpus(self, *, booting: bool = False) -> None:
        """Have check_vcpus() check all vCPUs; only for kernels whose idle vCPUs tick too.

        While it is *booting*, that begins when the kernel runs all of them, if the boot is a slow one.
        """
        if booting:
            self._watches_from = time.monotonic() + STILL_SECONDS
            return
        threads = {cpu["cpu-index"]: cpu["thread-id"] for cpu in self.qmp.execute("query-cpus-fast")}
        interrupts = self.machine.arch.interrupts

        def in_service(cpu: int) -> frozenset[str]:
            if interrupts is None:
                return frozenset()
            return interrupts.parse(self.qmp.monitor(interrupts.command.format(cpu=cpu), seconds=2))

        self._pulse = Pulse(threads, self.pid, in_service)

    def check_vcpus(self) -> None:
        """Raise LostGuest when a vCPU is lost; call it every second."""
        lost = None
        # If QEMU does not answer, the guest's timeout reports it.
        with contextlib.suppress(QmpError):
            slow = self._pulse is None and time.monotonic() > self._watches_from
            if slow and all_tick(self.console.text(), self.machine.cpus):
                self.watch_vcpus()
            lost = self._pulse.lost() if self._pulse is not None else None
        if lost is not None:
            raise self._lost(lost.what, lost.cause)

    def wait_booted(self, deadline: Deadline) -> None:
        """Wait until guest/init.c or init.sh reports that it starts the SSH server.

        Connecting earlier is slower: slirp accepts at once and then repeats its SYN at growing intervals.
        Raises LostGuest when the VM ends, when init gives up, when the kernel is silent, or at *deadline*.
        """
        if not self._wait_for(_BOOTED, deadline, every=_BOOT_POLL_SECONDS, pause=_BOOT_POLL_SECONDS):
            last = next(iter(self.console.tail(1)), "nothing")
            raise self._lost(f"the guest did not boot in time; last console line: {last}", Cause.NO_BOOT)
        limit = self.patient(deadline.within(_SILENT_SECONDS))
        while not any(message_of(line) is not None for line in self.console.text().splitlines()):
            if limit.expired:
                why = "the guest booted, but its kernel is silent"
                raise self._lost(f"{why}: no message with a time stamp is on the console", Cause.UNHEARD)
            time.sleep(_BOOT_POLL_SECONDS)

    def wait_agent(self, deadline: Deadline) -> None:
        """Wait until guest/resident.py reports that it listens; raises LostGuest as wait_booted()."""
        if not self._wait_for(AGENT_READY, deadline, every=_AGENT_CHECK_SECONDS):
            raise self._lost("the agent in the guest did not come up in time", Cause.NO_AGENT)

    def _wait_for(self, text: str, deadline: Deadline, *, every: float, pause: float = POLL_SECONDS) -> bool:
        """Wait for *text* on the console, checking the VM *every* so many seconds; False at *deadline*."""
        while not self.console.wait_for(text, deadline.within(every), pause=pause):
            failure = _INIT_FAILED.search(self.console.text())
            if failure is not None:
                raise self._lost(f"the guest's init gave up: {failure[1].strip()}", Cause.INIT_FAILED)
            ending = self.ending
            if ending is not None:
                raise self._lost(ending.text, ending.cause)
            self.check_vcpus()
            if deadline.expired:
                return False
        return True

    def diagnose(self) -> Path | None:
        """Write diagnostics of the VM and return the file; None when QEMU is gone.

        The memory is dumped first: SysRq changes what is there.
        """
        if not self.alive:
            return None
        if self.dumper is not None:
            self.dumper.take()
        interrupts = self.machine.arch.interrupts
        return diagnose.write_bundle(self.directory, self.pid, self.qmp, self.keyboard, interrupts)

    def save(self, target: Path) -> None:
        """Write the VM's memory and device state into the directory *target*; the VM keeps running.

        Only for a savable VM without open connections to its guest.  Raises QmpRefused when QEMU cannot save
        one of its devices.
        """
        assert self._ram is not None
        limit = self.patient(Deadline.after(_SAVE_SECONDS * self.machine.accel.timeout_factor))
        self.qmp.execute("stop")
        try:
            _migrate(self.qmp, "migrate", limit)
            copy_sparse(self._ram, target / RAM)
        finally:
            self.qmp.execute("cont")
        # The state comes last: a snapshot that has one is complete.
        keep_host_key(self.directory, target)
        shutil.copyfile(self.console.path, target / BOOT_LOG)
        shutil.move(self.directory / STATE, target / STATE)

    def stop(self) -> None:
        """End QEMU: ask over QMP, then SIGTERM, then SIGKILL; a dump under way is finished before."""
        if self.dumper is not None:
            self.dumper.finish()
        limit = Deadline.after(STOP_SECONDS)
        if self._child.status is None:
            self._stopping = True
            with contextlib.suppress(InfraError):
                self.qmp.execute("quit", seconds=limit.remaining / 3)
            self._child.wait(limit.within(limit.remaining / 3))
        self._child.stop(limit)
        self.console.finish()

    def wait(self, deadline: Deadline) -> Ending | None:
        """Wait until the VM ends by itself or *deadline*; return its ending."""
        self._child.wait(deadline)
        if not self.alive:
            self.console.finish()
        return self.ending

    def _lost(self, message: str, cause: Cause) -> LostGuest:
        return LostGuest(message, hint=f"see {self.console.path}", cause=cause)


def _reasons(qmp: Qmp) -> frozenset[str]:
    """The names of QEMU's events so far, and the reasons they give."""
    reasons = (str(event.get("data", {}).get("reason", "")) for event in qmp.events)
    return frozenset(reasons) | frozenset(str(event["event"]) for event in qmp.events)


def _last_words(directory: Path, child: process.Process, arch: Arch) -> str:
    """The last line on QEMU's stderr that is no warning, else its exit status."""
    with contextlib.suppress(OSError):
        text = (directory / STDERR_FILE).read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip() and "warning:" not in line]
        if lines:
            return lines[-1].removeprefix(f"{arch.qemu}: ")
    return f"exit status {child.status}"


def _connect_qmp(child: process.Process, directory: Path, path: Path, arch: Arch, deadline: Deadline) -> Qmp:
    """Connect to QEMU's socket at *path* as soon as QEMU listens."""
    while True:
        if child.status is not None:
            message = f"QEMU did not start: {_last_words(directory, child, arch)}"
            raise InfraError(message, cause=Cause.QEMU_DIED)
        if path.exists():
            try:
                return Qmp(path, deadline, lambda limit: _patient(limit, child.pid))
            except QmpError:
                # Bound but not listening yet, or gone again: the next iteration shows which.
                if deadline.expired:
                    raise
        if deadline.expired:
            raise InfraError("QEMU did not open its QMP socket in time")
        time.sleep(_POLL_SECONDS)


def _patient(deadline: Deadline, pid: int) -> Deadline:
    return deadline.excusing(starvation(pid), MOST_EXCUSED * deadline.remaining)


def _migrate(qmp: Qmp, command: str, deadline: Deadline) -> None:
    """Migrate the device state to or from the file STATE; memory stays where it is.  Raises QmpError."""
    ignore_memory = {"capability": "x-ignore-shared", "state": True}
    qmp.execute("migrate-set-capabilities", {"capabilities": [ignore_memory]})
    qmp.execute(command, {"uri": f"file:{STATE}"})
    while True:
        progress = qmp.execute("query-migrate")
        if progress.get("status") == "completed":
            return
        if progress.get("status") in ("failed", "cancelled") or deadline.expired:
            raise QmpError(f"QEMU's {command} failed: {progress}")
        time.sleep(_MIGRATION_POLL_SECONDS)


def read_ssh_port(usernet: str) -> int:
    """Return the host port that QEMU forwards to the guest's port 22, from the output of `info usernet`.

    Raises InfraError when there is none.
    """
    match = _FORWARD.search(usernet)
    if match is None:
        raise InfraError(f"QEMU forwards no port to the guest's SSH server: {usernet.strip()!r}")
    return int(match[1])


@contextlib.contextmanager
def start_vm(
    machine: Machine,
    directory: Path,
    *,
    nonce: str,
    qemu: Qemu | None = None,
    parts: RootParts | None = None,
    restore: Snapshot | None = None,
    savable: bool = False,
    dumps: bool = False,
    deadline: Deadline | None = None,
) -> Iterator[VM]:
    """Boot *machine* in *directory* (made if need be); the VM is stopped when the block ends.

    Yields as soon as QEMU runs: the guest is still booting then, unless it is restored from the snapshot
    *restore*.  A *savable* VM can be saved; one that *dumps* leaves its memory when it panics or hangs.
    Call it from a thread that lives as long as the VM, because QEMU dies with that thread.  Raises InfraError
    with QEMU's error message when QEMU does not start.
    """
    limit = deadline or Deadline.after(START_SECONDS * machine.accel.timeout_factor)
    qemu = qemu or find_qemu(arch=machine.arch)
    parts = parts or machine.parts()
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    if free_mib(directory) < _LEAST_FREE_MIB:
        # QEMU would drop the console's text silently, and the guest would seem not to boot.
        raise InfraError(f"the disk of {directory} is full: less than {_LEAST_FREE_MIB} MiB are free")
    for stale in _STALE:
        (directory / stale).unlink(missing_ok=True)
    link(machine.shares, directory)
    host_key = keys.make_keys(directory, restore.directory / keys.HOST_KEY if restore else None)
    # Always the command that boots the machine, also for a restored VM: that is what users paste.
    command = f"cd {shlex.quote(str(directory))} && {shlex.join(machine.argv(qemu, parts, nonce))}\n"
    (directory / COMMAND_FILE).write_text(command, encoding="utf-8")
    with contextlib.ExitStack() as stack:
        for image in parts.files:
            stack.enter_context(disks.held(image))
        ram = _shared_memory(stack, machine) if savable else None
        memory = Memory(path=f"/proc/self/fd/{ram}", saved=False) if ram is not None else None
        if restore is not None:
            memory = _saved_memory(stack, directory, restore)
        argv = machine.argv(qemu, parts, nonce, memory)
        child = _spawn(argv, directory, ram, stack)
        start_limit = limit.within(START_SECONDS * machine.accel.timeout_factor)
        start_limit = _patient(start_limit, child.pid)
        vm = _attach(machine, directory, child, ram, host_key, start_limit, stack)
        if dumps:
            vm.dumper = Dumper(vm.qmp, directory, machine.memory_mib, machine.accel.timeout_factor)
            vm.dumper.arm()
        if restore is not None:
            _migrate(vm.qmp, "migrate-incoming", start_limit)
            if vm.qmp.execute("query-status")["status"] != "running":
                vm.qmp.execute("cont")
        yield vm


def _spawn(
    argv: Sequence[str], directory: Path, ram: int | None, stack: contextlib.ExitStack
) -> process.Process:
    """Start QEMU in *directory*; the guest's serial port is its standard input and output."""
    console = stack.enter_context((directory / CONSOLE_LOG).open("wb"))
    stderr = stack.enter_context((directory / STDERR_FILE).open("wb"))
    fds = () if ram is None else (ram,)
    return stack.enter_context(
        process.spawn(argv, cwd=directory, stdin=process.PIPE, stdout=console, stderr=stderr, pass_fds=fds)
    )


def _attach(
    machine: Machine,
    directory: Path,
    child: process.Process,
    ram: int | None,
    host_key: str,
    deadline: Deadline,
    stack: contextlib.ExitStack,
) -> VM:
    """Connect to the QEMU *child* as soon as it listens; *stack* stops it and disconnects."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, handle)
    # The directory by a name that is short enough for a socket's path.
    near = Path(f"/proc/self/fd/{handle}")
    qmp = _connect_qmp(child, directory, near / QMP_SOCKET, machine.arch, deadline)
    stack.callback(qmp.close)
    try:
        hostlink = HostLink(near / HOSTLINK_SOCKET, Actions(qmp, machine.topology))
    except OSError as error:
        raise InfraError(f"QEMU's host-action port is unreachable: {error.strerror}") from error
    stack.callback(hostlink.close)
    ssh = Endpoint(
        host="127.0.0.1",
        port=read_ssh_port(qmp.monitor("info usernet")),
        user="root",
        client_key=directory / keys.CLIENT_KEY,
        host_key=host_key,
    )
    vm = VM(machine, directory, child, qmp, hostlink, ssh, child.stdin.fileno(), ram)
    # Last in, first out: QEMU is asked to quit while QMP is still connected.
    stack.callback(vm.stop)
    return vm


def _shared_memory(stack: contextlib.ExitStack, machine: Machine) -> int:
    """Open a file in memory for the guest's memory: on a disk it would be written back again and again."""
    handle = os.memfd_create("vfio-harness-ram")
    stack.callback(os.close, handle)
    os.ftruncate(handle, machine.memory_mib << 20)
    return handle


def _saved_memory(stack: contextlib.ExitStack, directory: Path, snapshot: Snapshot) -> Memory:
    """Put what QEMU reads of *snapshot* into the VM's *directory*."""
    # Links, because the cache's path may contain characters of QEMU's option syntax.
    for name in (RAM, STATE):
        (directory / name).symlink_to(snapshot.directory / name)
        # Whatever archives the run's directory later may follow links, a gigabyte each.
        stack.callback((directory / name).unlink, missing_ok=True)
    shutil.copyfile(snapshot.directory / BOOT_LOG, directory / BOOT_LOG)
    return Memory(path=RAM, saved=True)
