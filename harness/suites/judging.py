# SPDX-License-Identifier: GPL-2.0-only
"""From what a program printed to what became of each case: outcomes and expectations.  Pure."""

from __future__ import annotations

import dataclasses

from harness.ktap import KtapCase, KtapReport, Status, why, why_program
from harness.results import WHOLE_PROGRAM, Outcome
from harness.suites.known import KnownIssue
from harness.suites.model import Program

KSFT_SKIP = 4
"""Exit status of a selftest that skipped itself (tools/testing/selftests/kselftest.h)."""

_OUTCOMES = {
    Status.PASS: Outcome.PASS,
    Status.SKIP: Outcome.SKIP,
    Status.XFAIL: Outcome.XFAIL,
    Status.XPASS: Outcome.XPASS,
    Status.FAIL: Outcome.FAIL,
    Status.ERROR: Outcome.ERROR,
    Status.TIMEOUT: Outcome.TIMEOUT,
    Status.NOT_RUN: Outcome.NOT_RUN,
    # The stream ended inside the case; whoever knows why the stream ended may make it CRASH or LOST.
    Status.CRASHED: Outcome.ERROR,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One case's outcome and the line that says why."""

    case: str
    outcome: Outcome
    reason: str
    diagnostics: tuple[str, ...] = ()


def judge_probe(address: str, report: KtapReport, known: KnownIssue | None = None) -> Judged:
    """The outcome of the probe case *address* from the agent's document; *known* is the defect it shows."""
    case = next((c for c in report.cases if c.name == address), None)
    if case is None:
        return Judged(case=address, outcome=Outcome.LOST, reason="the agent gave no result")
    outcome, reason = _OUTCOMES[case.status], why(case)
    judged = Judged(case=address, outcome=outcome, reason=reason, diagnostics=case.diagnostics)
    return judged if known is None else judge_known(judged, known)


def judge_known(judged: Judged, known: KnownIssue) -> Judged:
    """The outcome of a case that shows the defect *known*; PASS is no news of one that is a race."""
    outcome = judged.outcome.with_known_defect()
    if outcome is judged.outcome or (known.racy and outcome is Outcome.XPASS):
        return judged
    return dataclasses.replace(judged, outcome=outcome, reason=known.reason)


def judge_splat(judged: Judged, title: str, damage: KnownIssue | None = None) -> Judged:
    """The outcome of a probe case during which the kernel complained, whatever it printed: a CRASH.

    *damage* is the defect by which a destructive case damages the kernel here: a complaint is expected.
    """
    if damage is not None:
        return dataclasses.replace(judged, outcome=Outcome.XFAIL, reason=damage.reason)
    return dataclasses.replace(judged, outcome=Outcome.CRASH, reason=crash_reason(title))


def crash_reason(title: str) -> str:
    """Why work is a CRASH during which the kernel said *title*."""
    return f"the kernel said: {title}"


def judge_program(
    program: Program, features: frozenset[str], report: KtapReport, status: int
) -> tuple[Judged, ...]:
    """One Judged per KTAP point, and one for the program as a whole when there is something to say of it."""
    points = judge_points(program, features, report)
    whole = _whole(program, features, report, status, points)
    return points if whole is None else (*points, whole)


def judge_points(
    program: Program, features: frozenset[str], report: KtapReport, *, cut: Outcome = Outcome.ERROR
) -> tuple[Judged, ...]:
    """One Judged per KTAP point; all there is of a program that was cut off.

    *cut* is what the point that was running then comes to: LOST where the guest was.
    """
    points = report.leaves()
    return tuple(
        dataclasses.replace(_point(program, features, name, case), outcome=cut)
        if case.status is Status.CRASHED
        else _point(program, features, name, case)
        for name, case in points
    )


def _point(program: Program, features: frozenset[str], name: str, case: KtapCase) -> Judged:
    outcome, reason = _OUTCOMES[case.status], why(case)
    if outcome is Outcome.FAIL:
        expected = program.expected(name, features, "\n".join((reason, *case.diagnostics)))
        if expected:
            outcome, reason = expected.outcome, expected.reason
    elif outcome is Outcome.PASS and (expected := program.expected(name, features)):
        outcome, reason = Outcome.XPASS, f"passes although it should not: {expected.reason}"
    return Judged(case=name, outcome=outcome, reason=reason, diagnostics=case.diagnostics)


def _whole(
    program: Program, features: frozenset[str], report: KtapReport, status: int, points: tuple[Judged, ...]
) -> Judged | None:
    """What is left to say when the points have been judged; None when they say it all."""
    if not points and (report.skipped or status == KSFT_SKIP):
        reason = why_program(report)
        return Judged(case=WHOLE_PROGRAM, outcome=Outcome.SKIP, reason=reason, diagnostics=report.loose)
    trouble = _trouble(report, status, points)
    if not trouble:
        return None
    expected = program.expected(WHOLE_PROGRAM, features, "\n".join((trouble, *report.loose)))
    return Judged(
        case=WHOLE_PROGRAM,
        outcome=expected.outcome if expected else Outcome.ERROR,
        reason=expected.reason if expected else trouble,
        diagnostics=report.loose,
    )


def _trouble(report: KtapReport, status: int, points: tuple[Judged, ...]) -> str:
    if not points:
        return f"no result at all, exit status {status}: {why_program(report) or 'it printed nothing'}"
    if report.spoiled:
        return why_program(report)
    blamed = any(p.outcome.is_bad or p.outcome is Outcome.XFAIL for p in points)
    if status not in (0, KSFT_SKIP) and not blamed:
        return f"every point is fine, but the exit status is {status}"
    return ""
