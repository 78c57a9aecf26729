# SPDX-License-Identifier: GPL-2.0-only
"""Outcome: what became of a case; the one enum for it, from KTAP to HTML.

A new outcome is one member here.  How reports show it is in harness.report.looks, what it means for a bisect
in harness.bisect: mypy names every table that lacks it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Self


class Outcome(enum.Enum):
    """What became of a case, in rising severity: the worst of several wins.

    SKIP is the least severe: a whole is skipped only when all its parts are.  Outcomes that say nothing about
    the kernel (NOT_RUN and LOST) are below those that do, so that a guest lost later hides no failure.
    """

    _value_: str
    symbol: str
    """One character, for progress lines."""
    meaning: str
    """A few words for a legend."""
    severity: int
    """Position from harmless to worst."""

    SKIP = "SKIP", "s", "skipped, not applicable here"
    PASS = "PASS", ".", "passed"
    XFAIL = "XFAIL", "x", "failed as documented"
    NOT_RUN = "NOT_RUN", "-", "not run"
    LOST = "LOST", "?", "guest lost; says nothing about the kernel"
    XPASS = "XPASS", "X", "passed although documented to fail"
    ERROR = "ERROR", "E", "could not be carried out"
    FAIL = "FAIL", "F", "failed"
    TIMEOUT = "TIMEOUT", "T", "did not finish in time"
    CRASH = "CRASH", "!", "the kernel crashed or reported a bug"

    def __new__(cls, value: str, symbol: str = "", meaning: str = "") -> Self:
        outcome = object.__new__(cls)
        outcome._value_, outcome.symbol, outcome.meaning = value, symbol, meaning
        outcome.severity = len(cls.__members__)
        return outcome

    @property
    def is_infra(self) -> bool:
        """Whether it says nothing about the kernel, because the case was not carried out."""
        return self in (Outcome.LOST, Outcome.NOT_RUN)

    @property
    def is_failure(self) -> bool:
        """Whether it is a failure of the kernel, or contradicts a known issue."""
        return self.severity >= Outcome.XPASS.severity

    @property
    def is_bad(self) -> bool:
        """Whether it keeps a run from being good: a failure, or a case that was not carried out."""
        return self.is_failure or self.is_infra

    @property
    def is_expected(self) -> bool:
        """Whether it was carried out and is as it should be: it passed, or failed as documented."""
        return self in (Outcome.PASS, Outcome.XFAIL)

    def with_known_defect(self) -> Outcome:
        """Return the outcome of a case whose failure is documented: XFAIL for FAIL, XPASS for PASS.

        A known defect never excuses a crash, a timeout or an error.
        """
        return {Outcome.FAIL: Outcome.XFAIL, Outcome.PASS: Outcome.XPASS}.get(self, self)

    @staticmethod
    def worst(outcomes: Iterable[Outcome]) -> Outcome:
        """Return the worst of *outcomes*; NOT_RUN if there are none, because an empty run is no success."""
        return max(outcomes, key=lambda outcome: outcome.severity, default=Outcome.NOT_RUN)
