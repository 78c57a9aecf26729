# SPDX-License-Identifier: GPL-2.0-only
"""One run from its options to its exit code: check, prepare, then pytest, then the report."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import harness
from harness import paths
from harness.admission import most_vms
from harness.builder import Builder
from harness.errors import (
    DeadlinePassed,
    ExitCode,
    HarnessError,
    InfraError,
    KernelError,
    NotApplicable,
    UsageError,
)
from harness.kernel.store import Built, KernelPlan
from harness.kernel.trees import KernelTree
from harness.machine.accel import Choice
from harness.machine.qemu import Qemu
from harness.output import emit, tell, tolerant_stdout
from harness.plan import PLAN_FILE, Job, Plan, too_late
from harness.results import (
    KCONFIG_SUITE,
    Inputs,
    JobRecord,
    Run,
    RunInfo,
    RunStore,
    State,
    judge,
    load,
    new_run_id,
    owned,
)
from harness.session import outputs, planning
from harness.session.background import check_history, see
from harness.session.compiled import Asked, compile_results
from harness.session.engine import PytestOptions, run_pytest
from harness.session.expected import expected_seconds, job_seconds
from harness.session.identity import identity
from harness.session.plan_table import plan_as_json, plan_of_job, plan_of_kernel, show_plan
from harness.session.planning import Planned, slug
from harness.session.remaining import check_inputs, check_trees, done_in, left_to_try, pins
from harness.session.timing import account, phase_line
from harness.session.wishes import Conduct, JobWish, KernelWish, MachineWish, line_of, save_wishes
from harness.suites.catalogue import (
    check_cases,
    check_patterns,
    check_suites,
    to_do,
)
from harness.suites.keyword import check_choice, check_keyword
from harness.suites.known import OWN_FILE, issues_of


class Session:
    """One run from its options to its exit code."""

    def __init__(
        self,
        wishes: Sequence[JobWish],
        conduct: Conduct,
        *,
        junit: Path | None = None,
        goes_on: Run | None = None,
        accept: str | None = None,
    ) -> None:
        """With *goes_on* it is that Run that goes on: what it has finished is not done again.

        *accept* is why coverage that the run proves to have lost is meant to be gone.
        """
        self._wishes = tuple(wishes)
        self._conduct = conduct
        self._junit = junit
        self._goes_on = goes_on
        self._accept = accept
        self._phases: dict[str, float] = {}
        self._started = datetime.datetime.now(datetime.UTC)
        self.run_id = new_run_id(self._started)
        self.run_dir = paths.runs_dir() / self.run_id
        if goes_on is not None:
            self.run_id, self.run_dir = goes_on.info.id, Path(goes_on.directory)
        self._planned: dict[KernelWish, Planned] = {}
        self._jobs: dict[JobWish, Job] = {}
        self._failed: dict[JobWish, Job] = {}
        """Jobs whose kernel did not build before any test ran."""
        self._narrowed = False
        self._keyword = ""
        self._build_cpu = 0.0
        self._seconds: dict[str, float] = {}
        """Group of work -> what it took lately."""

    def say(self, line: str) -> None:
        """Progress goes to stderr, so that stdout carries results only."""
        tell(line)

    @property
    def _suites(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(suite for wish in self._wishes for suite in wish.suites))

    @property
    def _machines(self) -> tuple[MachineWish, ...]:
        return tuple(dict.fromkeys(wish.machine for wish in self._wishes))

    @property
    def _kernels(self) -> tuple[KernelWish, ...]:
        return tuple(dict.fromkeys(wish.kernel for wish in self._wishes))

    def check(self, keyword: str = "") -> None:
        """Refuse everything that is wrong before anything slow begins; announce the accelerator first.

        *keyword* is what pytest's -k will be given.
        """
        self._keyword = keyword
        most_vms()
        check_suites(self._suites)
        check_patterns(self._conduct.cases, self._suites)
        names = (name for wish in self._wishes for name in (wish.kernel.name, wish.machine.topology))
        check_keyword(keyword, self._suites, names)
        outputs.check_outputs(self.run_dir.parent, self._junit)
        check_history(self._conduct.compare, self._conduct.known_issues)
        for wish in self._kernels:
            planning.wished_variant(wish.variant)
            planning.check_addons(wish.addons)
            planning.read_configs(wish.configs)
        self._qemu, self._accel = planning.choose(self._machines[0])
        self._announce(self._accel)
        for machine in self._machines:
            planning.check_machine(machine, self._qemu)

    def _announce(self, choice: Choice) -> None:
        factor = choice.accel.timeout_factor
        scaled = f"; time limits x{factor:g}" if factor != 1 else ""
        self.say(f"accelerator: {choice.reason}{scaled}")

    def prepare(self, *, build: bool = True, expect: bool = True) -> None:
        """Open the trees, plan the kernels, plan the jobs.

        Without *build* no compiler is started for it; without *expect* the history is not asked how long jobs
        take, which nobody needs who runs none.
        """
        began = time.monotonic()
        specs = tuple(dict.fromkeys(wish.tree for wish in self._kernels))
        trees = planning.open_trees(specs, pins(self._goes_on, specs) if self._goes_on is not None else {})
        self._phases["fetch"] = time.monotonic() - began
        began = time.monotonic()
        for kernel in self._kernels:
            self._planned[kernel] = self._plan_kernel(trees[kernel.tree], kernel, build=build)
        planning.tell_broken_suites(self._planned.values())
        self._refuse_hopeless()
        if self._goes_on is not None:
            self._check_as_before(self._goes_on)
        for wish in self._wishes:
            self._plan_job(wish)
        check_choice(self._keyword, self._jobs.values())
        if expect:
            self._seconds = expected_seconds(
                {job.name: (job, self._record(wish, job)) for wish, job in self._jobs.items()}
            )
        self._phases["plan"] = time.monotonic() - began

    def _plan_kernel(self, tree: KernelTree | InfraError, wish: KernelWish, *, build: bool) -> Planned:
        if isinstance(tree, InfraError):
            return Planned(wish=wish, tree=None, problem=tree)
        suites = [suite for job in self._wishes if job.kernel == wish for suite in job.suites]
        wanted = planning.needs_selftests(suites)
        planned = planning.plan_wished_kernel(tree, wish, with_selftests=wanted, build=build)
        if planned.proof is not None:
            self.say(f"kernel: {wish.name} {planned.proof.outcome.value}: {planned.proof.reason}")
        elif planned.problem is not None:
            self.say(f"kernel: {wish.name}: {planned.problem}")
        return planned

    def _refuse_hopeless(self) -> None:
        """Where the host keeps every kernel from being had there is nothing to report on."""
        problems = [planned.problem for planned in self._planned.values()]
        infra = [problem for problem in problems if isinstance(problem, InfraError)]
        if infra and len(infra) == len(problems):
            raise infra[0]

    def _plan_job(self, wish: JobWish) -> None:
        planned = self._planned[wish.kernel]
        if planned.plan is None:
            return
        job = planning.make_job(planned, wish, self._accel)
        if self._is_taken(job.name):
            # Two trees of one version: what they are called tells them apart.
            job = dataclasses.replace(job, name=f"{slug(planned.tree_label)}-{job.name}")
        if self._is_taken(job.name):
            raise UsageError(f"two jobs would be called {job.name!r}", hint="rename one of the topologies")
        self._jobs[wish] = job

    def _record(self, wish: JobWish, job: Job | None, problem: HarnessError | None = None) -> JobRecord:
        """How the job of *wish* goes into the results."""
        topology = planning.topology_in_results(wish.machine.topology)
        return self._planned[wish.kernel].record(topology, job, problem, wish.suites)

    def _is_taken(self, name: str) -> bool:
        return any(name == job.name for job in self._jobs.values())

    def build(self) -> None:
        """Build until one kernel is there to be tested; the others are built while the tests run.

        A kernel that does not build costs its own jobs only.
        """
        began = time.monotonic()
        while not self._ready() and (waiting := self._waiting()) and not too_late(self._conduct.until):
            self._build_now(waiting[0])
        ready = self._ready()
        for planned in ready:
            assert planned.tree is not None
            self.say(f"kernel: {planned.wish.name} {planned.tree.version} is ready")
        if ready:
            self._prove_accel(ready[0])
        self._phases["build"] = time.monotonic() - began

    def _with_jobs(self) -> list[Planned]:
        """The kernels that jobs wait for, those that the store has first."""
        wanted = dict.fromkeys(wish.kernel for wish in self._jobs)
        return sorted((self._planned[wish] for wish in wanted), key=lambda planned: not planned.is_built)

    def _ready(self) -> list[Planned]:
        return [planned for planned in self._with_jobs() if planned.is_built]

    def _waiting(self) -> list[Planned]:
        return [planned for planned in self._with_jobs() if not planned.is_built]

    def _build_now(self, planned: Planned) -> None:
        try:
            self._build_cpu += planning.build_planned(planned, self._check_deadline).spent_cpu_seconds
        except DeadlinePassed as error:
            self.say(f"kernel: {planned.wish.name}: {error}")
        except (KernelError, InfraError) as error:
            self.say(f"kernel: {planned.wish.name}: {error}")
            self._planned[planned.wish] = dataclasses.replace(planned, problem=error)
            self._failed |= {w: self._jobs.pop(w) for w in tuple(self._jobs) if w.kernel == planned.wish}
            if isinstance(error, InfraError) and not self._jobs:
                raise

    def _check_deadline(self) -> None:
        """Raise DeadlinePassed when what is being built would come too late."""
        if late := too_late(self._conduct.until):
            raise DeadlinePassed(late)

    def _prove_accel(self, planned: Planned) -> None:
        """Settle on an accelerator by a real kernel."""
        assert planned.plan is not None
        _, choice = planning.choose(self._machines[0], planned.plan.vmlinux)
        if choice.accel is not self._accel.accel:
            self._announce(choice)
            for wish, job in self._jobs.items():
                self._jobs[wish] = dataclasses.replace(job, accel=choice.accel.value)
        self._accel = choice

    def _plan(self) -> Plan:
        return Plan(
            run_id=self.run_id,
            run_dir=os.fspath(self.run_dir),
            seed=self._conduct.seed,
            cases=self._conduct.cases,
            isolation=self._conduct.isolation,
            confirm=self._conduct.confirm,
            until=self._conduct.until,
            done=done_in(self._goes_on) if self._goes_on is not None else (),
            seconds=self._seconds,
            jobs=self._jobs_in_order(),
        )

    def _jobs_in_order(self) -> tuple[Job, ...]:
        """Jobs whose kernel is there first, then in the order of the builds; among equals the longest."""
        waits = {planned.wish: number for number, planned in enumerate(self._waiting(), start=1)}
        ordered = sorted(
            self._jobs.items(),
            key=lambda pair: (waits.get(pair[0].kernel, 0), -job_seconds(pair[1], self._seconds)),
        )
        return tuple(job for _, job in ordered)

    def show_plan(self, passed_on: PytestOptions, *, as_json: bool = False) -> int:
        """Print what would be built and run, and how long that took lately; nothing is started."""
        plan = self._plan()
        check_cases(plan)
        kernels = [plan_of_kernel(planned) for planned in self._planned.values()]
        jobs = [plan_of_job(job, plan) for job in plan.jobs]
        workers = passed_on.workers_for(plan) or 1
        with tolerant_stdout():
            if as_json:
                emit(plan_as_json(kernels, jobs, workers))
            else:
                show_plan(sys.stdout, kernels, jobs, workers)
        broken = [p for p in self._planned.values() if p.problem and not isinstance(p.problem, NotApplicable)]
        return self._worst_problem() if broken or not jobs else ExitCode.GOOD

    def collect(self, passed_on: PytestOptions) -> int:
        """Show what would run; the exit code tells whether all of it could."""
        if not self._jobs:
            return self._worst_problem()
        with tempfile.TemporaryDirectory(prefix="vfio-harness-") as directory:
            plan = dataclasses.replace(self._plan(), run_dir=directory)
            check_cases(plan)
            self._store(Path(directory), {}).close()
            path = Path(directory) / PLAN_FILE
            plan.save(path)
            status = run_pytest(passed_on.arguments(plan, path))
        if status is pytest.ExitCode.NO_TESTS_COLLECTED:
            raise UsageError("no case matches what was asked for", hint="see: vfio-harness list cases")
        if status is pytest.ExitCode.INTERRUPTED:
            return ExitCode.INTERRUPTED
        return self._worst_problem() if status is pytest.ExitCode.OK else ExitCode.USAGE

    def _worst_problem(self) -> ExitCode:
        problems = (p.problem.exit_code for p in self._planned.values() if p.problem is not None)
        return max(problems, default=ExitCode.GOOD)

    def test(self, passed_on: PytestOptions, as_json: bool) -> int:
        """Run the plan and say what came of it."""
        plan = self._plan()
        self._narrowed = passed_on.narrowed
        if plan.jobs:
            check_cases(plan)
        if self._goes_on is not None and self._goes_on.state is State.FINISHED and not to_do(plan):
            self.say("nothing is left to do in this run")
            return self._report(as_json)
        if self._goes_on is not None:
            check_inputs(self._goes_on, {"the accelerator": self._accel.accel.value})
        self._fill_run_dir(plan)
        # A run that goes on is ours already.
        with owned(self.run_dir) if self._goes_on is None else contextlib.nullcontext():
            return self._test(plan, passed_on, as_json)

    def _test(self, plan: Plan, passed_on: PytestOptions, as_json: bool) -> int:
        """Run what is left of *plan* in the run's own directory."""
        work = to_do(plan)
        with self._begin() as store:
            self._record_jobs(store)
            if not work:
                store.finish(judge(dataclasses.replace(store.read(), state=State.FINISHED)))
        began = time.monotonic()
        status = pytest.ExitCode.OK
        if work:
            with (
                contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout),
                tolerant_stdout(),
                self._builder(),
            ):
                status = run_pytest(passed_on.arguments(plan, self.run_dir / PLAN_FILE))
                if self._conduct.confirm and status in _RAN:
                    self._second_chance(plan, passed_on)
        self._phases["test"] = time.monotonic() - began
        if status is pytest.ExitCode.USAGE_ERROR:
            raise UsageError("pytest refused its options", hint="see what it said above")
        if status is pytest.ExitCode.NO_TESTS_COLLECTED:
            self._forget_if_empty()
            raise UsageError("no case matches what was asked for", hint="see: vfio-harness list cases")
        return self._report(as_json)

    def _forget_if_empty(self) -> None:
        """A run in which nothing was chosen is none: the verb report would take it for the newest."""
        if self._goes_on is None and not load(self.run_dir).results:
            shutil.rmtree(self.run_dir, ignore_errors=True)

    def _second_chance(self, plan: Plan, passed_on: PytestOptions) -> None:
        """Run once more what had no chance for reasons of ours, such as a worker that died."""
        again = left_to_try(plan, load(self.run_dir))
        if again is None:
            return
        self.say(f"\n{len(to_do(again))} cases and programs could not be run: once more")
        again.save(self.run_dir / PLAN_FILE)
        with RunStore.open(self.run_dir) as store:
            store.go_on()
        run_pytest(passed_on.arguments(again, self.run_dir / PLAN_FILE))
        plan.save(self.run_dir / PLAN_FILE)

    def _builder(self) -> contextlib.AbstractContextManager[object]:
        """Builds, in the background, the kernels that are not there yet."""
        waiting = {planned.plan.key: planned for planned in self._waiting() if planned.plan is not None}
        if not waiting:
            return contextlib.nullcontext()
        plans = [planned.plan for planned in waiting.values() if planned.plan is not None]
        jobs = next(iter(waiting.values())).wish.compilers
        return Builder(plans, self.run_dir, jobs=jobs, finished=self._note_build)

    def _note_build(self, plan: KernelPlan, came_of_it: Built | HarnessError, seconds: float) -> None:
        """Say, from the builder's thread, what became of a kernel; a failure is its jobs' problem."""
        name = plan.variant.name
        if isinstance(came_of_it, Built):
            self._build_cpu += came_of_it.spent_cpu_seconds
            how = "built" if came_of_it.is_new else "built by another process, had"
            self.say(f"\nkernel: {name} {came_of_it.release} {how} in {seconds:.1f} s")
            return
        self.say(f"\nkernel: {name}: {came_of_it}")
        with RunStore.open(self.run_dir) as store:
            for wish, job in self._jobs.items():
                if job.kernel.digest == plan.key:
                    store.add_job(self._record(wish, job, came_of_it))

    def _begin(self) -> RunStore:
        """The run's store, in a directory that holds what was asked for."""
        if self._goes_on is None:
            return self._store(self.run_dir, self._identity())
        store = RunStore.open(self.run_dir)
        store.go_on()
        return store

    def _check_as_before(self, before: Run) -> None:
        """Refuse to go on with a run that has become another one: see harness.session.remaining."""
        trees = {line_of(planned.wish.tree): planned.tree_identity for planned in self._planned.values()}
        check_trees(before, trees)
        check_inputs(before, {**self._kernel_keys(), "QEMU": self._qemu.version_text})

    def _kernel_keys(self) -> dict[str, str]:
        """The digests of the run's kernels."""
        return {self._kernel_name(one): one.plan.key for one in self._planned.values() if one.plan}

    def _fill_run_dir(self, plan: Plan) -> None:
        try:
            self.run_dir.mkdir(parents=True, exist_ok=self._goes_on is not None)
            plan.save(self.run_dir / PLAN_FILE)
            save_wishes(self.run_dir, self._wishes, self._conduct)
            if self._conduct.known_issues is not None:
                shutil.copyfile(self._conduct.known_issues, self.run_dir / OWN_FILE)
            for planned in self._planned.values():
                if planned.plan is not None:
                    config = self.run_dir / f"{slug(self._kernel_name(planned))}.config"
                    config.write_text(planned.plan.config.text, encoding="utf-8")
        except OSError as error:
            raise InfraError(
                f"cannot write the run's directory {self.run_dir}: {error.strerror}",
                hint="VFIO_HARNESS_RUNS moves it",
            ) from error

    def _identity(self) -> dict[str, str]:
        compilers = (one.plan.toolchain.compiler for one in self._planned.values() if one.plan)
        return identity(self._machines[0].root, compilers)

    def _store(self, directory: Path, made_with: Mapping[str, str]) -> RunStore:
        qemu: Qemu = self._qemu
        planned = self._planned.values()
        trees = dict.fromkeys(one.tree_identity for one in planned)
        inputs = Inputs(
            tree="; ".join(trees),
            kernels=self._kernel_keys(),
            qemu=qemu.version_text,
            accel=self._accel.accel.value,
            timeout_factor=self._accel.accel.timeout_factor,
            topologies=tuple(dict.fromkeys(machine.topology for machine in self._machines)),
            root=self._machines[0].root,
            machine=self._machines[0].kind,
            seed=self._conduct.seed,
            suites=self._suites,
            cases=self._conduct.cases,
            narrowed=self._narrowed,
            compare=self._conduct.compare,
            elsewhere=self._conduct.elsewhere,
            extra={"acceleration": self._accel.reason, **made_with, **self._conduct.about},
        )
        info = RunInfo(
            id=self.run_id,
            started=self._started,
            harness_version=harness.__version__,
            command=tuple(sys.argv),
            inputs=inputs,
        )
        return RunStore.create(directory, info)

    def _kernel_name(self, planned: Planned) -> str:
        """What tells a kernel from the others of this run."""
        several = len({one.tree_identity for one in self._planned.values()}) > 1
        return f"{planned.tree_label} {planned.wish.name}" if several else planned.wish.name

    def _record_jobs(self, store: RunStore) -> None:
        issues = issues_of(self.run_dir)
        # A run that goes on has them from before.
        known = {(one.job, one.address) for one in self._goes_on.results} if self._goes_on else set()
        for planned in self._planned.values():
            if planned.is_never_built:
                # No machine is part of it: one job, proved or not applicable, whatever topologies there are.
                record = planned.record("", None, suites=(KCONFIG_SUITE,))
                store.add_job(record)
                if planned.proof is not None and (record.name, planned.proof.address) not in known:
                    store.add(dataclasses.replace(planned.proof, job=record.name))
        for wish in self._wishes:
            planned = self._planned[wish.kernel]
            if not planned.is_never_built:
                job = self._jobs.get(wish) or self._failed.get(wish)
                record = self._record(wish, job)
                store.add_job(record)
                asked = Asked(cases=self._conduct.cases, keyword=self._keyword)
                found = compile_results(record.name, wish, planned, issues, asked)
                store.add(*(one for one in found if (one.job, one.address) not in known))

    def _report(self, as_json: bool) -> int:
        account(self.run_dir, self._build_cpu)
        run = self._accepted(load(self.run_dir))
        seen = see(run, compare=self._conduct.compare)
        outputs.show_run(run, seen.background, as_json=as_json)
        self.say(phase_line(self._phases, self.run_dir))
        self.say(f"everything is in {self.run_dir}")
        outputs.write_reports(run, seen.background, self._junit)
        return int(seen.exit_code)

    def _accepted(self, run: Run) -> Run:
        """*run* with the reason why what it lost is meant, if there is one."""
        if self._accept is None:
            return run
        if run.state is not State.FINISHED:
            # What it has not come to would be taken for gone.
            self.say("the run did not come to its end: nothing is accepted")
            return run
        with RunStore.open(self.run_dir) as store:
            store.accept(self._accept)
            return store.read()


_RAN = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
