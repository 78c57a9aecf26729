# SPDX-License-Identifier: GPL-2.0-only
"""From a Job to a guest that is proven to be what was asked for.

Three proofs before the first case, all read over SSH: the nonce that QEMU was given (this VM, not an older
one), the GNU build-id of the running kernel (the one we built) and the PCI devices (the topology asked for).
A result on the wrong kernel is not a result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from guest import kmsg
from guest.resident import PORT
from harness import paths
from harness.deadline import Deadline
from harness.errors import BootCrash, InfraError, LostGuest
from harness.kernel.elf import find_build_ids
from harness.kernel.store import find_built
from harness.machine.accel import Accel
from harness.machine.console import Console
from harness.machine.found import Found, bdfs, mismatches, read_facts
from harness.machine.machine import CONSOLE_LOG, Machine
from harness.machine.qemu import Qemu, find_qemu
from harness.machine.qmp import QmpRefused
from harness.machine.roots import RootParts, find_root
from harness.machine.snapshot import FACTS, Snapshot, snapshot_of, unsaved_devices
from harness.machine.splat import Splat
from harness.machine.topology import load_topology
from harness.machine.vm import VM, State, start_vm
from harness.plan import Job
from harness.remote import Endpoint, Guest

BOOT_SECONDS = 30.0
"""From starting QEMU to a finished SSH handshake, on KVM; TCG multiplies it."""

RESTORE_SECONDS = 10.0
"""The same from a snapshot: on TCG half a second is usual."""

_CLOCK_SLACK = 1.2
"""How much faster than ours a guest's clock may run: measured by the PIT it is good to some percent."""

_GOODBYE_SECONDS = 1.0
"""For the guest's SSH server to notice that we hung up, before the guest is saved."""

_SETTLE_SECONDS = 3.0
"""How long the console may lag behind SSH before a case's splats are counted."""

_log = logging.getLogger("harness.boot")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A Machine, the QEMU that will run it and what the booted kernel must prove."""

    machine: Machine
    qemu: Qemu
    build_id: str
    watched: bool = False
    """Whether to watch for processors that get lost."""
    snapshots: bool = True
    """Whether a snapshot may take the place of a boot."""

    @property
    def accel(self) -> Accel:
        return self.machine.accel

    @classmethod
    def of(cls, job: Job, *, gdb: bool = False) -> Recipe:
        """What *job* wants booted, whose kernel is in the store.

        Raises UsageError or InfraError when this host cannot.
        """
        qemu = find_qemu(Path(job.qemu) if job.qemu else None)
        kernel = find_built(job.kernel.digest)
        if kernel is None:
            raise InfraError(f"the kernel of job {job.name} is not in the store", hint="run it again")
        machine = Machine(
            vmlinux=kernel.vmlinux,
            modules_dir=kernel.modules_dir,
            selftests_dir=Path(job.kernel.selftests_dir) if job.kernel.selftests_dir else None,
            topology=load_topology(job.topology, qemu),
            cpus=job.cpus,
            memory_mib=job.memory_mib,
            accel=Accel(job.accel),
            root=find_root(job.root),
            gdb=gdb,
        )
        return cls(
            machine=machine,
            qemu=qemu,
            build_id=kernel.build_id,
            # The processors that get lost are emulated ones; a debugger stops any for as long as it likes.
            watched=kernel.ticks and Accel(job.accel) is Accel.TCG and not gdb,
            snapshots=job.snapshots,
        )


class Booted:
    """A running VM, the Guest in it and where its devices were found."""

    def __init__(self, vm: VM, guest: Guest, bdfs: Mapping[str, str]) -> None:
        self.vm = vm
        self.guest = guest
        self.bdfs = bdfs
        """Device id -> BDF, `0000:00:04.0`."""
        self._read = 0
        """How much of the console has been looked at; what was said while booting counts too."""

    def account(self, **seconds: float) -> None:
        """Add to what the VM leaves about its time, for the harness.session.timing of its run."""
        timing = json.loads((self.directory / paths.TIMING_FILE).read_text(encoding="utf-8"))
        _write_timing(self.directory, {**timing, **seconds})

    @property
    def directory(self) -> Path:
        return self.vm.directory

    def splats(self, name: str | None = None) -> tuple[Splat, ...]:
        """What the kernel complained of since the last look.

        With *name*, the look waits until the end of that piece of work has reached the console, which the
        kernel writes from a thread of its own.
        """
        console = self.vm.console
        if self.vm.alive:
            limit = Deadline.after(_SETTLE_SECONDS * self.vm.machine.accel.timeout_factor)
            if name is not None:
                console.wait_for(f"{kmsg.END} {name}", limit, self._read)
            while not console.settled and not limit.expired:
                time.sleep(0.05)
        read, self._read = self._read, console.size
        return console.splats(read)

    def diagnose(self) -> None:
        """Ask the VM what it can still tell, while it can."""
        self.vm.diagnose()

    def cause_of_loss(self, error: LostGuest) -> str:
        """Why the guest is gone: the VM's own ending where it has one, else what the connection said."""
        self.vm.wait(Deadline.after(1.0))
        return error.message if self.vm.state is State.RUNNING else self.vm.ending


@contextlib.contextmanager
def boot(recipe: Recipe, directory: Path) -> Iterator[Booted]:
    """Boot, connect, prove; the VM is stopped when the block ends.

    A machine that was ready once before is had from its snapshot; one that boots leaves a snapshot behind.
    Raises BootCrash when the kernel died on the way, LostGuest when no guest answers in time, InfraError when
    the one that answers is not the one asked for.
    """
    parts = recipe.machine.parts()
    snapshot = snapshot_of(recipe.machine, recipe.qemu, parts) if recipe.snapshots else None
    with contextlib.ExitStack() as stack:
        attempt = _Attempt(recipe, directory, parts)
        booted = attempt.restore(snapshot, stack) or attempt.start_in_turn(snapshot, stack)
        stack.callback(_note_time, booted)
        yield booted


@dataclasses.dataclass(frozen=True, slots=True)
class _Attempt:
    """One way after the other to a guest that is proven to be what was asked for."""

    recipe: Recipe
    directory: Path
    parts: RootParts
    nonce: str = dataclasses.field(default_factory=lambda: secrets.token_hex(8))
    began: float = dataclasses.field(default_factory=time.monotonic)

    def restore(self, snapshot: Snapshot | None, stack: contextlib.ExitStack) -> Booted | None:
        """The machine from *snapshot*; None when there is none, or when it is bad: then it goes."""
        if snapshot is None or not snapshot.exists():
            return None
        limit = Deadline.after(RESTORE_SECONDS * self.recipe.accel.timeout_factor)
        with contextlib.ExitStack() as own:
            try:
                with snapshot.in_use() as there:
                    if not there:
                        return None
                    vm = own.enter_context(self._vm(limit, restore=snapshot))
                guest = own.enter_context(_connect(vm, limit))
                connected = time.monotonic()
                found = ask_facts(guest, limit, rescan=True)
                if not found.same_machine(read_facts(snapshot.facts)):
                    raise InfraError("the guest sees another machine than when it was saved")
                booted = self._prove(vm, guest, found, connected, restored=True)
            except (InfraError, OSError, ValueError) as error:
                self._blame_kernel(error)
                _log.warning("a snapshot is bad (%s): the machine boots and is saved again", error)
            else:
                snapshot.note_use()
                stack.enter_context(own.pop_all())
                return booted
        snapshot.drop()
        return None

    def _boot_limit(self) -> Deadline:
        return Deadline.after(BOOT_SECONDS * self.recipe.accel.timeout_factor)

    def _blame_kernel(self, error: Exception) -> None:
        """Raise BootCrash when it was the kernel's death that kept a restored guest from answering."""
        console = Console(self.directory / CONSOLE_LOG)
        console.finish()
        fatal = next((splat for splat in console.splats() if splat.fatal), None)
        if fatal is not None:
            said = "\n".join(fatal.lines)
            raise BootCrash(f"the kernel died when it was restored: {fatal.title}", splat=said) from error

    def start_in_turn(self, snapshot: Snapshot | None, stack: contextlib.ExitStack) -> Booted:
        """Boot the machine, or restore it if another process has saved it while we waited to boot it."""
        if snapshot is None:
            return self.start(None, stack)
        with snapshot.first_boot(self._boot_limit()):
            return self.restore(snapshot, stack) or self.start(snapshot, stack)

    def start(self, snapshot: Snapshot | None, stack: contextlib.ExitStack) -> Booted:
        """The machine from its first instruction, saved as *snapshot* on the way."""
        if snapshot is not None and snapshot.refusal() is not None:
            snapshot = None
        limit = self._boot_limit()
        began = time.monotonic()
        vm = stack.enter_context(self._vm(limit, savable=snapshot is not None))
        try:
            # slirp accepts before the guest listens; the console tells sooner when it does.
            vm.wait_booted(limit)
            guest = _connect(vm, limit)
            connected = time.monotonic()
            vm.wait_agent(limit)
            found = ask_facts(guest, limit)
            _check_clock(found, time.monotonic() - began)
            booted = self._prove(vm, guest, found, connected)
            # What the kernel complained of while booting must be heard in every run.
            if snapshot is not None and not vm.console.splats():
                booted = self._save(snapshot, booted, found, limit)
        except LostGuest as error:
            vm.diagnose()
            vm.wait(Deadline.after(1.0))
            raise _never_up(vm, error) from error
        stack.callback(booted.guest.close)
        return booted

    def _vm(
        self, limit: Deadline, *, restore: Snapshot | None = None, savable: bool = False
    ) -> contextlib.AbstractContextManager[VM]:
        return start_vm(
            self.recipe.machine,
            self.directory,
            nonce=self.nonce,
            qemu=self.recipe.qemu,
            parts=self.parts,
            restore=restore,
            savable=savable,
            deadline=limit,
        )

    def _prove(
        self, vm: VM, guest: Guest, found: Found, connected: float, *, restored: bool = False
    ) -> Booted:
        if self.recipe.watched:
            vm.watch_processors()
        _prove_kernel(found, self.recipe, self.nonce)
        places = _prove_devices(found, self.recipe)
        timing = {
            "to_ssh": connected - self.began,
            "to_proof": time.monotonic() - self.began,
            "cpu_to_proof": vm.cpu_seconds,
            "restored": restored,
        }
        _write_timing(self.directory, timing)
        return Booted(vm, guest, places)

    def _save(self, snapshot: Snapshot, booted: Booted, found: Found, limit: Deadline) -> Booted:
        """Save the machine and go on with it; what a restored one could not have is taken away meanwhile.

        A machine that cannot be saved is no reason not to use it.
        """
        try:
            with snapshot.making() as target:
                if target is None:
                    return booted
                self._let_go(booted, limit)
                (target / FACTS).write_text(found.text, encoding="utf-8")
                booted.vm.save(target)
        except QmpRefused as error:
            _log.warning("QEMU does not save this machine, so it boots every time: %s", error.description)
            snapshot.refuse(error.description)
        except (InfraError, OSError) as error:
            _log.warning("this machine could not be saved: %s", error)
        guest = _connect(booted.vm, limit)
        if not ask_facts(guest, limit, rescan=True).same_machine(found):
            raise InfraError("the guest sees another machine than before it was saved")
        return Booted(booted.vm, guest, booted.bdfs)

    def _let_go(self, booted: Booted, limit: Deadline) -> None:
        """Have the guest forget the devices that are not saved, and hang up: a restored one has no peer."""
        unsaved = [booted.bdfs[name] for name in unsaved_devices(self.recipe.machine.topology)]
        said = _ask(booted.guest, ["remove", *unsaved], limit)
        if said.strip() != "removed":
            raise InfraError(f"the guest does not let go of {', '.join(unsaved)}: {said.strip()[-200:]}")
        booted.guest.close()
        booted.vm.console.wait_for("Exit (root)", limit.within(_GOODBYE_SECONDS))


def _write_timing(directory: Path, timing: Mapping[str, object]) -> None:
    """Leave *timing* for whoever tells where time went, whole or not at all."""
    partial = directory / f".{paths.TIMING_FILE}"
    partial.write_text(json.dumps(timing) + "\n", encoding="utf-8")
    partial.replace(directory / paths.TIMING_FILE)


def _note_time(booted: Booted) -> None:
    """Add to the timing of a VM that ends what processor time it cost; nothing when it is gone already."""
    spent = booted.vm.cpu_seconds
    if spent is not None:
        booted.account(cpu=spent)


def _connect(vm: VM, limit: Deadline) -> Guest:
    return Guest.connect(_endpoint(vm), limit, lambda: vm.alive, vm.check_processors)


def _endpoint(vm: VM) -> Endpoint:
    ssh = vm.ssh
    return Endpoint(
        host=ssh.address, port=ssh.port, user=ssh.user, client_key=ssh.client_key, host_key=ssh.host_key
    )


def _never_up(vm: VM, error: LostGuest) -> LostGuest | BootCrash:
    """Why no guest came up: the kernel's fault by its own account, else a loss and the last word heard."""
    hint = f"the console: {vm.console.path}"
    fatal = next((splat for splat in vm.console.splats() if splat.fatal), None)
    if fatal is not None:
        said = "\n".join(fatal.lines)
        return BootCrash(f"the kernel died while booting: {fatal.title}", splat=said, hint=hint)
    last = next((line.strip() for line in reversed(vm.console.tail()) if line.strip()), "")
    said = f"; the console's last word: {last}" if last else "; the console is empty"
    ending = "" if vm.alive else f" ({vm.ending})"
    return LostGuest(f"{error.message}{ending}{said}", hint=hint)


def ask_facts(guest: Guest, limit: Deadline, *, rescan: bool = False) -> Found:
    """What the guest says of itself, its clock set to ours first; LostGuest when nothing comes by *limit*.

    With *rescan* it looks for PCI devices before.
    """
    return read_facts(_ask(guest, ["rescan" if rescan else "facts", str(time.time())], limit))


def _ask(guest: Guest, words: Sequence[str], limit: Deadline) -> str:
    """What guest/resident.py answers to *words*."""
    with contextlib.closing(guest.dial(PORT, limit)) as stream:
        stream.send(json.dumps(words))
        try:
            return "\n".join(stream.lines(limit))
        except TimeoutError as error:
            raise LostGuest(f"the guest did not answer in time when asked for {words[0]}") from error


def _check_clock(found: Found, passed: float) -> None:
    """Refuse a guest by whose clock more time went by since its kernel began than the *passed* seconds.

    The kernel measures its processor's TSC against the PIT while it boots.  An emulated processor that its
    busy host takes away meanwhile counts too little: clocks 30 times too fast were seen, and every time limit
    in such a guest is as much too short.
    """
    if found.uptime > passed * _CLOCK_SLACK + 1:
        raise InfraError(
            f"the guest's clock is wrong: {found.uptime:.0f} s since it began, {passed:.0f} s by the host's",
            hint="the host was too busy while the guest booted",
        )


def _prove_kernel(found: Found, recipe: Recipe, nonce: str) -> None:
    if found.nonce != nonce:
        raise InfraError("the guest that answers is not the VM that was started: its nonce is another one")
    running = tuple(find_build_ids(found.notes))
    if recipe.build_id not in running:
        other = ", ".join(running) or "none"
        raise InfraError(f"the running kernel is not the one built: build-id {other}, not {recipe.build_id}")


def _prove_devices(found: Found, recipe: Recipe) -> dict[str, str]:
    """Compare the machine found with the one asked for; return where each of its devices is."""
    wrong = mismatches(recipe.machine.topology, found)
    if wrong:
        raise InfraError(f"the machine is not the one asked for: {'; '.join(wrong)}")
    return bdfs(recipe.machine.topology, found)
