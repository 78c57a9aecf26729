# SPDX-License-Identifier: GPL-2.0-only
"""What a Run means, and what it lacks."""

from __future__ import annotations

import dataclasses
import datetime

import pytest

from harness.errors import ExitCode
from harness.results import (
    WHOLE_PROGRAM,
    Address,
    JobRecord,
    Outcome,
    Requirement,
    Result,
    Run,
    RunInfo,
    State,
    Verdict,
    check,
    compare,
    exit_code,
    judge,
    judgement,
)

STARTED = datetime.datetime(2030, 1, 2, tzinfo=datetime.UTC)
INFO = RunInfo(id="r", started=STARTED, harness_version="1")
NO_KERNEL = JobRecord(name="j", problem="the build stopped", problem_code=ExitCode.KERNEL)


def result(case: str, outcome: Outcome, reason: str = "") -> Result:
    return Result(
        address=Address(suite="probes", program="edu", case=case), job="j", outcome=outcome, reason=reason
    )


def finished(*outcomes: Outcome, job: JobRecord | None = None) -> Run:
    results = tuple(result(f"case{number}", outcome) for number, outcome in enumerate(outcomes))
    return Run(info=INFO, jobs=(job or JobRecord(name="j"),), results=results, state=State.FINISHED)


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        ([Outcome.PASS], Verdict.GOOD),
        ([Outcome.PASS, Outcome.SKIP, Outcome.XFAIL], Verdict.GOOD),
        ([Outcome.PASS, Outcome.FAIL], Verdict.BAD),
        ([Outcome.PASS, Outcome.XPASS], Verdict.BAD),
        ([Outcome.TIMEOUT], Verdict.BAD),
        ([Outcome.CRASH, Outcome.LOST], Verdict.BAD),
        ([Outcome.ERROR], Verdict.BAD),
        ([Outcome.PASS, Outcome.LOST], Verdict.OUR_FAULT),
        ([Outcome.PASS, Outcome.NOT_RUN], Verdict.OUR_FAULT),
        ([], Verdict.OUR_FAULT),
        ([Outcome.SKIP, Outcome.SKIP], Verdict.UNTESTABLE),
        ([Outcome.XFAIL], Verdict.UNTESTABLE),
    ],
)
def test_verdicts(outcomes: list[Outcome], verdict: Verdict) -> None:
    """A failure is bad whatever else happened, lost guests are ours, and no pass is no success."""
    assert judge(finished(*outcomes)) is verdict


def test_exit_codes() -> None:
    """Failures exit with 1, infrastructure with 3, an untestable kernel with 4, an interrupt with 130."""
    assert exit_code(finished(Outcome.PASS)) is ExitCode.GOOD
    assert exit_code(finished(Outcome.FAIL)) is ExitCode.CASE_FAILED
    assert exit_code(finished(Outcome.LOST)) is ExitCode.INFRA
    assert exit_code(finished(job=NO_KERNEL)) is ExitCode.KERNEL
    stopped = dataclasses.replace(finished(Outcome.PASS), state=State.INTERRUPTED)
    assert (judge(stopped), exit_code(stopped)) == (Verdict.OUR_FAULT, ExitCode.INTERRUPTED)


def test_a_run_that_was_killed_is_no_success() -> None:
    """Passes before a kill prove nothing about what was still to come; a failure before it does."""
    killed = dataclasses.replace(finished(Outcome.PASS), state=State.RUNNING)
    assert judge(killed) is Verdict.OUR_FAULT
    assert judge(dataclasses.replace(finished(Outcome.FAIL), state=State.RUNNING)) is Verdict.BAD


def test_a_job_without_a_kernel_explains_its_cases() -> None:
    """Cases that did not run for want of a kernel make the run untestable, not our fault."""
    assert judge(finished(Outcome.NOT_RUN, job=NO_KERNEL)) is Verdict.UNTESTABLE
    ours = JobRecord(name="j", problem="QEMU is not installed", problem_code=ExitCode.INFRA)
    assert judge(finished(Outcome.NOT_RUN, job=ours)) is Verdict.OUR_FAULT


def test_a_lost_guest_hides_no_kernel_that_does_not_build() -> None:
    """That is what is known of the kernel; what else had no chance is told beside it."""
    broken = dataclasses.replace(NO_KERNEL, name="broken", problem="it does not compile")
    found = finished(Outcome.PASS, Outcome.LOST)
    told = judgement(dataclasses.replace(found, jobs=(*found.jobs, broken)))
    assert (told.verdict, told.exit_code) == (Verdict.UNTESTABLE, ExitCode.KERNEL)
    assert told.why == "job broken: it does not compile; besides, 1 case could not be run"


def test_a_variant_the_tree_lacks_spoils_nothing() -> None:
    """Beside Jobs that passed, a variant that does not apply is an answer; alone it is untestable."""
    absent = dataclasses.replace(NO_KERNEL, name="absent", problem="no such symbol", applicable=False)
    good = finished(Outcome.PASS)
    assert judge(dataclasses.replace(good, jobs=(*good.jobs, absent))) is Verdict.GOOD
    alone = judgement(dataclasses.replace(good, jobs=(absent,), results=()))
    assert (alone.verdict, alone.exit_code) == (Verdict.UNTESTABLE, ExitCode.KERNEL)
    assert "no such symbol" in alone.why


def test_the_grounds_name_the_worst_case() -> None:
    """The sentence under a bad verdict names the worst failure, not the first."""
    told = judgement(finished(Outcome.FAIL, Outcome.CRASH)).why
    assert told == "2 cases failed, the worst: CRASH probes/edu/case1"


def expect(*cases: str, fewest: int = 1) -> Requirement:
    return Requirement(job="j", suite="probes", program="edu", fewest=fewest, cases=cases, rerun="rerun it")


def test_a_met_expectation_adds_nothing() -> None:
    """Enough passes and every listed case: nothing is missing."""
    assert check([result("a", Outcome.PASS), result("b", Outcome.SKIP)], [expect("a", "b")]) == ()


def test_a_case_that_vanished_is_a_failure() -> None:
    """A case of the manifest that its program passed over in silence makes a run bad."""
    run = finished(Outcome.PASS)
    (missing,) = check([result("a", Outcome.PASS)], [expect("a", "gone")])
    judged = judgement(dataclasses.replace(run, results=(*run.results, missing)))
    assert (judged.verdict, judged.exit_code) == (Verdict.BAD, ExitCode.CASE_FAILED)
    assert (str(missing.address), missing.outcome) == ("probes/edu/gone", Outcome.ERROR)
    assert missing.reason.startswith("vanished")
    assert missing.rerun == "rerun it"


@pytest.mark.parametrize(
    ("stopper", "reason"),
    [
        (result("a", Outcome.CRASH), "not reached: a was CRASH"),
        (result("a", Outcome.LOST), "not reached: a was LOST"),
        (result(WHOLE_PROGRAM, Outcome.ERROR), "not reached: (program) was ERROR"),
    ],
)
def test_a_case_that_was_not_reached_did_not_vanish(stopper: Result, reason: str) -> None:
    """After a crash, a lost guest or a program that died, the missing cases name that as their cause."""
    (missing,) = check([stopper], [expect("a", "b") if stopper.address.case == "a" else expect("b")])
    assert (missing.address.case, missing.reason) == ("b", reason)
    assert missing.outcome is Outcome.NOT_RUN


def test_an_all_skip_program_is_an_error() -> None:
    """A program whose cases all skip is an ERROR which says how few passed and why."""
    results = [result("a", Outcome.SKIP, "no edu device"), result("b", Outcome.SKIP)]
    (missing,) = check(results, [expect("a", "b", fewest=2)])
    assert (str(missing.address), missing.outcome) == ("probes/edu/(program)", Outcome.ERROR)
    assert missing.reason == (
        "0 passes where at least 2 must be: 2 SKIP; the first reason given: no edu device"
    )


def test_a_silent_program_is_an_error() -> None:
    """A program that was to run and left no result at all is not overlooked."""
    (missing,) = check([], [expect()])
    assert missing.reason == "0 passes where at least 1 must be: no results"


def test_few_passes_are_not_held_against_a_program_twice() -> None:
    """Where a failure or a lost guest explains the few passes, no ERROR is added on top."""
    assert check([result("a", Outcome.LOST)], [expect("a")]) == ()
    assert check([result("a", Outcome.FAIL)], [expect("a")]) == ()


def test_a_program_may_be_allowed_to_skip() -> None:
    """A program that declares no least number of passes may skip altogether."""
    assert check([result(WHOLE_PROGRAM, Outcome.SKIP)], [expect(fewest=0)]) == ()


def test_comparison_tells_regressions_from_lost_coverage() -> None:
    """What fails now, what no longer fails, and what no longer runs are three different lists."""
    before = finished(Outcome.PASS, Outcome.FAIL, Outcome.PASS, Outcome.PASS, Outcome.FAIL)
    after = finished(Outcome.CRASH, Outcome.PASS, Outcome.SKIP, Outcome.PASS)
    told = compare(before, after)
    assert [change.address.case for change in told.new_failures] == ["case0"]
    assert [change.address.case for change in told.fixed] == ["case1"]
    assert [change.address.case for change in told.new_skips] == ["case2"]
    assert [change.address.case for change in told.vanished] == ["case4"]
    assert told.other == ()
    assert told.vanished[0].after is None
    assert told.is_worse
