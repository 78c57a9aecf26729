# SPDX-License-Identifier: GPL-2.0-only
"""The Recorder: the one process that writes the run's database, and that knows what should have had a result.

Results arrive as a user property of pytest's reports, from this process or from xdist's workers.  What was
collected and never reported is NOT_RUN: silence is not a pass.
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
from harness.errors import InfraError
from harness.plan import PLAN_FILE, Plan
from harness.plugin.spool import Spool
from harness.results import (
    FILE_NAME,
    WHOLE_PROGRAM,
    Address,
    Inputs,
    JobRecord,
    Outcome,
    Result,
    RunInfo,
    RunStore,
    State,
    judge,
    new_run_id,
    result_from_plain,
)
from harness.suites.catalogue import ProbeWork, Work, source_of, work_by_source

RESULTS_PROPERTY = "vfio_harness_results"
"""The user property that carries an item's Results from the process that ran it, as JSON."""

LATE_PROPERTY = "vfio_harness_late_results"
"""The same for what was heard when the item's VM was stopped."""


def own_run(plan: Plan) -> Plan:
    """*plan* with a run directory that is ours to write: its own unless a finished run is there already.

    `vfio-harness run` has made the run; `pytest --plan FILE` alone may be the first, or may come again.
    """
    directory = Path(plan.run_dir)
    if not (directory / FILE_NAME).exists():
        return _new_run(plan)
    with RunStore.open(directory) as store:
        started = store.read().state is not State.RUNNING
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
        accel=plan.jobs[0].accel if plan.jobs else "",
        kernels={job.kernel.variant: job.kernel.digest for job in plan.jobs},
        topologies=tuple(job.topology for job in plan.jobs),
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


Key = tuple[str, str]
"""File name and item name: what a node id keeps of a piece of work, whatever the root directory."""


def _key(nodeid: str) -> Key:
    """The Key in a node id; xdist's loadgroup appends `@group` to it."""
    path, _, name = nodeid.partition("::")
    return Path(path).name, name.partition("]")[0] + "]"


class Recorder:
    """Hooks of the process that talks to the user."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._store = RunStore.open(Path(plan.run_dir))
        self._work: dict[Key, Work] = {
            (source_of(work).name, work.title): work
            for group in work_by_source(plan).values()
            for work in group
        }
        self._waiting: dict[Key, Work] = {}
        self._heard: set[Key] = set()
        """Of what there was a result; a worker that takes a dead one's place collects everything anew."""
        self._collected = self._interrupted = False
        self._session: pytest.Session | None = None
        self._trouble: InfraError | None = None
        """Why results cannot be kept any more, as on a full disk."""
        self._spool = Spool(Path(plan.run_dir))
        for work in self._work.values():
            if told := self._spool.take(work):  # of an earlier part of the run, which nobody could end
                self._keep(*told)

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self._session = session

    def _keep(self, *results: Result) -> None:
        """Store *results*; where that fails the run ends in order, for what is not kept was run in vain."""
        try:
            self._store.add(*results)
        except InfraError as error:
            self._stop(error)

    def _stop(self, error: InfraError) -> None:
        if self._trouble is None and self._session is not None:
            # xdist looks at its own flag only.
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
        self._collected = True
        for nodeid in nodeids:
            work = self._work.get(_key(nodeid))
            if work is not None and _key(nodeid) not in self._heard:
                self._waiting[_key(nodeid)] = work

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = {"call": RESULTS_PROPERTY, "teardown": LATE_PROPERTY}.get(str(report.when), "")
        carried = dict(report.user_properties).get(name)
        if isinstance(carried, str):
            self._heard.add(_key(report.nodeid))
            self._waiting.pop(_key(report.nodeid), None)
            self._keep(*map(result_from_plain, json.loads(carried)))
            if _key(report.nodeid) in self._work:
                self._spool.drop(self._work[_key(report.nodeid)])
        elif report.failed and (work := self._waiting.pop(_key(report.nodeid), None)) is not None:
            lost = _without_result(work, Outcome.LOST, f"the harness failed: {_last_line(report)}")
            # What ran alongside it was told by nobody either, and is run anew by another worker.
            group = [work, *(one for one in self._waiting.values() if one.group == work.group)]
            self._keep(*(told for one in group for told in self._spool.take(one)), lost)

    def pytest_report_teststatus(
        self, report: pytest.TestReport
    ) -> tuple[str, str, tuple[str, Mapping[str, bool]]] | None:
        """Show work that was never begun, because a deadline had passed, as what it is: it has not failed."""
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
        """Account for what did not run, and close the run."""
        if session.config.option.collectonly:
            return
        if self._trouble is not None:
            # The run stays unfinished, as it is.
            return
        if self._interrupted and not self._collected:
            # So early that nobody had said what of it was chosen.
            self._waiting = dict(self._work)
        for work in self._waiting.values():
            unknown = _without_result(work, Outcome.NOT_RUN, "the run stopped before it")
            self._keep(*(self._spool.take(work) or (unknown,)))
        state = State.INTERRUPTED if self._interrupted else State.FINISHED
        try:
            self._store.finish(judge(dataclasses.replace(self._store.read(), state=state)), state)
        except InfraError as error:
            self._stop(error)

    def pytest_unconfigure(self) -> None:
        self._store.close()


def _without_result(work: Work, outcome: Outcome, reason: str) -> Result:
    if isinstance(work, ProbeWork):
        address = Address.parse(work.address)
    else:
        address = Address.parse(f"{work.address}/{WHOLE_PROGRAM}")
    return Result(address=address, job=work.job, outcome=outcome, reason=reason)


def _last_line(report: pytest.TestReport) -> str:
    lines = report.longreprtext.strip().splitlines()
    return lines[-1] if lines else "no reason given"
