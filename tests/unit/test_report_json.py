# SPDX-License-Identifier: GPL-2.0-only
"""The JSON report: a promise to other programs."""

from __future__ import annotations

import json

from report_sample import EMPTY, RUN

from harness.report import json as report


def test_the_keys_are_a_promise() -> None:
    """Programs that read schema 1 find these keys; removing one means schema 2."""
    plain = json.loads(report.render(RUN))
    assert plain["schema"] == report.SCHEMA == 1
    assert list(plain) == [
        *("accepted", "attempts", "cases", "comparison", "counts", "directory", "exit_code", "finished"),
        *("generator", "jobs", "notes", "processor_seconds", "run", "schema", "state", "verdict", "why"),
    ]
    assert list(plain["cases"][0]) == [
        *("address", "attempt", "case", "confirms", "duration", "flaky", "job", "log", "outcome"),
        *("program", "reason", "rerun", "splat", "suite", "vm_dir"),
    ]
    assert list(plain["jobs"][0]) == [
        *("addons", "applicable", "duration", "features", "kernel", "line", "name", "problem"),
        *("problem_code", "suites", "topology", "tree", "variant"),
    ]
    assert list(plain["run"]) == ["command", "harness_version", "id", "inputs", "started"]


def test_the_same_run_renders_to_the_same_bytes() -> None:
    """Two reports of one Run can be compared with cmp."""
    assert report.render(RUN) == report.render(RUN)


def test_cases_are_settled_and_attempts_are_all_there() -> None:
    """Who wants one line per case and who wants every attempt both find it."""
    plain = json.loads(report.render(RUN))
    assert (len(plain["cases"]), len(plain["attempts"])) == (11, 12)
    assert sum(plain["counts"].values()) == 11


def test_the_verdict_travels_with_its_grounds() -> None:
    """A program need not know our rules to act on the outcome."""
    plain = json.loads(report.render(RUN))
    assert (plain["verdict"], plain["exit_code"]) == ("bad", 1)
    assert plain["why"].startswith("6 cases failed")
    assert json.loads(report.render(EMPTY))["verdict"] == "our fault"


def test_it_is_ascii() -> None:
    """Whatever a guest prints, the file is readable in any locale."""
    assert report.render(RUN).isascii()
