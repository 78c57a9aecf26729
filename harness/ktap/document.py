# SPDX-License-Identifier: GPL-2.0-only
"""One KTAP document while it is being read: its plan, its cases, and what is wrong with it."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable

from harness.ktap.lines import ResultLine, VersionLine
from harness.ktap.model import Directive, KtapCase, PlanLine, Problem, ProblemKind

_HEAD, _TAIL = 200, 800
"""Diagnostic lines kept of the beginning and of the end of one case."""

# kselftest.h ksft_print_cnts(), lib/kunit/test.c kunit_print_test_stats(), kselftest_harness.h
# test_harness_run()
_TOTALS = re.compile(
    r"\S+: pass:\d+ fail:[1-9]|\S+: pass:\d+ fail:\d+ .*\berror:[1-9]|FAILED: \d+ / \d+ tests passed"
)

_VERSIONS = {"KTAP": range(1, 3), "TAP": range(12, 15)}


class Excerpt:
    """The first and the last lines of a text of any length."""

    def __init__(self) -> None:
        self._head: list[str] = []
        self._tail: collections.deque[str] = collections.deque(maxlen=_TAIL)
        self._total = 0

    def add(self, line: str) -> None:
        self._total += 1
        if len(self._head) < _HEAD:
            self._head.append(line)
        else:
            self._tail.append(line)

    def extend(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.add(line)

    def has(self, start: str) -> bool:
        return any(line.startswith(start) for line in self._head)

    def take(self) -> tuple[str, ...]:
        """Return what was kept, without empty lines at either end, and forget it."""
        left_out = self._total - len(self._head) - len(self._tail)
        gap = [f"... {left_out} lines left out ..."] if left_out else []
        kept = [*self._head, *gap, *self._tail]
        self._head, self._total = [], 0
        self._tail.clear()
        while kept and not kept[0].strip():
            kept.pop(0)
        while kept and not kept[-1].strip():
            kept.pop()
        return tuple(kept)


class Document:
    """An open document; *problems* is shared by all documents of a stream."""

    def __init__(self, problems: list[Problem], prefix: str = "", name: str | None = None) -> None:
        self._problems = problems
        self.prefix = prefix
        """What each of its lines starts with."""
        self.name = name
        """The parent case's name, from `# Subtest:` or the runner's header."""
        self.has_version = False
        self.plan: PlanLine | None = None
        self.cases: list[KtapCase] = []
        self.running: str | None = None
        """The case that a RUN line announced, until its result comes."""
        self.pending = Excerpt()
        """The diagnostics since the last result."""
        self.child: Document | None = None
        """The nested document that was closed last, until its parent's result line comes."""
        self.failed: str | None = None
        """The case that the program reported as failed before its result line."""
        self.names: set[str] = set()
        self._numbers: set[int] = set()
        self._last_number = 0
        self._too_many = False
        self._counted_failures = False

    @property
    def fresh(self) -> bool:
        """Whether nothing but a version has come."""
        return not self.cases and self.plan is None and self.running is None

    def problem(self, kind: ProblemKind, text: str) -> None:
        self._problems.append(Problem(kind=kind, text=text))

    def take_version(self, line: VersionLine) -> None:
        self.has_version = True
        if line.number not in _VERSIONS[line.kind]:
            self.problem(ProblemKind.UNKNOWN_VERSION, f"{line.kind} version {line.number} is not known")

    def take_plan(self, plan: PlanLine) -> None:
        if self.plan is None:
            self.plan = plan
        else:
            both = f"1..{plan.count} after 1..{self.plan.count}"
            self.problem(ProblemKind.SECOND_PLAN, f"a second plan, {both}")

    def take_text(self, text: str, *, failure: bool = False) -> None:
        """Keep *text*; *failure* says that it tells of a failure and is no result line."""
        self.pending.add(text)
        if failure:
            self.problem(ProblemKind.UNNUMBERED, f"a failure that is no result: {text}")
        self._counted_failures = self._counted_failures or _TOTALS.match(text) is not None

    def take_result(self, line: ResultLine, doubt: str = "") -> None:
        """Record the case of *line*; *doubt* says why its `ok` cannot be believed."""
        if self.child and self.child.name not in (None, line.name):
            self.abandon_child()
        self.abandon_running(instead_of=line.name)
        child, self.child = self.child, None
        failed, self.failed = self.failed, None
        diagnostics = self.pending.take()
        directive, reason = line.directive, line.reason
        if not line.ok and directive is None and any(_timed_out(text) for text in diagnostics):
            directive = Directive.TIMEOUT
        if child and not child.cases and line.ok and directive is None:
            if child.plan and child.plan.skip:
                directive, reason = Directive.SKIP, child.plan.reason
            else:
                doubt = doubt or "says ok, but its subtest has no result"
        if failed == line.name:
            doubt = doubt or "says ok, but the program had reported a failure"
        case = KtapCase(
            name=line.name,
            ok=line.ok,
            directive=directive,
            reason=reason,
            diagnostics=diagnostics,
            subcases=tuple(child.cases) if child else (),
            began=True,
            doubt=doubt if line.ok and directive is None else "",
        )
        self._take_number(line)
        if line.ok and directive is None and any(sub.outcome.is_bad for sub in case.subcases):
            self.problem(ProblemKind.CONTRADICTION, f"{case.name} says ok although a subcase is not")
        self._record(case)

    def _take_number(self, line: ResultLine) -> None:
        number, due = line.number, self._last_number + 1
        if number in self._numbers:
            self.problem(ProblemKind.DUPLICATE_NUMBER, f"result number {number} came twice ({line.name})")
        elif number != due:
            self.problem(ProblemKind.OUT_OF_ORDER, f"result {number} came where {due} was due")
        if self.plan is not None and number > self.plan.count:
            self._too_many = True
            self.problem(ProblemKind.TOO_MANY, f"result {number} is beyond the plan 1..{self.plan.count}")
        self._numbers.add(number)
        self._last_number = number

    def _record(self, case: KtapCase) -> None:
        if case.name in self.names:
            self.problem(ProblemKind.DUPLICATE_NAME, f"two cases are called {case.name}")
        self.names.add(case.name)
        self.cases.append(case)

    def abandon_running(self, *, instead_of: str | None = None) -> None:
        """Record the announced case as without a result, unless it is *instead_of*, whose result has come."""
        name, self.running = self.running, None
        if name is not None and name != instead_of:
            self.problem(ProblemKind.NO_RESULT, f"{name} began and gave no result")
            self._record(KtapCase(name=name, began=True, diagnostics=self.pending.take()))

    def abandon_child(self) -> None:
        """Record a nested document whose parent gave no result."""
        child, self.child = self.child, None
        if child is None:
            return
        name = child.name or f"unnamed_{self._last_number + 1}"
        self.running = None
        self.problem(ProblemKind.NO_RESULT, f"{name} has nested results and none of its own")
        subcases = tuple(child.cases)
        self._record(KtapCase(name=name, began=True, subcases=subcases, diagnostics=self.pending.take()))

    def close(self) -> None:
        """Record what is unfinished or wrong; no more lines come."""
        self.abandon_child()
        self.abandon_running()
        done = sum(1 for case in self.cases if case.ok is not None)
        highest = max(self._numbers, default=0)
        where = f" in {self.name}" if self.name else ""
        if self.plan is None:
            if self.has_version or self.cases:
                self.problem(ProblemKind.NO_PLAN, f"no plan{where}: a missing end would go unnoticed")
            if done < highest:
                self.problem(ProblemKind.CUT_SHORT, f"{done} results came{where}, up to number {highest}")
        elif done < self.plan.count:
            planned = f"{done} of {self.plan.count} planned results came{where}"
            self.problem(ProblemKind.CUT_SHORT, planned)
        elif not self._too_many and max(done, highest) > self.plan.count:
            surplus = f"{max(done, highest)} results came{where}, the plan is 1..{self.plan.count}"
            self.problem(ProblemKind.TOO_MANY, surplus)
        if self._counted_failures and not any(case.outcome.is_bad for case in self.cases):
            self.problem(ProblemKind.CONTRADICTION, f"the totals{where} count failures, but no result failed")

    def require_cases(self) -> None:
        """Record that there is no case, unless the plan skips the whole document."""
        announced = self.has_version if self.plan is None else not self.plan.count and not self.plan.skip
        if announced and not self.cases:
            self.problem(ProblemKind.NO_TESTS, "no tests ran")


def _timed_out(text: str) -> bool:
    """Whether *text* tells of a timeout: kselftest_harness.h __wait_for_test() has no directive for it."""
    return text.endswith(": Test terminated by timeout")
