# SPDX-License-Identifier: GPL-2.0-only
"""Recorder: writes the results of the run into its database, and accounts for all work that was collected.

Results arrive as a user property of pytest's reports, from this process or from xdist's workers.  Work that
was collected and never reported is NOT_RUN, not a pass.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from harness import __version__
from harness.base.cause import Cause
from harness.base.errors import InfraError
from harness.lab.accel import proven_accel
from harness.lab.ledger import Ledger
from harness.plan import PLAN_FILE, Plan
from harness.plugin.items import LATE_PROPERTY, RESULTS_PROPERTY
from harness.results import (
    Inputs,
    JobRecord,
    Outcome,
    Result,
    RunInfo,
    RunState,
    reach_verdict,
    result_from_plain,
)
from harness.results.store import FILE_NAME, RunStore, new_run_id
from harness.suites.catalogue import to_do


def own_run(plan: Plan) -> Plan:
    """Return *plan* with a run directory to write to: its own unless a finished run is there already.

    `vfio-harness run` has made the run; `pytest --plan FILE` alone may have to make it, or another one.
    """
    directory = Path(plan.run_dir)
    if not (directory / FILE_NAME).exists():
        return _new_run(plan)
    with RunStore.open(directory) as store:
        started = store.read().state is not RunState.RUNNING
    if not started:
        return plan
    run_id = new_run_id(datetime.datetime.now(datetime.UTC))
    again = dataclasses.replace(plan, run_id=run_id, run_dir=str(directory.with_name(run_id)))
    return _new_run(again)


def _new_run(plan: Plan) -> Plan:
    directory = Path(plan.run_dir)
    directory.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)
    inputs = Inputs(
        accel=proven_accel(plan.jobs),
        kernels={job.kernel.variant: job.kernel.digest for job in plan.jobs},
        topologies=tuple(job.topology.name for job in plan.jobs),
        seed=plan.seed,
    )
    info = RunInfo(
        id=plan.run_id, started=now, harness_version=__version__, command=tuple(sys.argv), inputs=inputs
    )
    with RunStore.create(directory, info) as store:
        for job in plan.jobs:
            store.add_job(JobRecord(name=job.name, variant=job.kernel.variant, features=job.features))
    plan.save(directory / PLAN_FILE)
    return plan


def _key(nodeid: str) -> tuple[str, str]:
    """Return file name and item name, which do not depend on pytest's root directory.

    xdist's loadgroup appends `@group` to a node id.
    """
    path, _, name = nodeid.partition("::")
    return Path(path).name, name.partition("]")[0] + "]"


class Recorder:
    """Hooks of the process that talks to the user."""

    def __init__(self, plan: Plan) -> None:
        self._store = RunStore.open(Path(plan.run_dir))
        work = to_do(plan)
        self._work = {(one.path.name, one.title): one for one in work}
        self._ledger = Ledger(work, Path(plan.run_dir))
        self._interrupted = False
        self._session: pytest.Session | None = None
        self._trouble: InfraError | None = None
        """Why results cannot be stored any more, as on a full disk."""
        self._keep(*self._ledger.leftovers())

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self._session = session

    def _keep(self, *results: Result) -> None:
        """Store *results*; if that fails, end the run, because nothing it still does would be recorded."""
        try:
            self._store.add(*results)
        except InfraError as error:
            self._stop(error)

    def _stop(self, error: InfraError) -> None:
        if self._trouble is None and self._session is not None:
            # xdist checks its own flag only.
            xdist = self._session.config.pluginmanager.get_plugin("dsession")
            for loop in filter(None, (self._session, xdist)):
                loop.shouldstop = f"results cannot be kept: {error}"
        self._trouble = error

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._expect(item.nodeid for item in session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: object, ids: list[str]) -> None:
        self._expect(ids)

    def _expect(self, nodeids: Iterable[str]) -> None:
        self._ledger.expect(self._work[key] for key in map(_key, nodeids) if key in self._work)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        work = self._work.get(_key(report.nodeid))
        name = {"call": RESULTS_PROPERTY, "teardown": LATE_PROPERTY}.get(str(report.when), "")
        carried = dict(report.user_properties).get(name)
        if isinstance(carried, str):
            self._keep(*map(result_from_plain, json.loads(carried)))
            if work is not None:
                self._ledger.reported(work)
        elif report.failed and work is not None:
            # xdist reports a dead worker in no phase of the item.
            in_phase = report.when in ("setup", "call", "teardown")
            cause = Cause.HARNESS if in_phase else Cause.WORKER_DIED
            self._keep(*self._ledger.lost(work, f"the harness failed: {_last_line(report)}", cause))

    def pytest_report_teststatus(
        self, report: pytest.TestReport
    ) -> tuple[str, str, tuple[str, Mapping[str, bool]]] | None:
        """Show work that could not start, as after the deadline, as not run instead of failed."""
        carried = dict(report.user_properties).get(RESULTS_PROPERTY)
        if report.when != "call" or not report.failed or not isinstance(carried, str):
            return None
        if {result["outcome"] for result in json.loads(carried)} != {Outcome.NOT_RUN.value}:
            return None
        return "not run", "-", ("NOT RUN", {"purple": True})

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        # xdist ends a run that reached -x by a subclass of KeyboardInterrupt; nobody pressed Ctrl-C then.
        self._interrupted = type(excinfo.value) in (KeyboardInterrupt, pytest.exit.Exception)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Account for what did not run, and close the run; it stays open if results could not be stored."""
        if session.config.option.collectonly or self._trouble is not None:
            return
        self._keep(*self._ledger.unreported(interrupted=self._interrupted))
        state = RunState.INTERRUPTED if self._interrupted else RunState.FINISHED
        try:
            self._store.finish(
                reach_verdict(dataclasses.replace(self._store.read(), state=state)).verdict, state
            )
        except InfraError as error:
            self._stop(error)

    def pytest_unconfigure(self) -> None:
        self._store.close()


def _last_line(report: pytest.TestReport) -> str:
    lines = report.longreprtext.strip().splitlines()
    return lines[-1] if lines else "no reason given"
