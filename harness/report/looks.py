# SPDX-License-Identifier: GPL-2.0-only
"""How reports show each outcome and each verdict: one table, in which mypy finds missing entries."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from harness.results import FLAKY, Outcome, Verdict


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """How reports show an outcome."""

    tone: str
    """The class in HTML, which decides the colour: good, none, known, flaky, infra or bad."""
    style: str
    """The style on a terminal, see rich.style."""
    junit: str
    """The element in its JUnit testcase; empty for a pass."""
    kcidb: str
    """The status of its KCIDB test."""


def look(outcome: Outcome) -> Look:
    """Return how reports show *outcome*."""
    match outcome:
        case Outcome.PASS:
            return Look("good", "green", "", "PASS")
        case Outcome.SKIP:
            return Look("none", "yellow", "skipped", "SKIP")
        case Outcome.XFAIL:
            return Look("known", "yellow", "skipped", "FAIL")
        case Outcome.XPASS:
            return Look("bad", "red", "failure", "PASS")
        case Outcome.FAIL | Outcome.TIMEOUT:
            return Look("bad", "red", "failure", "FAIL")
        case Outcome.ERROR:
            return Look("bad", "red", "error", "ERROR")
        case Outcome.CRASH:
            return Look("bad", "bold red", "error", "FAIL")
        case Outcome.LOST | Outcome.NOT_RUN:
            return Look("infra", "magenta", "error", "MISS")


# A JUnit testcase without failure or error counts as passed; Surefire's element marks it as flaky.
LABELS: Mapping[str, Look] = {
    **{outcome.value: look(outcome) for outcome in Outcome},
    FLAKY: Look("flaky", "bold yellow", "flakyFailure", "FAIL"),
}
"""How reports show each label, see Result.label."""

SYMBOLS: Mapping[str, str] = {**{outcome.value: outcome.symbol for outcome in Outcome}, FLAKY: "~"}
"""One character for each label."""


@dataclasses.dataclass(frozen=True, slots=True)
class VerdictLook:
    """How reports show a Verdict: class in HTML, style on a terminal, sign in Markdown."""

    tone: str
    style: str
    sign: str


def verdict_look(verdict: Verdict) -> VerdictLook:
    """Return how reports show *verdict*."""
    match verdict:
        case Verdict.GOOD:
            return VerdictLook("good", "bold green", "✅")
        case Verdict.BAD:
            return VerdictLook("bad", "bold red", "❌")
        case Verdict.UNTESTABLE:
            return VerdictLook("flaky", "bold yellow", "⚠️")
        case Verdict.INFRASTRUCTURE:
            return VerdictLook("infra", "bold magenta", "🛠️")
