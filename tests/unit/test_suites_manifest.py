# SPDX-License-Identifier: GPL-2.0-only
"""The recorded manifest binds the program it was recorded with, and no other."""

from __future__ import annotations

import sys

from harness import process
from harness.errors import ExitCode
from harness.results import Address, Outcome, Requirement, Result, check
from harness.suites.manifest import expected_points, recorded
from harness.suites.upstream import Target, shipped_suites

EDU = Target(id="edu0", driver="edu", translated=True)


def test_manifest_names_programs_that_the_suites_know() -> None:
    """An entry for a program that no kselftest-*.yaml has would never be looked at."""
    known = {f"{s.directory}/{name}" for s in shipped_suites().values() for name in s.entries}
    assert set(recorded()) <= known
    assert len(recorded()) == 7


def test_fewest_is_possible() -> None:
    """No program is asked for more passes than it has points."""
    for suite in shipped_suites().values():
        for name, entry in suite.entries.items():
            points = recorded().get(f"{suite.directory}/{name}")
            if points:
                assert all(count <= len(points.points) for count in entry.fewest.values())


def test_another_source_is_another_program() -> None:
    """When upstream changes the file, its manifest does not bind until it is recorded again."""
    (program,) = shipped_suites()["kselftest:vfio"].programs(("vfio/vfio_pci_device_test",), (EDU,))
    right = recorded()[program.path].source
    assert len(expected_points(program, right)) == 5
    assert expected_points(program, "0" * 64) == ()
    assert expected_points(program, "") == ()


def test_a_vanished_point_is_told() -> None:
    """A point that is in the manifest and was not reported is a failure, and never a silent pass."""
    points = recorded()["vfio/vfio_pci_device_test"].points
    address = Address(suite="kselftest:vfio", program="vfio_pci_device_test@edu0", case=points[0])
    reported = [Result(address=address, job="j", outcome=Outcome.PASS)]
    expectation = Requirement(
        job="j", suite="kselftest:vfio", program="vfio_pci_device_test@edu0", fewest=1, cases=points
    )
    missing = check(reported, [expectation])
    assert [result.address.case for result in missing] == list(points[1:])
    assert {result.outcome for result in missing} == {Outcome.ERROR}
    assert all("vanished" in result.reason for result in missing)


def test_recording_wants_a_run() -> None:
    """Without one it says how it is used."""
    done = process.run([sys.executable, "-m", "harness.suites.manifest"])
    assert done.status == ExitCode.USAGE
    assert done.stderr == "usage: python -m harness.suites.manifest RUN_DIRECTORY\n"
