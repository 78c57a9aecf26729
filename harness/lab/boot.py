# SPDX-License-Identifier: GPL-2.0-only
"""Boot the guest of a Job and verify that it is the requested one.

Three proofs before the first case, all read over SSH: the nonce that QEMU was given (this VM, not an older
one), the GNU build-id of the running kernel (the one we built) and the PCI devices (the topology asked for).
A result from the wrong kernel would be worthless.
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
from harness.base import paths
from harness.base.cause import Cause
from harness.base.deadline import Deadline
from harness.base.errors import BootCrash, HostError, InfraError, LostGuest, UsageError
from harness.base.files import write_atomic
from harness.base.host import starvation
from harness.kernel.arch import find_arch
from harness.kernel.elf import find_build_ids
from harness.kernel.store import find_built, selftests_entry
from harness.machine.accel import Accel, choose_accel
from harness.machine.console import Console
from harness.machine.found import Found, bdfs, mismatches, read_facts
from harness.machine.machine import CONSOLE_LOG, Machine
from harness.machine.qemu import Qemu, find_qemu
from harness.machine.qmp import QmpRefused
from harness.machine.refusals import refuse_impossible, refuse_unavailable
from harness.machine.rootparts import RootParts
from harness.machine.roots import find_root
from harness.machine.shares import Share
from harness.machine.snapshot import FACTS, Snapshot, snapshot_of, unsaved_devices
from harness.machine.splat import Splat
from harness.machine.splatpolicy import seconds_of
from harness.machine.vm import VM, Ending, start_vm
from harness.plan import Job
from harness.remote import Guest

BOOT_SECONDS = 30.0
"""Timeout from starting QEMU to a finished SSH handshake on KVM; multiplied on TCG."""

RESTORE_SECONDS = 10.0
"""The same timeout for a snapshot: on TCG half a second is usual."""

_CLOCK_SLACK = 1.2
"""How much faster than the host's clock a guest's may run: calibration by the PIT is a few percent off."""

_GOODBYE_SECONDS = 1.0
"""Time for the guest's SSH server to notice the disconnect, before the guest is saved."""

_HEARD_SECONDS = 15.0
"""How long a kernel message may take to reach the console; under load it took two seconds."""

_SETTLE_SECONDS = 3.0
"""How long the console may lag behind SSH before a case's splats are counted."""

_BY_ITSELF = (Cause.GUEST_RESET, Cause.GUEST_OFF, Cause.PANICKED)
"""How a guest ends by itself, without QEMU's or the harness's doing."""

_log = logging.getLogger("harness.lab.boot")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A Machine, the QEMU that will run it and what the booted kernel must prove."""

    machine: Machine
    qemu: Qemu
    build_id: str
    watched: bool = False
    """Whether to watch for lost vCPUs."""
    snapshots: bool = True
    """Whether a snapshot may be restored instead of booting."""
    dumps: bool = False
    """Whether the memory of a guest that panics or hangs is dumped."""

    @property
    def accel(self) -> Accel:
        return self.machine.accel

    @classmethod
    def of(
        cls, job: Job, *, qemu: Qemu | None = None, gdb: bool = False, shares: tuple[Share, ...] = ()
    ) -> Recipe:
        """Return the Recipe of *job*, with the kernel in this host's store and *qemu* or this host's QEMU.

        Raises InfraError when this host cannot boot it.
        """
        arch = find_arch(job.arch)
        qemu = qemu or find_qemu(arch=arch)
        job.qemu.check(qemu)
        try:
            refuse_impossible(job.topology, arch)
            refuse_unavailable(job.topology, qemu)
        except UsageError as error:
            # The host that planned the job could run it, so it is this host's fault.
            raise HostError(error.message, hint=error.hint) from error
        kernel = find_built(job.kernel.digest)
        if kernel is None:
            raise InfraError(
                f"the kernel of job {job.name} is not in the store",
                hint="vfio-harness run builds it",
                cause=Cause.KERNEL_MISSING,
            )
        accel = choose_accel(job.accel, qemu, kernel.image).accel
        machine = Machine(
            arch=arch,
            image=kernel.image,
            modules_dir=kernel.modules_dir,
            selftests_dir=selftests_entry(job.kernel.selftests) if job.kernel.selftests else None,
            topology=job.topology,
            cpus=job.cpus,
            memory_mib=job.memory_mib,
            accel=accel,
            root=find_root(job.root.name, arch, job.root.disks),
            gdb=gdb,
            shares=shares,
        )
        return cls(
            machine=machine,
            qemu=qemu,
            build_id=kernel.build_id,
            # Only emulated vCPUs get lost; and a debugger may stop any vCPU for any time.
            watched=kernel.ticks and accel is Accel.TCG and not gdb,
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
        """How far the console had come at the last call of splats()."""
        self._told = 0
        """How many splats were returned.  A position in the console cannot tell which are new: the first line
        of one may be half written when it is taken."""

    def account(self, **seconds: float) -> None:
        """Add the VM's CPU time to its timing file, which the report of the run reads."""
        timing = json.loads((self.directory / paths.TIMING_FILE).read_text(encoding="utf-8"))
        _write_timing(self.directory, {**timing, **seconds})

    @property
    def directory(self) -> Path:
        return self.vm.directory

    def splats(self, name: str | None = None) -> tuple[Splat, ...]:
        """Return the splats since the last call, those of the boot too.

        With *name*, wait until the end of that piece of work has reached the console, which the
        kernel writes from a thread of its own.
        """
        console = self.vm.console
        if self.vm.alive:
            limit = self.vm.patient(Deadline.after(_SETTLE_SECONDS * self.vm.machine.accel.timeout_factor))
            if name is not None:
                console.wait_for(f"{kmsg.END} {name}", limit, self._read)
            while not console.settled and not limit.expired:
                time.sleep(0.05)
        self._read = console.size
        splats = console.splats()
        told, self._told = self._told, len(splats)
        return splats[told:]

    @property
    def silent_ending(self) -> Ending | None:
        """How the guest reset itself, powered off or panicked without a fatal splat; None if it did not."""
        ending = self.vm.ending
        if ending is None or ending.cause not in _BY_ITSELF:
            return None
        return None if any(splat.fatal for splat in self.vm.console.splats()) else ending

    def hears(self, name: str, since: int) -> bool:
        """Whether kernel messages reached the console all through the piece of work *name*, which has ended.

        Its first and its last message must be on the console, at byte *since* or later, with time stamps.
        """
        if not self.vm.alive:
            return True
        limit = self.vm.patient(Deadline.after(_HEARD_SECONDS * self.vm.machine.accel.timeout_factor))
        words = (f"{kmsg.BEGIN} {name}", f"{kmsg.END} {name}")
        return all(self.vm.console.hears(word, limit, since) for word in words)

    def bring(self, files: Mapping[str, Path], limit: Deadline) -> None:
        """Copy *files*, by their paths in the guest, into it unless they are there.  Raises LostGuest."""
        for target, source in files.items():
            there = self.guest.check(f"test -e {target} && echo yes || echo no", limit)
            if there.strip() == "no":
                self.guest.push(source, target, limit)

    def diagnose(self) -> None:
        """Collect diagnostics of the VM while it still runs."""
        self.vm.diagnose()

    def dump(self) -> None:
        """Dump the guest's memory while it still runs, unless that was done."""
        if self.vm.alive and self.vm.dumper is not None:
            self.vm.dumper.take()


@contextlib.contextmanager
def boot(recipe: Recipe, directory: Path) -> Iterator[Booted]:
    """Boot, connect and verify; the VM is stopped when the block ends.

    A machine that has a snapshot is restored from it; one that boots is saved as a snapshot.
    Raises BootCrash when the kernel died on the way, LostGuest when no guest answers in time, InfraError when
    another guest than the requested one answers.
    """
    parts = recipe.machine.parts()
    snapshot = snapshot_of(recipe.machine, recipe.qemu, parts) if recipe.snapshots else None
    with contextlib.ExitStack() as stack:
        start = _Start(recipe, directory, parts)
        booted = start.restore(snapshot, stack) or start.boot_in_turn(snapshot, stack)
        stack.callback(_note_time, booted)
        yield booted


@dataclasses.dataclass(frozen=True, slots=True)
class _Start:
    """The start of one VM: from a snapshot, else by booting; both end with the proofs."""

    recipe: Recipe
    directory: Path
    parts: RootParts
    nonce: str = dataclasses.field(default_factory=lambda: secrets.token_hex(8))
    began: float = dataclasses.field(default_factory=time.monotonic)

    def restore(self, snapshot: Snapshot | None, stack: contextlib.ExitStack) -> Booted | None:
        """Restore the machine from *snapshot*; None when there is none, or a bad one, which is removed."""
        if snapshot is None or not snapshot.exists():
            return None
        limit = Deadline.after(RESTORE_SECONDS * self.recipe.accel.timeout_factor)
        with contextlib.ExitStack() as own:
            try:
                with snapshot.in_use() as there:
                    if not there:
                        return None
                    vm = own.enter_context(self._vm(limit, restore=snapshot))
                limit = vm.patient(limit)
                guest = own.enter_context(_connect(vm, limit))
                connected = time.monotonic()
                found = ask_facts(guest, limit, rescan=True)
                if not found.same_machine(read_facts(snapshot.facts)):
                    message = "the restored guest reports a different machine than when it was saved"
                    raise InfraError(message, cause=Cause.WRONG_GUEST)
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
        """Raise BootCrash when the restored guest did not answer because its kernel died."""
        console = Console(self.directory / CONSOLE_LOG)
        console.finish()
        crash = _crash(console, "the kernel died when it was restored")
        if crash is not None:
            raise crash from error

    def boot_in_turn(self, snapshot: Snapshot | None, stack: contextlib.ExitStack) -> Booted:
        """Boot the machine, or restore it if another process saved it while this one waited for its turn."""
        if snapshot is None:
            return self.boot(None, stack)
        with snapshot.first_boot(self._boot_limit()):
            return self.restore(snapshot, stack) or self.boot(snapshot, stack)

    def boot(self, snapshot: Snapshot | None, stack: contextlib.ExitStack) -> Booted:
        """Boot the machine and save it as *snapshot* once it is ready."""
        if snapshot is not None and snapshot.refusal() is not None:
            snapshot = None
        limit = self._boot_limit()
        began = time.monotonic()
        vm = stack.enter_context(self._vm(limit, savable=snapshot is not None))
        limit, starved = vm.patient(limit), starvation(vm.pid)
        if self.recipe.watched:
            vm.watch_vcpus(booting=True)
        try:
            # slirp accepts before the guest listens; the console shows sooner when it does.
            vm.wait_booted(limit)
            guest = _connect(vm, limit)
            connected = time.monotonic()
            vm.wait_agent(limit)
            found = ask_facts(guest, limit)
            _check_clock(found, time.monotonic() - began)
            booted = self._prove(vm, guest, found, connected)
            # Splats of the boot must be reported in every run.
            if snapshot is not None and not vm.console.splats():
                booted = self._save(snapshot, booted, found, limit)
        except LostGuest as error:
            waited, passed = starved(), time.monotonic() - began
            vm.diagnose()
            vm.wait(Deadline.after(1.0))
            raise _never_up(vm, error, waited, passed) from error
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
            dumps=self.recipe.dumps,
            deadline=limit,
        )

    def _prove(
        self, vm: VM, guest: Guest, found: Found, connected: float, *, restored: bool = False
    ) -> Booted:
        if self.recipe.watched:
            vm.watch_vcpus()
        _prove_kernel(found, self.recipe, self.nonce)
        _prove_voice(vm, self.nonce)
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
        """Save the machine and go on with it; devices without migration state are removed meanwhile.

        A machine that cannot be saved is used all the same.
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
            message = "the guest reports a different machine than before it was saved"
            raise InfraError(message, cause=Cause.WRONG_GUEST)
        return Booted(booted.vm, guest, booted.bdfs)

    def _let_go(self, booted: Booted, limit: Deadline) -> None:
        """Remove the devices that QEMU does not save, and disconnect: a restored guest has no SSH peer."""
        unsaved = [booted.bdfs[name] for name in unsaved_devices(self.recipe.machine.topology)]
        said = ask(booted.guest, ["remove", *unsaved], limit)
        if said.strip() != "removed":
            message = f"the guest could not remove {', '.join(unsaved)}: {said.strip()[-200:]}"
            raise InfraError(message, cause=Cause.NO_AGENT)
        booted.guest.close()
        booted.vm.console.wait_for("Exit (root)", limit.within(_GOODBYE_SECONDS))


def _write_timing(directory: Path, timing: Mapping[str, object]) -> None:
    """Write *timing* for the summary of the run."""
    write_atomic(directory / paths.TIMING_FILE, json.dumps(timing) + "\n")


def _note_time(booted: Booted) -> None:
    """Add its processor time to the timing of a VM that ends; nothing if QEMU is gone already."""
    spent = booted.vm.cpu_seconds
    if spent is not None:
        booted.account(cpu=spent)


def _connect(vm: VM, limit: Deadline) -> Guest:
    return Guest.connect(vm.ssh, limit, lambda: vm.alive, vm.check_vcpus)


def _crash(console: Console, what: str, hint: str | None = None) -> BootCrash | None:
    """Return the error for a fatal splat on *console*; None without one."""
    fatal = next((splat for splat in console.splats() if splat.fatal), None)
    if fatal is None:
        return None
    return BootCrash(f"{what}: {fatal.title}", splat="\n".join(fatal.lines), hint=hint)


def _never_up(vm: VM, error: LostGuest, starved: float, passed: float) -> LostGuest | BootCrash:
    """Return why no guest came up: the kernel's own crash, else the loss with the console's last line.

    *starved*: for how many of the *passed* seconds the host gave QEMU no CPU.
    """
    hint = f"the console: {vm.console.path}"
    crash = _crash(vm.console, "the kernel died while booting", hint)
    if crash is not None:
        stamps = filter(None, map(seconds_of, vm.console.text().splitlines()))
        wrong = _wrong_clock(max(stamps, default=0.0), passed)
        return LostGuest(f"{crash.message}, but {wrong}", hint=hint, cause=Cause.HOST) if wrong else crash
    last = next((line.strip() for line in reversed(vm.console.tail()) if line.strip()), "")
    said = f"; last console line: {last}" if last else "; the console is empty"
    ending = vm.ending
    how = "" if ending is None or ending.text == error.message else f" ({ending.text})"
    if ending is None and starved > BOOT_SECONDS:
        said += f"; this host had no CPU for QEMU for {starved:.0f} s of that time"
        return LostGuest(f"{error.message}{said}", hint=hint, cause=Cause.HOST)
    # How the VM ended explains more than which service did not answer.
    cause = error.cause if ending is None else ending.cause
    return LostGuest(f"{error.message}{how}{said}", hint=hint, cause=cause)


def ask_facts(guest: Guest, limit: Deadline, *, rescan: bool = False) -> Found:
    """Set the guest's clock and return what it reports about itself; LostGuest when it does not answer by
    *limit*.

    With *rescan* it rescans the PCI bus first.
    """
    return read_facts(ask(guest, ["rescan" if rescan else "facts", str(time.time())], limit))


def ask(guest: Guest, words: Sequence[str], limit: Deadline) -> str:
    """Return the answer of guest/resident.py to *words*."""
    with contextlib.closing(guest.dial(PORT, limit)) as stream:
        stream.send(json.dumps(words))
        try:
            return "\n".join(stream.lines(limit))
        except TimeoutError as error:
            message = f"the guest did not answer in time when asked for {words[0]}"
            raise LostGuest(message, cause=Cause.TIMED_OUT) from error


def _check_clock(found: Found, passed: float) -> None:
    """Refuse a guest whose clock shows more than the *passed* seconds since its kernel started.

    The kernel measures the TSC against the PIT while it boots.  If a busy host preempts an emulated vCPU
    meanwhile, the kernel counts too few cycles: clocks 30 times too fast were seen, and every timeout in such
    a guest is too short by that factor.
    """
    if wrong := _wrong_clock(found.uptime, passed):
        raise InfraError(wrong, hint="the host was too busy while the guest booted", cause=Cause.HOST)


def _wrong_clock(uptime: float, passed: float) -> str:
    """Say that a guest's *uptime* is more than the *passed* seconds since its kernel started; "" if not."""
    if uptime <= passed * _CLOCK_SLACK + 1:
        return ""
    return f"the guest's clock is wrong: {uptime:.0f} s since it began, {passed:.0f} s by the host's"


def _prove_kernel(found: Found, recipe: Recipe, nonce: str) -> None:
    if found.nonce != nonce:
        raise InfraError("another VM answered on this port (nonce mismatch)", cause=Cause.WRONG_GUEST)
    running = tuple(find_build_ids(found.notes))
    if recipe.build_id not in running:
        other = ", ".join(running) or "none"
        message = f"the running kernel is not the one built: build-id {other}, not {recipe.build_id}"
        raise InfraError(message, cause=Cause.WRONG_GUEST)


def _prove_voice(vm: VM, nonce: str) -> None:
    """Refuse a guest whose kernel messages do not reach the console with time stamps."""
    limit = vm.patient(Deadline.after(_HEARD_SECONDS * vm.machine.accel.timeout_factor))
    if not vm.console.hears(f"{kmsg.PROOF} {nonce}", limit):
        raise InfraError(
            "kernel messages do not reach the console with time stamps",
            hint=f"the console: {vm.console.path}",
            cause=Cause.UNHEARD,
        )


def _prove_devices(found: Found, recipe: Recipe) -> dict[str, str]:
    """Compare the machine found with the one asked for; return the PCI address of each device."""
    wrong = mismatches(recipe.machine.topology, found)
    if wrong:
        message = f"the machine is not the one asked for: {'; '.join(wrong)}"
        raise InfraError(message, cause=Cause.WRONG_GUEST)
    return bdfs(recipe.machine.topology, found)
