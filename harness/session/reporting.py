# SPDX-License-Identifier: GPL-2.0-only
"""Find a run, compare it with earlier ones, account for its time and write its reports."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from harness.base import paths
from harness.base.errors import ExitCode, HarnessError, InfraError, NoCase, UsageError, nearest
from harness.base.host import free_mib
from harness.base.output import emit, tolerant_stdout
from harness.base.words import count_of
from harness.plan import Plan
from harness.results import Background, Outcome, Result, Run, is_complete, reach_verdict
from harness.results.history import History
from harness.results.historyfile import consult
from harness.results.store import RunStore, list_runs, load
from harness.suites.catalogue import to_do
from harness.suites.registry import work_address

T = TypeVar("T")

_LEAST_FREE_MIB = 64
"""Least free disk space for a run: a nightly takes some 40 MiB, a run of one job 5."""

_SPLAT_MOST = 60_000
"""How many characters of a splat are kept outside the run: several splats may follow each other."""

_LONG_WAIT_SECONDS = 1.0
"""A shorter total wait of the VMs for CPUs and memory of this host is not reported."""


def find_run(run: str | None) -> Run:
    """Return the run called *run*, by its directory or id; by default the newest one that can be read.

    Raises UsageError when there is none or it is from a newer harness, InfraError when it is damaged.
    """
    root = paths.runs_dir()
    if run is not None and (Path(run).is_dir() or "/" in run):
        return load(Path(run))
    found = list_runs(root)
    known = {summary.directory.name: summary.directory for summary in found}
    made = "vfio-harness run makes one"
    if run is None:
        # The newest comes first.
        newest = next((summary.directory for summary in found if summary.info is not None), None)
        if newest is None:
            raise UsageError(f"there are no runs in {root}", hint=made)
        return load(newest)
    if run not in known:
        if any(past.directory.name == run for past in ask(lambda history: history.runs())):
            removed = f"run {run!r} was removed from {root}; the history has its outcomes only"
            raise UsageError(removed, hint="vfio-harness history CASE")
        hint = nearest(run, known) if known else made
        raise UsageError(f"there is no run {run!r} in {root}", hint=hint)
    return load(known[run])


def ask(question: Callable[[History], T]) -> T:
    """Return the answer of the history of all runs to *question*; the history is updated first."""
    from harness.suites.registry import may_exist

    return consult(paths.runs_dir(), question, exists=may_exist)


def check_history(compare: bool = True, known_issues: Iterable[Path] = ()) -> None:
    """Refuse known issues that cannot be read and, with *compare*, a history that cannot be used."""
    from harness.suites.known import load_issues, shipped_issues

    shipped_issues()
    for path in known_issues:
        load_issues(path)
    if compare:
        ask(lambda history: None)


def check_outputs(place: Path, junit: Path | None) -> None:
    """Refuse, before a run, what could not be written at its end: runs in *place*, a report at *junit*.

    Raises UsageError for the report, InfraError for the runs.
    """
    from harness.report.files import check_place

    if junit is not None:
        check_place("--junit-xml", junit)
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            room = free_mib(place)
    except OSError as error:
        raise InfraError(
            f"cannot write runs into {place}: {error.strerror}", hint="VFIO_HARNESS_RUNS moves them"
        ) from error
    if room < _LEAST_FREE_MIB:
        raise InfraError(
            f"only {room} MiB are free in {place}, and a run needs {_LEAST_FREE_MIB}",
            hint="VFIO_HARNESS_RUNS moves runs; vfio-harness gc frees space in the cache",
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a Run is reported with."""

    background: Background
    exit_code: ExitCode
    """The exit code of the command that made the Run."""


def see(run: Run, *, compare: bool = True) -> Seen:
    """Return Background and exit code of *run*, with a comparison if *compare* and the run itself ask for it.

    If the history cannot be used, the results are still reported.
    """
    background = Background(notes=_about_known_issues(run))
    unknown = False
    if compare and run.info.inputs.compare:
        try:
            background = dataclasses.replace(ask(lambda h: h.background(run)), notes=background.notes)
        except HarnessError as error:
            notes = (f"not compared with earlier runs: {error}", *background.notes)
            background, unknown = Background(notes=notes), True
    code = reach_verdict(run, background.comparison).exit_code
    # Without its history a run is not known to be good.
    code = ExitCode.INFRA if unknown and code is ExitCode.GOOD else code
    return Seen(background=background, exit_code=code)


def _about_known_issues(run: Run) -> tuple[str, ...]:
    from harness.suites.known import issues_of, load_issues, matching_nothing, outdated, own_lists
    from harness.suites.registry import declared_cases

    releases = {job.name: job.kernel.partition(" ")[0] for job in run.jobs}
    tried = [(str(case.address), releases.get(case.job, ""), case.job) for case in run.cases]
    passed = [one for one, case in zip(tried, run.cases, strict=True) if case.outcome is Outcome.XPASS]
    cases = [case.address for case in declared_cases()]
    try:
        notes = outdated(issues_of(Path(run.directory)), cases, passed, datetime.date.today())
        if is_complete(run) and not run.info.inputs.cases:
            own = [issue for path in own_lists(Path(run.directory)) for issue in load_issues(path)]
            notes += matching_nothing(own, tried)
    except UsageError as error:
        return (f"the known issues cannot be read: {error}",)
    return notes


def told_splat(run: Run, case: Result) -> str:
    """Return the splat of *case* with its source lines, and what matters of it before it; empty without."""
    from harness.report.splats import evidence

    return evidence(run, case, _SPLAT_MOST) if case.splat else ""


def show_run(run: Run, background: Background, *, as_json: bool) -> None:
    """Print the report on stdout."""
    from harness.report.console import show
    from harness.report.files import FORMATS

    if as_json:
        emit(FORMATS["json"](run, background))
    else:
        with tolerant_stdout():
            show(run, sys.stdout, background)


def write_reports(run: Run, background: Background, junit: Path | None) -> None:
    """Write the reports of every run into its directory, and JUnit to *junit* too.  Raises InfraError."""
    from harness.report.files import write

    for form, name in (("junit", "junit.xml"), ("json", "run.json"), ("html", "report.html")):
        write(run, form, Path(run.directory, name), background)
    if junit is not None:
        write(run, "junit", junit, background)


def phase_line(phases: Mapping[str, float], run_dir: Path) -> str:
    """Return one line with the seconds of each phase, and of the boots of the VMs."""
    words = [f"{name} {seconds:.1f} s" for name, seconds in phases.items()]
    timings = _timings(run_dir)
    if timings:
        boots = [timing["to_proof"] for timing in timings]
        least, most = f"{min(boots):.1f}", f"{max(boots):.1f}"
        span = least if least == most else f"{least} to {most}"
        waited = sum(float(timing.get("waited", 0.0)) for timing in timings)
        wait = f", after waiting {waited:.0f} s for other VMs of this host"
        words[-1] += f" ({count_of(len(boots), 'VM')}, ready in {span} s"
        words[-1] += f"{wait if waited > _LONG_WAIT_SECONDS else ''})"
    return "time: " + ", ".join(words)


def account(run_dir: Path, build: float, tests: float = 0.0) -> None:
    """Record the run's CPU time: *build* seconds more for builds, and what QEMU used.

    Its tests took *tests* seconds more of wall time.  The CPU time of a VM that was lost is not known.
    """
    before = load(run_dir)
    spent = _spent(run_dir, before.spent.get("builds", 0.0) + build)
    # A full disk must not keep the report from being shown.
    with contextlib.suppress(InfraError):
        if spent != before.spent or tests:
            with RunStore.open(run_dir) as store:
                store.account(spent, before.tested + tests)


def _spent(run_dir: Path, build: float) -> dict[str, float]:
    """Return CPU seconds of builds, boots and cases; empty when there is nothing to tell."""
    timings = [timing for timing in _timings(run_dir) if timing.get("cpu") is not None]
    if not build and not timings:
        return {}
    boots = sum(float(timing["cpu_to_proof"] or 0) for timing in timings)
    total = sum(float(timing["cpu"]) for timing in timings)
    return {"builds": build, "boots": boots, "cases": total - boots}


def _timings(run_dir: Path) -> list[dict[str, Any]]:
    """Return the timings that VMs left, without unreadable ones, as after a kill or on a full disk."""
    found = []
    for path in sorted(run_dir.glob(f"vm/*/{paths.TIMING_FILE}")):
        with contextlib.suppress(OSError, ValueError):
            timing = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(timing, dict) and "to_proof" in timing:
                found.append(timing)
    return found


def failed_last(series: Mapping[str, str], plan: Plan) -> tuple[str, ...]:
    """Return what failed or was lost in the last run of each job of *plan*, in the form of Plan.only.

    *series* maps the names of its jobs to JobRecord.series.

    Raises NoCase if nothing did.
    """
    found = ask(lambda history: {job: history.last_run(one) for job, one in series.items()})
    last = {job: one for job, one in found.items() if one is not None}
    if not last:
        raise NoCase("--lf: these jobs never ran with this tree", hint="leave --lf out")
    failed = [
        (job, case.address)
        for job, (_, cases) in last.items()
        for case in cases
        if case.outcome.is_failure or case.outcome is Outcome.LOST
    ]
    runs = ", ".join(sorted({name for name, _ in last.values()}))
    if not failed:
        raise NoCase(f"--lf: nothing failed in the last run of this tree, {runs}", hint="leave --lf out")
    named = {f"{job} {work_address(address)}" for job, address in failed}
    only = tuple(work.key for work in to_do(plan) if work.key in named)
    if not only:
        what = f"--lf: none of the requested cases failed in {runs}; what failed there: {failed[0][1]}"
        raise NoCase(what, hint="leave --lf out")
    return only
