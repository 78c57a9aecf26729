# SPDX-License-Identifier: GPL-2.0-only
"""The VM a job is using now: booted on demand, watched while a case runs, thrown away when it is spoilt.

What a case came to is decided here from three witnesses: what it printed (KTAP), what the kernel said
meanwhile (the console) and whether the guest is still there.  The kernel's word counts most.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from guest import kmsg
from guest.case import Case
from guest.ground import RESTORE_TIMEOUT
from harness.admission import admitted
from harness.boot import Booted, Recipe, boot
from harness.builder import wait_for_kernel
from harness.deadline import Deadline
from harness.errors import (
    BootCrash,
    DeadlinePassed,
    HarnessError,
    InfraError,
    KernelError,
    LostGuest,
    LostProcessor,
    StoodStill,
)
from harness.kernel.store import hold
from harness.ktap import parse
from harness.machine.accel import Accel
from harness.machine.splat import Splat
from harness.machine.vm import VM
from harness.plan import Isolation, Job, Plan
from harness.plugin.done import Done, FalseStart, text_of
from harness.results import WHOLE_PROGRAM, Outcome
from harness.retries import BOOT_TRIES
from harness.suites.agent import Agent
from harness.suites.alongside import Answer, run_alongside
from harness.suites.judging import (
    Judged,
    crash_reason,
    judge_known,
    judge_points,
    judge_probe,
    judge_program,
    judge_splat,
)
from harness.suites.known import KnownIssue, issues_of, known_issue
from harness.suites.model import Program
from harness.suites.probes import SUITE as PROBES
from harness.suites.programs import SELFTESTS, SetupFailed, run_program

SERVICE_SECONDS = 20.0
"""How long the guest may take, on KVM, for what the harness itself asks of it."""

AT_ONCE_PER_CPU = 2
"""Cases that run at the same time in one VM, for each of its processors: a case also waits, for the host."""

_log = logging.getLogger("harness.plugin")

_KEPT_LINES = 60
"""Lines of a case's output, and of the console, that its Result carries; files have all of them."""


@dataclasses.dataclass(slots=True)
class _Attempt:
    """What is being collected while a piece of work runs."""

    name: str
    case: Case | None
    """The probe case that runs; None for a program."""
    began: float = dataclasses.field(default_factory=time.monotonic)
    raw: list[str] = dataclasses.field(default_factory=list)
    judged: tuple[Judged, ...] = ()
    lost_processor: bool = False
    spoilt: str = ""
    """Why the VM cannot be used any further; empty while it can."""


class JobVM:
    """Runs the work of one job in one VM after the other."""

    def __init__(self, plan: Plan, job: Job, worker: str) -> None:
        self._plan = plan
        self._run_dir = Path(plan.run_dir)
        self._issues = issues_of(self._run_dir)
        self._seed = plan.seed
        self._isolation = plan.isolation
        self._job = job
        self._worker = worker
        self._recipe: Recipe | None = None
        self._factor = Accel(job.accel).timeout_factor
        self._used = self._used_before = False
        """Whether the VM has run anything but fresh cases; and whether it had when the last work began."""
        self.final = True
        """Whether the work at hand gets no other chance."""
        self._newest = ""
        """The directory of the VM that was begun last, relative to the run's; empty while none could be."""
        self._unheard: tuple[Splat, ...] = ()
        """What the kernels of ended VMs said after their last piece of work."""
        self._false_starts: list[FalseStart] = []
        self._unit = ""
        """What the VM is for, where the isolation gives every such unit a VM of its own."""
        self._stack = contextlib.ExitStack()
        self._booted: Booted | None = None
        self._agent: Agent | None = None
        self._broken: HarnessError | None = None

    def probe(self, case: Case) -> Done:
        """Run one probe case.  Raises HarnessError when no VM could be had for it."""
        unit = self._unit_of(case.module, case.address)
        booted = self._ready(unit, fresh=case.fresh, alone=case.destructive)
        with self._watch(booted, case.address, case) as attempt:
            agent = self._agent_of(booted)
            limit = case.timeout * self._factor
            report, attempt.spoilt = agent.run(case.address, limit, self._seed, attempt.raw)
            known = self._known(f"{PROBES}/{case.address}")
            attempt.judged = (judge_probe(case.address, report, known),)
            if attempt.judged[0].outcome is Outcome.TIMEOUT and not attempt.spoilt:
                attempt.spoilt = "a case hung in it"
                booted.diagnose()
        return self._conclude(booted, attempt)

    def alongside(self, cases: Sequence[Case]) -> dict[str, Done]:
        """Run probe cases that say that they may at the same time in one VM; return what each came to.

        Missing is what has to be tried by itself: it could not begin, or the kernel complained and nobody can
        know of whom.  What with_unheard() adds is left to the next work.  Raises HarnessError when no VM was
        to be had.
        """
        booted = self._ready("", fresh=False)
        began = time.monotonic()
        answers = run_alongside(
            lambda: Agent(booted.guest, self._job.features, self._service(), alongside=True),
            cases,
            at_once=self._job.cpus * AT_ONCE_PER_CPU,
            seed=self._seed,
            factor=self._factor,
            enough=lambda: self._plan.too_late,
        )
        # What they took in all, shared out among them: seconds are compared with those of other runs.
        share = (time.monotonic() - began) / sum(one.seconds for one in answers) if answers else 0.0
        said = booted.splats(answers[-1].case.address if answers else None)
        done = {} if said else {one.case.address: self._answered(booted, one, share) for one in answers}
        self._unheard += said
        if len(done) < len(cases):
            how_many = f"{len(cases) - len(done)} of {len(cases)} cases that ran alongside one another"
            _log.warning("%s: %s are tried one by one", self._job.name, how_many)
        if said or not answers or any(one.spoilt for one in answers):
            booted.diagnose()
            self.close()
        return done

    def _answered(self, booted: Booted, answer: Answer, share: float) -> Done:
        case, error = answer.case, answer.error
        if answer.report is not None:
            judged = judge_probe(case.address, answer.report, self._known(f"{PROBES}/{case.address}"))
        elif isinstance(error, LostGuest):
            judged = _whole(Outcome.LOST, booted.cause_of_loss(error))
        else:
            judged = _whole(Outcome.LOST, "did not end in its time alongside others")
        attempt = _Attempt(case.address, case, raw=list(answer.raw), judged=(judged,))
        return self._done(booted, attempt, answer.seconds * share)

    def program(self, program: Program, features: frozenset[str]) -> Done:
        """Run one selftest program.  Raises HarnessError when no VM could be had for it."""
        booted = self._ready(self._unit_of(program.title, program.title), fresh=False)
        with self._watch(booted, program.title, None) as attempt:
            if not program.is_kunit:
                self._give_selftests(booted)
            limit = Deadline.after(program.seconds * self._factor)
            try:
                report, status = run_program(booted.guest, program, booted.bdfs, features, limit, attempt.raw)
            except (TimeoutError, LostGuest) as error:
                cut = Outcome.LOST if isinstance(error, LostGuest) else Outcome.ERROR
                points = judge_points(program, features, parse(attempt.raw), cut=cut)
                attempt.judged = self._with_known(program, points)
                raise
            except SetupFailed as error:
                attempt.judged = (_whole(Outcome.ERROR, f"the guest could not be made ready: {error}"),)
                attempt.spoilt = "setup failed half-way"
            else:
                judged = judge_program(program, features, report, status)
                attempt.judged = self._with_known(program, judged)
        return self._conclude(booted, attempt)

    def renew(self) -> None:
        """Give the next work a VM in which nothing has run."""
        self._end()

    def retire(self) -> Done:
        """Stop the VM, if there is one; return what the kernel still had to say."""
        vm_dir = self._directory_of(self._booted) if self._booted is not None else ""
        self._end()
        return Done(strays=self._heard(), vm_dir=vm_dir)

    def _end(self) -> None:
        """Stop the VM, if there is one, after its kernel's last words."""
        if self._booted is not None:
            if "debug" in self._job.features and self._booted.vm.alive:
                self._look_for_leaks(self._booted, ("scan", "scan"))
            self._unheard += self._booted.splats()
        self.close()

    def _heard(self) -> tuple[Splat, ...]:
        """What kernels said outside any case and is in no result yet."""
        heard, self._unheard = self._unheard, ()
        return heard

    def close(self) -> None:
        """Stop the VM, if there is one."""
        self._agent = None
        self._booted = None
        self._stack.close()

    def _service(self, extra: float = 0.0) -> Deadline:
        return Deadline.after((SERVICE_SECONDS + extra) * self._factor)

    def _known(self, address: str) -> KnownIssue | None:
        release, job = self._job.kernel.version, self._job.name
        return known_issue(self._issues, address, release=release, job=job)

    def _with_known(self, program: Program, judged: Sequence[Judged]) -> tuple[Judged, ...]:
        """What is known of the cases of a selftest program is its user's to say."""
        known = [self._known(f"{program.suite}/{program.title}/{one.case}") for one in judged]
        return tuple(
            one if issue is None else judge_known(one, issue)
            for one, issue in zip(judged, known, strict=True)
        )

    def _unit_of(self, program: str, case: str) -> str:
        """What must have a VM of its own: the *program* that the next work belongs to, or its *case*."""
        return {Isolation.VM: "", Isolation.PROGRAM: program, Isolation.CASE: case}[self._isolation]

    def _ready(self, unit: str, *, fresh: bool, alone: bool = False) -> Booted:
        """The VM to use next; a new one when there is none for *unit*, or *fresh* asks for an unused one.

        *alone* asks for one that nothing else has run in at all.
        """
        if self._booted is not None and (
            alone or not self._booted.vm.alive or unit != self._unit or (fresh and not self._is_fresh())
        ):
            self._end()
        self._unit = unit
        if self._broken is not None:
            raise self._broken
        for attempt in range(1, BOOT_TRIES + 1):
            if self._booted is not None:
                break
            self._newest = ""
            try:
                self._boot()
            except DeadlinePassed:
                self._stack.close()
                raise
            except (InfraError, KernelError) as error:
                self._stack.close()
                splat = error.splat if isinstance(error, BootCrash) else ""
                # A kernel that does not compile had its chance.
                if attempt == BOOT_TRIES or (isinstance(error, KernelError) and not splat):
                    self._broken = error
                    raise
                if self._newest:
                    self._false_starts.append(FalseStart(str(error), self._newest, splat))
        assert self._booted is not None
        self._used_before, self._used = self._used, self._used or not fresh
        return self._booted

    def _is_fresh(self) -> bool:
        """Whether the VM is as good as just booted: it ran fresh cases only, and nothing tainted it."""
        if self._used or self._booted is None:
            return False
        try:
            taint = self._booted.guest.check(["cat", "/proc/sys/kernel/tainted"], self._service())
        except LostGuest:
            return False
        return taint.strip() == "0"

    def _boot(self) -> None:
        self._stack = contextlib.ExitStack()
        wait_for_kernel(self._job.kernel.digest, self._run_dir, self._check_deadline)
        waited = self._stack.enter_context(
            admitted(self._job.memory_mib, self._check_deadline, cpus=self._job.cpus)
        )
        # Nobody may prune the kernel from under a running VM.
        self._stack.enter_context(hold(self._job.kernel.digest, _path(self._job.kernel.selftests_dir)))
        if self._recipe is None:
            self._recipe = Recipe.of(self._job)
        directory = self._new_directory()
        self._newest = str(directory.relative_to(self._run_dir))
        self._booted = self._stack.enter_context(boot(self._recipe, directory))
        self._booted.account(waited=waited)
        if "debug" in self._job.features:
            self._look_for_leaks(self._booted, ("scan", "scan", "clear"))
        self._agent = None
        self._used = False

    def _check_deadline(self) -> None:
        """Raise DeadlinePassed when what is waited for would come too late."""
        if self._plan.too_late:
            raise DeadlinePassed(self._plan.too_late)

    def _new_directory(self) -> Path:
        """A directory for the next VM; numbers go on where an earlier pytest on the same plan stopped."""
        number = 1
        while True:
            directory = self._run_dir / "vm" / f"{self._job.name}-{self._worker}-{number}"
            try:
                directory.mkdir(parents=True)
            except FileExistsError:
                number += 1
            else:
                return directory

    def _directory_of(self, booted: Booted) -> str:
        return str(booted.directory.relative_to(self._run_dir))

    def _agent_of(self, booted: Booted) -> Agent:
        if self._agent is None:
            limit = self._service(RESTORE_TIMEOUT)
            self._agent = Agent(booted.guest, self._job.features, limit, fresh=not self._used_before)
        return self._agent

    def _give_selftests(self, booted: Booted) -> None:
        source = self._job.kernel.selftests_dir
        here = f"test -d {SELFTESTS} && echo yes || echo no"
        if source is not None and booted.guest.check(here, self._service()).strip() == "no":
            booted.guest.push(Path(source), SELFTESTS, self._service())

    def _look_for_leaks(self, booted: Booted, words: Sequence[str]) -> None:
        """Write *words* to kmemleak and keep what it found beside the console.

        An object counts as leaked when it is older than 5 seconds and two scans agree on it
        (mm/kmemleak.c MSECS_MIN_AGE, update_checksum()); what leaked while booting is cleared.
        """
        file = "/sys/kernel/debug/kmemleak"
        steps = "; ".join(f"sleep 6; echo {word} > {file}" for word in words)
        try:
            found = booted.guest.check(f"set -e; {steps}; cat {file}", self._service(RESTORE_TIMEOUT))
        except LostGuest as error:
            found = f"the leak scan failed: {error.message}\n"
            _log.warning("%s: %s", self._job.name, found.strip())
        if found.strip():
            (booted.directory / "kmemleak.txt").write_text(found, encoding="utf-8")

    @contextlib.contextmanager
    def _watch(self, booted: Booted, name: str, case: Case | None) -> Iterator[_Attempt]:
        """Turn the ways in which work can be cut off into outcomes."""
        attempt = _Attempt(name, case)
        try:
            yield attempt
        except TimeoutError:
            attempt.judged += (self._too_late(booted),)
            attempt.spoilt = "the work is still running in it"
            booted.diagnose()
        except LostGuest as error:
            attempt.judged += (self._gone(booted, error),)
            attempt.lost_processor = isinstance(error, LostProcessor)
            attempt.spoilt = "the guest is gone"
            booted.diagnose()

    def _too_late(self, booted: Booted) -> Judged:
        """What it means that work did not end.

        A guest that stands still as a whole, and whose kernel says nothing, may be its host's doing, for
        emulators lose interrupts.  Standing still again at the same work, in another VM, is the kernel's.
        """
        if not self.final and not self._answers(booted):
            return _whole(Outcome.LOST, "did not end in its time, and the guest answers nothing any more")
        return _whole(Outcome.TIMEOUT, "did not end in its time")

    def _gone(self, booted: Booted, error: LostGuest) -> Judged:
        """What it means that the guest was lost; standing still at the same work twice is the kernel's."""
        still = self.final and isinstance(error, StoodStill)
        return _whole(Outcome.TIMEOUT if still else Outcome.LOST, booted.cause_of_loss(error))

    def _answers(self, booted: Booted) -> bool:
        with contextlib.suppress(LostGuest):
            booted.guest.check("true", self._service())
            return True
        return False

    def _conclude(self, booted: Booted, attempt: _Attempt) -> Done:
        seconds = time.monotonic() - attempt.began
        said = booted.splats(attempt.name)
        own = [splat for splat in said if splat.case == attempt.name]
        self._unheard += tuple(splat for splat in said if splat.case != attempt.name)
        if own:
            known = self._known(f"{PROBES}/{attempt.name}") if attempt.case is not None else None
            attempt.judged = _crashed(attempt, own[0].title, known)
        done = self.with_unheard(self._done(booted, attempt, seconds, text_of(own)))
        damaged = attempt.case is not None and attempt.case.destructive
        if said or damaged or attempt.spoilt or booted.vm.hostlink.actions.altered:
            self.close()
        return done

    def _done(self, booted: Booted, attempt: _Attempt, seconds: float, splat: str = "") -> Done:
        _keep(booted.directory, attempt)
        return Done(
            judged=attempt.judged,
            seconds=seconds,
            printed="\n".join(attempt.raw[-_KEPT_LINES:]),
            console=_excerpt(booted.vm, attempt.name)
            if any(j.outcome.is_bad for j in attempt.judged)
            else "",
            splat=splat,
            vm_dir=self._directory_of(booted),
            lost_processor=attempt.lost_processor,
        )

    def with_unheard(self, done: Done) -> Done:
        """*done* with all that was heard of kernels and boots since the last that told it."""
        told, self._false_starts = tuple(self._false_starts), []
        return dataclasses.replace(done, strays=self._heard(), false_starts=told)


def _excerpt(vm: VM, name: str) -> str:
    """The end of the console of *vm*; no more than since the kernel was told that work *name* begins."""
    lines = vm.console.tail(_KEPT_LINES)
    begun = [number for number, line in enumerate(lines) if line.endswith(f"{kmsg.BEGIN} {name}")]
    return "\n".join(lines[begun[-1] :] if begun else lines)


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _keep(directory: Path, attempt: _Attempt) -> None:
    """Everything the work printed goes beside the console."""
    log = directory / "cases" / f"{attempt.name.replace('/', '.')}.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text("\n".join(attempt.raw) + "\n", encoding="utf-8")


def _whole(outcome: Outcome, reason: str) -> Judged:
    return Judged(case=WHOLE_PROGRAM, outcome=outcome, reason=reason)


def _crashed(attempt: _Attempt, title: str, known: KnownIssue | None = None) -> tuple[Judged, ...]:
    """What *attempt* came to when the kernel complained meanwhile: what was running is a CRASH.

    A probe is one case and takes the blame; a program's finished points keep their outcomes and the program
    as a whole takes it.
    """
    crash = _whole(Outcome.CRASH, crash_reason(title))
    if attempt.case is None:
        return (*(j for j in attempt.judged if j.case != WHOLE_PROGRAM), crash)
    judged = attempt.judged[0] if attempt.judged else crash
    return (judge_splat(judged, title, known if attempt.case.destructive else None),)
