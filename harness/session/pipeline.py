# SPDX-License-Identifier: GPL-2.0-only
"""One run as functions over frozen values: check, plan and build a Request; running.py does the rest.

If a kernel cannot be built, only its own jobs are affected.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from harness.base import paths
from harness.base.errors import (
    DeadlinePassed,
    ExitCode,
    HarnessError,
    InfraError,
    KernelError,
    NotApplicable,
    UsageError,
)
from harness.base.output import emit, tell, tolerant_stdout
from harness.base.words import count_of
from harness.fleet.cluster import FleetWish
from harness.kernel.arch import find_arch
from harness.kernel.trees import KernelTree
from harness.lab.admission import most_vms
from harness.machine.accel import Choice
from harness.machine.devices import Topology
from harness.machine.qemu import Qemu
from harness.machine.topology import load_topology, topology_in_results
from harness.plan import Job, Plan, too_late
from harness.plugin.engine import Ended, run_pytest
from harness.results import JobRecord, Run
from harness.results.store import new_run_id
from harness.session import forecast, planning, reporting
from harness.session.affected import choose_affected
from harness.session.forecast import workers_for
from harness.session.jobs import distinct_name, make_job, rerun_command
from harness.session.own import NO_PROGRAM, OWN_DIRECTORY, TakenOwn, refuse_useless, take, with_own
from harness.session.planning import PlannedKernel, slug
from harness.session.remaining import SELFTESTS, check_inputs, check_trees, done_in, pins
from harness.session.selection import check_selection, refuse_unless_selected, saved_elsewhere
from harness.session.wishes import Conduct, JobWish, KernelWish, MachineWish, OwnWish, PytestOptions
from harness.suites.catalogue import check_cases, check_patterns
from harness.suites.known import issue_texts, own_lists, own_names
from harness.suites.own import SUITE as OWN_SUITE
from harness.suites.registry import suite_named


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a verb asks for."""

    wishes: tuple[JobWish, ...]
    conduct: Conduct
    pytest: PytestOptions = dataclasses.field(default_factory=PytestOptions)
    fleet: FleetWish | None = None
    """Where the work runs; None: on this host, by pytest."""
    junit: Path | None = None
    accept: str | None = None
    """Why the coverage that the run lost is accepted."""
    before: Run | None = None
    """The Run to resume; work that it has finished is not repeated."""

    @property
    def suites(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(suite for wish in self.wishes for suite in wish.suites))

    @property
    def machines(self) -> tuple[MachineWish, ...]:
        return tuple(dict.fromkeys(wish.machine for wish in self.wishes))

    @property
    def kernels(self) -> tuple[KernelWish, ...]:
        return tuple(dict.fromkeys(wish.kernel for wish in self.wishes))

    @property
    def arches(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(kernel.arch for kernel in self.kernels))

    @property
    def owns(self) -> tuple[OwnWish, ...]:
        return tuple(dict.fromkeys(wish.own for wish in self.wishes))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A Request that passed all checks, with the identity of its run."""

    request: Request
    run_id: str
    run_dir: Path
    started: datetime.datetime
    qemus: Mapping[str, Qemu]
    """Architecture -> the QEMU for its guests."""
    accels: Mapping[str, Choice]
    """Architecture -> the accelerator."""
    topologies: Mapping[str, Topology]
    """The value of `--topology` -> the Topology, read once."""
    own: Mapping[OwnWish, TakenOwn] = dataclasses.field(default_factory=dict)
    """The user's own programs and probes, read once."""
    lacking: Mapping[str, InfraError] = dataclasses.field(default_factory=dict)
    """Architecture -> why this host can run none of its guests."""

    @property
    def qemu(self) -> Qemu:
        """The QEMU of the first architecture."""
        return next(iter(self.qemus.values()))

    @property
    def accel(self) -> Choice:
        """The accelerator of the first architecture."""
        return next(iter(self.accels.values()))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """A run whose kernels are configured; a kernel without a plan has a problem or a proof instead."""

    checked: Checked
    kernels: Mapping[KernelWish, PlannedKernel]
    jobs: Mapping[JobWish, Job] = dataclasses.field(default_factory=dict)
    refused: Mapping[JobWish, KernelError] = dataclasses.field(default_factory=dict)
    """Jobs that a finished kernel cannot have, as it lacks what their root or topology needs."""
    only: tuple[str, ...] = ()
    """The only work that runs, as Plan.only names it; empty: all."""
    first: tuple[str, ...] = ()
    """The work that reaches the change of the tree and runs first, or alone."""
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Group of work -> seconds that it took in earlier runs."""
    phases: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def request(self) -> Request:
        return self.checked.request

    def ready(self) -> list[PlannedKernel]:
        """Return the kernels of jobs that the store has now."""
        return [kernel for kernel in self._with_jobs() if kernel.is_built]

    def waiting(self) -> list[PlannedKernel]:
        """Return the kernels of jobs that are still to be built."""
        return [kernel for kernel in self._with_jobs() if not kernel.is_built]

    def _with_jobs(self) -> list[PlannedKernel]:
        return [self.kernels[wish] for wish in dict.fromkeys(wish.kernel for wish in self.jobs)]

    def record(self, wish: JobWish, job: Job | None, problem: HarnessError | None = None) -> JobRecord:
        """Return the results' record of the job of *wish*; *problem* is one of its build."""
        topology = topology_in_results(self.checked.topologies[wish.machine.topology])
        problem = problem or self.refused.get(wish)
        own = self.checked.own.get(wish.own)
        suites = own.recorded(wish.suites) if own is not None else wish.suites
        return self.kernels[wish.kernel].record(topology, job, problem, suites)

    def plan(self) -> Plan:
        """Return the plan: jobs of built kernels first, then in build order; see forecast.ordered()."""
        builds = {kernel.wish: number for number, kernel in enumerate(self.waiting(), start=1)}
        jobs = forecast.ordered(self.jobs, builds, self.seconds, self.request.pytest)
        conduct, before = self.request.conduct, self.request.before
        own, run_dir = conduct.known_issues, self.checked.run_dir
        # A rerun names the run's copies: a list may be edited in the meantime.
        copies = own_lists(run_dir) if before else [run_dir / name for name in own_names(len(own))]
        return Plan(
            run_id=self.checked.run_id,
            run_dir=os.fspath(self.checked.run_dir),
            seed=conduct.seed,
            cases=conduct.cases,
            isolation=conduct.isolation,
            confirm=conduct.confirm,
            until=conduct.until,
            only=self.only,
            done=done_in(before) if before is not None else (),
            seconds=self.seconds,
            known_issues=issue_texts(own_lists(run_dir) if before else own),
            reruns={
                job.name: rerun_command(self._pinned(wish), conduct, copies)
                for wish, job in self.jobs.items()
            },
            jobs=jobs,
        )

    def kept(self, wish: JobWish) -> JobWish:
        """Return *wish* for the run's copies of what the user brought along."""
        own = self.checked.own.get(wish.own)
        kept = own.kept_in(self.checked.run_dir / OWN_DIRECTORY) if own is not None else wish.own
        return dataclasses.replace(wish, own=kept)

    def _pinned(self, wish: JobWish) -> JobWish:
        return dataclasses.replace(self.kept(wish), kernel=self.kernels[wish.kernel].pinned)

    def kernels_by_name(self) -> dict[str, PlannedKernel]:
        """Return the kernels by names that differ: with the tree's label where there are several trees."""
        several = len({kernel.tree_identity for kernel in self.kernels.values()}) > 1
        return {
            (f"{kernel.tree_label} " if several else "") + wish.name: kernel
            for wish, kernel in self.kernels.items()
        }

    def kernel_keys(self) -> dict[str, str]:
        """Return the digests of the kernels by their names."""
        return {name: kernel.plan.key for name, kernel in self.kernels_by_name().items() if kernel.plan}

    def selftests(self) -> dict[str, str]:
        """Return the tree of `--selftests` as Inputs.extra has it; empty without."""
        for kernel in self.kernels.values():
            if kernel.tests is not None:
                tests = kernel.pinned.absolute().selftests
                return {SELFTESTS: f"{tests} {kernel.tests.selftest_identity[:12]}"}
        return {}

    @property
    def worst_problem(self) -> ExitCode:
        """The worst exit code of a kernel's problem."""
        problems = [kernel.problem for kernel in self.kernels.values() if kernel.problem is not None]
        return max((one.exit_code for one in (*problems, *self.refused.values())), default=ExitCode.GOOD)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuiltRun:
    """A run with a kernel to start with, if any builds; the others are built while tests run."""

    planned: PlannedRun
    failed: Mapping[JobWish, Job] = dataclasses.field(default_factory=dict)
    """Jobs whose kernel did not build before any test ran."""
    cpu_seconds: float = 0.0
    """CPU time of the builds so far."""


def check(request: Request) -> Checked:
    """Check the Request before anything slow begins, and print which accelerator is used."""
    started = datetime.datetime.now(datetime.UTC)
    run_id = new_run_id(started)
    run_dir = paths.runs_dir() / run_id
    if request.before is not None:
        run_id, run_dir = request.before.info.id, Path(request.before.directory)
    conduct = request.conduct
    _tell_most_workers(request.pytest.workers or 0)
    for name in request.suites:
        suite_named(name)
    own = {
        wish: take(wish, request.machines[0].root, find_arch(arch))
        for wish in request.owns
        for arch in request.arches
    }
    if OWN_SUITE in request.suites and not any(wish.programs for wish in own):
        raise UsageError(NO_PROGRAM, hint="add --program PATH")
    check_patterns(conduct.cases, request.suites)
    reporting.check_outputs(run_dir.parent, request.junit)
    reporting.check_history(conduct.compare, conduct.known_issues)
    for kernel in request.kernels:
        planning.check_kernel(kernel)
    chosen, lacking = planning.choose_all(request.machines[0], request.arches)
    qemus = {arch: qemu for arch, (qemu, _) in chosen.items()}
    topologies = {
        machine.topology: planning.check_machine(machine, qemus[arch])
        if arch in qemus
        else load_topology(machine.topology, arch=find_arch(arch))
        for machine, arch in dict.fromkeys((wish.machine, wish.kernel.arch) for wish in request.wishes)
    }
    return Checked(
        request=request,
        run_id=run_id,
        run_dir=run_dir,
        started=started,
        qemus=qemus,
        lacking=lacking,
        accels={arch: accel for arch, (_, accel) in chosen.items()},
        topologies=topologies,
        own=own,
    )


def _tell_most_workers(asked: int) -> None:
    """Say how many workers there will be, if fewer than *asked*.

    Raises UsageError for a bad VFIO_HARNESS_VMS.
    """
    if asked > (most := most_vms()):
        tell(f"-n {asked}: this host runs at most {count_of(most, 'VM')} at once, so {most} workers start")


def plan(checked: Checked, *, build: bool = True, expect: bool = True) -> PlannedRun:
    """Open the trees, configure the kernels and make the jobs; refuse a selection of no case.

    Without *build* no compiler is started; without *expect* the history is not asked how long jobs take.
    """
    request = checked.request
    began = time.monotonic()
    specs = tuple(dict.fromkeys(spec for wish in request.kernels for spec in wish.trees))
    trees = planning.open_trees(specs, pins(request.before, request.kernels))
    fetched = time.monotonic()
    kernels = {wish: _plan_kernel(checked, trees, wish, build=build) for wish in request.kernels}
    planning.tell_broken_suites(kernels.values())
    _raise_if_none_is_possible(kernels.values())
    planned = PlannedRun(checked=checked, kernels=kernels)
    if request.before is not None:
        _check_as_before(request.before, planned)
    planned = dataclasses.replace(planned, refused=_refused(checked, kernels))
    planned = dataclasses.replace(planned, jobs=_make_jobs(planned))
    records = {wish: planned.record(wish, job) for wish, job in planned.jobs.items()}
    if planned.jobs and request.pytest.last_failed:
        series = {record.name: record.series for record in records.values()}
        planned = dataclasses.replace(planned, only=reporting.failed_last(series, planned.plan()))
    if planned.jobs and request.before is None:
        chosen = choose_affected(kernels, records, planned.plan(), request.conduct, request.pytest)
        planned = dataclasses.replace(planned, first=chosen)
    refuse_useless(planned.jobs.values())
    if planned.jobs:
        check_cases(planned.plan())
        check_selection(planned.plan(), request.pytest)
    if expect:
        jobs = {job.name: (job, records[wish]) for wish, job in planned.jobs.items()}
        planned = dataclasses.replace(planned, seconds=forecast.expected_seconds(jobs, checked.accel.accel))
    return dataclasses.replace(planned, phases={"fetch": fetched - began, "plan": time.monotonic() - fetched})


def _plan_kernel(
    checked: Checked,
    trees: Mapping[str | None, KernelTree | InfraError],
    wish: KernelWish,
    *,
    build: bool,
) -> PlannedKernel:
    opened: dict[str | None, KernelTree] = {}
    if wish.arch in checked.lacking:
        return PlannedKernel(wish=wish, tree=None, problem=checked.lacking[wish.arch])
    for spec in wish.trees:
        tree = trees[spec]
        if isinstance(tree, InfraError):
            return PlannedKernel(wish=wish, tree=None, problem=tree)
        opened[spec] = tree
    jobs = [job for job in checked.request.wishes if job.kernel == wish]
    needed = planning.needs_selftests(suite for job in jobs for suite in job.suites)
    if wish.selftests is not None and not needed and not any(job.own.programs for job in jobs):
        tell(f"kernel: {wish.name}: no suite here runs the selftests of --selftests {wish.selftests}")
    kernel = planning.plan_wished_kernel(
        opened[wish.tree] if wish.ready is None else None,
        wish,
        tests=opened[wish.selftests] if wish.selftests is not None else None,
        with_selftests=needed,
        build=build,
    )
    kernel = with_own(
        kernel, [checked.own[own] for own in {job.own for job in jobs} & set(checked.own)], build=build
    )
    if kernel.proof is not None:
        tell(f"kernel: {wish.name} {kernel.proof.outcome.value}: {kernel.proof.reason}")
    elif isinstance(kernel.problem, InfraError) and len(checked.request.kernels) == 1:
        # There is nothing to report on.
        raise kernel.problem
    elif kernel.problem is not None:
        tell(f"kernel: {wish.name}: {kernel.problem}")
    return kernel


def _raise_if_none_is_possible(kernels: Iterable[PlannedKernel]) -> None:
    """Raise the InfraError of the first kernel when all have one: there is nothing to report on."""
    problems = [kernel.problem for kernel in kernels]
    infra = [problem for problem in problems if isinstance(problem, InfraError)]
    if infra and len(infra) == len(problems):
        raise infra[0]


def _check_as_before(before: Run, planned: PlannedRun) -> None:
    """Refuse to resume a run whose trees, kernels or QEMU have changed; see harness.session.remaining."""
    kernels = planned.kernels.values()
    check_trees(before, {kernel.wish.line: kernel.tree_identity for kernel in kernels})
    found = {**planned.kernel_keys(), **planned.selftests(), "QEMU": planned.checked.qemu.version_text}
    check_inputs(before, found)


def _refused(checked: Checked, kernels: Mapping[KernelWish, PlannedKernel]) -> dict[JobWish, KernelError]:
    """Return the jobs that their finished kernel cannot have; raise the first error if that is all."""
    refused: dict[JobWish, KernelError] = {}
    for wish in checked.request.wishes:
        topology = checked.topologies[wish.machine.topology]
        try:
            planning.check_job(kernels[wish.kernel], wish.machine.root, topology)
        except KernelError as error:
            refused[wish] = error
    if refused and len(refused) == len(checked.request.wishes):
        raise next(iter(refused.values()))
    for wish, reason in refused.items():
        tell(f"topology {wish.machine.topology}: {reason}")
    return refused


def _make_jobs(planned: PlannedRun) -> dict[JobWish, Job]:
    """Return the jobs of the kernels that have a plan, each with a name of its own."""
    jobs: dict[JobWish, Job] = {}
    names: set[str] = set()
    for wish in planned.request.wishes:
        kernel = planned.kernels[wish.kernel]
        if kernel.plan is None or wish in planned.refused:
            continue
        job = make_job(kernel, wish, planned.checked.topologies[wish.machine.topology])
        job = dataclasses.replace(job, name=distinct_name(job.name, slug(kernel.tree_label), names))
        jobs[wish] = job
        names.add(job.name)
    return jobs


def show_plan(planned: PlannedRun, *, as_json: bool = False) -> int:
    """Print what would be built and run, and how long that took in earlier runs; start nothing."""
    plan = planned.plan()
    kernels = [forecast.kernel_row(kernel) for kernel in planned.kernels.values()]
    jobs = [forecast.job_row(job, plan) for job in plan.jobs]
    workers = workers_for(plan, planned.request.pytest) or 1
    with tolerant_stdout():
        if as_json:
            emit(forecast.rows_as_json(kernels, jobs, workers))
        else:
            forecast.show_rows(sys.stdout, kernels, jobs, workers)
    problems = (kernel.problem for kernel in planned.kernels.values())
    broken = any(problem is not None and not isinstance(problem, NotApplicable) for problem in problems)
    return planned.worst_problem if broken or not jobs else ExitCode.GOOD


def collect(planned: PlannedRun) -> int:
    """Print what would run; return the exit code of the worst kernel."""
    if not planned.jobs:
        return planned.worst_problem
    plan, options = planned.plan(), planned.request.pytest
    ended = Ended.RAN
    # A reader that is gone has seen that something would run.
    with saved_elsewhere(plan) as path, tolerant_stdout():
        ended = run_pytest(options.words(), path, workers_for(plan, options))
    refuse_unless_selected(ended, plan, options.keyword)
    if ended is Ended.INTERRUPTED:
        return ExitCode.INTERRUPTED
    return planned.worst_problem if ended is Ended.RAN else ExitCode.USAGE


def build(planned: PlannedRun) -> BuiltRun:
    """Build until one kernel can be tested; the others are built while tests run."""
    began = time.monotonic()
    built = BuiltRun(planned=planned)
    until = planned.request.conduct.until
    while not (planned.request.fleet or built.planned.ready() or too_late(until)) and built.planned.waiting():
        built = _build_one(built)
    ready = built.planned.ready()
    for kernel in ready:
        assert kernel.tree is not None
        tell(f"kernel: {kernel.wish.name} {kernel.tree.version} is ready")
    done = built.planned
    for kernel in {one.wish.arch: one for one in reversed(ready)}.values():
        done = _prove_accel(done, kernel)
    done = dataclasses.replace(done, phases={**done.phases, "build": time.monotonic() - began})
    return dataclasses.replace(built, planned=done)


def _build_one(built: BuiltRun) -> BuiltRun:
    """Build the next waiting kernel; if that fails, its jobs are not run."""
    planned = built.planned
    kernel = planned.waiting()[0]

    def check_deadline() -> None:
        if late := too_late(planned.request.conduct.until):
            raise DeadlinePassed(late)

    try:
        found = planning.build_planned(kernel, check_deadline)
    except DeadlinePassed as error:
        tell(f"kernel: {kernel.wish.name}: {error}")
        return built
    except (KernelError, InfraError) as error:
        tell(f"kernel: {kernel.wish.name}: {error}")
        failed = {wish: job for wish, job in planned.jobs.items() if wish.kernel == kernel.wish}
        left = {wish: job for wish, job in planned.jobs.items() if wish not in failed}
        if isinstance(error, InfraError) and not left:
            raise
        kernels = {**planned.kernels, kernel.wish: dataclasses.replace(kernel, problem=error)}
        return dataclasses.replace(
            built,
            planned=dataclasses.replace(planned, kernels=kernels, jobs=left),
            failed={**built.failed, **failed},
        )
    return dataclasses.replace(built, cpu_seconds=built.cpu_seconds + found.spent_cpu_seconds)


def _prove_accel(planned: PlannedRun, kernel: PlannedKernel) -> PlannedRun:
    """Return *planned* with the accelerator that works with a real kernel."""
    assert kernel.plan is not None
    checked, arch = planned.checked, kernel.wish.arch
    _, choice = planning.choose(planned.request.machines[0], arch, kernel.plan.image)
    if choice.accel is not checked.accels[arch].accel:
        planning.announce(choice, arch)
    accels = {**checked.accels, arch: choice}
    return dataclasses.replace(planned, checked=dataclasses.replace(checked, accels=accels))
