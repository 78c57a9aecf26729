# SPDX-License-Identifier: GPL-2.0-only
"""Why a case failed, in one line, taken from what it printed.

This chooses words for a human; it never decides an outcome.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.base.outcome import Outcome
from harness.ktap.model import KtapCase, KtapReport, notes

_LONGEST = 300

# tools/testing/selftests/vfio/lib/include/libvfio/assert.h VFIO_ASSERT_OP(), VFIO_FAIL()
_LIBVFIO = re.compile(r"\s*(\S+:\d+): (Assertion Failure|FAIL)$")
# kselftest_harness.h __TH_LOG(): "# file:line:test:message"
_HARNESS = re.compile(r"(\S+?:\d+):\w+:(.+)$")
# kselftest_harness.h __wait_for_test()
_ENDING = re.compile(r"\w+: (Test (?:terminated|exited|ended|failed).*|unable to .*|Failed to wait .*)$")
# lib/kunit/assert.c kunit_assert_prologue()
_KUNIT = re.compile(r"\s*(?:# )?\S+: (?:EXPECTATION|ASSERTION) FAILED at (\S+:\d+)$")
# Endings that only repeat that it failed.
_WEAK = ("Test failed", "Test terminated by assertion")
# Lines that give no cause: how the test ended, and what the runner and the harness print themselves.
_CHATTER = re.compile(
    _ENDING.pattern
    + r"|selftests: |timeout set to |Starting \d+ tests? from |Totals: |(?:PASSED|FAILED): \d+ / "
    r"|\d+ skipped test\(s\) |Planned tests != |\s*(?:# )?(?:ok \d|\[? *(?:OK|PASS|PASSED)\b)"
)
_FAILURE_WORDS = re.compile(r"fail|error|expect|assert|mismatch|cannot|unable|invalid|denied|refused", re.I)
_AFTER_ASSERTION = 8


def why(case: KtapCase) -> str:
    """Say in one line why *case* is not a plain pass; empty for one that is."""
    outcome = case.outcome
    if outcome is Outcome.PASS:
        return ""
    found = explain(case.diagnostics)
    if outcome in (Outcome.SKIP, Outcome.XFAIL, Outcome.XPASS):
        return _short(case.reason or found)
    bad = next((sub for sub in case.subcases if sub.outcome.is_bad), None)
    if outcome is Outcome.TIMEOUT:
        return _short(_timeout(case, bad))
    if bad is not None:
        return _short(f"{bad.name}: {why(bad) or 'failed'}")
    if outcome is Outcome.NOT_RUN:
        return "no result: the program did not reach it"
    if case.doubt and outcome is Outcome.ERROR:
        return case.doubt
    if case.was_running:
        return _short("was running when the output stopped" + (f"; last: {found}" if found else ""))
    return _short(found or case.reason or "failed without a message")


def _timeout(case: KtapCase, bad: KtapCase | None) -> str:
    told = case.notes("why")
    if told:
        return told[0]
    return "timed out" + (f" {case.reason}" if case.reason else "") + (f" in {bad.name}" if bad else "")


def why_program(report: KtapReport) -> str:
    """Say in one line what is wrong with a program whose output is no complete document."""
    if report.skipped and report.plan is not None:
        return _short(report.plan.reason or "skipped without a reason")
    said = explain(report.loose, first=True)
    if not report.cases and report.plan is None and said:
        return said
    return _short("; ".join(problem.text for problem in report.spoiled) or said)


def explain(lines: Sequence[str], *, first: bool = False) -> str:
    """Return the line of *lines* that explains a failure best, tidied; empty without one.

    Where no line has a known form that is the last line, or the first with *first*: a program that refuses
    its arguments says so first and then prints its usage.
    """
    told = notes(lines, "why")
    if told:
        return _short(told[0])
    for index, line in enumerate(lines):
        if match := _LIBVFIO.match(line):
            return _short(f"{match[1]}: {_libvfio(lines[index + 1 : index + 1 + _AFTER_ASSERTION])}")
        if match := _KUNIT.match(line):
            return _short(f"{match[1]}: {_kunit(lines[index + 1 : index + 1 + _AFTER_ASSERTION])}")
    logged = [(match[1], match[2]) for line in lines if (match := _HARNESS.match(line))]
    # TH_LOG() prints in the form of a failed expectation.
    expected = [(place, text) for place, text in logged if text.lstrip().startswith("Expected ")]
    endings = [match[1] for line in lines if (match := _ENDING.match(line))]
    if endings and endings[-1] not in _WEAK and not expected:
        return _short(endings[-1])
    if logged:
        place, text = (*expected, logged[-1])[0]
        return _short(f"{place}: {text}")
    spoken = [line.strip() for line in lines if line.strip() and not _CHATTER.match(line)]
    if not spoken:
        return _short(endings[-1]) if endings else ""
    if any(line.startswith("Traceback ") for line in spoken):
        return _short(spoken[-1])
    telling = [line for line in spoken if _FAILURE_WORDS.search(line)]
    return _short(spoken[0] if first else (telling or spoken)[-1])


def _kunit(following: Sequence[str]) -> str:
    """The expectation and the values: the lines after its heading, up to the next message of a test."""
    told: list[str] = []
    for line in (raw.strip() for raw in following):
        if not line or line.startswith("#") or re.match(r"\w+: ", line):
            break
        told.append(line)
    return " ".join(told) or "failed"


def _libvfio(following: Sequence[str]) -> str:
    """The libvfio message: its own text, the expression, and errno, as far as there are any."""
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
