# SPDX-License-Identifier: GPL-2.0-only
"""The Recorder: what it stores when the disk is full, a worker dies or the run is interrupted."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from plan_jobs import job

from harness.base.errors import InfraError
from harness.base.files import write_atomic
from harness.lab.spool import Spool
from harness.plan import Plan
from harness.plugin.items import RESULTS_PROPERTY
from harness.plugin.recorder import Recorder
from harness.results import Address, Outcome, Result, RunInfo, RunState, result_to_plain
from harness.results.store import RunStore, load
from harness.suites.catalogue import work_of
from harness.suites.model import Work


def report(work: str, outcome: Outcome) -> pytest.TestReport:
    plain = [result_to_plain(Result(address=Address.parse(work), job=job().name, outcome=outcome))]
    return pytest.TestReport(
        nodeid=f"x.py::{work}",
        location=("x.py", 1, work),
        keywords={},
        outcome="passed" if outcome is Outcome.PASS else "failed",
        longrepr=None,
        when="call",
        user_properties=[(RESULTS_PROPERTY, json.dumps(plain))],
    )


def recorder(directory: Path) -> Recorder:
    info = RunInfo(id="r", started=datetime.datetime.now(datetime.UTC), harness_version="test")
    RunStore.create(directory, info).close()
    return Recorder(plan(directory))


def plan(directory: Path) -> Plan:
    return Plan(run_id="r", run_dir=str(directory), seed=1, cases=(), jobs=(job(),))


@pytest.mark.parametrize("with_workers", [False, True])
def test_full_disk_ends_the_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_workers: bool
) -> None:
    one, work = recorder(tmp_path), work_of(job())[0].address
    loop = SimpleNamespace(shouldstop=False)
    plugins = SimpleNamespace(get_plugin=lambda name: loop if with_workers else None)
    config = SimpleNamespace(pluginmanager=plugins, option=SimpleNamespace(collectonly=False))
    session = SimpleNamespace(shouldstop=False, config=config)
    one.pytest_sessionstart(session)  # type: ignore[arg-type]
    one.pytest_runtest_logreport(report(work, Outcome.PASS))

    def full(*_: object) -> None:
        raise InfraError("no space left")

    monkeypatch.setattr(one._store, "add", full)
    one.pytest_runtest_logreport(report(work, Outcome.PASS))
    one.pytest_sessionfinish(session)  # type: ignore[arg-type]
    one.pytest_unconfigure()
    assert session.shouldstop == "results cannot be kept: no space left"
    assert loop.shouldstop == (session.shouldstop if with_workers else False)
    run = load(tmp_path)
    assert (run.state, len(run.cases)) == (RunState.RUNNING, 1)


def test_only_what_had_no_chance_is_shown_as_not_run(tmp_path: Path) -> None:
    one, work = recorder(tmp_path), work_of(job())[0].address
    shown = one.pytest_report_teststatus(report(work, Outcome.NOT_RUN))
    assert shown is not None
    assert shown[:2] == ("not run", "-")
    assert one.pytest_report_teststatus(report(work, Outcome.FAIL)) is None
    assert one.pytest_report_teststatus(report(work, Outcome.PASS)) is None
    one.pytest_unconfigure()


WORK = work_of(job())[0]


def failed(work: Work) -> Result:
    return Result(address=Address.parse(work.address), job=work.job, outcome=Outcome.FAIL, reason="seen")


def died(work: Work) -> pytest.TestReport:
    """Return what xdist reports of an item whose worker was killed."""
    return pytest.TestReport(
        nodeid=f"{work.path.name}::{work.title}", location=("x.py", 1, ""), keywords={},
        outcome="failed", longrepr="worker 'gw0' crashed", when="???",  # type: ignore[arg-type]
    )  # fmt: skip


def ended(one: Recorder, directory: Path) -> list[str]:
    config = SimpleNamespace(option=SimpleNamespace(collectonly=False))
    one.pytest_sessionfinish(SimpleNamespace(config=config))  # type: ignore[arg-type]
    one.pytest_unconfigure()
    found = load(directory).results
    return [result.outcome.value for result in found if str(result.address) == WORK.address]


def test_failure_that_was_seen_outlives_the_worker_that_was_to_confirm_it(tmp_path: Path) -> None:
    """Otherwise the rerun in another worker would hide it."""
    one = recorder(tmp_path)
    one._expect([f"{WORK.path.name}::{WORK.title}"])
    Spool(tmp_path).keep(WORK, [failed(WORK)])
    one.pytest_runtest_logreport(died(WORK))
    passed = report(WORK.address, Outcome.PASS)
    passed.nodeid = died(WORK).nodeid
    one.pytest_runtest_logreport(passed)
    assert ended(one, tmp_path) == ["FAIL", "LOST", "PASS"]
    assert [case.label for case in load(tmp_path).cases if str(case.address) == WORK.address] == ["FAIL"]


def test_interrupted_run_keeps_what_was_seen(tmp_path: Path) -> None:
    one = recorder(tmp_path)
    one._expect([f"{WORK.path.name}::{WORK.title}"])
    Spool(tmp_path).keep(WORK, [failed(WORK)])
    assert ended(one, tmp_path) == ["FAIL"]


def test_interrupt_before_anything_was_collected_names_what_was_planned(tmp_path: Path) -> None:
    """If it is interrupted while workers start, all planned work is NOT_RUN."""
    one = recorder(tmp_path)
    one._interrupted = True
    ended(one, tmp_path)
    run = load(tmp_path)
    assert {case.outcome for case in run.cases} == {Outcome.NOT_RUN}
    assert len(run.cases) == len(work_of(job()))


def test_run_that_goes_on_keeps_what_was_seen(tmp_path: Path) -> None:
    """A process that was killed with all of its workers left them in the spool."""
    first = recorder(tmp_path)
    Spool(tmp_path).keep(WORK, [failed(WORK)])
    again = Recorder(plan(tmp_path))
    first.pytest_unconfigure()
    assert ended(again, tmp_path) == ["FAIL"]
    assert not list((tmp_path / "spool").iterdir())


def test_what_has_been_told_is_forgotten(tmp_path: Path) -> None:
    one = recorder(tmp_path)
    Spool(tmp_path).keep(WORK, [failed(WORK)])
    told = report(WORK.address, Outcome.FAIL)
    told.nodeid = died(WORK).nodeid
    one.pytest_runtest_logreport(told)
    assert ended(one, tmp_path) == ["FAIL"]
    assert not list((tmp_path / "spool").iterdir())


def test_damaged_spool_tells_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.keep(WORK, [failed(WORK)])
    next((tmp_path / "spool").iterdir()).write_text("[{")
    assert spool.take(WORK) == ()


def test_what_another_process_reports_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may forget the last file of the directory while one is written there."""
    other = work_of(job())[1]

    def write_late(path: Path, data: str) -> None:
        Spool(tmp_path).drop(other)
        write_atomic(path, data)

    Spool(tmp_path).keep(other, [failed(other)])
    monkeypatch.setattr("harness.lab.spool.write_atomic", write_late)
    Spool(tmp_path).keep(WORK, [failed(WORK)])
    assert Spool(tmp_path).take(WORK) == (failed(WORK),)
