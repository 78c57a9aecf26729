# SPDX-License-Identifier: GPL-2.0-only
"""`run --lf`: what failed in the last run of this tree, and of no other."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import session_values as values
from history_runs import STARTED
from plan_jobs import job

from harness.base.errors import NoCase
from harness.results import Address, Outcome, Result, RunInfo, RunState, Verdict
from harness.results.store import RunStore
from harness.session import pipeline, reporting
from harness.session.wishes import PytestOptions
from harness.suites.catalogue import to_do, work_of

WORK = [work for work in work_of(job()) if not work.refusal][:4]


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pipeline.PlannedRun:
    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(tmp_path / "runs"))
    (tmp_path / "runs").mkdir()
    wish = values.wish(tree="/src/linux")
    return values.planned(tmp_path / "runs" / "now", values.request(wish), jobs={wish: job()})


def earlier(planned: pipeline.PlannedRun, name: str, outcomes: list[Outcome], line: str = "") -> None:
    """Record a run of the job, with *outcomes* for its first cases."""
    (wish, planned_job), *_ = planned.jobs.items()
    record = planned.record(wish, planned_job)
    record = dataclasses.replace(record, line=line or record.line)
    info = RunInfo(id=name, started=STARTED.replace(second=len(name)), harness_version="test")
    with RunStore.create(planned.checked.run_dir.parent / name, info) as store:
        store.add_job(record)
        for work, outcome in zip(WORK, outcomes, strict=False):
            address = Address.parse(work.address)
            store.add(Result(address=address, job=planned_job.name, outcome=outcome, reason="why"))
        store.finish(Verdict.BAD, RunState.FINISHED)


def failed_last(planned: pipeline.PlannedRun) -> tuple[str, ...]:
    series = {job.name: planned.record(wish, job).series for wish, job in planned.jobs.items()}
    return reporting.failed_last(series, planned.plan())


def test_only_what_failed_in_the_last_run(planned: pipeline.PlannedRun) -> None:
    """Not what failed before that, not XFAIL, and nothing of another tree."""
    earlier(planned, "a", [Outcome.PASS, Outcome.FAIL, Outcome.PASS, Outcome.PASS])
    earlier(planned, "ab", [Outcome.FAIL, Outcome.PASS, Outcome.XFAIL, Outcome.LOST])
    earlier(planned, "abc", [Outcome.PASS, Outcome.FAIL], line="/src/other")
    only = failed_last(planned)
    assert set(only) == {WORK[0].key, WORK[3].key}
    plan = dataclasses.replace(planned, only=only).plan()
    assert {work.key for work in to_do(plan)} == set(only)


def test_nothing_had_failed(planned: pipeline.PlannedRun) -> None:
    """The message names the run, or says that the tree never ran."""
    with pytest.raises(NoCase, match="--lf: these jobs never ran with this tree"):
        failed_last(planned)
    earlier(planned, "a", [Outcome.PASS, Outcome.XFAIL])
    with pytest.raises(NoCase, match="--lf: nothing failed in the last run of this tree, a"):
        failed_last(planned)


def test_pytest_shares_no_cache() -> None:
    """Its --lf would select what failed in any run of this host."""
    assert PytestOptions(last_failed=True).words() == []
    assert PytestOptions(last_failed=True).narrowed
