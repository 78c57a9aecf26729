# SPDX-License-Identifier: GPL-2.0-only
"""The Worker of a process that runs items: results of every attempt, kept until they are reported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from lab_fakes import FAILS, PASSES, fake_host, splat
from plan_jobs import job

from harness.base.cause import Cause
from harness.base.errors import LostGuest
from harness.lab import current
from harness.lab.spool import Spool
from harness.lab.worker import Worker
from harness.plan import Plan
from harness.results import QUIET, Result
from harness.suites.catalogue import work_of
from harness.suites.model import Work

JOB = job("edu", features=("edu", "noiommu", "noiommu-cdev", "cdev", "iommufd"))
WORK = next(work for work in work_of(JOB) if work.refusal is None and work.turn == 1)


def test_results_are_kept_before_the_next_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker may be killed in the middle of it; the results of the last attempt are reported at once."""
    host = fake_host(monkeypatch)
    host.answers = [LostGuest("gone", cause=Cause.NO_ANSWER), FAILS, PASSES]
    kept: list[str] = []

    def keep(self: Spool, work: Work, results: Sequence[Result]) -> None:
        assert work == WORK
        kept.append(" ".join(result.outcome.value for result in results))

    monkeypatch.setattr(Spool, "keep", keep)
    monkeypatch.setattr(current, "wait_for_kernel", lambda digest, directory, check: None)
    plan = Plan(run_id="r", run_dir=str(tmp_path), seed=1, cases=(), confirm=True, jobs=(JOB,))
    worker = Worker(plan, "gw0")
    results = worker.perform(WORK)
    assert [result.outcome.value for result in results] == ["LOST", "FAIL", "PASS"]
    assert kept == ["LOST", "LOST FAIL"]
    assert results[0].vm_dir == f"vm/{JOB.name}-gw0-1"

    host.splats = [splat(after=WORK.name)]
    (late,) = worker.retire(JOB.name)
    assert (late.address, late.job) == (QUIET, JOB.name)
    assert worker.retire(JOB.name) == ()
    worker.close()
