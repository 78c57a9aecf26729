# SPDX-License-Identifier: GPL-2.0-only
"""A job that is no longer tested: no longer applicable, or no longer in its matrix."""

from __future__ import annotations

import dataclasses
import datetime
import json
import sqlite3
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import pytest
from history_runs import GOOD, INPUTS, JOB, STARTED, case

from harness.base.errors import ExitCode
from harness.report import compared, html, view
from harness.report.files import FORMATS
from harness.results import (
    Background,
    Inputs,
    JobRecord,
    Outcome,
    Run,
    RunInfo,
    RunState,
    RunVerdict,
    Verdict,
    compare,
    reach_verdict,
)
from harness.results.historyfile import FILE_NAME, consult
from harness.results.store import RunStore, load

NIGHTLY = dataclasses.replace(INPUTS, extra={"matrix": "nightly"})
GROUP = dataclasses.replace(JOB, name="7.3.4-group-edu", variant="group")
PROBLEM = "this tree cannot express the variant 'cdev': no CONFIG_IOMMUFD_NOIOMMU"
NOT_APPLICABLE = dataclasses.replace(
    JOB, name="cdev-edu", kernel="", problem=PROBLEM, problem_code=ExitCode.KERNEL, applicable=False
)


def make(
    root: Path,
    day: int,
    jobs: Sequence[JobRecord],
    *,
    inputs: Inputs = NIGHTLY,
    outcome: Outcome = Outcome.PASS,
    state: RunState = RunState.FINISHED,
) -> Run:
    """A run of *jobs*, each with the cases of a good one and one more that came to *outcome*."""
    directory = root / f"run{day:02}"
    started = STARTED + datetime.timedelta(days=day)
    info = RunInfo(id=directory.name, started=started, harness_version="1", inputs=inputs)
    with RunStore.create(directory, info) as store:
        for job in jobs:
            store.add_job(job)
            found = () if job.problem else ({**GOOD, "e": outcome}).items()
            store.add(*(dataclasses.replace(case(name, came), job=job.name) for name, came in found))
        store.finish(reach_verdict(dataclasses.replace(store.read(), state=state)).verdict, state)
    return load(directory)


def background(root: Path, run: Run) -> Background:
    return consult(root, lambda history: history.background(run))


def judged(root: Path, run: Run) -> RunVerdict:
    comparison = background(root, run).comparison
    verdict = reach_verdict(run, comparison)
    past = consult(root, lambda history: history.runs())
    assert {one.name: one.exit_code for one in past}[run.info.id] is verdict.exit_code
    return verdict


def lost(root: Path, run: Run) -> list[str]:
    comparison = background(root, run).comparison
    assert comparison is not None
    return [one.job for one in comparison.lost_jobs]


def accept(run: Run) -> None:
    with RunStore.open(Path(run.directory)) as store:
        store.accept("it is meant")


def test_a_job_that_does_not_apply_any_more(tmp_path: Path) -> None:
    """A Kconfig regression is bad, night after night, until a person says that it is meant."""
    make(tmp_path, 1, [JOB, GROUP])
    runs = [make(tmp_path, day, [NOT_APPLICABLE, GROUP]) for day in (2, 3)]
    for run in runs:
        verdict = judged(tmp_path, run)
        assert verdict.exit_code is ExitCode.CASE_FAILED
        assert verdict.why == (
            f"tests are missing: 1 job is no longer tested since run01, first cdev-edu: it does not apply "
            f"any more: {PROBLEM}"
        )
    accept(runs[-1])
    assert judged(tmp_path, load(Path(runs[-1].directory))).exit_code is ExitCode.GOOD
    assert judged(tmp_path, make(tmp_path, 4, [NOT_APPLICABLE, GROUP])).exit_code is ExitCode.GOOD
    assert judged(tmp_path, make(tmp_path, 5, [JOB, GROUP])).exit_code is ExitCode.GOOD
    # It is back, and can be lost again.
    assert lost(tmp_path, make(tmp_path, 6, [NOT_APPLICABLE, GROUP])) == ["cdev-edu"]


def test_a_job_that_never_applied(tmp_path: Path) -> None:
    """What a tree never could express is no loss, nor is it missed when the matrix drops it."""
    make(tmp_path, 1, [NOT_APPLICABLE, GROUP])
    run = make(tmp_path, 2, [NOT_APPLICABLE, GROUP])
    assert judged(tmp_path, run).exit_code is ExitCode.GOOD
    assert lost(tmp_path, make(tmp_path, 3, [GROUP])) == []


@pytest.mark.parametrize("outcome", [Outcome.PASS, Outcome.FAIL], ids=["good", "never good"])
def test_a_job_that_its_matrix_has_no_more(tmp_path: Path, outcome: Outcome) -> None:
    """It is named every night, also where no night is ever good, until a person says that it is meant."""
    make(tmp_path, 1, [JOB, GROUP], outcome=outcome)
    runs = [make(tmp_path, day, [GROUP], outcome=outcome) for day in (2, 3)]
    for run in runs:
        assert lost(tmp_path, run) == [JOB.name]
        verdict = judged(tmp_path, run)
        assert verdict.exit_code is ExitCode.CASE_FAILED
        assert "tests are missing: 1 job is no longer tested" in verdict.why
    accept(runs[-1])
    assert lost(tmp_path, make(tmp_path, 4, [GROUP], outcome=outcome)) == []


def test_one_sentence_names_the_job(tmp_path: Path) -> None:
    """The job and what has become of it."""
    make(tmp_path, 1, [JOB, GROUP])
    assert judged(tmp_path, make(tmp_path, 2, [GROUP])).why == (
        "tests are missing: 1 job is no longer tested since run01, first 7.3.4-cdev-edu: it is not among the "
        "jobs of this run"
    )


def with_about(**about: str) -> Inputs:
    return dataclasses.replace(NIGHTLY, extra=about)


@pytest.mark.parametrize(
    "inputs",
    [
        with_about(matrix="smoke"),
        with_about(matrix="nightly", shard="1/2"),
        with_about(),
        dataclasses.replace(NIGHTLY, narrowed=True),
    ],
    ids=["another matrix", "a shard", "by hand", "narrowed"],
)
def test_who_was_to_have_other_jobs_has_lost_none(tmp_path: Path, inputs: Inputs) -> None:
    """Only the same matrix and shard is held to the jobs it had, and only where all of it ran."""
    make(tmp_path, 1, [JOB, GROUP])
    assert lost(tmp_path, make(tmp_path, 2, [GROUP], inputs=inputs)) == []


def test_other_reasons_for_an_absence(tmp_path: Path) -> None:
    """An interrupt, another line, and a newer release or an edited file in the same place are no losses."""
    mine = dataclasses.replace(JOB, topology="mine@0123ab")
    other = dataclasses.replace(JOB, line="debian:7.2", name="7.2-cdev-edu")
    make(tmp_path, 1, [JOB, GROUP, mine, other])
    assert lost(tmp_path, make(tmp_path, 2, [GROUP], state=RunState.INTERRUPTED)) == []
    newer = dataclasses.replace(JOB, name="7.3.5-cdev-edu")
    edited = dataclasses.replace(mine, topology="mine@ba3210", name="edited")
    assert lost(tmp_path, make(tmp_path, 3, [GROUP, newer, edited])) == []


def test_a_night_judged_by_itself_settles_nothing(tmp_path: Path) -> None:
    """A run with --no-compare is good without the job; the next is not."""
    make(tmp_path, 1, [JOB, GROUP])
    make(tmp_path, 2, [GROUP], inputs=dataclasses.replace(NIGHTLY, compare=False))
    assert lost(tmp_path, make(tmp_path, 3, [GROUP])) == [JOB.name]


def test_shards_are_held_to_their_own(tmp_path: Path) -> None:
    """The same shard of the same matrix is."""
    shard = with_about(matrix="nightly", shard="1/2")
    make(tmp_path, 1, [JOB, GROUP], inputs=shard)
    assert lost(tmp_path, make(tmp_path, 2, [GROUP], inputs=shard)) == [JOB.name]


def test_a_job_that_another_shard_has_now(tmp_path: Path) -> None:
    """It is looked after there, and so no loss, as one that no shard has is, whichever verb tells."""
    shard = with_about(matrix="nightly", shard="1/2")
    modules = dataclasses.replace(JOB, name="7.3.4-modules-edu", variant="modules")
    first = make(tmp_path, 1, [JOB, GROUP, modules], inputs=shard)
    edited = dataclasses.replace(shard, elsewhere=(JOB.cell, "debian:7.3 cdev igb"))
    second = make(tmp_path, 2, [GROUP], inputs=edited)
    assert load(Path(second.directory)).info.inputs.elsewhere == edited.elsewhere
    assert lost(tmp_path, second) == [modules.name]
    assert [one.job for one in compare(first, second).lost_jobs] == [modules.name]
    elsewhere = (dataclasses.replace(JOB, line="debian:7.4").cell,)
    newer = dataclasses.replace(GROUP, line="debian:7.4")
    third = make(tmp_path, 3, [newer], inputs=dataclasses.replace(shard, elsewhere=elsewhere))
    assert [one.job for one in compare(first, third).lost_jobs] == [modules.name]


@pytest.mark.parametrize(
    ("after", "inputs", "worse"),
    [
        ([GROUP], NIGHTLY, True),
        ([NOT_APPLICABLE, GROUP], NIGHTLY, True),
        ([GROUP], with_about(matrix="smoke"), False),
        ([JOB, GROUP, dataclasses.replace(JOB, variant="compat", name="more")], NIGHTLY, False),
        ([dataclasses.replace(JOB, variant="compat", name="other")], NIGHTLY, False),
    ],
    ids=["gone", "not applicable", "another matrix", "more", "nothing in common"],
)
def test_two_runs_side_by_side(tmp_path: Path, after: list[JobRecord], inputs: Inputs, worse: bool) -> None:
    """A job that only the first has makes the second worse, unless the second was to have others."""
    first = make(tmp_path, 1, [JOB, GROUP])
    second = make(tmp_path, 2, after, inputs=inputs)
    found = compare(first, second)
    assert found.is_worse is worse
    told = compared.render(first, second, found)
    assert ("WORSE: 1 lost job\n" in told) is worse
    assert ("lost jobs:" in told) is worse


def test_two_lines_side_by_side(tmp_path: Path) -> None:
    """Where each run is about one line, places in the matrix are what counts."""
    first = make(tmp_path, 1, [JOB, GROUP])
    second = make(tmp_path, 2, [dataclasses.replace(GROUP, line="debian:7.4")])
    assert [one.job for one in compare(first, second).lost_jobs] == [JOB.name]


@pytest.mark.parametrize("jobs", [[GROUP], [NOT_APPLICABLE, GROUP]], ids=["gone", "not applicable"])
def test_every_report_names_it(tmp_path: Path, jobs: list[JobRecord]) -> None:
    """And a consumer of JUnit sees a failure."""
    make(tmp_path, 1, [JOB, GROUP])
    run = make(tmp_path, 2, jobs)
    seen = background(tmp_path, run)
    (name,) = lost(tmp_path, run)
    for form in ("text", "markdown", "html", "junit", "json"):
        assert name in FORMATS[form](run, seen)
    assert view.summary(run, seen.comparison) == "1 lost job"
    suites = ET.fromstring(FORMATS["junit"](run, seen).encode())
    assert (suites.attrib["failures"], len(suites)) == ("1", 2)
    (mark,) = suites.iter("failure")
    assert mark.attrib["type"] == "LOST_JOB"
    plain = json.loads(FORMATS["json"](run, seen))
    assert [line["job"] for line in plain["comparison"]["changes"]["lost_jobs"]] == [name]
    assert "↓ n/a" in html.render(run, seen) or NOT_APPLICABLE not in jobs
    accepted = dataclasses.replace(run, accepted="it is meant")
    assert "LOST_JOB" not in FORMATS["junit"](accepted, seen)


def test_a_history_of_the_first_schema(tmp_path: Path) -> None:
    """The matrix of a run that is in it already is read from what was recorded."""
    make(tmp_path, 1, [JOB, GROUP])
    consult(tmp_path, lambda history: None)
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("ALTER TABLE run DROP COLUMN matrix")
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    assert lost(tmp_path, make(tmp_path, 2, [GROUP])) == [JOB.name]


def test_a_history_of_the_second_schema(tmp_path: Path) -> None:
    """The verdict that is called infrastructure now is read under its old name."""
    make(tmp_path, 1, [JOB])
    consult(tmp_path, lambda history: None)
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("UPDATE run SET verdict = 'our fault'")
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    (run,) = consult(tmp_path, lambda history: history.runs())
    assert run.verdict is Verdict.INFRASTRUCTURE
