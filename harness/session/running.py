# SPDX-License-Identifier: GPL-2.0-only
"""Carry out a BuiltRun and report it."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sys
import time
from collections.abc import Callable, Container
from pathlib import Path

from harness.base.cause import Cause
from harness.base.errors import HarnessError, InfraError, UsageError
from harness.base.output import tell, tolerant_stdout
from harness.kernel.plan import KernelPlan
from harness.kernel.store import Built
from harness.machine.qemu import chosen_qemu
from harness.plan import PLAN_FILE, Plan
from harness.plugin.engine import Ended, run_pytest
from harness.results import Outcome, Result, Run, RunState, Verdict, owned, reach_verdict
from harness.results.store import RunStore, load
from harness.session import reporting
from harness.session.builder import building
from harness.session.coverage import keep_coverage
from harness.session.decoding import locate_splats, telling_splats
from harness.session.dumps import question_dumps
from harness.session.forecast import workers_for
from harness.session.on_fleet import run_on_fleet
from harness.session.own import OWN_DIRECTORY
from harness.session.pipeline import BuiltRun, PlannedRun
from harness.session.planning import slug
from harness.session.records import open_store, record_jobs
from harness.session.remaining import check_inputs, left_to_try
from harness.session.wishes import save_wishes
from harness.suites.catalogue import to_do
from harness.suites.known import own_names


def carry_out(built: BuiltRun, *, as_json: bool = False) -> int:
    """Run what is left of the plan and report; return the exit code.  The run is locked meanwhile."""
    checked, before = built.planned.checked, built.planned.request.before
    plan = built.planned.plan()
    if before is not None:
        if before.state is RunState.FINISHED and not to_do(plan):
            tell("nothing is left to do in this run")
            return report(built, as_json=as_json)
        if checked.request.fleet is None:
            check_inputs(before, {"the accelerator": checked.accel.accel.value})
    _fill_run_dir(built.planned, plan)
    # The caller has locked a resumed run already.
    with owned(checked.run_dir) if before is None else contextlib.nullcontext():
        return report(run(built, plan, as_json=as_json), as_json=as_json)


def run(built: BuiltRun, plan: Plan, *, as_json: bool = False) -> BuiltRun:
    """Run what is left of *plan*, and return *built* with its run time and CPU seconds.

    Results go into the run's directory as they come.
    """
    planned, checked = built.planned, built.planned.checked
    work = to_do(plan)
    with open_store(planned) as store:
        record_jobs(built, store)
        if not work:
            store.finish(reach_verdict(dataclasses.replace(store.read(), state=RunState.FINISHED)).verdict)
    began = time.monotonic()
    cpu_seconds = [built.cpu_seconds]
    if work:
        with (
            contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout),
            tolerant_stdout(),
            chosen_qemu(checked.request.machines[0].qemu),
            _background_builds(planned, cpu_seconds.append),
            telling_splats(planned),
        ):
            _run_in_parts(planned, plan)
    phases = {**planned.phases, "test": time.monotonic() - began}
    return dataclasses.replace(
        built, planned=dataclasses.replace(planned, phases=phases), cpu_seconds=sum(cpu_seconds)
    )


def _run_in_parts(planned: PlannedRun, plan: Plan) -> None:
    """Run *plan*; what reaches the change of the tree first, with a verdict on that, or alone."""
    checked, first = planned.checked, planned.first
    if not first:
        _run_twice(planned, plan)
        return
    alone = checked.request.pytest.affected
    began, path = time.monotonic(), checked.run_dir / PLAN_FILE
    part = dataclasses.replace(plan, only=first)
    if alone:
        reason = "left out by --affected: it does not reach the change"
        _note_unrun(checked.run_dir, plan, set(first), reason, Cause.BY_WISH)
    part.save(path)
    try:
        _run_twice(planned, part)
    finally:
        plan.save(path)
    so_far = load(checked.run_dir)
    if alone or so_far.state is not RunState.FINISHED:
        return
    reached = reach_verdict(so_far)
    tell(f"\naffected: {reached.verdict.value.upper()} after {time.monotonic() - began:.1f} s: {reached.why}")
    if checked.request.pytest.exit_first and reached.verdict is not Verdict.GOOD:
        _note_unrun(checked.run_dir, plan, set(first), "the run stopped before it", Cause.STOPPED)
        return
    left = dataclasses.replace(plan, done=tuple(first))
    left.save(path)
    with RunStore.open(checked.run_dir) as store:
        store.go_on()
    try:
        _run_twice(planned, left)
    finally:
        plan.save(path)


def _note_unrun(run_dir: Path, plan: Plan, but: Container[str], reason: str, cause: Cause) -> None:
    """Record that all work of *plan* is not run, *but* that."""
    left = [work for work in to_do(plan) if work.key not in but]
    with RunStore.open(run_dir) as store:
        store.add(
            *(
                Result(
                    address=work.address_of(),
                    job=work.job,
                    outcome=Outcome.NOT_RUN,
                    reason=reason,
                    cause=cause,
                )
                for work in left
            )
        )


def _run_twice(planned: PlannedRun, plan: Plan) -> None:
    """Run *plan*, and with --confirm once more what could not be tried, as when a worker died."""
    checked = planned.checked
    path = checked.run_dir / PLAN_FILE
    ended = _engine(planned, plan)
    if ended is Ended.REFUSED:
        raise UsageError("pytest refused its options", hint="see its message above")
    if not checked.request.conduct.confirm or ended is not Ended.RAN:
        return
    again = left_to_try(plan, load(checked.run_dir))
    if again is not None:
        tell(f"\nrunning again what could not be run: {len(to_do(again))} of the cases and programs")
        again.save(path)
        with RunStore.open(checked.run_dir) as store:
            store.go_on()
        try:
            _engine(planned, again)
        finally:
            plan.save(path)


def _engine(planned: PlannedRun, plan: Plan) -> Ended:
    """Run *plan*, which is saved in the run's directory: on the fleet, or on this host by pytest."""
    checked = planned.checked
    if checked.request.fleet is None:
        options = checked.request.pytest
        return run_pytest(options.words(), checked.run_dir / PLAN_FILE, workers_for(plan, options))
    # Workers of this host have its processors, so it builds from what it has.
    travels = not checked.request.fleet.address.local
    made = (kernel.order(travels=travels) for kernel in planned.waiting())
    orders = {order.digest: order for order in made if order is not None}
    for order in orders.values():
        tell(f"kernel: {order.variant} is to be built in the fleet")

    def provided(digest: str, error: HarnessError | None) -> None:
        tell(f"kernel: {orders[digest].variant}: {error or 'built in the fleet'}")
        if error is not None:
            _note_unbuilt(planned, digest, error)

    return run_on_fleet(plan, checked.request.fleet, orders, provided)


def _note_unbuilt(planned: PlannedRun, digest: str, error: HarnessError) -> None:
    """Record for its jobs why there is no kernel *digest*."""
    with RunStore.open(planned.checked.run_dir) as store:
        for wish, job in planned.jobs.items():
            if job.kernel.digest == digest:
                store.add_job(planned.record(wish, job, error))


def _background_builds(
    planned: PlannedRun, spent: Callable[[float], object]
) -> contextlib.AbstractContextManager[object]:
    """Build the other kernels in the background, unless a fleet does.

    *spent* is called with the CPU seconds of each.
    """
    waiting = {kernel.plan.key: kernel for kernel in planned.waiting() if isinstance(kernel.plan, KernelPlan)}
    if not waiting or planned.request.fleet is not None:
        return contextlib.nullcontext()

    def note(plan: KernelPlan, result: Built | HarnessError, seconds: float) -> None:
        """Say, from the builder's thread, that a kernel is built, or record its failure for its jobs."""
        name = plan.variant.name
        if isinstance(result, Built):
            spent(result.spent_cpu_seconds)
            how = "built" if result.is_new else "built by another process, found"
            tell(f"\nkernel: {name} {result.release} {how} in {seconds:.1f} s")
            return
        tell(f"\nkernel: {name}: {result}")
        _note_unbuilt(planned, plan.key, result)

    plans = [kernel.plan for kernel in waiting.values() if isinstance(kernel.plan, KernelPlan)]
    compilers = next(iter(waiting.values())).wish.compilers
    return building(plans, planned.checked.run_dir, compilers=compilers, finished=note)


def _fill_run_dir(planned: PlannedRun, plan: Plan) -> None:
    """Write plan, wishes, known issues and kernel configurations into the run's directory."""
    directory, request = planned.checked.run_dir, planned.request
    try:
        directory.mkdir(parents=True, exist_ok=request.before is not None)
        plan.save(directory / PLAN_FILE)
        save_wishes(directory, list(map(planned.kept, request.wishes)), request.conduct)
        for taken in planned.checked.own.values():
            taken.keep(directory / OWN_DIRECTORY)
        own = request.conduct.known_issues
        for path, name in zip(own, own_names(len(own)), strict=True):
            shutil.copyfile(path, directory / name)
        for name, kernel in planned.kernels_by_name().items():
            if kernel.plan is not None:
                config = directory / f"{slug(name)}.config"
                config.write_text(kernel.plan.config.text, encoding="utf-8")
    except OSError as error:
        raise InfraError(
            f"cannot write the run's directory {directory}: {error.strerror}",
            hint="VFIO_HARNESS_RUNS moves it",
        ) from error


def report(built: BuiltRun, *, as_json: bool = False) -> int:
    """Print the report, write the report files and return the exit code."""
    planned, request = built.planned, built.planned.request
    directory = planned.checked.run_dir
    keep_coverage(directory)
    reporting.account(directory, built.cpu_seconds, planned.phases.get("test", 0.0))
    result = load(directory)
    began, last = time.monotonic(), ""
    if locate_splats(planned, result):
        result, last = load(directory), f", source lines of splats {time.monotonic() - began:.1f} s"
    began = time.monotonic()
    if question_dumps(planned, result):
        result, last = load(directory), f"{last}, memory of dead guests {time.monotonic() - began:.1f} s"
    if request.accept is not None:
        result = _accepted(result, request.accept)
    seen = reporting.see(result, compare=request.conduct.compare)
    reporting.show_run(result, seen.background, as_json=as_json)
    tell(reporting.phase_line(planned.phases, directory) + last)
    tell(f"everything is in {directory}")
    reporting.write_reports(result, seen.background, request.junit)
    return int(seen.exit_code)


def _accepted(result: Run, reason: str) -> Run:
    """Return *result* with the *reason* for accepting the coverage that it lost."""
    if result.state is not RunState.FINISHED:
        # Cases that it did not reach would count as lost.
        tell("the run is not finished: nothing is accepted")
        return result
    with RunStore.open(Path(result.directory)) as store:
        store.accept(reason)
        return store.read()
