# SPDX-License-Identifier: GPL-2.0-only
"""The Recorder where results cannot be kept: the run ends in order, and stays as it is."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from plan_jobs import job

from harness.errors import InfraError
from harness.plan import Plan
from harness.plugin.recorder import RESULTS_PROPERTY, Recorder
from harness.plugin.spool import Spool
from harness.results import Address, Outcome, Result, RunInfo, RunStore, State, load, result_to_plain
from harness.suites.catalogue import Work, source_of, work_of


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
    return Recorder(Plan(run_id="r", run_dir=str(directory), seed=1, cases=(), jobs=(job(),)))


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
    assert (run.state, len(run.cases)) == (State.RUNNING, 1)


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
    """What xdist reports of an item whose worker was killed."""
    return pytest.TestReport(
        nodeid=f"{source_of(work).name}::{work.title}", location=("x.py", 1, ""), keywords={},
        outcome="failed", longrepr="worker 'gw0' crashed", when="???",  # type: ignore[arg-type]
    )  # fmt: skip


def ended(one: Recorder) -> list[str]:
    config = SimpleNamespace(option=SimpleNamespace(collectonly=False))
    one.pytest_sessionfinish(SimpleNamespace(config=config))  # type: ignore[arg-type]
    one.pytest_unconfigure()
    found = load(Path(one._plan.run_dir)).results
    return [result.outcome.value for result in found if str(result.address) == WORK.address]


def test_failure_that_was_seen_outlives_the_worker_that_was_to_confirm_it(tmp_path: Path) -> None:
    """Else it is lost, and passes when another worker tries it anew."""
    one = recorder(tmp_path)
    one._expect([f"{source_of(WORK).name}::{WORK.title}"])
    Spool(tmp_path).keep(WORK, [failed(WORK)])
    one.pytest_runtest_logreport(died(WORK))
    passed = report(WORK.address, Outcome.PASS)
    passed.nodeid = died(WORK).nodeid
    one.pytest_runtest_logreport(passed)
    assert ended(one) == ["FAIL", "LOST", "PASS"]
    assert [case.label for case in load(tmp_path).cases if str(case.address) == WORK.address] == ["FAIL"]


def test_failure_alongside_outlives_the_worker_that_held_it(tmp_path: Path) -> None:
    """Nobody had asked for it yet when the worker died at another case; it is not washed clean by a rerun."""
    features = ("edu", "noiommu", "noiommu-cdev", "cdev", "iommufd")
    held, running = [w for w in work_of(job("edu", features=features)) if w.group.endswith("/alongside")][:2]
    one = recorder(tmp_path)
    one._expect(f"{source_of(work).name}::{work.title}" for work in (held, running))
    Spool(tmp_path).keep(held, [failed(held)])
    one.pytest_runtest_logreport(died(running))
    passed = report(held.address, Outcome.PASS)
    passed.nodeid = died(held).nodeid
    one.pytest_runtest_logreport(passed)
    ended(one)
    (case,) = (case for case in load(tmp_path).cases if str(case.address) == held.address)
    assert case.label == "FAIL"


def test_interrupted_run_keeps_what_was_seen(tmp_path: Path) -> None:
    one = recorder(tmp_path)
    one._expect([f"{source_of(WORK).name}::{WORK.title}"])
    Spool(tmp_path).keep(WORK, [failed(WORK)])
    assert ended(one) == ["FAIL"]


def test_interrupt_before_anything_was_collected_names_what_was_planned(tmp_path: Path) -> None:
    """A night that ends while its workers start has not tried nothing of nothing."""
    one = recorder(tmp_path)
    one._interrupted = True
    ended(one)
    run = load(tmp_path)
    assert {case.outcome for case in run.cases} == {Outcome.NOT_RUN}
    assert len(run.cases) == len(work_of(job()))


def test_run_that_goes_on_keeps_what_was_seen(tmp_path: Path) -> None:
    """By a process that was killed with all of its workers."""
    first = recorder(tmp_path)
    Spool(tmp_path).keep(WORK, [failed(WORK)])
    again = Recorder(first._plan)
    first.pytest_unconfigure()
    assert ended(again) == ["FAIL"]
    assert not (tmp_path / "spool").exists()


def test_what_has_been_told_is_forgotten(tmp_path: Path) -> None:
    one = recorder(tmp_path)
    Spool(tmp_path).keep(WORK, [failed(WORK)])
    told = report(WORK.address, Outcome.FAIL)
    told.nodeid = died(WORK).nodeid
    one.pytest_runtest_logreport(told)
    assert ended(one) == ["FAIL"]
    assert not (tmp_path / "spool").exists()


def test_damaged_spool_tells_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.keep(WORK, [failed(WORK)])
    next((tmp_path / "spool").iterdir()).write_text("[{")
    assert spool.take(WORK) == ()
