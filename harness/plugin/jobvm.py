# SPDX-License-Identifier: GPL-2.0-only
"""The VM a job is using now: booted on demand, watched while a case runs, thrown away when it is spoilt.

What a case came to is decided here from three witnesses: what it printed (KTAP), what the kernel said
meanwhile (the console) and whether the guest is still there.  The kernel's word counts most.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from guest.case import Case
from harness.boot import Booted, Recipe, boot
from harness.deadline import Deadline
from harness.errors import HarnessError, InfraError, LostGuest
from harness.ktap import parse
from harness.plan import Job, Plan
from harness.results import WHOLE_PROGRAM, Outcome
from harness.suites.agent import Agent
from harness.suites.judging import Judged, judge_points, judge_probe, judge_program
from harness.suites.model import Program
from harness.suites.programs import SELFTESTS, SetupFailed, run_program

AGENT_SECONDS = 20.0
"""How long the agent may take, on KVM, to start, and to put the ground state back after a case."""

BOOT_TRIES = 2
"""A VM that does not come up is tried once more: the host may have been busy."""

_KEPT_LINES = 60
"""Lines of a case's output that its Result carries; the file beside the console has all of them."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A piece of work that was carried out, or could not be."""

    judged: tuple[Judged, ...] = ()
    seconds: float = 0.0
    printed: str = ""
    splat: str = ""
    vm_dir: str = ""
    """Relative to the run directory; empty when no VM was used."""


@dataclasses.dataclass(slots=True)
class _Attempt:
    """What is being collected while a piece of work runs."""

    name: str
    raw: list[str] = dataclasses.field(default_factory=list)
    judged: tuple[Judged, ...] = ()
    spoilt: str = ""
    """Why the VM cannot be used any further; empty while it can."""


class JobVM:
    """Runs the work of one job in one VM after the other."""

    def __init__(self, plan: Plan, job: Job, worker: str) -> None:
        self._run_dir = Path(plan.run_dir)
        self._seed = plan.seed
        self._job = job
        self._worker = worker
        self._recipe = Recipe.of(job)
        self._factor = self._recipe.accel.timeout_factor
        self._boots = 0
        self._used = False
        self._stack = contextlib.ExitStack()
        self._booted: Booted | None = None
        self._agent: Agent | None = None
        self._broken: HarnessError | None = None

    def probe(self, case: Case) -> Done:
        """Run one probe case.  Raises HarnessError when no VM could be had for it."""
        booted = self._ready(fresh=case.fresh)
        with self._watch(booted, case.address) as attempt:
            limit = Deadline.after((case.timeout + AGENT_SECONDS) * self._factor)
            report, raw = self._agent_of(booted).run(
                case.address, case.timeout * self._factor, self._seed, limit
            )
            attempt.raw += raw
            attempt.judged = (judge_probe(case.address, case.known, report),)
            if dirty := report.notes("dirty"):
                attempt.spoilt = dirty[0]
        return self._conclude(booted, attempt)

    def program(self, program: Program, features: frozenset[str]) -> Done:
        """Run one selftest program.  Raises HarnessError when no VM could be had for it."""
        booted = self._ready(fresh=False)
        with self._watch(booted, program.title) as attempt:
            limit = Deadline.after(program.seconds * self._factor)
            self._give_selftests(booted)
            try:
                report, status = run_program(booted.guest, program, booted.bdfs, features, limit, attempt.raw)
            except (TimeoutError, LostGuest):
                attempt.judged = judge_points(program, features, parse(attempt.raw))
                raise
            except SetupFailed as error:
                attempt.judged = (_whole(Outcome.ERROR, f"the guest could not be made ready: {error}"),)
                attempt.spoilt = "setup failed half-way"
            else:
                attempt.judged = judge_program(program, features, report, status)
        return self._conclude(booted, attempt)

    def close(self) -> None:
        """Stop the VM, if there is one."""
        self._agent = None
        self._booted = None
        self._stack.close()

    def _ready(self, *, fresh: bool) -> Booted:
        """The VM to use next; a new one when there is none or *fresh* asks for one nobody has used."""
        if self._booted is not None and (not self._booted.vm.alive or (fresh and not self._is_fresh())):
            self.close()
        if self._broken is not None:
            raise self._broken
        for attempt in range(1, BOOT_TRIES + 1):
            if self._booted is not None:
                break
            try:
                self._boot()
            except InfraError as error:
                self._stack.close()
                if attempt == BOOT_TRIES:
                    self._broken = error
                    raise
        assert self._booted is not None
        self._used = self._used or not fresh
        return self._booted

    def _is_fresh(self) -> bool:
        """Whether the VM is as good as just booted: it ran fresh cases only, and nothing tainted it."""
        if self._used or self._booted is None:
            return False
        limit = Deadline.after(AGENT_SECONDS * self._factor)
        return self._booted.guest.check(["cat", "/proc/sys/kernel/tainted"], limit).strip() == "0"

    def _boot(self) -> None:
        self._boots += 1
        directory = self._run_dir / "vm" / f"{self._job.name}-{self._worker}-{self._boots}"
        directory.mkdir(parents=True)
        self._stack = contextlib.ExitStack()
        self._booted = self._stack.enter_context(boot(self._recipe, directory))
        self._agent = None
        self._used = False

    def _agent_of(self, booted: Booted) -> Agent:
        if self._agent is None:
            limit = Deadline.after(AGENT_SECONDS * self._factor)
            self._agent = Agent(booted.guest, self._job.features, limit)
        return self._agent

    def _give_selftests(self, booted: Booted) -> None:
        limit = Deadline.after(AGENT_SECONDS * self._factor)
        source = self._job.kernel.selftests_dir
        if source is not None and not booted.guest.run(["test", "-d", SELFTESTS], limit).ok:
            booted.guest.push(Path(source), SELFTESTS, limit)

    @contextlib.contextmanager
    def _watch(self, booted: Booted, name: str) -> Iterator[_Attempt]:
        """Turn the ways in which work can be cut off into outcomes."""
        attempt = _Attempt(name)
        booted.mark()
        try:
            yield attempt
        except TimeoutError:
            attempt.judged += (_whole(Outcome.TIMEOUT, "did not end in its time"),)
            attempt.spoilt = "the work is still running in it"
            booted.diagnose()
        except LostGuest as error:
            attempt.judged += (_whole(Outcome.LOST, booted.cause_of_loss(error)),)
            attempt.spoilt = "the guest is gone"
            booted.diagnose()

    def _conclude(self, booted: Booted, attempt: _Attempt) -> Done:
        splats = booted.splats(attempt.name)
        judged = attempt.judged
        if splats:
            judged = _crashed(judged, splats[0].title)
        directory = booted.directory
        self._keep(directory, attempt)
        seconds = booted.since_mark
        if splats or attempt.spoilt or booted.vm.hostlink.actions.altered:
            self.close()
        return Done(
            judged=judged,
            seconds=seconds,
            printed="\n".join(attempt.raw[-_KEPT_LINES:]),
            splat="\n\n".join("\n".join(splat.lines) for splat in splats),
            vm_dir=str(directory.relative_to(self._run_dir)),
        )

    def _keep(self, directory: Path, attempt: _Attempt) -> None:
        log = directory / case_log(attempt.name)
        log.parent.mkdir(exist_ok=True)
        log.write_text("\n".join(attempt.raw) + "\n", encoding="utf-8")


def case_log(name: str) -> str:
    """Where, below the VM's directory, everything a case or program printed is kept."""
    return f"cases/{name.replace('/', '.')}.log"


def _whole(outcome: Outcome, reason: str) -> Judged:
    return Judged(case=WHOLE_PROGRAM, outcome=outcome, reason=reason)


def _crashed(judged: tuple[Judged, ...], title: str) -> tuple[Judged, ...]:
    """The same work when the kernel complained meanwhile: what was running is a CRASH.

    A probe is one case and takes the blame; a program's finished points keep their outcomes and the program
    as a whole takes it.
    """
    reason = f"the kernel said: {title}"
    if len(judged) == 1:
        return (dataclasses.replace(judged[0], outcome=Outcome.CRASH, reason=reason),)
    kept = tuple(j for j in judged if j.case != WHOLE_PROGRAM)
    return (*kept, _whole(Outcome.CRASH, reason))
