# SPDX-License-Identifier: GPL-2.0-only
"""What a single line of a KTAP stream says, without regard to the lines round it."""

from __future__ import annotations

import dataclasses
import re

from harness.ktap.model import Directive, Plan

LONGEST_LINE = 4000
"""Characters kept of a line, so that a program that prints no newline cannot fill the memory."""

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-Z\\-_]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_VERSION = re.compile(r"(K?TAP) version (\d+)$")
_PLAN = re.compile(r"1\.\.(\d+)(?:\s*#\s*(.*))?$")
_RESULT = re.compile(r"(ok|not ok) (\d+)(?:\s+(.*))?$")
_BAIL = re.compile(r"Bail out!\s*(.*)$", re.IGNORECASE)
_SUBTEST = re.compile(r"# Subtest: (.+)$")
# kselftest_harness.h __run_test(): "# " " RUN           %s ...\n"
_RUN = re.compile(r"#\s+RUN\s+(\S.*?) \.\.\.$")
# kselftest_harness.h __run_test(): "# " "         %4s  %s\n"
_VERDICT = re.compile(r"#\s{10,}(?:OK|FAIL)  \S.*$")
_END = re.compile(r"# END (\S+)$")
# SKIP and TODO are case-blind and may run on ("skipped:") in TAP 13; the others are KTAP's, in capitals.
# kselftest.h ksft_test_result_error() prints a small `error`.
_DIRECTIVE = re.compile(r"((?i:skip)\w*|(?i:todo)|XFAIL|XPASS|TIMEOUT|ERROR|error)\b:?\s*(.*)$")
_PRINTK = re.compile(r"(?:<\d+>)?\[\s*\d+\.\d+\](?:\[\s*[TC]\d+\])? ?")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Version:
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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bail:
    """`Bail out! reason`."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Subtest:
    """`# Subtest: name`, KUnit's header of a nested document."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """`#  RUN           name ...`, kselftest_harness's announcement."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """`# END name`, the agent's full stop."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Anything else: a diagnostic (its `# ` taken off), output of the test, or kernel noise."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Echo:
    """`#            OK  name`: kselftest_harness says the verdict once more before the result line."""


Line = Version | Plan | ResultLine | Bail | Subtest | Run | End | Echo | Text


def clean(raw: str) -> str:
    """*raw* without its line end, terminal escapes, control characters and excessive length."""
    line = _CONTROL.sub("", _ESCAPES.sub("", raw.rstrip("\r\n"))).rstrip()
    return line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + " ..."


def without_printk_prefix(line: str) -> str | None:
    """*line* without `[    0.060000][    T1] `, or None when it has no such prefix."""
    match = _PRINTK.match(line)
    return line[match.end() :] if match else None


def classify(line: str) -> Line:
    """Say what *line* is; it must be clean and start at its own level of nesting."""
    if line.startswith("#"):
        return _classify_diagnostic(line)
    if match := _RESULT.match(line):
        return _result(match[1] == "ok", int(match[2]), match[3] or "")
    if match := _PLAN.match(line):
        return _plan(int(match[1]), match[2] or "")
    if match := _VERSION.match(line):
        return Version(kind=match[1], number=int(match[2]))
    if match := _BAIL.match(line):
        return Bail(reason=match[1])
    return Text(text=line)


def _classify_diagnostic(line: str) -> Line:
    if match := _RUN.match(line):
        return Run(name=match[1])
    if match := _SUBTEST.match(line):
        return Subtest(name=match[1])
    if match := _END.match(line):
        return End(name=match[1])
    if _VERDICT.match(line):
        return Echo()
    return Text(text=line[1:].removeprefix(" "))


def _plan(count: int, comment: str) -> Plan:
    match = _DIRECTIVE.match(comment)
    if match and match[1].lower().startswith("skip"):
        return Plan(count=count, skip=count == 0, reason=match[2].strip())
    return Plan(count=count, reason=comment)


def _result(ok: bool, number: int, rest: str) -> ResultLine:
    name, mark, comment = rest.partition("# ") if rest.startswith("# ") else rest.partition(" # ")
    if not mark:
        # `ok 4 name # SKIP` loses the blank after a lone `#`, and `ok 4 name #` carries no comment at all.
        name = rest.removesuffix(" #")
    name = " ".join(name.removeprefix("- ").split())
    directive, reason = _directive(comment.strip())
    if not name and directive is not None:
        # kselftest.h ksft_test_result_skip() puts the name after the directive: `ok 3 # SKIP name`.
        name, reason = reason, ""
    return ResultLine(
        ok=ok, number=number, name=name or f"unnamed_{number}", directive=directive, reason=reason
    )


def _directive(comment: str) -> tuple[Directive | None, str]:
    match = _DIRECTIVE.match(comment)
    if match is None:
        return None, comment
    word = match[1].upper()
    return Directive["SKIP" if word.startswith("SKIP") else word], match[2].strip()
