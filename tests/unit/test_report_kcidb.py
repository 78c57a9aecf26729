# SPDX-License-Identifier: GPL-2.0-only
"""The KCIDB report, validated by KernelCI's own library."""

from __future__ import annotations

import collections
import dataclasses
import json
from pathlib import Path

import kcidb_io
import pytest
from report_night import night
from report_sample import EMPTY, GOOD, RUN, result

from harness.report import kcidb
from harness.results import Outcome, Run


@pytest.mark.parametrize("run", [RUN, GOOD, EMPTY])
def test_it_is_valid(run: Run) -> None:
    """The newest schema accepts it, hostile names or not; every id is there once and every reference hits."""
    plain = json.loads(kcidb.render(run))
    assert kcidb_io.schema.LATEST.is_valid_exactly(plain)
    ids = {kind: [one["id"] for one in plain[kind]] for kind in plain if kind != "version"}
    assert all(len(found) == len(set(found)) for found in ids.values())
    assert {one["checkout_id"] for one in plain["builds"]} <= set(ids["checkouts"])
    assert {one["build_id"] for one in plain["tests"]} <= set(ids["builds"])
    assert {one["test_id"] for one in plain["incidents"]} <= set(ids["tests"])
    assert {one["issue_id"] for one in plain["incidents"]} == set(ids["issues"])


def test_each_outcome_has_its_status() -> None:
    """Trouble of ours is MISS, a documented failure is a FAIL that an incident explains."""
    plain = kcidb.to_plain(RUN)
    status = {one["misc"]["outcome"]: one["status"] for one in plain["tests"]}
    assert status == {
        "PASS": "PASS", "FAIL": "FAIL", "CRASH": "FAIL", "TIMEOUT": "FAIL", "XFAIL": "FAIL", "XPASS": "PASS",
        "SKIP": "SKIP", "ERROR": "ERROR", "LOST": "MISS", "NOT_RUN": "MISS",
    }  # fmt: skip
    (incident,) = plain["incidents"]
    (known,) = (one for one in plain["tests"] if one["id"] == incident["test_id"])
    assert known["path"] == "vfio_noiommu.probes.edu.known"
    assert {one["status"] for one in plain["builds"]} == {"PASS", "FAIL", "SKIP"}


def test_a_night(tmp_path: Path) -> None:
    """Two lines are two checkouts; a flaky case is its FAIL and its PASS; a splat brings its fingerprint."""
    plain = kcidb.to_plain(night(tmp_path)[0])
    assert len(plain["checkouts"]) == 2
    tries = [one for one in plain["tests"] if one["misc"]["attempt"] == 2 and one["misc"]["confirms"]]
    (again,) = tries
    assert sorted(
        one["status"]
        for one in plain["tests"]
        if (one["path"], one["misc"]["job"]) == (again["path"], again["misc"]["job"])
    ) == ["FAIL", "PASS"]
    crash = next(one for one in plain["tests"] if one["misc"]["outcome"] == "CRASH")
    assert "slab-use-after-free" in crash["log_excerpt"]
    assert len(crash["misc"]["fingerprint"]) == 12
    assert collections.Counter(one["status"] for one in plain["builds"])["SKIP"] == 2


def test_ids_are_stable() -> None:
    """The same run submitted twice is the same objects."""
    assert kcidb.render(RUN) == kcidb.render(RUN)


def test_attempts_of_a_run_that_went_on() -> None:
    """Their numbers begin anew; each is a test of its own all the same, and the same one every time."""
    results = tuple(
        result("probes/edu/a", outcome) for outcome in (Outcome.NOT_RUN, Outcome.XFAIL, Outcome.XFAIL)
    )
    run = dataclasses.replace(RUN, results=results)
    plain = kcidb.to_plain(run)
    ids = [one["id"] for one in plain["tests"]]
    assert len(set(ids)) == 3
    assert [one["test_id"] for one in plain["incidents"]] == ids[1:]
    assert kcidb.to_plain(run) == plain
