# SPDX-License-Identifier: GPL-2.0-only
"""Reports as files, and the text helpers they share."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from report_sample import EMPTY, GOOD, HOSTILE, RUN, result

from harness.base.errors import InfraError, UsageError
from harness.report import names, view
from harness.report.files import FORMATS, write
from harness.report.view import NOTHING
from harness.results import Outcome, Result


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_writes_every_run(form: str, tmp_path: Path) -> None:
    """Each format takes a full and an empty Run, and leaves one file."""
    for number, run in enumerate((RUN, EMPTY)):
        path = tmp_path / str(number) / f"report.{form}"
        path.parent.mkdir()
        write(run, form, path)
        assert path.read_text(encoding="utf-8")
        assert [one.name for one in path.parent.iterdir()] == [path.name]
        assert path.stat().st_mode & 0o777 == 0o644


def test_an_unknown_format_is_the_user_s_error(tmp_path: Path) -> None:
    """The nearest format is named."""
    with pytest.raises(UsageError, match="junit"):
        write(RUN, "junti", tmp_path / "x")


def test_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    """A path that cannot be written is one sentence with the path, and leaves nothing behind."""
    (tmp_path / "taken").mkdir()
    with pytest.raises(InfraError, match=r"json report cannot be written to .*taken"):
        write(RUN, "json", tmp_path / "taken")
    assert [one.name for one in tmp_path.iterdir()] == ["taken"]


def test_an_old_report_is_replaced_whole(tmp_path: Path) -> None:
    """A reader sees the old report or the new one."""
    path = tmp_path / "r.json"
    path.write_text("old")
    write(RUN, "json", path)
    assert path.read_text().startswith("{")


def test_names_are_one_visible_line() -> None:
    """Names lose escapes, line ends and characters that hide, and are never empty."""
    assert names.name("a\n\tb\x1b[31m c") == "a b c"
    assert names.name("pass\u202efail\u200b") == "pass\ufffdfail\ufffd"
    assert names.name(" \n") == "(unnamed)"
    assert names.dotless("7.3.4-x") == "7_3_4-x"
    assert "\x00" not in names.name(HOSTILE)


def test_excerpts_keep_the_end_from_a_line_on() -> None:
    """The end of a log is what convicts; the cut is told."""
    assert names.excerpt("short", 10) == "short"
    cut = names.excerpt("first\nsecond\nthird\n", 14)
    assert cut == "... 6 characters left out ...\nsecond\nthird\n"


def test_unknown_facts_are_left_out() -> None:
    """A report lists what is known of its inputs and does not print empty rows."""
    assert [key for key, _ in view.facts(EMPTY)] == ["run", "started", "harness", "command"]


def test_the_command_can_be_pasted() -> None:
    """A word with a blank in it stays one word."""
    command = ("vfio-harness", "run", "--case", "a b")
    run = dataclasses.replace(RUN, info=dataclasses.replace(RUN.info, command=command))
    assert dict(view.facts(run))["command"] == "vfio-harness run --case 'a b'"


def lost_and_tried_again(*cases: str) -> tuple[Result, ...]:
    return tuple(
        result(
            f"probes/edu/{case}", outcome, attempt=attempt, reason="" if attempt == 2 else "QEMU was killed"
        )
        for case in cases
        for attempt, outcome in ((1, Outcome.LOST), (2, Outcome.PASS))
    )


@pytest.mark.parametrize("form", ["text", "markdown", "html", "junit"])
def test_every_reader_hears_of_a_retry(form: str) -> None:
    """What was tried again after a loss is told, although it passed then."""
    told = " ".join(
        FORMATS[form](dataclasses.replace(GOOD, results=lost_and_tried_again("a_b")), NOTHING).split()
    )
    said = "1 case was lost and tried again: probes/edu/a_b (7.3.4-cdev-edu): QEMU was killed"
    assert said in told.replace("\\", "")
    assert "retried" not in FORMATS[form](GOOD, NOTHING)


def test_many_retries_are_one_line() -> None:
    """Several are counted; a confirmation, or a loss that nobody tried again, is none."""
    run = dataclasses.replace(GOOD, results=lost_and_tried_again("a", "b"))
    assert view.retries(run).startswith("2 cases were lost and tried again, first probes/edu/a ")
    assert view.retries(run, "another job") == ""
    single = (result("probes/edu/a", Outcome.PASS), result("probes/edu/a", Outcome.LOST))
    assert view.retries(dataclasses.replace(GOOD, results=single)) == ""
