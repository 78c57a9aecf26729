# SPDX-License-Identifier: GPL-2.0-only
"""The values a KTAP stream turns into: cases, plans, problems, the report, and the events on the way.

Nothing here reads text or decides what a program's exit status means; see harness.ktap.parser for the first,
harness.suites for the second.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Iterator


class Directive(enum.Enum):
    """The keyword after `#` on a result line (Documentation/dev-tools/ktap.rst, kselftest.h)."""

    SKIP = "SKIP"
    TODO = "TODO"
    XFAIL = "XFAIL"
    XPASS = "XPASS"
    TIMEOUT = "TIMEOUT"
    ERROR = "ERROR"


class Status(enum.Enum):
    """What became of a case; the value is its severity, so that the worst of several is the greatest.

    SKIP is below PASS: a parent is skipped only when all of its children are.
    """

    SKIP = 0
    PASS = 1
    XFAIL = 2
    NOT_RUN = 3
    XPASS = 4
    ERROR = 5
    FAIL = 6
    TIMEOUT = 7
    CRASHED = 8
    """Was running when the stream stopped; what died, program or kernel or connection, is not ours to say."""

    @property
    def is_bad(self) -> bool:
        return self.value >= Status.NOT_RUN.value

    @staticmethod
    def worst(statuses: Iterable[Status]) -> Status:
        """The worst of *statuses*; NOT_RUN when there are none, because nothing is no success."""
        return max(statuses, key=lambda status: status.value, default=Status.NOT_RUN)


_BY_DIRECTIVE = {
    Directive.SKIP: (Status.SKIP, Status.SKIP),
    # kselftest prints an expected failure as `ok N # XFAIL` (kselftest.h ksft_test_result_xfail()).
    Directive.XFAIL: (Status.XFAIL, Status.XFAIL),
    Directive.XPASS: (Status.XPASS, Status.FAIL),
    # TAP 13: a TODO test that passes is an unexpected success.
    Directive.TODO: (Status.XPASS, Status.XFAIL),
    Directive.TIMEOUT: (Status.TIMEOUT, Status.TIMEOUT),
    Directive.ERROR: (Status.ERROR, Status.ERROR),
}
"""What `ok` and `not ok` mean beside each directive."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KtapCase:
    """One test point.  It is born not run and must earn its PASS by a result line."""

    name: str
    # What the result line said; None when no result line came.
    ok: bool | None = None
    # The number on the result line.
    number: int | None = None
    directive: Directive | None = None
    # The text after the directive, or after a bare `#`.
    reason: str = ""
    # Every line since the previous result that is not TAP itself, without its `# `.
    diagnostics: tuple[str, ...] = ()
    # Nested cases, in order.
    subcases: tuple[KtapCase, ...] = ()
    # Known to have started: it has a result, nested output, or was announced by a RUN line.
    began: bool = False

    @property
    def status(self) -> Status:
        """What the case earned; a bad child outdoes its parent's `ok`."""
        own = self._own_status()
        if own in (Status.PASS, Status.SKIP) and self.subcases:
            children = Status.worst(case.status for case in self.subcases)
            return Status.FAIL if children.is_bad else own
        return own

    def _own_status(self) -> Status:
        if self.ok is None:
            return Status.CRASHED if self.began else Status.NOT_RUN
        if self.directive is not None:
            when_ok, when_not_ok = _BY_DIRECTIVE[self.directive]
            return when_ok if self.ok else when_not_ok
        return Status.PASS if self.ok else Status.FAIL

    def notes(self, key: str) -> tuple[str, ...]:
        """The texts of the diagnostics `key: text`, e.g. the agent's `why` and `dirty`."""
        return notes(self.diagnostics, key)

    def leaves(self, parents: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], KtapCase]]:
        """Every innermost case below (or this one), with the names of its parents.

        A case that is bad although nothing below it is comes as well, so that no failure is lost.
        """
        for case in self.subcases:
            yield from case.leaves((*parents, self.name))
        if not any(case.status.is_bad for case in self.subcases) and (
            not self.subcases or self.status.is_bad
        ):
            yield parents, self


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The line `1..N`; `1..0 # SKIP reason` says the whole document was skipped."""

    count: int
    skip: bool = False
    reason: str = ""


class ProblemKind(enum.Enum):
    """What may be wrong with a document, and whether it may still be called a success."""

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
    NO_RESULT = "case without a result", True
    CONTRADICTION = "parent ok although a child is not", True
    BAIL_OUT = "bail out", True

    def __init__(self, title: str, spoils: bool) -> None:
        self.title = title
        self.spoils = spoils


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something wrong with the document itself."""

    kind: ProblemKind
    # One sentence.
    text: str
    # The line it was noticed at, from 1; the number of lines when it was noticed at the end.
    line: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KtapReport:
    """A whole document, complete or not."""

    cases: tuple[KtapCase, ...] = ()
    plan: Plan | None = None
    problems: tuple[Problem, ...] = ()
    # `KTAP 1`, `TAP 13`, or None when nothing said.
    version: str | None = None
    # Lines that belong to no case: before the first, after the last, or all of them when nothing is KTAP.
    loose: tuple[str, ...] = ()
    # The name on the agent's `# END name` line; None when the document was not closed by one.
    ended: str | None = None

    @property
    def skipped(self) -> bool:
        """The program declared itself not applicable with `1..0 # SKIP`."""
        return self.plan is not None and self.plan.skip and not self.cases

    @property
    def spoiled(self) -> tuple[Problem, ...]:
        """The problems that forbid calling this document a success."""
        return tuple(problem for problem in self.problems if problem.kind.spoils)

    @property
    def status(self) -> Status:
        """The worst of the cases; ERROR when only the document itself is wrong."""
        if self.skipped:
            return Status.SKIP
        worst = Status.worst(case.status for case in self.cases)
        return Status.ERROR if self.spoiled and (not worst.is_bad or not self.cases) else worst

    @property
    def running(self) -> KtapCase | None:
        """The case that was running when the stream stopped."""
        return next((case for case in self.cases if case.status is Status.CRASHED), None)

    def leaves(self) -> tuple[tuple[str, KtapCase], ...]:
        """Every innermost case with its path `parent/child`."""
        return tuple(
            ("/".join((*parents, case.name)), case) for top in self.cases for parents, case in top.leaves()
        )

    def notes(self, key: str) -> tuple[str, ...]:
        """The texts of every line `key: text` in the document, wherever it stands."""
        inside = (line for case in self.cases for line in case.diagnostics)
        return notes((*inside, *self.loose), key)


def notes(lines: Iterable[str], key: str) -> tuple[str, ...]:
    """The texts of the lines `key: text`."""
    start = f"{key}: "
    return tuple(line.strip()[len(start) :] for line in lines if line.strip().startswith(start))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """The outermost document announced its plan."""

    plan: Plan


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Began:
    """A case was announced as running."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A case has its result; *depth* 0 is the outermost document."""

    case: KtapCase
    depth: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BailedOut:
    """The program gave up: no more results will come."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DocumentEnded:
    """The agent closed its document; what follows belongs to the next one."""

    name: str


Event = Planned | Began | Finished | BailedOut | DocumentEnded
