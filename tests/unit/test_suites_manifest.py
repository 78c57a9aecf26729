# SPDX-License-Identifier: GPL-2.0-only
"""The recorded manifest holds for the program it was recorded with, and for no other."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from history_runs import make_run
from plan_jobs import job

from harness.base import process
from harness.base.cause import Cause
from harness.base.errors import ExitCode
from harness.plan import PLAN_FILE, Plan
from harness.results import BOOTS, Address, Outcome, Result
from harness.suites.judging import missing
from harness.suites.manifest import expected_points, recorded
from harness.suites.model import CaseResult, Requirement
from harness.suites.programs import ProgramSuite
from harness.suites.registry import all_suites
from tools.record_manifest import record


def _program_suites() -> list[ProgramSuite]:
    return [suite for suite in all_suites() if isinstance(suite, ProgramSuite)]


def test_manifest_names_programs_that_the_suites_know() -> None:
    """A record of a program that no kselftest-*.yaml has would never be used."""
    known = {f"{suite.directory}/{name}" for suite in _program_suites() for name in suite.entries}
    assert set(recorded()) <= known
    assert len(recorded()) == 7


def test_fewest_is_possible() -> None:
    """No program must pass more points than it has."""
    for suite in _program_suites():
        for name, entry in suite.entries.items():
            points = recorded().get(f"{suite.directory}/{name}")
            if points:
                assert all(count <= len(points.points) for count in entry.fewest.values())


def test_another_source_is_another_program() -> None:
    """When upstream changes the file, its record does not hold until it is made again."""
    program = "vfio/vfio_pci_device_test"
    right = recorded()[program].source
    assert len(expected_points(program, right)) == 5
    assert expected_points(program, "0" * 64) == ()
    assert expected_points(program, "") == ()


def test_a_vanished_point_is_told() -> None:
    """A point that is in the manifest and was not reported is an ERROR."""
    points = recorded()["vfio/vfio_pci_device_test"].points
    reported = [CaseResult(case=points[0], outcome=Outcome.PASS)]
    found = missing(Requirement(cases=points), reported)
    assert [result.case for result in found] == list(points[1:])
    assert {result.outcome for result in found} == {Outcome.ERROR}
    assert {result.cause for result in found} == {Cause.VANISHED}


def test_recording_replaces_the_programs_of_a_run(tmp_path: Path) -> None:
    """Each point is recorded once, whatever the devices; lines that name no point are left out."""
    program, digest = "vfio/vfio_pci_device_test", "0" * 64
    addresses = [
        BOOTS,
        *(
            Address(suite="kselftest:vfio", program=f"vfio_pci_device_test@{device}", case=case)
            for device in ("edu0", "igb0")
            for case in ("b", "a", "(program)")
        ),
    ]
    results = tuple(Result(address=address, job="j", outcome=Outcome.PASS) for address in addresses)
    directory = make_run(tmp_path, 1, {}, results=results)
    kernel = dataclasses.replace(job().kernel, sources={program: digest})
    jobs = (dataclasses.replace(job(), kernel=kernel),)
    Plan(run_id="r", run_dir=str(directory), seed=1, cases=(), jobs=jobs).save(directory / PLAN_FILE)
    made = json.loads(record(directory))
    assert made.pop(program) == {"source": digest, "points": ["b", "a"]}
    assert made.keys() | {program} == recorded().keys()


def test_recording_wants_a_run() -> None:
    """Without a run it prints its usage."""
    done = process.run([sys.executable, "-m", "tools.record_manifest"])
    assert done.status == ExitCode.USAGE
    assert done.stderr == "usage: python -m tools.record_manifest RUN_DIRECTORY\n"
