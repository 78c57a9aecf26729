# SPDX-License-Identifier: GPL-2.0-only
"""What single lines of KTAP mean."""

from __future__ import annotations

import pytest

from harness.ktap import Directive, PlanLine
from harness.ktap.lines import (
    LONGEST_LINE,
    Kind,
    ResultLine,
    TextLine,
    VersionLine,
    classify,
    clean,
    without_printk_prefix,
)


def result(line: str) -> ResultLine:
    token = classify(line)
    assert isinstance(token, ResultLine), line
    return token


@pytest.mark.parametrize(
    ("line", "ok", "number", "name", "directive", "reason"),
    [
        ("ok 1 alpha", True, 1, "alpha", None, ""),
        ("not ok 12 - beta gamma", False, 12, "beta gamma", None, ""),
        ("ok 3 a.b.c # SKIP mmap() failed", True, 3, "a.b.c", Directive.SKIP, "mmap() failed"),
        ("ok 3 a # skipped: no device", True, 3, "a", Directive.SKIP, "no device"),
        ("not ok 4 x # TIMEOUT 45 seconds", False, 4, "x", Directive.TIMEOUT, "45 seconds"),
        ("not ok 4 x # TODO not yet", False, 4, "x", Directive.TODO, "not yet"),
        ("ok 5 x # XFAIL", True, 5, "x", Directive.XFAIL, ""),
        ("ok 5 x # XPASS unknown", True, 5, "x", Directive.XPASS, "unknown"),
        ("not ok 5 x # ERROR no memory", False, 5, "x", Directive.ERROR, "no memory"),
        ("not ok 6 # error malloc failed", False, 6, "malloc failed", Directive.ERROR, ""),
        ("not ok 7 selftests: vfio: t # exit=1", False, 7, "selftests: vfio: t", None, "exit=1"),
        ("ok 8 x #  took long", True, 8, "x", None, "took long"),
        ("ok 9 # SKIP selftests: a: b", True, 9, "selftests: a: b", Directive.SKIP, ""),
        ("ok 10", True, 10, "unnamed_10", None, ""),
        ("ok 11 x #", True, 11, "x", None, ""),
        ("ok 12 issue#5 stays", True, 12, "issue#5 stays", None, ""),
        ("ok 12 x #SKIP no device", True, 12, "x", Directive.SKIP, "no device"),
        ("ok 12 x # took 3 s # SKIP no device", True, 12, "x", Directive.SKIP, "no device"),
        ("not ok 12 x[   12.345678] vfio-pci: reset", False, 12, "x", None, ""),
        ("ok 13 x # TODOs are no directive", True, 13, "x", None, "TODOs are no directive"),
    ],
)
def test_result_lines(
    line: str, ok: bool, number: int, name: str, directive: Directive | None, reason: str
) -> None:
    """Number, name, directive and reason come out of every form of a result line."""
    token = result(line)
    assert (token.ok, token.number, token.name) == (ok, number, name)
    assert (token.directive, token.reason) == (directive, reason)


@pytest.mark.parametrize(
    "line", ["okay 1 x", "ok", "ok one", "not okay", "nok 1 x", "OK 1 x", "ok1 x", "it is not ok 1"]
)
def test_lookalikes_are_no_results(line: str) -> None:
    """A line that only looks like a result is text and proves nothing."""
    assert classify(line) == TextLine(Kind.TEXT, line)


@pytest.mark.parametrize("line", ["not ok", "not  ok 1", "not ok - b", "not ok 2: b", "not\tok 1 b"])
def test_failure_in_another_form_is_a_failure(line: str) -> None:
    assert classify(line) == TextLine(Kind.UNNUMBERED, line)


def test_other_lines() -> None:
    """Every other kind of line is told apart."""
    assert classify("KTAP version 1") == VersionLine(kind="KTAP", number=1)
    assert classify("TAP version 13") == VersionLine(kind="TAP", number=13)
    assert classify("1..30") == PlanLine(count=30)
    assert classify("1..0 # SKIP no SR-IOV") == PlanLine(count=0, skip=True, reason="no SR-IOV")
    assert classify("1..0 # Skipped: no SR-IOV") == PlanLine(count=0, skip=True, reason="no SR-IOV")
    assert classify("Bail out! no root") == TextLine(Kind.BAIL, "no root")
    assert classify("#  RUN           f.v.t ...") == TextLine(Kind.RUN, "f.v.t")
    assert classify("# Subtest: amdv1") == TextLine(Kind.SUBTEST, "amdv1")
    assert classify("# END iommufd/get_pa") == TextLine(Kind.END, "iommufd/get_pa")
    assert classify("#            OK  f.v.t") == TextLine(Kind.ECHO, "f.v.t")
    assert classify("#          FAIL  f.v.t") == TextLine(Kind.FAILED, "f.v.t")
    assert classify("# FAIL  is a word") == TextLine(Kind.TEXT, "FAIL  is a word")
    assert classify("#   indented") == TextLine(Kind.TEXT, "  indented")


def test_a_plan_with_cases_is_never_a_skip() -> None:
    """Only 1..0 can skip a whole document."""
    assert classify("1..4 # SKIP") == PlanLine(count=4, skip=False)


def test_clean_makes_a_line_safe() -> None:
    """Terminal escapes, control characters, line ends and endless lines do not get through."""
    assert clean("ok 1 \x1b[1;31mred\x1b[0m\x00\x07\r\n") == "ok 1 red"
    assert clean("\ufeff\x1b]0;title\x07\x1b[32mnot\x00 ok 1 a\x1b(B\x1b[m") == "not ok 1 a"
    assert len(clean("x" * 10 * LONGEST_LINE)) < LONGEST_LINE + 10


def test_printk_prefix() -> None:
    """The console's time stamp is taken off with or without a caller id and a level."""
    assert without_printk_prefix("[    0.060000][    T1] ok 1 x") == "ok 1 x"
    assert without_printk_prefix("<6>[12345.678901] \tok 1 x") == "\tok 1 x"
    assert without_printk_prefix("ok 1 x") is None
