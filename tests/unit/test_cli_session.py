# SPDX-License-Identifier: GPL-2.0-only
"""A session's checks, and the exit codes that it makes of pytest's."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from plan_jobs import job

from harness.cli import session
from harness.cli.engine import PytestOptions
from harness.cli.session import Session
from harness.cli.wishes import Conduct, JobWish, KernelWish, MachineWish
from harness.errors import ExitCode
from harness.plan import Plan


def one_job(keyword: str = "", suites: tuple[str, ...] = ("probes",)) -> Session:
    """A session of one job, as its verb makes it."""
    kernel = KernelWish(tree=None, variant="group-cdev")
    wish = JobWish(kernel=kernel, machine=MachineWish(topology="edu-igb", accel="tcg"), suites=suites)
    return Session([wish], Conduct())


def test_an_interrupted_collection_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is no wrong use."""
    plan = Plan(run_id="r", run_dir=str(tmp_path), seed=1, cases=(), jobs=(job(),))
    asked = one_job()
    asked._jobs = dict.fromkeys(asked._wishes, plan.jobs[0])
    monkeypatch.setattr(asked, "_plan", lambda: plan)
    monkeypatch.setattr(asked, "_store", lambda directory: io.BytesIO())
    monkeypatch.setattr(session, "run_pytest", lambda words: pytest.ExitCode.INTERRUPTED)
    assert asked.collect(PytestOptions()) == ExitCode.INTERRUPTED
