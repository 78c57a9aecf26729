# SPDX-License-Identifier: GPL-2.0-only
"""A streaming parser for KTAP 1, TAP 13/14 and nested documents: lines in, values out.

Nested documents come in two forms: indented (KTAP, KUnit), and behind `# ` (kselftest's runner.sh).  The
second is recognised only by the runner's `# selftests: dir: program` header, so that TAP printed by a case is
not taken for results.  A line that the grammar does not know is kept as a diagnostic of the case in which it
stands and never changes a result.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness.ktap import lines as ktap_lines
from harness.ktap.document import Document, Excerpt
from harness.ktap.lines import Kind, Line, ResultLine, TextLine, VersionLine
from harness.ktap.model import KtapCase, KtapReport, PlanLine, Problem, ProblemKind

_RUNNER_HEADER = "selftests: "


class KtapParser:
    """Takes lines as they come, and returns the report at the end of the stream.

    *expected* names the cases that should appear in the outermost document: those that do not are NOT_RUN in
    the report, after the others.
    """

    def __init__(self, expected: Iterable[str] = ()) -> None:
        self._expected = tuple(expected)
        self._problems: list[Problem] = []
        self._root = Document(self._problems)
        self._open = [self._root]
        """The open documents, the outermost first."""
        self._loose = Excerpt()
        self._printk = False
        self._announced = False
        self._half = False
        """Whether `not` has come, of a result line that was cut apart."""
        self.ended: str | None = None
        """The name in the agent's `# END name` line, once that has come; what follows is another document."""

    @property
    def cases(self) -> tuple[KtapCase, ...]:
        """The cases of the outermost document that have ended so far."""
        return tuple(self._root.cases)

    def feed(self, line: str) -> None:
        """Take one line, with or without its line end; a carriage return inside it ends a line, too."""
        for part in line.rstrip("\r\n").split("\r"):
            text = ktap_lines.clean(part)
            depth, token = self._place(self._without_printk(text))
            match token:
                case VersionLine():
                    self._version(depth, token)
                case PlanLine():
                    self._close_below(depth).take_plan(token)
                case ResultLine():
                    self._close_below(depth).take_result(token, _doubt(token, text, self._half))
                    self._half = False
                case TextLine():
                    self._text(depth, token)

    def _text(self, depth: int, line: TextLine) -> None:
        match line:
            case TextLine(Kind.SUBTEST, name):
                self._subtest(depth, name)
            case TextLine(Kind.RUN, name):
                self._begin(depth, name)
            case TextLine(Kind.END, name):
                # Only after the result of its case: a case may print `END` itself.
                if name in self._root.names:
                    self._close_below(0)
                    self.ended = name
                else:
                    self._open[-1].pending.add(f"END {name}")
            case TextLine(Kind.BAIL, reason):
                self._root.problem(ProblemKind.BAIL_OUT, f"bail out: {reason or 'no reason given'}")
            case TextLine(Kind.FAILED, name):
                self._open[depth].failed = name
            case TextLine(Kind.NOT, said):
                self._half = True
                self._open[-1].take_text(said)
            case TextLine(Kind.TEXT | Kind.UNNUMBERED as kind, said):
                self._open[depth].take_text(said, failure=kind is Kind.UNNUMBERED)
            case TextLine():  # an echo
                pass

    def finish(self) -> KtapReport:
        """Close what is open and return the report; feed nothing afterwards."""
        root = self._close_below(0)
        root.close()
        root.require_cases()
        root.cases.extend(self._outstanding())
        self._loose.extend(root.pending.take())
        if not root.has_version and root.fresh:
            root.problem(ProblemKind.NO_OUTPUT, "nothing in the output is KTAP")
        elif not root.has_version:
            root.problem(ProblemKind.NO_VERSION, "no version line")
        return KtapReport(
            cases=tuple(root.cases),
            plan=root.plan,
            problems=tuple(self._problems),
            loose=self._loose.take(),
            ended=self.ended,
        )

    def _outstanding(self) -> list[KtapCase]:
        """The expected cases without any line; a single one was running if the document had begun."""
        root = self._root
        missing = [name for name in self._expected if name not in root.names]
        skipped = root.plan is not None and root.plan.skip
        began = len(missing) == 1 and not self._announced and root.has_version and not skipped
        began = began and all(case.ok is not None for case in root.cases)
        diagnostics = root.pending.take() if began else ()
        return [KtapCase(name=name, began=began, diagnostics=diagnostics) for name in missing]

    def _without_printk(self, line: str) -> str:
        """Remove the console's time stamp when the document itself came through the console."""
        bare = ktap_lines.without_printk_prefix(line)
        if bare is None:
            return line
        if not self._printk and not self._root.has_version:
            self._printk = isinstance(ktap_lines.classify(bare), VersionLine)
        return bare if self._printk else line

    def _place(self, text: str) -> tuple[int, Line]:
        """Return the depth of *text*, where a document is opened if it starts one, and what the line says."""
        depth = max((i for i, one in enumerate(self._open) if text.startswith(one.prefix)), default=0)
        document = self._open[depth]
        rest = text.removeprefix(document.prefix)
        inner = rest.lstrip(" \t")
        indent = rest[: len(rest) - len(inner)]
        if indent:
            token = ktap_lines.classify(inner)
            if isinstance(token, VersionLine) or _is_a(token, Kind.SUBTEST):
                return self._indented(depth, indent, token), token
            if isinstance(token, ResultLine) and depth > 0:
                # KUnit may indent results deeper than their plan; its own parser accepts that.
                return depth, token
            if _is_a(token, Kind.UNNUMBERED) or _is_failure(token):
                # TAP 14 lets a nested document begin without a header.
                return depth, TextLine(Kind.UNNUMBERED, inner)
        if rest.startswith("# ") and document.pending.has(_RUNNER_HEADER):
            token = ktap_lines.classify(rest[2:])
            if isinstance(token, VersionLine):
                return self._nest(depth, "# ", document.running), token
        token = ktap_lines.classify(rest)
        if _is_a(token, Kind.TEXT) and not text.startswith("#"):
            # Kernel messages are not nested: they belong to the innermost document.
            depth = len(self._open) - 1
        return depth, token

    def _indented(self, depth: int, indent: str, token: Line) -> int:
        """Open a nested document, unless the whole stream is indented and begins here."""
        is_first = len(self._open) == 1 and not self._root.has_version and self._root.fresh
        if isinstance(token, VersionLine) and is_first:
            self._root.prefix = indent
            return 0
        return self._nest(depth, indent, None)

    def _nest(self, depth: int, indent: str, name: str | None) -> int:
        """Open a document in the one at *depth*; return its depth."""
        outer = self._close_below(depth)
        outer.abandon_child()
        self._open.append(Document(self._problems, outer.prefix + indent, name))
        return depth + 1

    def _next(self, depth: int) -> Document:
        """Close the nested document at *depth* and open the next one there."""
        indent = self._open[depth].prefix[len(self._open[depth - 1].prefix) :]
        return self._open[self._nest(depth - 1, indent, None)]

    def _close_below(self, depth: int) -> Document:
        """Close the documents inside the one at *depth*; return that."""
        while len(self._open) > depth + 1:
            document = self._open.pop()
            document.close()
            self._open[-1].child = document
            self._open[-1].pending.extend(document.pending.take())
        return self._open[depth]

    def _version(self, depth: int, line: VersionLine) -> None:
        document = self._open[depth]
        if document.has_version and not (document.fresh and depth > 0):
            if depth == 0:
                second = "a second document began before this one ended"
                document.problem(ProblemKind.SECOND_DOCUMENT, second)
                return
            document = self._next(depth)
        document.take_version(line)

    def _subtest(self, depth: int, name: str) -> None:
        document = self._open[depth]
        if depth == 0:
            document.pending.add(f"Subtest: {name}")
            return
        if not (document.fresh and document.name is None):
            document = self._next(depth)
        document.name = name

    def _begin(self, depth: int, name: str) -> None:
        document = self._close_below(depth)
        document.abandon_child()
        document.abandon_running()
        self._loose.extend(document.pending.take())
        document.running = name
        self._announced = True


def _doubt(token: ResultLine, line: str, half: bool) -> str:
    """Return why the `ok` of *token*, read from *line*, cannot be believed; empty if it can.

    *half* says that the first half of a result line came before.
    """
    if half:
        return "says ok, but `not` stands before it: its line was cut apart"
    if token.cut:
        return "says ok, but a kernel message stands in its line"
    return "says ok, but the end of its line is missing" if len(line) > ktap_lines.LONGEST_LINE else ""


def _is_failure(token: Line) -> bool:
    return isinstance(token, ResultLine) and not token.ok and token.directive is None


def _is_a(token: Line, kind: Kind) -> bool:
    return isinstance(token, TextLine) and token.kind is kind


def parse(lines: Iterable[str], expected: Iterable[str] = ()) -> KtapReport:
    """Parse a whole document."""
    parser = KtapParser(expected)
    for line in lines:
        parser.feed(line)
    return parser.finish()
