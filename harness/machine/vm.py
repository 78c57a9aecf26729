# SPDX-License-Identifier: GPL-2.0-only
"""VM: a running Machine, from the first byte of QEMU's to its last.

Everything a VM leaves behind is in one directory: `qemu.cmd` (paste it into a shell), `qemu.stderr`,
`console.log`, the keys, the sockets and, when it was asked for, `diagnostics.txt`; for a restored VM also
`console-boot.log`, the console of the boot that was saved.
"""

from __future__ import annotations

import contextlib
import enum
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from guest.resident import READY as AGENT_READY
from harness import process
from harness.deadline import Deadline
from harness.errors import InfraError, LostGuest, LostProcessor, StoodStill
from harness.host import free_mib
from harness.machine import diagnose, disks, keys
from harness.machine.console import Console
from harness.machine.hostlink import Actions, HostLink
from harness.machine.keys import SshAccess
from harness.machine.machine import (
    CONSOLE_LOG,
    CONSOLE_SOCKET,
    HOSTLINK_SOCKET,
    QMP_SOCKET,
    Machine,
    Memory,
)
from harness.machine.pulse import Pulse
from harness.machine.qemu import Qemu, find_qemu
from harness.machine.qmp import Qmp, QmpError
from harness.machine.roots import RootParts
from harness.machine.snapshot import BOOT_LOG, RAM, STATE, Snapshot, copy_sparse, keep_host_key

PANIC = "Kernel panic - not syncing: "
COMMAND_FILE = "qemu.cmd"
STDERR_FILE = "qemu.stderr"

START_SECONDS = 30.0
"""For QEMU to answer its first QMP command; it takes a tenth of a second on an idle host."""

STOP_SECONDS = 6.0
"""For the whole ladder: QMP quit, SIGTERM, SIGKILL."""

_SAVE_SECONDS = 20.0
"""For the devices' state, a few hundred kilobytes, to be written or read."""

_LEAST_FREE_MIB = 8
"""For the console and the logs of one VM; a long one's are a tenth of that."""

_POLL_SECONDS = 0.01
_MIGRATION_POLL_SECONDS = 0.002
_BOOT_POLL_SECONDS = 0.02
_AGENT_POLL_SECONDS = 0.5
_BOOTED = "vfio-harness: ssh: "
_INIT_FAILED = re.compile(r"vfio-harness: init failed: (.*)")
_FORWARD = re.compile(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+22\s")


class State(enum.StrEnum):
    """What became of a VM."""

    RUNNING = "running"
    PANICKED = "panicked"
    """The guest's kernel said so; this is about the kernel under test."""
    POWERED_OFF = "powered off"
    """The guest turned itself off, or reset."""
    STOPPED = "stopped"
    """We ended it."""
    DIED = "died"
    """QEMU ended for no reason of the guest's or ours."""


class VM:
    """A running Machine; made by start_vm()."""

    def __init__(
        self,
        machine: Machine,
        directory: Path,
        nonce: str,
        child: process.Process,
        stack: contextlib.ExitStack,
        ram: int | None = None,
    ) -> None:
        self.machine = machine
        self.directory = directory
        self.nonce = nonce
        self.console = Console(directory / CONSOLE_LOG)
        self._child = child
        self._ram = ram
        """The file of the guest's memory, for a VM that may be saved."""
        self._stopping = False
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, handle)
        self._near = Path(f"/proc/self/fd/{handle}")
        """The directory by a name short enough for any socket in it."""
        self._qmp: Qmp | None = None
        self._hostlink: HostLink | None = None
        self._ssh: SshAccess | None = None
        self._pulse: Pulse | None = None

    def _attach(self, deadline: Deadline, host_key: str, stack: contextlib.ExitStack) -> None:
        """Connect to what QEMU offers, as soon as it does."""
        self._qmp = self._connect_qmp(deadline)
        stack.callback(self._qmp.close)
        actions = Actions(self._qmp, self.machine.topology)
        try:
            self._hostlink = HostLink(self._near / HOSTLINK_SOCKET, actions)
        except OSError as error:
            raise InfraError(f"QEMU's host-action port cannot be reached: {error.strerror}") from error
        stack.callback(self._hostlink.close)
        self._ssh = SshAccess(
            address="127.0.0.1",
            port=read_ssh_port(self._qmp.monitor("info usernet")),
            user="root",
            client_key=self.directory / keys.CLIENT_KEY,
            host_key=host_key,
        )

    def _connect_qmp(self, deadline: Deadline) -> Qmp:
        path = self._near / QMP_SOCKET
        while True:
            if not self.alive:
                raise InfraError(f"QEMU did not start: {self._stderr_or(self._ending_words())}")
            if path.exists():
                try:
                    return Qmp(path, deadline)
                except QmpError:
                    # Bound but not listening yet, or gone again: the next turn tells which.
                    if deadline.expired:
                        raise
            if deadline.expired:
                raise InfraError("QEMU did not open its QMP socket in time")
            time.sleep(_POLL_SECONDS)

    @property
    def qmp(self) -> Qmp:
        assert self._qmp is not None
        return self._qmp

    @property
    def hostlink(self) -> HostLink:
        assert self._hostlink is not None
        return self._hostlink

    @property
    def ssh(self) -> SshAccess:
        """Where and how to log in."""
        assert self._ssh is not None
        return self._ssh

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def cpu_seconds(self) -> float | None:
        """Processor time that QEMU has used; None once it is gone."""
        return self._child.cpu_seconds

    @property
    def alive(self) -> bool:
        return self._child.status is None

    @property
    def state(self) -> State:
        """What the VM is doing, or why it does no longer.

        QEMU's exit status alone says little: after a panic it may be 0 (boot-utils #65).
        """
        if any(PANIC in line for splat in self.console.splats() for line in splat.lines):
            return State.PANICKED
        reasons = self._events()
        if "GUEST_PANICKED" in reasons or "guest-panic" in reasons:
            return State.PANICKED
        if self.alive:
            return State.RUNNING
        if self._stopping:
            return State.STOPPED
        return State.POWERED_OFF if self._child.status == 0 else State.DIED

    @property
    def ending(self) -> str:
        """The state in words, with QEMU's last line on stderr when it died."""
        state = self.state
        if state is State.PANICKED:
            return f"the guest's kernel panicked: {self._panic_title()}"
        if state is State.POWERED_OFF:
            return "the guest reset itself" if "guest-reset" in self._events() else "the guest powered off"
        if state is State.DIED:
            return f"QEMU died: {self._stderr_or(self._ending_words())}"
        return f"the VM is {state}"

    def check_alive(self) -> None:
        """Raise LostGuest, saying what happened, unless the VM runs."""
        state = self.state
        if state is not State.RUNNING:
            raise LostGuest(self.ending, hint=self._see())

    def watch_processors(self) -> None:
        """Let check_processors() see whether all are run; for kernels that interrupt even an idle one."""
        threads = {cpu["cpu-index"]: cpu["thread-id"] for cpu in self.qmp.execute("query-cpus-fast")}
        self._pulse = Pulse(threads, self.pid, lambda cpu: self.qmp.monitor(f"info lapic {cpu}", seconds=2))

    def check_processors(self) -> None:
        """Raise StoodStill when a processor is lost, LostProcessor when QEMU lost it; call every second."""
        lost = None
        # A QEMU that does not answer is noticed by who waits for its guest.
        with contextlib.suppress(QmpError):
            lost = self._pulse.lost() if self._pulse is not None else None
        if lost is not None:
            kind = LostProcessor if lost.is_emulators else StoodStill
            raise kind(lost.what, hint=self._see())

    def wait_booted(self, deadline: Deadline) -> None:
        """Wait until guest/init.c or init.sh says that it starts the SSH server.

        Connecting earlier is slower: slirp accepts at once, and then repeats its SYN ever less often.
        Raises LostGuest when the VM ends, when init gives up, or at *deadline*.
        """
        while True:
            if _BOOTED in self.console.text():
                return
            self._check_coming_up()
            if deadline.expired:
                last = next(iter(self.console.tail(1)), "nothing")
                raise LostGuest(f"the guest did not boot in time; its last words: {last}", hint=self._see())
            time.sleep(_BOOT_POLL_SECONDS)

    def wait_agent(self, deadline: Deadline) -> None:
        """Wait until guest/resident.py says that it listens; LostGuest when the VM ends or at *deadline*."""
        while not self.console.wait_for(AGENT_READY, deadline.within(_AGENT_POLL_SECONDS)):
            self._check_coming_up()
            if deadline.expired:
                raise LostGuest("the agent in the guest did not come up in time", hint=self._see())

    def _check_coming_up(self) -> None:
        """Raise LostGuest when the guest's init says that it gave up, or the VM has ended."""
        failure = _INIT_FAILED.search(self.console.text())
        if failure is not None:
            raise LostGuest(f"the guest's init gave up: {failure[1].strip()}")
        self.check_alive()

    def pause(self) -> None:
        """Stop the processors, so that somebody can look."""
        self.qmp.execute("stop")

    def sysrq(self, key: str) -> None:
        """Press a magic SysRq key on the console; the answer goes to the console log."""
        diagnose.sysrq(self.qmp, self._near / CONSOLE_SOCKET, key)

    def diagnose(self, deadline: Deadline | None = None) -> Path | None:
        """Write what the VM can still tell; return the file, None when it is beyond asking."""
        if not self.alive or self._qmp is None:
            return None
        limit = deadline or Deadline.after(diagnose.BUDGET_SECONDS)
        return diagnose.write_bundle(self.directory, self.pid, self._qmp, self._near / CONSOLE_SOCKET, limit)

    def save(self, target: Path) -> None:
        """Write the VM's memory and devices into the directory *target*; it runs on.

        Only for a VM that was started to be saved, and whose guest nobody is connected to.  Raises QmpRefused
        when QEMU cannot save one of its devices.
        """
        assert self._ram is not None
        self.qmp.execute("stop")
        try:
            self._migrate("migrate", STATE)
            copy_sparse(self._ram, target / RAM)
        finally:
            self.qmp.execute("cont")
        # Last of all: a snapshot with a state is taken for whole.
        keep_host_key(self.directory, target)
        shutil.copyfile(self.console.path, target / BOOT_LOG)
        shutil.move(self.directory / STATE, target / STATE)

    def _restore(self, deadline: Deadline) -> None:
        """Take over the state that lies in the directory, and run."""
        self._migrate("migrate-incoming", STATE, deadline)
        if self.qmp.execute("query-status")["status"] != "running":
            self.qmp.execute("cont")

    def _migrate(self, command: str, file: str, deadline: Deadline | None = None) -> None:
        """Run a migration to or from *file* to its end; memory stays where it is.  Raises QmpError."""
        limit = deadline or Deadline.after(_SAVE_SECONDS)
        ignore_memory = {"capability": "x-ignore-shared", "state": True}
        self.qmp.execute("migrate-set-capabilities", {"capabilities": [ignore_memory]})
        self.qmp.execute(command, {"uri": f"file:{file}"})
        while True:
            progress = self.qmp.execute("query-migrate")
            if progress.get("status") == "completed":
                return
            if progress.get("status") in ("failed", "cancelled") or limit.expired:
                raise QmpError(f"QEMU's {command} did not end well: {progress}")
            time.sleep(_MIGRATION_POLL_SECONDS)

    def stop(self, deadline: Deadline | None = None) -> None:
        """End QEMU: ask over QMP, then SIGTERM, then SIGKILL; all by *deadline* (default STOP_SECONDS)."""
        limit = deadline or Deadline.after(STOP_SECONDS)
        if self.alive:
            self._stopping = True
            with contextlib.suppress(InfraError):
                if self._qmp is not None:
                    self._qmp.execute("quit", seconds=limit.remaining / 3)
            self._child.wait(limit.within(limit.remaining / 3))
        self._child.stop(limit)
        self.console.finish()

    def wait(self, deadline: Deadline) -> State:
        """Wait until the VM ends by itself or *deadline*; return its state."""
        self._child.wait(deadline)
        if not self.alive:
            self.console.finish()
        return self.state

    def _see(self) -> str:
        return f"see {self.console.path}"

    def _events(self) -> frozenset[str]:
        events = self._qmp.events if self._qmp is not None else ()
        reasons = (str(event.get("data", {}).get("reason", "")) for event in events)
        return frozenset(reasons) | frozenset(str(event["event"]) for event in events)

    def _panic_title(self) -> str:
        for splat in reversed(self.console.splats()):
            if splat.kind == "panic" or splat.fatal:
                return splat.title.removeprefix(PANIC)
        return "no word of it on the console"

    def _ending_words(self) -> str:
        status = self._child.status
        return "no message" if status is None else f"exit status {status}"

    def _stderr_or(self, otherwise: str) -> str:
        try:
            text = (self.directory / STDERR_FILE).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return otherwise
        lines = [line for line in text.splitlines() if line.strip() and "warning:" not in line]
        return lines[-1].removeprefix("qemu-system-x86_64: ") if lines else otherwise


def read_ssh_port(usernet: str) -> int:
    """The host port of the guest's port 22 in the output of `info usernet`.

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
    deadline: Deadline | None = None,
) -> Iterator[VM]:
    """Boot *machine* in *directory* (made if need be) and end it with the block.

    Yields as soon as QEMU runs; the guest is still booting then, unless *restore* gives it where it left off.
    A *savable* VM can be saved.  Call it from a thread that lives as long as the VM, because QEMU dies with
    it.  Raises InfraError with QEMU's own words when it does not start.
    """
    limit = deadline or Deadline.after(START_SECONDS * machine.accel.timeout_factor)
    qemu = qemu or find_qemu()
    parts = parts or machine.parts()
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    if free_mib(directory) < _LEAST_FREE_MIB:
        # QEMU would drop the console's text without a word, and the guest seem never to come up.
        raise InfraError(f"the disk of {directory} is full: less than {_LEAST_FREE_MIB} MiB are free")
    for stale in (QMP_SOCKET, CONSOLE_SOCKET, HOSTLINK_SOCKET, CONSOLE_LOG, BOOT_LOG, RAM, STATE):
        (directory / stale).unlink(missing_ok=True)
    host_key = keys.make_keys(directory, restore.directory / keys.HOST_KEY if restore else None)
    # The machine from the start, however this VM came to be: that is what one wants to paste.
    command = f"cd {shlex.quote(str(directory))} && {shlex.join(machine.argv(qemu, parts, nonce))}\n"
    (directory / COMMAND_FILE).write_text(command, encoding="utf-8")
    with contextlib.ExitStack() as stack:
        for image in parts.files:
            stack.enter_context(disks.held(image))
        ram = _shared_memory(stack, machine) if savable else None
        argv = machine.argv(qemu, parts, nonce, _memory(stack, ram, directory, restore))
        stderr = stack.enter_context((directory / STDERR_FILE).open("wb"))
        fds = () if ram is None else (ram,)
        child = stack.enter_context(
            process.spawn(argv, cwd=directory, stdout=stderr, stderr=stderr, pass_fds=fds)
        )
        vm = VM(machine, directory, nonce, child, stack, ram)
        stack.callback(vm.stop)
        start_limit = limit.within(START_SECONDS * machine.accel.timeout_factor)
        vm._attach(start_limit, host_key, stack)
        # Last in, first out: QEMU is asked to quit while QMP is still connected.
        stack.callback(vm.stop)
        if restore is not None:
            vm._restore(start_limit)
        yield vm


def _shared_memory(stack: contextlib.ExitStack, machine: Machine) -> int:
    """A file for the guest's memory that is in memory itself: on a disk it would be written back again and
    again."""
    handle = os.memfd_create("vfio-harness-ram")
    stack.callback(os.close, handle)
    os.ftruncate(handle, machine.memory_mib << 20)
    return handle


def _memory(
    stack: contextlib.ExitStack, ram: int | None, directory: Path, restore: Snapshot | None
) -> Memory | None:
    if restore is not None:
        # Links, because the cache's path may hold what QEMU's option parser would take for its own.
        for name in (RAM, STATE):
            (directory / name).symlink_to(restore.directory / name)
            # What packs the run's directory up later follows links, a gigabyte each.
            stack.callback((directory / name).unlink, missing_ok=True)
        shutil.copyfile(restore.directory / BOOT_LOG, directory / BOOT_LOG)
        return Memory(path=RAM, saved=True)
    return Memory(path=f"/proc/self/fd/{ram}", saved=False) if ram is not None else None
