# SPDX-License-Identifier: GPL-2.0-only
"""The values a KTAP stream turns into: cases, the plan line, problems, the report.

Nothing here reads text (see harness.ktap.parser) or knows what an exit status means (see
harness.suites.judging).
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Iterator

from harness.base.outcome import Outcome


class Directive(enum.Enum):
    """The keyword after `#` on a result line (Documentation/dev-tools/ktap.rst, kselftest.h)."""

    SKIP = "SKIP"
    TODO = "TODO"
    XFAIL = "XFAIL"
    XPASS = "XPASS"
    TIMEOUT = "TIMEOUT"
    ERROR = "ERROR"

    def outcome(self, ok: bool) -> Outcome:
        """Return what this directive means after `ok`, or after `not ok`."""
        match self:
            case Directive.SKIP:
                return Outcome.SKIP
            # kselftest prints an expected failure as `ok N # XFAIL` (kselftest.h ksft_test_result_xfail()).
            case Directive.XFAIL:
                return Outcome.XFAIL
            case Directive.XPASS:
                return Outcome.XPASS if ok else Outcome.FAIL
            # TAP 13: a TODO test that passes is an unexpected success.
            case Directive.TODO:
                return Outcome.XPASS if ok else Outcome.XFAIL
            case Directive.TIMEOUT:
                return Outcome.TIMEOUT
            case Directive.ERROR:
                return Outcome.ERROR


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KtapCase:
    """One test point.  It starts as NOT_RUN; only a result line makes it PASS."""

    name: str
    ok: bool | None = None
    """What the result line said; None without one."""
    directive: Directive | None = None
    reason: str = ""
    """The text after the directive, or after a bare `#`."""
    diagnostics: tuple[str, ...] = ()
    """Every line since the previous result that is not TAP itself, without its `# `."""
    subcases: tuple[KtapCase, ...] = ()
    began: bool = False
    """Whether it has a result or nested output, or a RUN line announced it."""
    doubt: str = ""
    """Why its plain `ok` proves nothing; empty when it does."""

    @property
    def was_running(self) -> bool:
        """Whether the stream, or its program, stopped inside this case.

        Its outcome is ERROR then.  Whoever knows why the stream stopped may make it CRASH, TIMEOUT or LOST.
        """
        return self.ok is None and self.began

    @property
    def outcome(self) -> Outcome:
        """The outcome by the result line; a bad subcase makes an `ok` parent FAIL."""
        own = self._own_outcome()
        if own in (Outcome.PASS, Outcome.SKIP) and any(case.outcome.is_bad for case in self.subcases):
            return Outcome.FAIL
        return own

    def _own_outcome(self) -> Outcome:
        if self.ok is None:
            return Outcome.ERROR if self.began else Outcome.NOT_RUN
        if self.directive is not None:
            return self.directive.outcome(self.ok)
        if not self.ok:
            return Outcome.FAIL
        return Outcome.ERROR if self.doubt else Outcome.PASS

    def notes(self, key: str) -> tuple[str, ...]:
        """The texts of the diagnostics `key: text`, such as the agent's `why`."""
        return notes(self.diagnostics, key)

    def leaves(self, parents: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], KtapCase]]:
        """Every innermost case below this one, or this one, with the names of its parents.

        A bad case without a bad subcase is included, so that no failure is lost.
        """
        for case in self.subcases:
            yield from case.leaves((*parents, self.name))
        if not any(case.outcome.is_bad for case in self.subcases) and (
            not self.subcases or self.outcome.is_bad
        ):
            yield parents, self


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlanLine:
    """The line `1..N`; `1..0 # SKIP reason` skips the whole document."""

    count: int
    skip: bool = False
    reason: str = ""


class ProblemKind(enum.Enum):
    """What may be wrong with a document, and whether such a document may still be a success."""

    NO_VERSION = "no version line", False
    UNKNOWN_VERSION = "unknown version", False
    NO_PLAN = "no plan", False
    OUT_OF_ORDER = "result number out of order", False
    DUPLICATE_NAME = "name used twice", False
    NO_OUTPUT = "no KTAP at all", True
    NO_TESTS = "no tests", True
    SECOND_PLAN = "second plan", True
    SECOND_DOCUMENT = "second document", True
    CUT_SHORT = "fewer results than planned", True
    TOO_MANY = "more results than planned", True
    DUPLICATE_NUMBER = "result number used twice", True
    UNNUMBERED = "failure that is no result", True
    NO_RESULT = "case without a result", True
    CONTRADICTION = "ok although a subcase is not, or the totals count failures", True
    BAIL_OUT = "bail out", True

    @property
    def spoils(self) -> bool:
        """Whether a document with this problem is no success."""
        return self.value[1]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something wrong with the document itself; *text* is one sentence."""

    kind: ProblemKind
    text: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KtapReport:
    """A whole document, complete or not."""

    cases: tuple[KtapCase, ...] = ()
    plan: PlanLine | None = None
    problems: tuple[Problem, ...] = ()
    loose: tuple[str, ...] = ()
    """Lines that belong to no case: before the first, after the last, or all when nothing is KTAP."""
    ended: str | None = None
    """The name on the agent's `# END name` line; None without one."""

    @property
    def skipped(self) -> bool:
        """Whether the program declared itself not applicable with `1..0 # SKIP`."""
        return self.plan is not None and self.plan.skip and not self.cases

    @property
    def spoiled(self) -> tuple[Problem, ...]:
        """The problems with which this document is no success."""
        return tuple(problem for problem in self.problems if problem.kind.spoils)

    def leaves(self) -> tuple[tuple[str, KtapCase], ...]:
        """Every innermost case with its path `parent/child`."""
        return tuple(
            ("/".join((*parents, case.name)), case) for top in self.cases for parents, case in top.leaves()
        )

    def notes(self, key: str) -> tuple[str, ...]:
        """The texts of every line `key: text` in the document, inside and outside cases."""
        inside = (line for case in self.cases for line in case.diagnostics)
        return notes((*inside, *self.loose), key)


def notes(lines: Iterable[str], key: str) -> tuple[str, ...]:
    """The texts of the lines `key: text`; the agent indents those that a case printed."""
    start = f"{key}: "
    return tuple(line[len(start) :].strip() for line in lines if line.startswith(start))
