# SPDX-License-Identifier: GPL-2.0-only
"""From the output of a program to outcomes: expectations, the whole program, known issues, splats."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from plan_jobs import job

from harness.base.cause import Cause
from harness.ktap import KtapReport, parse
from harness.results import WHOLE_PROGRAM, Outcome
from harness.suites.judging import judge_known, judge_program, judge_splat, missing
from harness.suites.known import KnownIssue
from harness.suites.kselftest import KselftestSuite
from harness.suites.model import CaseResult, Expectation, Requirement, Work
from harness.suites.programs import Program, ProgramEntry, Target
from harness.suites.registry import suite_named

NOIOMMU = frozenset({"noiommu", "cdev"})
REAL = frozenset({"viommu", "cdev"})

EXCUSE = Expectation(
    outcome=Outcome.XFAIL,
    reason="libvfio cannot find it",
    when=("noiommu", "!viommu"),
    says=re.compile("Failed to find vfio cdev"),
)


SUITE = KselftestSuite(
    name="kselftest:vfio",
    directory="vfio",
    entries={},
    expectations=(EXCUSE,),
    device="each",
    needs=(),
    path=Path("x.yaml"),
)


def program(features: frozenset[str] = REAL, fewest: int = 2) -> Work:
    value = Program(
        path="vfio/vfio_pci_device_test",
        entry=ProgramEntry(device="each", fewest={"edu": fewest}),
        device="edu0",
        kind="edu",
        targets=(Target(id="edu0", driver="edu", translated=False),),
    )
    return Work(
        job="j",
        suite=SUITE.name,
        program=value.title,
        path=SUITE.path,
        timeout=10.0,
        features=features,
        payload=value,
    )


def outcomes(judged: tuple[CaseResult, ...]) -> dict[str, Outcome]:
    return {point.case: point.outcome for point in judged}


TWO_POINTS = ["TAP version 13", "1..2", "ok 1 a.x", "# Failed to find vfio cdev file.", "not ok 2 a.y"]


def test_points_become_cases() -> None:
    """Each KTAP point is a case; an exit status that agrees with the points adds nothing."""
    judged = SUITE.judge(program(REAL), parse(TWO_POINTS), 1)
    assert outcomes(judged) == {"a.x": Outcome.PASS, "a.y": Outcome.FAIL}


def test_expected_failure_is_xfail_and_pass_is_news() -> None:
    """Under its features an expectation excuses failures, and passes become XPASS with its reason."""
    judged = SUITE.judge(program(NOIOMMU), parse(TWO_POINTS), 1)
    assert outcomes(judged) == {"a.x": Outcome.XPASS, "a.y": Outcome.XFAIL}
    assert all("libvfio cannot find it" in point.reason for point in judged)


def test_silence_is_no_pass() -> None:
    """A program that printed nothing and exited with 0 is an error."""
    judged = SUITE.judge(program(REAL), parse([]), 0)
    assert outcomes(judged) == {WHOLE_PROGRAM: Outcome.ERROR}
    assert "no result at all, exit status 0" in judged[0].reason


def test_death_before_tap_is_excused_only_where_expected() -> None:
    """A libvfio that cannot use no-IOMMU mode dies before any TAP: XFAIL there, ERROR elsewhere."""
    said = ["  lib/vfio_pci_device.c:406: Assertion Failure", "", "Failed to find vfio cdev file."]
    assert outcomes(SUITE.judge(program(NOIOMMU), parse(said), 1)) == {WHOLE_PROGRAM: Outcome.XFAIL}
    assert outcomes(SUITE.judge(program(REAL), parse(said), 1)) == {WHOLE_PROGRAM: Outcome.ERROR}


def test_skip_by_exit_status() -> None:
    """Exit status 4 without TAP is a skip, and the output of the program is its reason."""
    judged = SUITE.judge(program(REAL), parse(["No driver found for device"]), 4)
    assert outcomes(judged) == {WHOLE_PROGRAM: Outcome.SKIP}
    assert judged[0].reason == "No driver found for device"


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["TAP version 13", "1..0 # SKIP no device"], 139),
        (["TAP version 13", "1..0 # SKIP no device", "Bail out! broken"], 0),
        (["TAP version 13", "1..3"], 4),
        (["TAP version 13", "Bail out! no memory"], 4),
    ],
)
def test_a_skip_that_is_contradicted_is_none(lines: list[str], status: int) -> None:
    """A program that says it skips and then dies, or that exits with 4 in mid-plan, is an ERROR."""
    judged = SUITE.judge(program(REAL), parse(lines), status)
    assert outcomes(judged) == {WHOLE_PROGRAM: Outcome.ERROR}


def test_exit_status_that_contradicts_the_points() -> None:
    """A failing exit status is an error when every point is fine."""
    judged = SUITE.judge(program(REAL), parse(["TAP version 13", "1..1", "ok 1 a.x"]), 1)
    assert outcomes(judged)[WHOLE_PROGRAM] is Outcome.ERROR


def test_a_signal_is_not_explained_by_a_point_that_is_expected_to_fail() -> None:
    """A program that crashes when it has reported everything is an error all the same."""
    excuse = Expectation(outcome=Outcome.XFAIL, reason="known", points=("b",))
    report = parse(["TAP version 13", "1..2", "ok 1 a", "not ok 2 b"])

    def expected(point: str, said: str | None) -> Expectation | None:
        return excuse if point == "b" else None

    assert [one.outcome for one in judge_program(report, 1, None, expected)] == [Outcome.PASS, Outcome.XFAIL]
    *_, whole = judge_program(report, 139, None, expected)
    assert (whole.outcome, whole.reason) == (Outcome.ERROR, "the program was killed by SIGSEGV")


def test_truncated_plan_is_an_error() -> None:
    """Fewer results than planned are an error even when each of them passed."""
    judged = SUITE.judge(program(REAL), parse(["TAP version 13", "1..3", "ok 1 a.x"]), 0)
    assert outcomes(judged)[WHOLE_PROGRAM] is Outcome.ERROR


def test_fewest_is_waived_only_where_everything_is_expected_to_fail() -> None:
    """The fewest passes are required unless expectations cover the whole program."""
    point = [CaseResult(case="a.x", outcome=Outcome.FAIL)]
    assert SUITE.requirement(program(REAL, 3), job(), point).fewest == 3
    assert SUITE.requirement(program(NOIOMMU, 3), job(), point).fewest == 0


def _probe(line: str, *diagnostics: str) -> list[str]:
    return ["KTAP version 1", "1..1", *(f"# {d}" for d in diagnostics), line, "# END get_pa/unmapped"]


ADDRESS = "get_pa/unmapped"
PROBE = dataclasses.replace(next(iter(suite_named("probes").work(job()))), program="get_pa", case="unmapped")


def judge_probe(report: KtapReport, issue: KnownIssue | None = None) -> CaseResult:
    (result,) = suite_named("probes").judge(PROBE, report)
    return judge_known(result, issue)


def known(*, racy: bool = False) -> KnownIssue:
    return KnownIssue(
        case=f"probes/{ADDRESS}",
        kernels=SpecifierSet(">=7.3"),
        reason="no RAWIO check in bind",
        evidence="a mail",
        racy=racy,
    )


def test_probe_outcomes() -> None:
    """A probe passes only by its own result line, and its failure has a reason of one line."""
    passed = judge_probe(parse(_probe("ok 1 get_pa/unmapped")))
    assert passed.outcome is Outcome.PASS
    failed = judge_probe(parse(_probe("not ok 1 get_pa/unmapped", "why: got 22")))
    assert (failed.outcome, failed.reason) == (Outcome.FAIL, "got 22")
    silent = judge_probe(parse(["KTAP version 1", "1..1"]))
    assert silent.outcome.is_bad


@pytest.mark.parametrize("printed", [Outcome.PASS, Outcome.XFAIL, Outcome.TIMEOUT, Outcome.LOST])
def test_splat_is_expected_only_of_a_defect_that_does_damage(printed: Outcome) -> None:
    """With a known issue that damages the kernel a splat is XFAIL; anywhere else it is a CRASH."""
    judged = (CaseResult(case="x", outcome=printed, diagnostics=("its words",)),)
    damaging = dataclasses.replace(PROBE, destructive=True)
    (expected,) = judge_splat(damaging, judged, "WARNING: at f", known())
    assert (expected.outcome, expected.reason) == (Outcome.XFAIL, "no RAWIO check in bind")
    for work, issue in ((damaging, None), (PROBE, known())):
        (crash,) = judge_splat(work, judged, "WARNING: at f", issue)
        assert (crash.outcome, crash.reason) == (Outcome.CRASH, "the kernel said: WARNING: at f")
        assert crash.diagnostics == ("its words",)
    (silent,) = judge_splat(PROBE, (), "WARNING: at f")
    assert silent.outcome is Outcome.CRASH


def test_known_damage_excuses_no_other_splat() -> None:
    """What the known issue does not cause is a bug of its own."""
    issue = dataclasses.replace(known(), splat=re.compile(r"\bf\b"))
    work = dataclasses.replace(PROBE, destructive=True)
    outcomes = [judge_splat(work, (), f"WARNING: at {name}", issue)[0].outcome for name in "fg"]
    assert outcomes == [Outcome.XFAIL, Outcome.CRASH]


def test_finished_points_survive_a_splat() -> None:
    """Points that a program had finished keep their outcomes; the program as a whole is a CRASH."""
    points = (
        CaseResult(case="a", outcome=Outcome.PASS),
        CaseResult(case="b", outcome=Outcome.FAIL),
        CaseResult(case=WHOLE_PROGRAM, outcome=Outcome.LOST, reason="gone"),
    )
    judged = outcomes(judge_splat(program(), points, "Oops"))
    assert judged == {"a": Outcome.PASS, "b": Outcome.FAIL, WHOLE_PROGRAM: Outcome.CRASH}


def test_documented_defect_turns_failure_and_pass_round() -> None:
    """A case with a known issue is XFAIL when it fails, and XPASS when it passes."""
    failed = judge_probe(parse(_probe("not ok 1 get_pa/unmapped")), known())
    passed = judge_probe(parse(_probe("ok 1 get_pa/unmapped")), known())
    assert (failed.outcome, failed.reason) == (Outcome.XFAIL, "no RAWIO check in bind")
    assert passed.outcome is Outcome.XPASS


def test_a_race_that_was_not_lost_is_no_news() -> None:
    """With a known issue that is a race PASS stays PASS, and FAIL is XFAIL."""
    racy = known(racy=True)
    assert judge_probe(parse(_probe("ok 1 get_pa/unmapped")), racy).outcome is Outcome.PASS
    assert judge_probe(parse(_probe("not ok 1 get_pa/unmapped")), racy).outcome is Outcome.XFAIL


def test_what_is_known_of_a_selftest_excuses_failing_and_nothing_else() -> None:
    """A user's known issue about upstream's selftest: FAIL is XFAIL with its reason, an ERROR stays one."""
    failed = judge_known(CaseResult(case="a.x", outcome=Outcome.FAIL, reason="errno 5"), known())
    assert (failed.outcome, failed.reason) == (Outcome.XFAIL, "no RAWIO check in bind")
    error = CaseResult(case="a.x", outcome=Outcome.ERROR, reason="no result")
    assert judge_known(error, known()) == error


def test_timeout_is_not_excused() -> None:
    """A known issue does not excuse a timeout."""
    line = "not ok 1 get_pa/unmapped # TIMEOUT after 30s"
    assert judge_probe(parse(_probe(line)), known()).outcome is Outcome.TIMEOUT


def test_another_failure_is_not_the_one_that_was_reviewed() -> None:
    """An expectation does not excuse a failure with other output."""
    other = ["TAP version 13", "1..1", "# segfault in libvfio", "not ok 1 a.y"]
    assert outcomes(SUITE.judge(program(NOIOMMU), parse(other), 1)) == {"a.y": Outcome.FAIL}
    crashed = SUITE.judge(program(NOIOMMU), parse(["./x: not found"]), 127)
    assert outcomes(crashed) == {WHOLE_PROGRAM: Outcome.ERROR}


def test_a_point_that_was_cut_off_with_its_guest_is_lost_too() -> None:
    """The point that was running when the guest was lost is LOST, and so is tried again."""
    cut = parse(["TAP version 13", "1..2", "#  RUN           a.x ...", "#            OK  a.x", "ok 1 a.x",
                 "#  RUN           a.y ..."])  # fmt: skip
    points = SUITE.judge(program(), cut, cut=Outcome.LOST)
    assert outcomes(points)["a.y"] is Outcome.LOST
    assert outcomes(SUITE.judge(program(), cut, cut=Outcome.ERROR))["a.y"] is Outcome.ERROR


def test_a_cut_off_point_is_not_excused() -> None:
    """An expectation does not excuse a point that was cut off."""
    cut = ["TAP version 13", "1..2", "#  RUN           a.x ...", "# Failed to find vfio cdev file."]
    assert outcomes(SUITE.judge(program(NOIOMMU), parse(cut), 1))["a.x"] is Outcome.ERROR


def result(case: str, outcome: Outcome, reason: str = "") -> CaseResult:
    return CaseResult(case=case, outcome=outcome, reason=reason)


def expect(*cases: str, fewest: int = 1) -> Requirement:
    return Requirement(fewest=fewest, cases=cases)


def test_a_met_requirement_adds_nothing() -> None:
    """Enough passes and every listed case: nothing is missing."""
    assert missing(expect("a", "b"), [result("a", Outcome.PASS), result("b", Outcome.SKIP)]) == ()
    assert missing(None, []) == ()


def test_a_case_that_vanished_is_a_failure() -> None:
    """A case of the manifest that its program did not report is an ERROR."""
    (absent,) = missing(expect("a", "gone"), [result("a", Outcome.PASS)])
    assert (absent.case, absent.outcome) == ("gone", Outcome.ERROR)
    assert absent.reason.startswith("vanished")
    assert (absent.cause, absent.stopped_by) == (Cause.VANISHED, None)


@pytest.mark.parametrize(
    ("stopper", "reason"),
    [
        (result("a", Outcome.CRASH), "not reached: a was CRASH"),
        (result("a", Outcome.LOST), "not reached: a was LOST"),
        (result(WHOLE_PROGRAM, Outcome.ERROR), "not reached: (program) was ERROR"),
    ],
)
def test_a_case_that_was_not_reached_did_not_vanish(stopper: CaseResult, reason: str) -> None:
    """After a crash, a lost guest or a program that died, the missing cases name that as their cause."""
    (absent,) = missing(expect("a", "b") if stopper.case == "a" else expect("b"), [stopper])
    assert (absent.case, absent.reason) == ("b", reason)
    assert absent.outcome is Outcome.NOT_RUN
    assert (absent.cause, absent.stopped_by) == (Cause.NOT_REACHED, stopper.outcome)


def test_an_all_skip_program_is_an_error() -> None:
    """A program whose cases all skip is an ERROR which says how few passed and why."""
    results = [result("a", Outcome.SKIP, "no edu device"), result("b", Outcome.SKIP)]
    (whole,) = missing(expect("a", "b", fewest=2), results)
    assert (whole.case, whole.outcome) == (WHOLE_PROGRAM, Outcome.ERROR)
    assert whole.reason == "0 passed, at least 2 must: 2 SKIP; the first reason: no edu device"


def test_a_silent_program_is_an_error() -> None:
    """A program that was to run and left no result at all is not overlooked."""
    (whole,) = missing(expect(), [])
    assert whole.reason == "0 passed, at least 1 must: no results"


def test_few_passes_are_not_held_against_a_program_twice() -> None:
    """Where a failure or a lost guest explains the few passes, no ERROR is added on top."""
    assert missing(expect("a"), [result("a", Outcome.LOST)]) == ()
    assert missing(expect("a"), [result("a", Outcome.FAIL)]) == ()


def test_a_program_may_be_allowed_to_skip() -> None:
    """A program that declares no least number of passes may skip altogether."""
    assert missing(expect(fewest=0), [result(WHOLE_PROGRAM, Outcome.SKIP)]) == ()
