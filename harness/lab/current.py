# SPDX-License-Identifier: GPL-2.0-only
"""The VM that the work of a job runs in: booted on demand, discarded when it cannot be used further."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypedDict

from guest.ground import RESTORE_TIMEOUT
from harness.base import paths
from harness.base.cause import Cause
from harness.base.deadline import Deadline
from harness.base.errors import BootCrash, DeadlinePassed, HarnessError, InfraError, KernelError, LostGuest
from harness.base.outcome import Outcome
from harness.kernel.pending import wait_for_kernel
from harness.kernel.store import hold
from harness.lab.admission import admitted
from harness.lab.agent import AgentClient
from harness.lab.attempt import Attempt
from harness.lab.boot import Booted, Recipe, boot
from harness.lab.retries import again
from harness.lab.settings import Settings
from harness.machine.rootparts import GUEST_RUN
from harness.machine.splat import Splat
from harness.plan import Isolation, Job, too_late
from harness.results.model import BOOTS, QUIET
from harness.suites.model import CaseResult, Work

SERVICE_SECONDS = 20.0
"""Timeout on KVM for what the harness itself asks of the guest."""

_OWN_PROBES = f"{GUEST_RUN}/own-probes"
"""Where guests have the user's own probes."""

_log = logging.getLogger("harness.lab")


class Untold(TypedDict):
    """What happened outside work and is in no Attempt yet, named like the fields of Attempt."""

    strays: tuple[Splat, ...]
    boots: tuple[Attempt, ...]


class CurrentVM:
    """The VMs of a job, one after the other; at most one runs."""

    def __init__(
        self,
        job: Job,
        directory: Path,
        settings: Settings,
        builds: Path | None,
    ) -> None:
        self.job = job
        self.settings = settings
        self.factor = 1.0
        """What timeouts are multiplied by; known when the accelerator is proven, before the first boot."""
        self._directory = directory
        self._builds = builds
        self._recipe: Recipe | None = None
        self._booted: Booted | None = None
        self._agent: AgentClient | None = None
        self._stack = contextlib.ExitStack()
        self._newest = ""
        """The directory of the VM that was started last; empty if none was."""
        self._unit = ""
        """The unit of work that this VM is for, if the isolation gives each unit its own VM."""
        self._used = self._used_before = False
        """Whether the VM ran anything but fresh cases; and whether it had when the last work began."""
        self._broken: HarnessError | None = None
        """Why no VM of this job comes up."""
        self._last_work = ""
        """The name of the work that was begun last."""
        self._strays: tuple[Splat, ...] = ()
        self._boots: list[Attempt] = []
        self._told_boots = 0

    def ready(self, work: Work) -> Booted:
        """Return the VM for *work*: the running one if it is suitable, else a new one.

        Raises HarnessError when none comes up.
        """
        units = {Isolation.VM: "", Isolation.PROGRAM: work.program, Isolation.CASE: work.name}
        unit = units[self.settings.isolation]
        if self._booted is not None and (
            work.destructive
            or not self._booted.vm.alive
            or unit != self._unit
            or (work.fresh and not self._is_fresh())
        ):
            self.end()
        self._unit = unit
        if self._broken is not None:
            raise self._broken
        booted = self._booted or self._boot_until_ready()
        self._last_work = work.name
        self._used_before, self._used = self._used, self._used or not work.fresh
        return booted

    @property
    def vm_dir(self) -> str:
        """The directory of the running VM relative to the lab's; empty while none runs."""
        return self._newest if self._booted is not None else ""

    def agent(self) -> AgentClient:
        """Return the agent in the running VM."""
        assert self._booted is not None
        if self._agent is None:
            guest, limit = self._booted.guest, self.service(RESTORE_TIMEOUT)
            fresh = not self._used_before
            own = {}
            if self.job.own.probes:
                self._booted.bring({_OWN_PROBES: paths.programs_entry(self.job.own.probes)}, limit)
                own = {"own": _OWN_PROBES}
            self._agent = AgentClient(
                guest, self.job.features, limit, fresh=fresh, patient=self._booted.vm.patient, **own
            )
        return self._agent

    def service(self, extra: float = 0.0) -> Deadline:
        """Return the deadline of a request to the guest that begins now."""
        limit = Deadline.after((SERVICE_SECONDS + extra) * self.factor)
        return limit if self._booted is None else self._booted.vm.patient(limit)

    def hear(self, splats: Iterable[Splat]) -> None:
        """Keep *splats* outside any case for the next Attempt."""
        self._strays += tuple(splats)

    def untold(self) -> Untold:
        """Return what happened outside work since the last call."""
        untold = Untold(strays=self._strays, boots=tuple(self._boots))
        self._strays, self._boots = (), []
        return untold

    def end(self) -> None:
        """Stop the VM, if there is one, when its kernel has printed all that it has to say."""
        if self._booted is not None:
            if "debug" in self.job.features and self._booted.vm.alive:
                _look_for_leaks(self._booted, ("scan", "scan"), self.service(RESTORE_TIMEOUT))
            self.hear(self._booted.splats())
            if ending := self._booted.silent_ending:
                reason = f"{ending.text} outside any case, after {self._last_work}"
                lost = CaseResult(case=QUIET.case, outcome=Outcome.LOST, reason=reason, cause=ending.cause)
                self._boots.append(Attempt(results=(lost,), vm_dir=self.vm_dir))
        self.close()

    def close(self) -> None:
        """Stop the VM, if there is one, and keep what its kernel printed until then."""
        booted, self._agent, self._booted = self._booted, None, None
        self._stack.close()
        if booted is not None:
            self.hear(booted.splats())

    def _is_fresh(self) -> bool:
        """Whether the VM ran fresh cases only and its kernel is not tainted."""
        if self._used or self._booted is None:
            return False
        try:
            taint = self._booted.guest.check(["cat", "/proc/sys/kernel/tainted"], self.service())
        except LostGuest:
            return False
        return taint.strip() == "0"

    def _boot_until_ready(self) -> Booted:
        """Boot, with the retries that the rule allows."""
        failed: list[Attempt] = []
        told = self._told_boots
        while self._booted is None:
            self._newest = ""
            try:
                self._booted = self._boot()
            except DeadlinePassed:
                self._stack.close()
                raise
            except (InfraError, KernelError) as error:
                self._stack.close()
                failed.append(_failed_boot(error, self._newest))
                if again(failed) is None:
                    self._broken = error
                    if failed[-1].has(Outcome.CRASH):
                        self._tell_boot(failed[-1])
                    raise
                if self._newest:
                    self._tell_boot(failed[-1])
        if self._told_boots > told:
            came_up = CaseResult(case=BOOTS.case, outcome=Outcome.PASS)
            self._tell_boot(Attempt(results=(came_up,), vm_dir=self._newest))
        return self._booted

    def _tell_boot(self, attempt: Attempt) -> None:
        self._told_boots += 1
        self._boots.append(dataclasses.replace(attempt, number=self._told_boots))

    def _boot(self) -> Booted:
        self._stack = contextlib.ExitStack()
        self._agent, self._used = None, False
        job = self.job
        if self._builds is not None:
            wait_for_kernel(job.kernel.digest, self._builds, self._check_deadline)
        waited = self._stack.enter_context(admitted(job.memory_mib, self._check_deadline, cpus=job.cpus))
        # Keep the kernel from being pruned while the VM runs.
        self._stack.enter_context(hold(job.kernel.digest, job.kernel.selftests, job.own.digests))
        if self._recipe is None:
            self._recipe = dataclasses.replace(Recipe.of(job), dumps=True)
            self.factor = self._recipe.accel.timeout_factor
        directory = self._new_directory()
        self._newest = str(directory.relative_to(self._directory))
        booted = self._stack.enter_context(boot(self._recipe, directory))
        booted.account(waited=waited)
        if "debug" in job.features:
            _look_for_leaks(booted, ("scan", "scan", "clear"), self.service(RESTORE_TIMEOUT))
        return booted

    def _check_deadline(self) -> None:
        """Raise DeadlinePassed when the wait has lasted too long."""
        if late := too_late(self.settings.until):
            raise DeadlinePassed(late)

    def _new_directory(self) -> Path:
        """Make the directory of the next VM; numbers go on where an earlier process stopped."""
        number = 1
        while True:
            directory = self._directory / "vm" / f"{self.job.name}-{self.settings.process}-{number}"
            try:
                directory.mkdir(parents=True)
            except FileExistsError:
                number += 1
            else:
                return directory


def _look_for_leaks(booted: Booted, words: Sequence[str], deadline: Deadline) -> None:
    """Write *words* to kmemleak and keep what it reports beside the console.

    An object counts as leaked when it is older than 5 seconds and two scans agree on it
    (mm/kmemleak.c MSECS_MIN_AGE, update_checksum()); what leaked while booting is cleared.
    """
    file = "/sys/kernel/debug/kmemleak"
    steps = "; ".join(f"sleep 6; echo {word} > {file}" for word in words)
    try:
        found = booted.guest.check(f"set -e; {steps}; cat {file}", deadline)
    except LostGuest as error:
        found = f"the leak scan failed: {error.message}\n"
        _log.warning("%s: %s", booted.directory.name, found.strip())
    if found.strip():
        (booted.directory / "kmemleak.txt").write_text(found, encoding="utf-8")


def _failed_boot(error: InfraError | KernelError, vm_dir: str) -> Attempt:
    """Return the Attempt of a boot that ended with *error*; NOT_RUN if there was no kernel to boot."""
    splat = ""
    if isinstance(error, BootCrash):
        outcome, splat = Outcome.CRASH, error.splat
    else:
        outcome = Outcome.NOT_RUN if isinstance(error, KernelError) else Outcome.LOST
    cause = error.cause or Cause.HOST
    result = CaseResult(case=BOOTS.case, outcome=outcome, reason=error.message, cause=cause)
    return Attempt(results=(result,), splat=splat, vm_dir=vm_dir)
