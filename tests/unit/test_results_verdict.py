# SPDX-License-Identifier: GPL-2.0-only
"""What a Run means, and what it lacks."""

from __future__ import annotations

import dataclasses
import datetime

import pytest

from harness.base.cause import Cause
from harness.base.errors import ExitCode
from harness.results import (
    BOOTS,
    Address,
    Inputs,
    JobRecord,
    Outcome,
    Result,
    Run,
    RunInfo,
    RunState,
    Verdict,
    compare,
    reach_verdict,
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
    return Run(info=INFO, jobs=(job or JobRecord(name="j"),), results=results, state=RunState.FINISHED)


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
        ([Outcome.PASS, Outcome.LOST], Verdict.INFRASTRUCTURE),
        ([Outcome.PASS, Outcome.NOT_RUN], Verdict.INFRASTRUCTURE),
        ([], Verdict.INFRASTRUCTURE),
        ([Outcome.SKIP, Outcome.SKIP], Verdict.UNTESTABLE),
        ([Outcome.XFAIL], Verdict.UNTESTABLE),
    ],
)
def test_verdicts(outcomes: list[Outcome], verdict: Verdict) -> None:
    """A failure is bad whatever else happened, lost guests are ours, and no pass is no success."""
    assert reach_verdict(finished(*outcomes)).verdict is verdict


def test_exit_codes() -> None:
    """Failures exit with 1, infrastructure with 3, an untestable kernel with 4, an interrupt with 130."""
    assert reach_verdict(finished(Outcome.PASS)).exit_code is ExitCode.GOOD
    assert reach_verdict(finished(Outcome.FAIL)).exit_code is ExitCode.CASE_FAILED
    assert reach_verdict(finished(Outcome.LOST)).exit_code is ExitCode.INFRA
    assert reach_verdict(finished(job=NO_KERNEL)).exit_code is ExitCode.KERNEL
    stopped = dataclasses.replace(finished(Outcome.PASS), state=RunState.INTERRUPTED)
    assert (reach_verdict(stopped).verdict, reach_verdict(stopped).exit_code) == (
        Verdict.INFRASTRUCTURE,
        ExitCode.INTERRUPTED,
    )


def test_a_run_that_was_killed_is_no_success() -> None:
    """Passes before a kill prove nothing about what was still to come; a failure before it does."""
    killed = dataclasses.replace(finished(Outcome.PASS), state=RunState.RUNNING)
    assert reach_verdict(killed).verdict is Verdict.INFRASTRUCTURE
    assert (
        reach_verdict(dataclasses.replace(finished(Outcome.FAIL), state=RunState.RUNNING)).verdict
        is Verdict.BAD
    )


def test_a_job_without_a_kernel_explains_its_cases() -> None:
    """A job without a kernel makes the run untestable; one that its host stopped is infrastructure."""
    assert reach_verdict(finished(Outcome.NOT_RUN, job=NO_KERNEL)).verdict is Verdict.UNTESTABLE
    ours = JobRecord(name="j", problem="QEMU is not installed", problem_code=ExitCode.INFRA)
    assert reach_verdict(finished(Outcome.NOT_RUN, job=ours)).verdict is Verdict.INFRASTRUCTURE


def test_a_lost_guest_hides_no_kernel_that_does_not_build() -> None:
    """That is what is known of the kernel; what else had no chance is told beside it."""
    broken = dataclasses.replace(NO_KERNEL, name="broken", problem="it does not compile")
    found = finished(Outcome.PASS, Outcome.LOST)
    told = reach_verdict(dataclasses.replace(found, jobs=(*found.jobs, broken)))
    assert (told.verdict, told.exit_code) == (Verdict.UNTESTABLE, ExitCode.KERNEL)
    assert told.why == "job broken: it does not compile; besides, 1 case could not be run"


def test_a_variant_the_tree_lacks_spoils_nothing() -> None:
    """Beside Jobs that passed, a variant that does not apply is an answer; alone it is untestable."""
    absent = dataclasses.replace(NO_KERNEL, name="absent", problem="no such symbol", applicable=False)
    good = finished(Outcome.PASS)
    assert reach_verdict(dataclasses.replace(good, jobs=(*good.jobs, absent))).verdict is Verdict.GOOD
    alone = reach_verdict(dataclasses.replace(good, jobs=(absent,), results=()))
    assert (alone.verdict, alone.exit_code) == (Verdict.UNTESTABLE, ExitCode.KERNEL)
    assert "no such symbol" in alone.why


def test_the_grounds_name_the_worst_case() -> None:
    """The sentence under a bad verdict names the worst failure, not the first."""
    told = reach_verdict(finished(Outcome.FAIL, Outcome.CRASH)).why
    assert told == "2 cases failed, the worst: CRASH probes/edu/case1"


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


SKIPPED = dataclasses.replace(result("a", Outcome.SKIP, "no device"), job="k")
REFUSED = dataclasses.replace(result("c", Outcome.SKIP), job="k", cause=Cause.NOT_APPLICABLE)
LEFT_OUT = dataclasses.replace(result("b", Outcome.NOT_RUN), job="k", cause=Cause.BY_WISH)


@pytest.mark.parametrize(
    ("others", "inputs", "verdict"),
    [
        ([SKIPPED], Inputs(), Verdict.UNTESTABLE),
        ([REFUSED, SKIPPED], Inputs(), Verdict.UNTESTABLE),
        ([SKIPPED, Result(address=BOOTS, job="k", outcome=Outcome.PASS)], Inputs(), Verdict.UNTESTABLE),
        ([REFUSED], Inputs(), Verdict.GOOD),
        ([SKIPPED, dataclasses.replace(result("b", Outcome.XFAIL), job="k")], Inputs(), Verdict.GOOD),
        ([SKIPPED, LEFT_OUT], Inputs(), Verdict.GOOD),
        ([SKIPPED], Inputs(cases=("probes/edu/*",)), Verdict.GOOD),
        ([SKIPPED], Inputs(narrowed=True), Verdict.GOOD),
    ],
)
def test_a_job_that_skips_everything_is_no_success(
    others: list[Result], inputs: Inputs, verdict: Verdict
) -> None:
    """Another job's passes say nothing about it.  What does not apply was known before, or nobody asked."""
    run = finished(Outcome.PASS)
    info = dataclasses.replace(INFO, inputs=inputs)
    told = reach_verdict(
        dataclasses.replace(
            run, info=info, jobs=(*run.jobs, JobRecord(name="k")), results=(*run.results, *others)
        )
    )
    assert told.verdict is verdict
    if verdict is Verdict.UNTESTABLE:
        assert told.why == "job k skipped all of its 1 case, first probes/edu/a: no device"


def test_a_kernel_that_booted_at_the_second_try_has_passed_no_case() -> None:
    run = finished(Outcome.SKIP)
    boots = Result(address=BOOTS, job="j", outcome=Outcome.PASS)
    assert (
        reach_verdict(dataclasses.replace(run, results=(*run.results, boots))).verdict is Verdict.UNTESTABLE
    )


def test_what_was_not_run_by_wish_spoils_nothing() -> None:
    """The rest of `run --affected`, unlike what nobody wished to leave out."""
    run = finished(Outcome.PASS)
    left = dataclasses.replace(result("left", Outcome.NOT_RUN), cause=Cause.BY_WISH)
    found = reach_verdict(dataclasses.replace(run, results=(*run.results, left)))
    assert found.verdict is Verdict.GOOD
    assert found.why.endswith("; 1 case left out by --affected")
    stopped = dataclasses.replace(left, cause=Cause.STOPPED)
    found = reach_verdict(dataclasses.replace(run, results=(*run.results, stopped)))
    assert found.verdict is Verdict.INFRASTRUCTURE
