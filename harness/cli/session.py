# SPDX-License-Identifier: GPL-2.0-only
"""One run from its options to its exit code: check, prepare, then pytest, then the report."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import harness
from harness import paths
from harness.cli import planning
from harness.cli.output import emit, tell, tolerant_stdout
from harness.cli.planning import KernelWish, MachineWish, Provided
from harness.cli.timing import phase_line
from harness.cli.workers import default_workers
from harness.errors import ExitCode, InfraError, UsageError
from harness.kernel.trees import KernelTree
from harness.machine.accel import Choice
from harness.machine.qemu import Qemu
from harness.machine.topology import load_topology
from harness.plan import Isolation, Job, Plan
from harness.results import Inputs, RunInfo, RunStore, State, exit_code, judge, load
from harness.suites.catalogue import check_cases, check_patterns, check_suites

PLAN_FILE = "plan.json"
JUNIT_FILE = "junit.xml"
JSON_FILE = "run.json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PytestOptions:
    """What of pytest the verb passes on."""

    keyword: str | None
    exit_first: bool
    last_failed: bool
    workers: int | None
    """None: as many as suit the plan and the host."""
    collect_only: bool
    verbose: bool
    extra: tuple[str, ...]

    @property
    def narrowed(self) -> bool:
        """Whether pytest will choose, or behave, in a way that the plan does not tell."""
        return bool(self.keyword or self.exit_first or self.last_failed or self.extra)

    def workers_for(self, plan: Plan) -> int:
        """How many workers *plan* gets; 0: it runs in this process."""
        if self.workers is not None:
            return self.workers
        return 0 if self.narrowed or self.collect_only else default_workers(plan)

    def arguments(self, plan: Plan, path: Path) -> list[str]:
        """pytest's command line for *plan*, which is saved as *path*."""
        ini = Path(harness.__file__).parent / "plugin" / "pytest.ini"
        root = paths.guest_dir().parent
        words = ["-p", "harness.plugin", f"--plan={path}", f"--config-file={ini}", f"--rootdir={root}"]
        words += ["-o", f"cache_dir={paths.cache_dir() / 'pytest'}", "--tb=no", "-rN", "--no-header"]
        words += ["-k", self.keyword] if self.keyword else []
        words += ["-x"] if self.exit_first else []
        words += ["--lf"] if self.last_failed else []
        workers = self.workers_for(plan)
        spread = ["-n", str(workers), "--dist", "loadgroup", "--no-loadscope-reorder"]
        words += spread if workers else ["-p", "no:xdist"]
        words += ["--collect-only", "-q"] if self.collect_only else []
        words += ["-v"] if self.verbose else []
        return [*words, *self.extra]


class Session:
    """One run from its options to its exit code."""

    def __init__(
        self,
        wishes: Sequence[KernelWish],
        machines: Sequence[MachineWish],
        suites: tuple[str, ...],
        cases: tuple[str, ...],
        seed: int,
        *,
        junit: Path | None,
        isolation: Isolation = Isolation.VM,
    ) -> None:
        self._wishes = wishes
        self._machines = machines
        self._suites = tuple(dict.fromkeys(suites))
        self._cases = cases
        self._seed = seed
        self._isolation = isolation
        self._junit = junit
        self._phases: dict[str, float] = {}
        self._started = datetime.datetime.now(datetime.UTC)
        self.run_id = f"{self._started:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        self.run_dir = paths.runs_dir() / self.run_id
        self._provided: list[Provided] = []
        self._jobs: dict[tuple[str, str], Job] = {}
        self._narrowed = False

    def say(self, line: str) -> None:
        """Progress goes to stderr, so that stdout carries results only."""
        tell(line)

    def check(self) -> None:
        """Refuse everything that is wrong before anything slow begins; announce the accelerator first."""
        check_suites(self._suites)
        check_patterns(self._cases, self._suites)
        self._check_outputs()
        for wish in self._wishes:
            planning.wished_variant(wish.variant)
            planning.check_addons(wish.addons)
            planning.read_configs(wish.configs)
        self._qemu, self._accel = planning.choose(self._machines[0])
        self._announce(self._accel)
        for machine in self._machines:
            planning.check_machine(machine, self._qemu)

    def _check_outputs(self) -> None:
        """Refuse now what could otherwise not be written at the end."""
        if self._junit is not None and not self._junit.absolute().parent.is_dir():
            raise UsageError(f"--junit-xml: there is no directory {self._junit.absolute().parent}")
        place = self.run_dir.parent
        try:
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            raise InfraError(
                f"cannot write runs into {place}: {error.strerror}", hint="VFIO_HARNESS_RUNS moves them"
            ) from error

    def _announce(self, choice: Choice) -> None:
        factor = choice.accel.timeout_factor
        scaled = f"; time limits x{factor:g}" if factor != 1 else ""
        self.say(f"accelerator: {choice.reason}{scaled}")

    def prepare(self) -> None:
        """Open the tree, provide the kernels, plan the jobs."""
        began = time.monotonic()
        tree = planning.open_wished_tree(self._wishes[0].tree)
        self._phases["fetch"] = time.monotonic() - began
        self._tree = tree
        self.say(f"tree: {tree.label} ({tree.path})")
        began = time.monotonic()
        self._provided = [self._provide(tree, wish) for wish in self._wishes]
        self._phases["build"] = time.monotonic() - began
        for provided in self._provided:
            self._plan_jobs(provided)

    def _provide(self, tree: KernelTree, wish: KernelWish) -> Provided:
        began = time.monotonic()
        provided = planning.provide(tree, wish)
        seconds = time.monotonic() - began
        if provided.kernel is not None:
            self.say(f"kernel: {wish.variant} {provided.kernel.release} ready in {seconds:.1f} s")
        elif provided.proof is not None:
            self.say(f"kernel: {wish.variant} {provided.proof.outcome.value}: {provided.proof.reason}")
        elif provided.problem is not None:
            self.say(f"kernel: {wish.variant}: {provided.problem}")
        return provided

    def _plan_jobs(self, provided: Provided) -> None:
        if provided.kernel is None:
            return
        _, choice = planning.choose(self._machines[0], provided.kernel.vmlinux)
        if choice.accel is not self._accel.accel:
            self._announce(choice)
        self._accel = choice
        for machine in self._machines:
            wish = dataclasses.replace(provided.wish, seed=self._seed)
            job = planning.make_job(provided.kernel, self._tree, wish, machine, choice, self._suites)
            if any(job.name == other.name for other in self._jobs.values()):
                raise UsageError(
                    f"two jobs would be called {job.name!r}", hint="rename one of the topologies"
                )
            self._jobs[wish.variant, machine.topology] = job

    def _plan(self) -> Plan:
        return Plan(
            run_id=self.run_id,
            run_dir=os.fspath(self.run_dir),
            seed=self._seed,
            cases=self._cases,
            isolation=self._isolation,
            jobs=tuple(self._jobs.values()),
        )

    def collect(self, passed_on: PytestOptions) -> int:
        """Show what would run; the exit code tells whether all of it could."""
        if not self._jobs:
            return self._worst_problem()
        with tempfile.TemporaryDirectory(prefix="vfio-harness-") as directory:
            plan = dataclasses.replace(self._plan(), run_dir=directory)
            check_cases(plan)
            self._store(Path(directory)).close()
            path = Path(directory) / PLAN_FILE
            plan.save(path)
            status = _run_pytest(passed_on.arguments(plan, path))
        if status is pytest.ExitCode.NO_TESTS_COLLECTED:
            raise UsageError("no case matches what was asked for", hint="see: vfio-harness list cases")
        return self._worst_problem() if status is pytest.ExitCode.OK else ExitCode.USAGE

    def _worst_problem(self) -> ExitCode:
        problems = (p.problem.exit_code for p in self._provided if p.problem is not None)
        return max(problems, default=ExitCode.GOOD)

    def test(self, passed_on: PytestOptions, as_json: bool) -> int:
        """Run the plan and say what came of it."""
        plan = self._plan()
        self._narrowed = passed_on.narrowed
        if plan.jobs:
            check_cases(plan)
        self._make_run_dir(plan)
        with self._store(self.run_dir) as store:
            self._record_jobs(store)
            if not plan.jobs:
                store.finish(judge(dataclasses.replace(store.read(), state=State.FINISHED)))
        began = time.monotonic()
        status = pytest.ExitCode.OK
        if plan.jobs:
            with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout), tolerant_stdout():
                status = _run_pytest(passed_on.arguments(plan, self.run_dir / PLAN_FILE))
        self._phases["test"] = time.monotonic() - began
        if status is pytest.ExitCode.USAGE_ERROR:
            raise UsageError("pytest refused its options", hint="see what it said above")
        if status is pytest.ExitCode.NO_TESTS_COLLECTED:
            raise UsageError("no case matches what was asked for", hint="see: vfio-harness list cases")
        return self._report(as_json)

    def _make_run_dir(self, plan: Plan) -> None:
        try:
            self.run_dir.mkdir(parents=True)
            plan.save(self.run_dir / PLAN_FILE)
            for job in plan.jobs:
                shutil.copy2(job.kernel.config, self.run_dir / f"{job.kernel.variant}.config")
        except OSError as error:
            raise InfraError(
                f"cannot write the run's directory {self.run_dir}: {error.strerror}",
                hint="VFIO_HARNESS_RUNS moves it",
            ) from error

    def _store(self, directory: Path) -> RunStore:
        qemu: Qemu = self._qemu
        kernels = {p.wish.variant: p.kernel.digest for p in self._provided if p.kernel}
        inputs = Inputs(
            tree=f"{self._tree.label} {self._tree.identity}",
            kernels=kernels,
            qemu=qemu.version_text,
            accel=self._accel.accel.value,
            timeout_factor=self._accel.accel.timeout_factor,
            topologies=tuple(machine.topology for machine in self._machines),
            root=self._machines[0].root,
            machine=self._machines[0].kind,
            seed=self._seed,
            suites=self._suites,
            cases=self._cases,
            narrowed=self._narrowed,
            extra={"acceleration": self._accel.reason},
        )
        info = RunInfo(
            id=self.run_id,
            started=self._started,
            harness_version=harness.__version__,
            command=tuple(sys.argv),
            inputs=inputs,
        )
        return RunStore.create(directory, info)

    def _record_jobs(self, store: RunStore) -> None:
        for provided in self._provided:
            if provided.proof is not None:
                store.add_job(provided.record("", None))
                store.add(provided.proof)
                continue
            for machine in self._machines:
                name = load_topology(machine.topology).name
                job = self._jobs.get((provided.wish.variant, machine.topology))
                store.add_job(provided.record(name, job))

    def _report(self, as_json: bool) -> int:
        from harness.report import FORMATS, show, write

        run = load(self.run_dir)
        if as_json:
            emit(FORMATS["json"](run))
        else:
            with tolerant_stdout():
                show(run, sys.stdout)
        self.say(phase_line(self._phases, self.run_dir))
        self.say(f"everything is in {self.run_dir}")
        write(run, "junit", self.run_dir / JUNIT_FILE)
        write(run, "json", self.run_dir / JSON_FILE)
        if self._junit is not None:
            write(run, "junit", self._junit)
        return int(exit_code(run))


def _run_pytest(arguments: list[str]) -> pytest.ExitCode:
    """Run pytest in this process; its exit code matters only where no results are stored."""
    # The caller's own default options are for the caller's own tests.
    os.environ.pop("PYTEST_ADDOPTS", None)
    return pytest.ExitCode(pytest.main(arguments))
