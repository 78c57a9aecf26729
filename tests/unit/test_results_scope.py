# SPDX-License-Identifier: GPL-2.0-only
"""Which runs a job is held against: those that ran as much of it, whatever the rest of each run was."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path

import pytest
from history_runs import INPUTS, STARTED

from harness.matrix import Entry, load_matrix
from harness.results import (
    Address,
    JobRecord,
    Outcome,
    Result,
    Run,
    RunInfo,
    codec,
    compare,
    reach_verdict,
)
from harness.results.historyfile import consult
from harness.results.store import RunStore, load


def record(entry: Entry) -> JobRecord:
    topology = entry.topology
    return JobRecord(
        name=str(entry), variant=entry.variant, addons=entry.addons, topology=topology, suites=entry.suites
    )


def matrix_run(root: Path, day: int, name: str, *, own_suites: bool = True) -> Run:
    """A run of the shipped matrix *name* in which each job passes one case of each of its suites."""
    entries = load_matrix(name).entries
    inputs = dataclasses.replace(INPUTS, suites=tuple({suite for entry in entries for suite in entry.suites}))
    directory = root / f"run{day:02}"
    started = STARTED + datetime.timedelta(days=day)
    with RunStore.create(
        directory, RunInfo(id=directory.name, started=started, harness_version="1", inputs=inputs)
    ) as store:
        for entry in entries:
            job = record(entry)
            store.add_job(job if own_suites else dataclasses.replace(job, suites=()))
            store.add(
                *(
                    Result(
                        address=Address(suite=suite, program="p", case="c"),
                        job=job.name,
                        outcome=Outcome.PASS,
                    )
                    for suite in entry.suites
                )
            )
        store.finish(reach_verdict(store.read()).verdict)
    return load(directory)


@pytest.mark.parametrize("names", [("full", "nightly"), ("nightly", "full"), ("nightly", "smoke")])
def test_matrices_take_turns(tmp_path: Path, names: tuple[str, str]) -> None:
    """A job that had more suites in another matrix has lost none; its past is where it had as much."""
    before, after = (matrix_run(tmp_path, day, name) for day, name in enumerate(names))
    found = consult(tmp_path, lambda history: history.background(after)).comparison
    assert found is not None
    assert (found.lost, compare(before, after).lost) == ((), ())
    past = {job.series: set(job.suites) for job in before.jobs}
    covered = {job.name for job in after.jobs if set(job.suites) <= past.get(job.series, set())}
    assert covered
    assert found.against == dict.fromkeys(covered, "run00")


def test_runs_of_an_older_harness(tmp_path: Path) -> None:
    """Where a job does not say its suites those of its run count, as they did."""
    matrix_run(tmp_path, 1, "nightly", own_suites=False)
    run = matrix_run(tmp_path, 2, "nightly")
    found = consult(tmp_path, lambda history: history.background(run)).comparison
    assert found is not None
    assert set(found.against) == {job.name for job in run.jobs}
    assert not found.is_worse


def test_a_job_as_an_older_harness_kept_it() -> None:
    """It lacks what is younger and has what is gone."""
    plain = {**codec.job_to_plain(JobRecord(name="j")), "duration": 0.0}
    del plain["suites"]
    assert codec.job_from_plain(plain) == JobRecord(name="j")


def test_inputs_of_an_older_harness() -> None:
    """Its runs were all compared with earlier ones."""
    started = datetime.datetime(2030, 1, 2, tzinfo=datetime.UTC)
    info = RunInfo(id="r", started=started, harness_version="1", inputs=INPUTS)
    plain = codec.info_to_plain(info)
    del plain["inputs"]["compare"]
    assert codec.info_from_plain(plain) == info
