# SPDX-License-Identifier: GPL-2.0-only
"""Why a case failed, in one line, read out of what it printed.

This chooses words for a human; it never decides an outcome.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.ktap.model import KtapCase, KtapReport, Status, notes

_LONGEST = 300

# tools/testing/selftests/vfio/lib/include/libvfio/assert.h VFIO_ASSERT_OP(), VFIO_FAIL()
_LIBVFIO = re.compile(r"\s*(\S+:\d+): (Assertion Failure|FAIL)$")
# kselftest_harness.h __TH_LOG(): "# file:line:test:message"
_HARNESS = re.compile(r"(\S+?:\d+):\w+:(.+)$")
# kselftest_harness.h __wait_for_test()
_ENDING = re.compile(r"\w+: (Test (?:terminated|exited|ended|failed).*|unable to .*|Failed to wait .*)$")
# What says nothing about the cause: how it ended, and the runner's and the harness's own commentary.
_CHATTER = re.compile(
    _ENDING.pattern
    + r"|selftests: |timeout set to |Starting \d+ tests? from |Totals: |(?:PASSED|FAILED): \d+ / "
    r"|\d+ skipped test\(s\) |Planned tests != "
)
_AFTER_ASSERTION = 8


def why(case: KtapCase) -> str:
    """One line saying why *case* is not a plain pass; empty for one that is."""
    status = case.status
    if status is Status.PASS:
        return ""
    found = explain(case.diagnostics)
    if status in (Status.SKIP, Status.XFAIL, Status.XPASS):
        return _short(case.reason or found)
    bad = next((sub for sub in case.subcases if sub.status.is_bad), None)
    if status is Status.TIMEOUT:
        return _short(_timeout(case, bad))
    if bad is not None:
        return _short(f"{bad.name}: {why(bad) or 'failed'}")
    if status is Status.NOT_RUN:
        return "no result: the program never came to it"
    if status is Status.CRASHED:
        return _short("was running when the output stopped" + (f"; last: {found}" if found else ""))
    return _short(found or case.reason or "failed without saying why")


def _timeout(case: KtapCase, bad: KtapCase | None) -> str:
    told = case.notes("why")
    if told:
        return told[0]
    reason = case.reason.removeprefix("terminated by timeout")
    return "timed out" + (f" {reason}" if reason else "") + (f" in {bad.name}" if bad else "")


def why_program(report: KtapReport) -> str:
    """One line saying what is wrong with a program whose output is no complete document."""
    if report.skipped and report.plan is not None:
        return _short(report.plan.reason or "skipped without a reason")
    said = explain(report.loose, first=True)
    if not report.cases and report.plan is None and said:
        return said
    return _short("; ".join(problem.text for problem in report.spoiled) or said)


def explain(lines: Sequence[str], *, first: bool = False) -> str:
    """The line of *lines* that explains a failure best, tidied; empty when there is none.

    When no line has a known form it is the last one, or with *first* the first: a program that dies of its
    arguments says so at once and then prints its usage.
    """
    told = notes(lines, "why")
    if told:
        return _short(told[0])
    for index, line in enumerate(lines):
        if match := _LIBVFIO.match(line):
            return _short(f"{match[1]}: {_libvfio(lines[index + 1 : index + 1 + _AFTER_ASSERTION])}")
    for line in lines:
        if match := _HARNESS.match(line):
            return _short(f"{match[1]}: {match[2]}")
    endings = [match[1] for line in lines if (match := _ENDING.match(line))]
    spoken = [line.strip() for line in lines if line.strip() and not _CHATTER.match(line)]
    # "Test failed" says less than whatever the test printed last.
    if endings and not (endings[-1] == "Test failed" and spoken):
        return _short(endings[-1])
    traceback = any(line.startswith("Traceback ") for line in spoken)
    return _short(spoken[0 if first and not traceback else -1]) if spoken else ""


def _libvfio(following: Sequence[str]) -> str:
    """The libvfio message: its own text when it has one, the expression, and errno when that is set."""
    expression = observed = errno = ""
    message: list[str] = []
    for line in (raw.strip() for raw in following):
        if line.startswith("Expression: "):
            expression = line.removeprefix("Expression: ")
        elif line.startswith("Observed: "):
            observed = line.removeprefix("Observed: ")
        elif line.startswith("[errno: "):
            errno = "" if line.startswith("[errno: 0 ") else " " + line
        elif line and not _ENDING.match(line):
            message.append(line)
            break
    wanted = f"expected {expression}, got {observed}" if expression else ""
    return ": ".join(part for part in (" ".join(message), wanted) if part) + errno or "assertion failed"


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _LONGEST else flat[: _LONGEST - 3] + "..."
