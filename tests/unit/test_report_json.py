# SPDX-License-Identifier: GPL-2.0-only
"""The JSON report: a promise to other programs."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from report_night import night
from report_sample import EMPTY, RUN

from harness.report import json as report


def test_the_keys_are_a_promise() -> None:
    """Programs that read schema 2 find these keys; removing one means schema 3."""
    plain = json.loads(report.render(RUN))
    assert plain["schema"] == report.SCHEMA == 2
    assert list(plain) == [
        *("accepted", "attempts", "cases", "comparison", "counts", "directory", "dumps", "exit_code"),
        *("finished", "generator", "jobs", "notes", "processor_seconds", "run", "schema", "state"),
        *("tests_seconds", "verdict", "why"),
    ]
    assert list(plain["cases"][0]) == [
        *("address", "attempt", "case", "cause", "confirms", "duration", "flaky", "job", "log"),
        *("outcome", "program", "reason", "rerun", "splat", "stopped_by", "suite", "vm_dir"),
    ]
    assert list(plain["jobs"][0]) == [
        *(
            "addons",
            "applicable",
            "arch",
            "cause",
            "commit",
            "compiler",
            "cross",
            "duration",
            "exact_tree",
            "features",
            "kernel",
            "line",
            "name",
            "problem",
        ),
        *("problem_code", "suites", "toolchain", "topology", "tree", "variant"),
    ]
    assert list(plain["run"]) == ["command", "harness_version", "id", "inputs", "started"]


NAMED = {"counts", "kernels", "against"}
"""Keys whose values have names for keys."""


def keys(plain: Any) -> Iterator[str]:
    if isinstance(plain, list):
        for one in plain:
            yield from keys(one)
    elif isinstance(plain, dict):
        for key, value in plain.items():
            yield key
            yield from keys(list(value.values()) if key in NAMED else value)


def test_keys_are_snake_case(tmp_path: Path) -> None:
    """No key is a heading; only labels, jobs and variants are keys under their own names."""
    run, background = night(tmp_path)
    inputs = dataclasses.replace(run.info.inputs, extra={"harness commit": "c"})
    run = dataclasses.replace(run, info=dataclasses.replace(run.info, inputs=inputs))
    found = set(keys(json.loads(report.render(run, background))))
    assert {"new_failures", "harness_commit", "stopped_by"} <= found
    assert not [key for key in found if not re.fullmatch("[a-z][a-z0-9_]*", key)]


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
    assert json.loads(report.render(EMPTY))["verdict"] == "infrastructure"


def test_it_is_ascii() -> None:
    """Whatever a guest prints, the file is readable in any locale."""
    assert report.render(RUN).isascii()
