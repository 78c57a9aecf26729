# SPDX-License-Identifier: GPL-2.0-only
"""Derive the outcomes of cases from the KTAP of their work, expectations and known issues.  Pure."""

from __future__ import annotations

import collections
import dataclasses
import signal
from collections.abc import Callable, Sequence

from harness.base.cause import Cause
from harness.ktap import KtapCase, KtapReport, ProblemKind, why, why_program
from harness.results import WHOLE_PROGRAM, Outcome
from harness.suites.known import KnownIssue
from harness.suites.model import CaseResult, Expectation, Requirement, Work

KSFT_SKIP = 4
"""Exit status of a selftest that skipped itself (tools/testing/selftests/kselftest.h)."""

_NOTHING_PLANNED = (ProblemKind.NO_OUTPUT, ProblemKind.NO_TESTS)

Expected = Callable[[str, str | None], Expectation | None]
"""Returns the expectation for a point with a text; with None as text, for any text."""


def nothing_expected(point: str, said: str | None) -> None:
    """Return no expectation about any *point*."""


def judge_program(
    report: KtapReport,
    status: int | None = None,
    cut: Outcome | None = None,
    expected: Expected = nothing_expected,
) -> tuple[CaseResult, ...]:
    """Return one result for each KTAP point, and one for the whole program when something is left to say.

    Nothing can be said about the whole of a program that was *cut* off.
    """
    points = tuple(judge_point(name, case, cut, expected) for name, case in report.leaves())
    whole = _whole(report, status or 0, points, expected) if cut is None else None
    return points if whole is None else (*points, whole)


def judge_point(
    name: str, case: KtapCase, cut: Outcome | None = None, expected: Expected = nothing_expected
) -> CaseResult:
    """Return the result of one KTAP point; *cut* is its outcome if it was running when the output was cut
    off."""
    outcome, reason = (cut if cut and case.was_running else case.outcome), why(case)
    if outcome is Outcome.FAIL:
        if excuse := expected(name, "\n".join((reason, *case.diagnostics))):
            outcome, reason = excuse.outcome, excuse.reason
    elif outcome is Outcome.PASS and (excuse := expected(name, None)):
        outcome, reason = Outcome.XPASS, f"passed, but was expected to fail: {excuse.reason}"
    late = outcome is Outcome.TIMEOUT or (outcome is Outcome.FAIL and case.notes("late"))
    cause = Cause.TIMED_OUT if late else None
    return CaseResult(case=name, outcome=outcome, reason=reason, cause=cause, diagnostics=case.diagnostics)


def _whole(
    report: KtapReport, status: int, points: Sequence[CaseResult], expected: Expected
) -> CaseResult | None:
    """The result of the whole program; None when its points say everything."""
    if not points and _skipped(report, status):
        outcome, reason = Outcome.SKIP, why_program(report)
    elif reason := _trouble(report, status, points):
        excuse = expected(WHOLE_PROGRAM, "\n".join((reason, *report.loose)))
        outcome, reason = (excuse.outcome, excuse.reason) if excuse else (Outcome.ERROR, reason)
    else:
        return None
    return CaseResult(case=WHOLE_PROGRAM, outcome=outcome, reason=reason, diagnostics=report.loose)


def _skipped(report: KtapReport, status: int) -> bool:
    """Whether the program skipped itself: by its plan, or by its exit status before it planned anything."""
    if report.skipped:
        return status in (0, KSFT_SKIP) and not report.spoiled
    unplanned = all(problem.kind in _NOTHING_PLANNED for problem in report.spoiled)
    return status == KSFT_SKIP and unplanned


def _trouble(report: KtapReport, status: int, points: Sequence[CaseResult]) -> str:
    blamed = any(case.outcome.is_bad or case.outcome is Outcome.XFAIL for _, case in report.leaves())
    trouble = ""
    if not points:
        trouble = f"no result at all, exit status {status}: {why_program(report) or 'it printed nothing'}"
    elif report.spoiled:
        trouble = why_program(report)
    elif status not in (0, KSFT_SKIP) and not blamed:
        trouble = f"every point is fine, but the exit status is {status}"
    # A failed point, which may be expected, explains an exit status, but no signal.
    return "; ".join(filter(None, (death(status), trouble)))


def death(status: int) -> str:
    """Return which signal killed a program with the exit *status* of a shell; empty if none did."""
    try:
        return f"the program was killed by {signal.Signals(status - 128).name}"
    except ValueError:
        return ""


def judge_known(result: CaseResult, issue: KnownIssue | None) -> CaseResult:
    """Return *result* with the known *issue* applied: FAIL becomes XFAIL, and PASS becomes XPASS.

    A race may be won: then PASS stays PASS.
    """
    outcome = result.outcome.with_known_defect()
    if issue is None or outcome is result.outcome or (issue.racy and outcome is Outcome.XPASS):
        return result
    return dataclasses.replace(result, outcome=outcome, reason=issue.reason)


def judge_splat(
    work: Work, results: Sequence[CaseResult], title: str, issue: KnownIssue | None = None
) -> tuple[CaseResult, ...]:
    """Return the results of *work* during which the kernel printed splats, the first of them *title*.

    A single case is a CRASH, whatever it printed; but if a destructive case shows a known *issue* that causes
    the first splat, that is the expected failure: what a damaged kernel says later is a consequence.  The
    finished points of a program keep their outcomes, and the program as a whole is a CRASH.
    """
    crash = CaseResult(
        case=work.case or WHOLE_PROGRAM, outcome=Outcome.CRASH, reason=f"the kernel said: {title}"
    )
    if work.case is None:
        return (*(result for result in results if result.case != WHOLE_PROGRAM), crash)
    if work.destructive and issue is not None and issue.causes(title):
        crash = dataclasses.replace(crash, outcome=Outcome.XFAIL, reason=issue.reason)
    return (dataclasses.replace(crash, diagnostics=results[0].diagnostics if results else ()),)


def missing(required: Requirement | None, results: Sequence[CaseResult]) -> tuple[CaseResult, ...]:
    """Return the results to add to those of a program, *results*, because of what was *required* of it.

    A case of the manifest that did not appear is NOT_RUN if something stopped the program, else an ERROR.
    Too few passes are an ERROR if nothing bad explains them.
    """
    if required is None:
        return ()
    names = {result.case for result in results}
    stopper = next((result for result in results if _stops_a_program(result)), None)
    absent = tuple(_absent(name, stopper) for name in required.cases if name not in names)
    passes = sum(result.outcome is Outcome.PASS for result in results)
    if passes >= required.fewest or any(result.outcome.is_bad for result in (*results, *absent)):
        return absent
    counts = collections.Counter(result.outcome for result in results)
    shown = ", ".join(f"{counts[outcome]} {outcome.value}" for outcome in Outcome if counts[outcome])
    first = next((result.reason for result in results if result.reason), "")
    reason = f"{passes} passed, at least {required.fewest} must: {shown or 'no results'}"
    reason += f"; the first reason: {first}" if first else ""
    return (*absent, CaseResult(case=WHOLE_PROGRAM, outcome=Outcome.ERROR, reason=reason))


def _stops_a_program(result: CaseResult) -> bool:
    whole = result.case == WHOLE_PROGRAM
    return (whole and result.outcome is not Outcome.PASS) or result.outcome in (Outcome.CRASH, Outcome.LOST)


def _absent(name: str, stopper: CaseResult | None) -> CaseResult:
    """Return the result of the case *name* of the manifest that did not appear."""
    if stopper is None:
        reason = "vanished: the manifest lists this case and the program did not report it"
        return CaseResult(case=name, outcome=Outcome.ERROR, reason=reason, cause=Cause.VANISHED)
    return CaseResult(
        case=name,
        outcome=Outcome.NOT_RUN,
        reason=f"not reached: {stopper.case} was {stopper.outcome.value}",
        cause=Cause.NOT_REACHED,
        stopped_by=stopper.outcome,
    )
