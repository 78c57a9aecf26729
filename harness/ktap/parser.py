# SPDX-License-Identifier: GPL-2.0-only
"""A streaming parser for KTAP 1, TAP 13/14 and their nestings: lines in, values out, no clock and no files.

Nested documents come in two dresses: indented (KTAP, KUnit), and behind `# ` (kselftest's runner.sh).  The
second is recognised by the runner's `# selftests: dir: program` header only, so that a case may print TAP of
its own without being believed.  A line the grammar does not know is kept as a diagnostic of the case it falls
into and never changes a result.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable

from harness.ktap import lines as ktap_lines
from harness.ktap.lines import Bail, Echo, End, Line, ResultLine, Run, Subtest, Text, Version
from harness.ktap.model import (
    BailedOut,
    Began,
    Directive,
    DocumentEnded,
    Event,
    Finished,
    KtapCase,
    KtapReport,
    Plan,
    Planned,
    Problem,
    ProblemKind,
)

_HEAD, _TAIL = 200, 800
"""Diagnostic lines kept of one case: the beginning explains, the end convicts."""

_VERSIONS = {"KTAP": range(1, 3), "TAP": range(12, 15)}
_RUNNER_HEADER = "selftests: "


class _Excerpt:
    """The first and the last lines of something that may be endless."""

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

    def has(self, start: str) -> bool:
        return any(line.startswith(start) for line in self._head)

    def take(self) -> tuple[str, ...]:
        """Everything kept, without empty lines at either end; the excerpt is empty afterwards."""
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


class _Level:
    """One document on the way from the outermost to the innermost."""

    def __init__(self, prefix: str, name: str | None) -> None:
        # What each of its lines starts with.
        self.prefix = prefix
        # The parent case's name, from `# Subtest:` or the runner's header.
        self.name = name
        self.version: str | None = None
        self.plan: Plan | None = None
        self.cases: list[KtapCase] = []
        self.names: set[str] = set()
        self.numbers: set[int] = set()
        self.last_number = 0
        self.running: str | None = None
        self.pending = _Excerpt()
        # The nested document that was closed last and waits for its parent's result line.
        self.child: _Level | None = None

    @property
    def fresh(self) -> bool:
        return not self.cases and self.plan is None and self.running is None


class KtapParser:
    """Feed it lines as they come; ask for the report when the stream is over.

    *expected* names the cases that should appear in the outermost document: those that do not are in the
    report as not run, in their place after the others.
    """

    def __init__(self, expected: Iterable[str] = ()) -> None:
        self._expected = tuple(expected)
        self._levels = [_Level("", None)]
        self._problems: list[Problem] = []
        self._loose = _Excerpt()
        self._line = 0
        self._printk = False
        self._ended: str | None = None
        self._announced = False
        self._bailed = False
        self._events: list[Event] = []

    def feed(self, line: str) -> tuple[Event, ...]:
        """Take one line, with or without its line end; return what it made happen."""
        self._line += 1
        text = self._without_printk(ktap_lines.clean(line))
        depth, token = self._place(text)
        match token:
            case Version():
                self._version(depth, token)
            case Subtest():
                self._subtest(depth, token)
            case Plan():
                self._plan(depth, token)
            case Run():
                self._begin(depth, token.name)
            case ResultLine():
                self._result(depth, token)
            case Bail():
                self._bailed = True
                self._problem(ProblemKind.BAIL_OUT, f"bail out: {token.reason or 'no reason given'}")
                self._events.append(BailedOut(reason=token.reason))
            case End():
                self._end(token)
            case Echo():
                pass
            case Text():
                self._levels[depth].pending.add(token.text)
        events = tuple(self._events)
        self._events.clear()
        return events

    def finish(self) -> KtapReport:
        """Close what is open and return the whole; feed nothing afterwards."""
        self._close_down_to(0)
        root = self._levels[0]
        self._flush_child(root)
        self._close(root)
        for case in self._outstanding(root):
            root.cases.append(case)
        for line in root.pending.take():
            self._loose.add(line)
        if root.version is None:
            if root.fresh:
                self._problem(ProblemKind.NO_OUTPUT, "nothing in the output is KTAP")
            else:
                self._problem(ProblemKind.NO_VERSION, "no version line")
        return KtapReport(
            cases=tuple(root.cases),
            plan=root.plan,
            problems=tuple(self._problems),
            version=root.version,
            loose=self._loose.take(),
            ended=self._ended,
        )

    def _without_printk(self, line: str) -> str:
        """Take off the console's time stamp when the document itself came through the console."""
        bare = ktap_lines.without_printk_prefix(line)
        if bare is None:
            return line
        if not self._printk and self._levels[0].version is None:
            self._printk = isinstance(ktap_lines.classify(bare), Version)
        return bare if self._printk else line

    def _place(self, text: str) -> tuple[int, Line]:
        """The level *text* belongs to (one is opened when it starts a nested document), and what it says."""
        depth = max((i for i, level in enumerate(self._levels) if text.startswith(level.prefix)), default=0)
        level = self._levels[depth]
        rest = text.removeprefix(level.prefix)
        inner = rest.lstrip(" \t")
        indent = rest[: len(rest) - len(inner)]
        if indent:
            token = ktap_lines.classify(inner)
            if isinstance(token, Version | Subtest):
                return self._indented(depth, indent, token), token
            if isinstance(token, ResultLine) and depth > 0:
                # KUnit may indent results deeper than their plan; its own parser takes them too.
                return depth, token
        if rest.startswith("# ") and level.pending.has(_RUNNER_HEADER):
            token = ktap_lines.classify(rest[2:])
            if isinstance(token, Version):
                return self._open(depth, "# ", level.running), token
        token = ktap_lines.classify(rest)
        if isinstance(token, Text) and not text.startswith("#"):
            # Noise knows no nesting: it belongs to whatever is running.
            depth = len(self._levels) - 1
        return depth, token

    def _indented(self, depth: int, indent: str, token: Version | Subtest) -> int:
        """Open a nested document, unless the whole stream is indented and this is its very beginning."""
        root = self._levels[0]
        if isinstance(token, Version) and len(self._levels) == 1 and root.version is None and root.fresh:
            root.prefix = indent
            return 0
        return self._open(depth, indent, None)

    def _open(self, depth: int, indent: str, name: str | None) -> int:
        self._close_down_to(depth)
        self._flush_child(self._levels[depth])
        self._levels.append(_Level(self._levels[depth].prefix + indent, name))
        return depth + 1

    def _close_down_to(self, depth: int) -> None:
        while len(self._levels) > depth + 1:
            level = self._levels.pop()
            self._flush_child(level)
            self._close(level)
            self._levels[-1].child = level
            for line in level.pending.take():
                self._levels[-1].pending.add(line)

    def _close(self, level: _Level) -> None:
        """Settle a document that gets no more lines."""
        self._abandon_running(level)
        done = sum(1 for case in level.cases if case.ok is not None)
        where = f" in {level.name}" if level.name else ""
        if level.plan is None:
            if level.version is not None or level.cases:
                self._problem(ProblemKind.NO_PLAN, f"no plan{where}: a missing end would go unnoticed")
        elif done < level.plan.count:
            self._problem(ProblemKind.CUT_SHORT, f"{done} of {level.plan.count} planned results came{where}")
        if level.plan is None:
            empty = level.version is not None
        else:
            empty = level.plan.count == 0 and not level.plan.skip
        if empty and not level.cases:
            self._problem(ProblemKind.NO_TESTS, f"no tests ran{where}")

    def _outstanding(self, root: _Level) -> list[KtapCase]:
        """The expected cases nobody has heard of; a single one was running if the document had begun."""
        missing = [name for name in self._expected if name not in root.names]
        skipped = root.plan is not None and root.plan.skip
        began = len(missing) == 1 and not self._announced and root.version is not None and not skipped
        if began and any(case.ok is None for case in root.cases):
            began = False
        diagnostics = root.pending.take() if began else ()
        return [KtapCase(name=name, began=began, diagnostics=diagnostics) for name in missing]

    def _version(self, depth: int, token: Version) -> None:
        level = self._levels[depth]
        if level.version is not None and not (level.fresh and depth > 0):
            if depth == 0:
                self._problem(ProblemKind.SECOND_DOCUMENT, "a second document began before this one ended")
                return
            level = self._levels[
                self._open(depth - 1, level.prefix[len(self._levels[depth - 1].prefix) :], None)
            ]
        level.version = f"{token.kind} {token.number}"
        if token.number not in _VERSIONS[token.kind]:
            self._problem(ProblemKind.UNKNOWN_VERSION, f"{token.kind} version {token.number} is not known")

    def _subtest(self, depth: int, token: Subtest) -> None:
        if depth == 0:
            self._levels[0].pending.add(f"Subtest: {token.name}")
            return
        level = self._levels[depth]
        if not (level.fresh and level.name is None):
            outer = self._levels[depth - 1]
            level = self._levels[self._open(depth - 1, level.prefix[len(outer.prefix) :], None)]
        level.name = token.name
        self._events.append(Began(name=token.name))

    def _plan(self, depth: int, plan: Plan) -> None:
        self._close_down_to(depth)
        level = self._levels[depth]
        if level.plan is not None:
            self._problem(
                ProblemKind.SECOND_PLAN, f"a second plan, 1..{plan.count} after 1..{level.plan.count}"
            )
            return
        level.plan = plan
        if depth == 0:
            self._events.append(Planned(plan=plan))

    def _begin(self, depth: int, name: str) -> None:
        self._close_down_to(depth)
        level = self._levels[depth]
        self._flush_child(level)
        self._abandon_running(level)
        for line in level.pending.take():
            self._loose.add(line)
        level.running = name
        self._announced = True
        self._events.append(Began(name=name))

    def _abandon_running(self, level: _Level, *, instead_of: str | None = None) -> None:
        """Record the announced case as cut off, unless it is the one whose result has come."""
        name, level.running = level.running, None
        if name is None or name == instead_of:
            return
        self._problem(ProblemKind.NO_RESULT, f"{name} began and gave no result")
        self._record(level, KtapCase(name=name, began=True, diagnostics=level.pending.take()))

    def _flush_child(self, level: _Level) -> None:
        """Record a nested document whose parent never gave a result."""
        child, level.child = level.child, None
        if child is None:
            return
        name = child.name or f"unnamed_{level.last_number + 1}"
        level.running = None
        self._problem(ProblemKind.NO_RESULT, f"{name} has nested results and none of its own")
        self._record(
            level,
            KtapCase(name=name, began=True, subcases=tuple(child.cases), diagnostics=level.pending.take()),
        )

    def _result(self, depth: int, line: ResultLine) -> None:
        self._close_down_to(depth)
        level = self._levels[depth]
        self._abandon_running(level, instead_of=line.name)
        child, level.child = level.child, None
        diagnostics = level.pending.take()
        directive, reason = line.directive, line.reason
        if not line.ok and directive is None and any(_timed_out(text) for text in diagnostics):
            directive, reason = Directive.TIMEOUT, reason or "terminated by timeout"
        case = KtapCase(
            name=line.name,
            ok=line.ok,
            number=line.number,
            directive=directive,
            reason=reason,
            diagnostics=diagnostics,
            subcases=tuple(child.cases) if child else (),
            began=True,
        )
        self._number(level, line)
        if line.ok and directive is None and case.status.is_bad:
            self._problem(ProblemKind.CONTRADICTION, f"{case.name} says ok although a case inside it is not")
        self._record(level, case)

    def _number(self, level: _Level, line: ResultLine) -> None:
        if line.number in level.numbers:
            self._problem(
                ProblemKind.DUPLICATE_NUMBER, f"result number {line.number} came twice ({line.name})"
            )
        elif line.number != level.last_number + 1:
            self._problem(
                ProblemKind.OUT_OF_ORDER, f"result {line.number} came where {level.last_number + 1} was due"
            )
        if level.plan is not None and line.number > level.plan.count:
            self._problem(
                ProblemKind.TOO_MANY, f"result {line.number} is beyond the plan 1..{level.plan.count}"
            )
        level.numbers.add(line.number)
        level.last_number = line.number

    def _record(self, level: _Level, case: KtapCase) -> None:
        if case.name in level.names:
            self._problem(ProblemKind.DUPLICATE_NAME, f"two cases are called {case.name}")
        level.names.add(case.name)
        level.cases.append(case)
        depth = self._levels.index(level) if level in self._levels else len(self._levels)
        self._events.append(Finished(case=case, depth=depth))

    def _end(self, token: End) -> None:
        """Believe the full stop only after the result it closes: a case may print `END` itself."""
        if token.name not in self._levels[0].names:
            self._levels[-1].pending.add(f"END {token.name}")
            return
        self._close_down_to(0)
        self._ended = token.name
        self._events.append(DocumentEnded(name=token.name))

    def _problem(self, kind: ProblemKind, text: str) -> None:
        self._problems.append(Problem(kind=kind, text=text, line=self._line))


def _timed_out(text: str) -> bool:
    """kselftest_harness.h __wait_for_test() says so in a diagnostic, not in a directive."""
    return text.endswith(": Test terminated by timeout")


def parse(lines: Iterable[str], expected: Iterable[str] = ()) -> KtapReport:
    """Parse a whole document; an old log does as well as a live stream."""
    parser = KtapParser(expected)
    for line in lines:
        parser.feed(line)
    return parser.finish()
