# SPDX-License-Identifier: GPL-2.0-only
"""From what a program printed to outcomes: expectations, whole-program statements, known defects."""

from __future__ import annotations

import re

import pytest
from packaging.specifiers import SpecifierSet

from harness.ktap import parse
from harness.results import WHOLE_PROGRAM, Outcome
from harness.suites.judging import Judged, judge_known, judge_points, judge_probe, judge_program, judge_splat
from harness.suites.known import KnownIssue
from harness.suites.model import Expectation, Program

NOIOMMU = frozenset({"noiommu", "cdev"})
REAL = frozenset({"viommu", "cdev"})

EXCUSE = Expectation(
    outcome=Outcome.XFAIL,
    reason="libvfio cannot find it",
    when=("noiommu", "!viommu"),
    says=re.compile("Failed to find vfio cdev"),
)


def program(fewest: int = 2) -> Program:
    return Program(
        suite="kselftest:vfio",
        name="vfio_pci_device_test",
        path="vfio/vfio_pci_device_test",
        device="edu0",
        targets=("edu0",),
        translated=False,
        needs=(),
        seconds=10.0,
        fewest=fewest,
        hugepages=0,
        sriov=False,
        expectations=(EXCUSE,),
    )


def outcomes(judged: tuple[Judged, ...]) -> dict[str, Outcome]:
    return {point.case: point.outcome for point in judged}


TWO_POINTS = ["TAP version 13", "1..2", "ok 1 a.x", "# Failed to find vfio cdev file.", "not ok 2 a.y"]


def test_points_become_cases() -> None:
    """Each KTAP point is a case of its own; an exit status that agrees with them adds nothing."""
    judged = judge_program(program(), REAL, parse(TWO_POINTS), 1)
    assert outcomes(judged) == {"a.x": Outcome.PASS, "a.y": Outcome.FAIL}


def test_expected_failure_is_xfail_and_pass_is_news() -> None:
    """Under its features an expectation excuses failures, and passes become XPASS with its reason."""
    judged = judge_program(program(), NOIOMMU, parse(TWO_POINTS), 1)
    assert outcomes(judged) == {"a.x": Outcome.XPASS, "a.y": Outcome.XFAIL}
    assert all("libvfio cannot find it" in point.reason for point in judged)


def test_silence_is_no_pass() -> None:
    """A program that printed nothing and exited with 0 is an error."""
    judged = judge_program(program(), REAL, parse([]), 0)
    assert outcomes(judged) == {WHOLE_PROGRAM: Outcome.ERROR}
    assert "no result at all, exit status 0" in judged[0].reason


def test_death_before_tap_is_excused_only_where_expected() -> None:
    """The known inability of libvfio dies before any TAP: XFAIL on no-IOMMU, ERROR elsewhere."""
    said = ["  lib/vfio_pci_device.c:406: Assertion Failure", "", "Failed to find vfio cdev file."]
    assert outcomes(judge_program(program(), NOIOMMU, parse(said), 1)) == {WHOLE_PROGRAM: Outcome.XFAIL}
    assert outcomes(judge_program(program(), REAL, parse(said), 1)) == {WHOLE_PROGRAM: Outcome.ERROR}


def test_skip_by_exit_status() -> None:
    """Exit status 4 without TAP is kselftest's skip, with the program's words as the reason."""
    judged = judge_program(program(), REAL, parse(["No driver found for device"]), 4)
    assert outcomes(judged) == {WHOLE_PROGRAM: Outcome.SKIP}
    assert judged[0].reason == "No driver found for device"


def test_exit_status_that_contradicts_the_points() -> None:
    """All points fine and a failing exit status is an error: something failed that no point tells."""
    judged = judge_program(program(), REAL, parse(["TAP version 13", "1..1", "ok 1 a.x"]), 1)
    assert outcomes(judged)[WHOLE_PROGRAM] is Outcome.ERROR


def test_truncated_plan_is_an_error() -> None:
    """Fewer results than planned spoil the program even when each of them passed."""
    judged = judge_program(program(), REAL, parse(["TAP version 13", "1..3", "ok 1 a.x"]), 0)
    assert outcomes(judged)[WHOLE_PROGRAM] is Outcome.ERROR


def test_fewest_is_waived_only_where_everything_is_expected_to_fail() -> None:
    """The fewest-passes rule holds everywhere but under an expectation that covers the whole program."""
    assert program(3).fewest_under(REAL, ["a.x"]) == 3
    assert program(3).fewest_under(NOIOMMU, ["a.x"]) == 0


def _probe(line: str, *diagnostics: str) -> list[str]:
    return ["KTAP version 1", "1..1", *(f"# {d}" for d in diagnostics), line, "# END get_pa/unmapped"]


ADDRESS = "get_pa/unmapped"


def known(*, racy: bool = False) -> KnownIssue:
    return KnownIssue(
        case=f"probes/{ADDRESS}",
        kernels=SpecifierSet(">=7.3"),
        reason="no RAWIO check in bind",
        evidence="a mail",
        racy=racy,
    )


def test_probe_outcomes() -> None:
    """A probe passes only by its own result line, and its failure says why in one line."""
    passed = judge_probe(ADDRESS, parse(_probe("ok 1 get_pa/unmapped")))
    assert passed.outcome is Outcome.PASS
    failed = judge_probe(ADDRESS, parse(_probe("not ok 1 get_pa/unmapped", "why: got 22")))
    assert (failed.outcome, failed.reason) == (Outcome.FAIL, "got 22")
    silent = judge_probe(ADDRESS, parse(["KTAP version 1", "1..1"]))
    assert silent.outcome.is_bad


@pytest.mark.parametrize("printed", [Outcome.PASS, Outcome.XFAIL, Outcome.TIMEOUT, Outcome.LOST])
def test_splat_is_expected_only_of_a_defect_that_does_damage(printed: Outcome) -> None:
    """With a known issue that damages the kernel a splat is XFAIL; anywhere else it is a CRASH."""
    judged = Judged(case="x", outcome=printed, reason="")
    expected = judge_splat(judged, "WARNING: at f", known())
    assert (expected.outcome, expected.reason) == (Outcome.XFAIL, "no RAWIO check in bind")
    crash = judge_splat(judged, "WARNING: at f")
    assert (crash.outcome, crash.reason) == (Outcome.CRASH, "the kernel said: WARNING: at f")


def test_documented_defect_turns_failure_and_pass_round() -> None:
    """A case with a documented defect is XFAIL with it, XPASS once it is mended."""
    failed = judge_probe(ADDRESS, parse(_probe("not ok 1 get_pa/unmapped")), known())
    passed = judge_probe(ADDRESS, parse(_probe("ok 1 get_pa/unmapped")), known())
    assert (failed.outcome, failed.reason) == (Outcome.XFAIL, "no RAWIO check in bind")
    assert passed.outcome is Outcome.XPASS


def test_a_race_that_was_not_lost_is_no_news() -> None:
    """A documented defect that is a race may stay hidden: a pass is a pass, a failure still XFAIL."""
    racy = known(racy=True)
    assert judge_probe(ADDRESS, parse(_probe("ok 1 get_pa/unmapped")), racy).outcome is Outcome.PASS
    assert judge_probe(ADDRESS, parse(_probe("not ok 1 get_pa/unmapped")), racy).outcome is Outcome.XFAIL


def test_what_is_known_of_a_selftest_excuses_failing_and_nothing_else() -> None:
    """A user's known issue about upstream's selftest: FAIL is XFAIL with its reason, an ERROR stays one."""
    failed = judge_known(Judged(case="a.x", outcome=Outcome.FAIL, reason="errno 5"), known())
    assert (failed.outcome, failed.reason) == (Outcome.XFAIL, "no RAWIO check in bind")
    error = Judged(case="a.x", outcome=Outcome.ERROR, reason="no result")
    assert judge_known(error, known()) == error


def test_timeout_is_not_excused() -> None:
    """A hang is never what a documented defect promised."""
    line = "not ok 1 get_pa/unmapped # TIMEOUT after 30s"
    assert judge_probe(ADDRESS, parse(_probe(line)), known()).outcome is Outcome.TIMEOUT


def test_another_failure_is_not_the_one_that_was_reviewed() -> None:
    """Where a failure is expected, one that says something else is still a failure."""
    other = ["TAP version 13", "1..1", "# segfault in libvfio", "not ok 1 a.y"]
    assert outcomes(judge_program(program(), NOIOMMU, parse(other), 1)) == {"a.y": Outcome.FAIL}
    crashed = judge_program(program(), NOIOMMU, parse(["./x: not found"]), 127)
    assert outcomes(crashed) == {WHOLE_PROGRAM: Outcome.ERROR}


def test_a_point_that_was_cut_off_with_its_guest_is_lost_too() -> None:
    """What the host did to the guest says nothing of the point that was running: another try settles it."""
    cut = parse(["TAP version 13", "1..2", "#  RUN           a.x ...", "#            OK  a.x", "ok 1 a.x",
                 "#  RUN           a.y ..."])  # fmt: skip
    points = judge_points(program(), REAL, cut, cut=Outcome.LOST)
    assert outcomes(points)["a.y"] is Outcome.LOST
    assert outcomes(judge_points(program(), REAL, cut))["a.y"] is Outcome.ERROR


def test_a_cut_off_point_is_not_excused() -> None:
    """A program that stopped in the middle of a point did not fail the way that was reviewed."""
    cut = ["TAP version 13", "1..2", "#  RUN           a.x ...", "# Failed to find vfio cdev file."]
    assert outcomes(judge_program(program(), NOIOMMU, parse(cut), 1))["a.x"] is Outcome.ERROR
