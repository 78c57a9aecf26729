# SPDX-License-Identifier: GPL-2.0-only
"""What a single line of a KTAP stream says, without regard to the lines around it."""

from __future__ import annotations

import dataclasses
import enum
import re

from harness.ktap.model import Directive, PlanLine

LONGEST_LINE = 4000
"""How many characters of a line are kept, so that a program that prints no newline cannot fill the memory."""

# CSI (colours), OSC (window titles) up to its terminator, and the short forms such as `ESC ( B`.
_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[ -/]+[0-~]|\x1b[@-Z\\-_]"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ufeff]")
_VERSION = re.compile(r"(K?TAP) version (\d+)$")
_RESULT = re.compile(r"(ok|not ok) (\d+)(?:\s+(.*))?$")
_UNNUMBERED = re.compile(r"not\s+ok\b")
_BAIL = re.compile(r"Bail out!\s*(.*)$", re.IGNORECASE)
# SKIP and TODO ignore case and may run on ("skipped:") in TAP 13; the others are KTAP's, in capitals.
# kselftest.h ksft_test_result_error() prints a small `error`.
_DIRECTIVE = re.compile(r"((?i:skip)\w*|(?i:todo)|XFAIL|XPASS|TIMEOUT|ERROR|error)\b:?\s*(.*)$")
_COMMENT = re.compile(r"(?:^| )#(?: |$)")
# Anywhere on the line, with or without a blank: it may decide between SKIP and PASS.
_DIRECTIVE_MARK = re.compile(rf"(?:^| )#\s*(?={_DIRECTIVE.pattern})")
_PRINTK = re.compile(r"(?:<\d+>)?\[\s*\d+\.\d+\](?:\[\s*[TC]\d+\])? ?")
_STAMP = re.compile(r" *(?:<\d+>)?\[ *\d+\.\d{6}\]")
_PLAN = re.compile(rf"1\.\.(\d+)(?:\s*#\s*(.*)|{_STAMP.pattern}.*)?$")
# What is left of `not ok 1 name` after its line was cut apart: by a line end, or by a kernel message.
_HALF_OF_NOT_OK = re.compile(r"not(?:$|" + _STAMP.pattern + ")")


class Kind(enum.Enum):
    """What a line is that has nothing but a name or a text."""

    BAIL = "Bail out! text"
    SUBTEST = "# Subtest: text: the header of a nested KUnit document"
    RUN = "#  RUN           text ...: kselftest_harness announces a case"
    END = "# END text: the agent ends its document"
    ECHO = "#            OK  text: kselftest_harness repeats a verdict before its result line"
    FAILED = "#          FAIL  text: the same, of a case that failed"
    UNNUMBERED = "not ok text: a failure in another form than KTAP's, such as without a number"
    NOT = "not: the rest of the line, `ok 1 name`, comes later"
    TEXT = "anything else: a diagnostic without its `# `, output of the test, kernel messages"


@dataclasses.dataclass(frozen=True, slots=True)
class TextLine:
    """A line of *kind* and its text."""

    kind: Kind
    text: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VersionLine:
    """`KTAP version 1`, `TAP version 13`."""

    kind: str
    number: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResultLine:
    """`ok 3 name # SKIP reason`."""

    ok: bool
    number: int
    name: str
    directive: Directive | None
    reason: str
    cut: bool = False
    """Whether a kernel message stands in it, so that its end is unknown."""


Line = VersionLine | PlanLine | ResultLine | TextLine

_DIAGNOSTICS = {
    # kselftest_harness.h __run_test(): "# " " RUN           %s ...\n"
    Kind.RUN: re.compile(r"#\s+RUN\s+(\S.*?) \.\.\.$"),
    Kind.SUBTEST: re.compile(r"# Subtest: (.+)$"),
    Kind.END: re.compile(r"# END (\S+)$"),
    # kselftest_harness.h __run_test(): "# " "         %4s  %s\n"
    Kind.ECHO: re.compile(r"#\s{10,}OK  (\S.*)$"),
    Kind.FAILED: re.compile(r"#\s{10,}FAIL  (\S.*)$"),
}


def clean(raw: str) -> str:
    """*raw* without its line end, terminal escapes, control characters and excessive length."""
    line = _CONTROL.sub("", _ESCAPES.sub("", raw.rstrip("\r\n"))).rstrip()
    return line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + " ..."


def without_printk_prefix(line: str) -> str | None:
    """*line* without `[    0.060000][    T1] `, or None when it has no such prefix."""
    match = _PRINTK.match(line)
    return line[match.end() :] if match else None


def classify(line: str) -> Line:
    """Say what *line* is; it must be clean and without the prefix of its nesting."""
    if line.startswith("#"):
        for kind, form in _DIAGNOSTICS.items():
            if match := form.match(line):
                return TextLine(kind, match[1])
        return TextLine(Kind.TEXT, line[1:].removeprefix(" "))
    if match := _RESULT.match(line):
        return _result(match[1] == "ok", int(match[2]), match[3] or "")
    if match := _PLAN.match(line):
        return _plan(int(match[1]), match[2] or "")
    if match := _VERSION.match(line):
        return VersionLine(kind=match[1], number=int(match[2]))
    if match := _BAIL.match(line):
        return TextLine(Kind.BAIL, match[1])
    if _UNNUMBERED.match(line):
        return TextLine(Kind.UNNUMBERED, line)
    if _HALF_OF_NOT_OK.match(line):
        return TextLine(Kind.NOT, line)
    return TextLine(Kind.TEXT, line)


def _plan(count: int, comment: str) -> PlanLine:
    directive, reason = _directive(comment)
    if directive is Directive.SKIP:
        return PlanLine(count=count, skip=count == 0, reason=reason)
    return PlanLine(count=count, reason=comment)


def _result(ok: bool, number: int, rest: str) -> ResultLine:
    stamp = _STAMP.search(rest)
    rest = rest[: stamp.start()] if stamp else rest
    mark = _DIRECTIVE_MARK.search(rest) or _COMMENT.search(rest)
    comment = rest[mark.end() :] if mark else ""
    name = _COMMENT.split(rest[: mark.start()] if mark else rest)[0]
    name = " ".join(name.removeprefix("- ").split())
    directive, reason = _directive(comment.strip())
    if not name and directive is not None:
        # kselftest.h ksft_test_result_skip() puts the name after the directive: `ok 3 # SKIP name`.
        name, reason = reason, ""
    name = name or f"unnamed_{number}"
    return ResultLine(
        ok=ok, number=number, name=name, directive=directive, reason=reason, cut=stamp is not None
    )


def _directive(comment: str) -> tuple[Directive | None, str]:
    match = _DIRECTIVE.match(comment)
    if match is None:
        return None, comment
    word = match[1].upper()
    return Directive["SKIP" if word.startswith("SKIP") else word], match[2].strip()
