# SPDX-License-Identifier: GPL-2.0-only
"""Runs of one series, made in a line, for the tests about history and comparison."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from pathlib import Path

from harness.results import (
    Address,
    Inputs,
    JobRecord,
    Outcome,
    Result,
    Run,
    RunInfo,
    RunState,
    reach_verdict,
)
from harness.results.store import RunStore, load

STARTED = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
JOB = JobRecord(
    name="7.3.4-cdev-edu", kernel="7.3.4 aa", variant="cdev", topology="edu", line="debian:7.3", tree="t"
)
INPUTS = Inputs(accel="tcg", suites=("kselftest:vfio",), root="image")
GOOD = {"a": Outcome.PASS, "b": Outcome.PASS, "c": Outcome.XFAIL, "d": Outcome.SKIP}


def case(name: str, outcome: Outcome, **fields: object) -> Result:
    made = Result(
        address=Address(suite="kselftest:vfio", program="edu", case=name),
        job=JOB.name,
        outcome=outcome,
        duration=1.0,
    )
    return dataclasses.replace(made, **fields)  # type: ignore[arg-type]


def flaky(name: str) -> tuple[Result, Result]:
    """A failure, and the pass in a fresh VM that followed."""
    return case(name, Outcome.FAIL), case(name, Outcome.PASS, attempt=2, confirms=True)


def make_run(
    root: Path,
    day: int,
    outcomes: Mapping[str, Outcome] = GOOD,
    *,
    results: tuple[Result, ...] = (),
    job: JobRecord = JOB,
    inputs: Inputs = INPUTS,
    state: RunState | None = RunState.FINISHED,
) -> Path:
    """A run directory below *root*; without a *state* it was killed."""
    directory = root / f"run{day:02}"
    info = RunInfo(
        id=directory.name,
        started=STARTED + datetime.timedelta(days=day),
        harness_version="1",
        inputs=inputs,
    )
    with RunStore.create(directory, info) as store:
        store.add_job(job)
        for one in (*(case(name, outcome) for name, outcome in outcomes.items()), *results):
            store.add(dataclasses.replace(one, job=job.name))
        if state is not None:
            store.finish(reach_verdict(dataclasses.replace(store.read(), state=state)).verdict, state)
    return directory


def made_run(root: Path, day: int, outcomes: Mapping[str, Outcome] = GOOD, **more: object) -> Run:
    return load(make_run(root, day, outcomes, **more))  # type: ignore[arg-type]
