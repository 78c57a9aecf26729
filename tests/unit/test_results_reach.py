# SPDX-License-Identifier: GPL-2.0-only
"""The map in the history: which functions each case reaches."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from history_runs import JOB, case, make_run
from test_coverage_model import COVERAGE, NAME

from harness.results import Inputs, Outcome
from harness.results.coverage.model import Reach
from harness.results.historyfile import consult

F, VFIO_NOIOMMU = f"{NAME}:f", f"{NAME}:vfio_noiommu"


def covered(root: Path, day: int, *cases: tuple[str, set[int]], line: str = "7.3") -> None:
    """Make a run whose cases reached these lines."""
    reached = tuple(Reach(JOB.name, name, {NAME: frozenset(lines)}) for name, lines in cases)
    dataclasses.replace(COVERAGE, line=line, cases=reached).save(make_run(root, day))


def read(root: Path, line: str = "7.3") -> dict[str, frozenset[str]]:
    return dict(consult(root, lambda history: history.map.read(line)))


def test_the_newest_run_decides_and_cases_stay(tmp_path: Path) -> None:
    covered(tmp_path, 1, ("one", {3}), ("two", {3}))
    assert read(tmp_path) == {"one": {F}, "two": {F}}
    covered(tmp_path, 2, ("one", {8}))
    assert read(tmp_path) == {"one": {VFIO_NOIOMMU}, "two": {F}}


def test_a_case_that_failed_is_not_in_the_map(tmp_path: Path) -> None:
    """It may have ended before it reached all that it reaches otherwise."""
    good, bad = case("good", Outcome.PASS), case("bad", Outcome.FAIL)
    directory = make_run(tmp_path, 1, results=(good, bad))
    reached = tuple(Reach(JOB.name, str(one.address), {NAME: frozenset({3})}) for one in (good, bad))
    dataclasses.replace(COVERAGE, cases=reached).save(directory)
    assert read(tmp_path) == {str(good.address): {F}}


def test_a_program_with_a_point_that_failed_is_not_in_the_map(tmp_path: Path) -> None:
    """Its points have addresses of their own; what it reached when it passed stays."""
    program = case("point", Outcome.PASS).address.program_path
    covered(tmp_path, 1, (program, {3, 8}))
    for day, outcome in enumerate((Outcome.CRASH, Outcome.LOST), 2):
        directory = make_run(tmp_path, day, results=(case("point", outcome),))
        reached = (Reach(JOB.name, program, {NAME: frozenset({3})}),)
        dataclasses.replace(COVERAGE, cases=reached).save(directory)
        assert read(tmp_path) == {program: {F, VFIO_NOIOMMU}}


def test_a_map_is_for_one_line_of_kernels(tmp_path: Path) -> None:
    covered(tmp_path, 1, ("one", {3}), line="7.2")
    assert read(tmp_path) == {}
    assert consult(tmp_path, lambda history: history.map.lines()) == ("7.2",)


def test_a_run_that_is_decoded_later_is_learnt(tmp_path: Path) -> None:
    from harness.results.store import load

    directory = make_run(tmp_path, 1)
    assert read(tmp_path) == {}
    dataclasses.replace(COVERAGE, cases=(Reach(JOB.name, "one", {NAME: frozenset({3})}),)).save(directory)
    run = load(directory)
    consult(tmp_path, lambda history: history.map.learn(run))
    assert read(tmp_path) == {"one": {F}}


def test_the_last_good_run_ran_all_that_the_job_runs(tmp_path: Path) -> None:
    job = dataclasses.replace(JOB, line="/src/linux", commit="c1", suites=("probes", "kselftest:vfio"))
    inputs = Inputs(accel="tcg", root="image", machine="2 processors")
    make_run(tmp_path, 1, job=dataclasses.replace(job, commit="c0"), inputs=inputs)
    counted = dataclasses.replace(job, suites=(*job.suites, "own"), addons=("gcov",))
    make_run(tmp_path, 2, job=counted, inputs=inputs)
    make_run(tmp_path, 3, job=job, inputs=dataclasses.replace(inputs, narrowed=True))
    make_run(tmp_path, 4, job=job, inputs=dataclasses.replace(inputs, cases=("*/a",)))
    make_run(tmp_path, 5, job=dataclasses.replace(job, commit=""), inputs=inputs)
    make_run(tmp_path, 6, job=job, inputs=inputs, results=(case("e", Outcome.FAIL),))
    make_run(tmp_path, 7, job=job, inputs=dataclasses.replace(inputs, machine="1 processors"))
    others: tuple[dict[str, Any], ...] = (
        {"suites": ("own/my",)},
        {"suites": ("kunit:iommu", "probes")},
        {"variant": "off"},
        {"topology": "igb"},
        {"addons": ("fault-injection",)},
    )
    for day, other in enumerate(others, 8):
        make_run(tmp_path, day, job=dataclasses.replace(job, **other), inputs=inputs)
    wanted = dataclasses.replace(inputs, suites=job.suites)
    found = consult(tmp_path, lambda history: history.map.last_good(job, wanted))
    assert found is not None
    assert found[0] == "run02"
    assert found[1].commit == "c1"
    elsewhere = dataclasses.replace(job, line="/src/other")
    assert consult(tmp_path, lambda history: history.map.last_good(elsewhere, wanted)) is None
