# SPDX-License-Identifier: GPL-2.0-only
"""The verbs about earlier runs, from the command line to the exit code."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3
import sys
from pathlib import Path

import pytest
from history_runs import GOOD, INPUTS, JOB, case, make_run

from harness.base import process
from harness.base.errors import ExitCode, UsageError
from harness.results import Outcome, reach_verdict
from harness.results.store import load
from harness.session import reporting
from harness.suites import known


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a good run, a worse one, and one that lacks a case."""
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(tmp_path / "runs"))
    root = tmp_path / "runs"
    make_run(root, 1)
    make_run(root, 2, {**GOOD, "a": Outcome.FAIL})
    less = {name: outcome for name, outcome in GOOD.items() if name != "d"}
    make_run(root, 3, less, results=(case("n", Outcome.PASS),))
    return root


def harness(*words: str) -> process.Completed:
    done = process.run([sys.executable, "-m", "harness", *words])
    assert "Traceback" not in done.stderr
    return done


def test_list_runs(runs: Path) -> None:
    """The newest is first, each with its verdict, as text and as JSON."""
    (runs / "broken").mkdir()
    (runs / "broken" / "results.sqlite").write_bytes(b"rubbish" * 999)
    done = harness("list", "runs")
    assert [line.split()[:2] for line in done.stdout.splitlines()][:3] == [
        ["run03", "good"],
        ["run02", "bad"],
        ["run01", "good"],
    ]
    assert "4 cases in 1 job: 1 FAIL, 1 XFAIL, 1 PASS, 1 SKIP; tree not recorded" in done.stdout
    assert "is damaged" in done.stdout
    plain = json.loads(harness("list", "runs", "--json").stdout)
    assert [row["exit_code"] for row in plain[:3]] == ["0", "1", "0"]


def test_compare(runs: Path) -> None:
    """The exit code says whether the second is worse; ids and directories are understood."""
    worse = harness("compare", "run01", "run02")
    assert worse.status == ExitCode.CASE_FAILED
    assert worse.stdout.endswith("WORSE: 1 new failure\n")
    better = harness("compare", str(runs / "run02"), "run03", "--json")
    assert better.ok
    assert json.loads(better.stdout)["changes"]["fixed"][0]["address"] == "kselftest:vfio/edu/a"
    typo = harness("compare", "run01", "run0z")
    assert (typo.status, typo.stdout) == (ExitCode.USAGE, "")
    assert "there is no run 'run0z'" in typo.stderr


def test_history(runs: Path) -> None:
    """One case is shown in full, a pattern in short; a typo gets the closest name."""
    one = harness("history", "kselftest:vfio/edu/a")
    assert "debian:7.3 cdev edu: .F.  (3 runs: 1 FAIL, 2 PASS)" in one.stdout
    assert "run02 7.3.4 aa: FAIL" in one.stdout
    last = harness("history", "kselftest:vfio/edu/*", "--last", "1", "--json")
    assert len(json.loads(last.stdout)) == 5
    typo = harness("history", "kselftest:vfio/edv/a")
    assert typo.status == ExitCode.USAGE
    assert "did you mean 'kselftest:vfio/edu/a'?" in typo.stderr


def test_report_in_the_light_of_the_others(runs: Path) -> None:
    """The report of an old run shows what had changed, and has its exit code."""
    done = harness("report", "run02")
    assert done.status == ExitCode.CASE_FAILED
    assert "compared with run01: 1 new failure" in done.stdout
    assert "BAD: 1 case failed (1 of them newly)" in done.stdout
    for form in ("markdown", "html", "junit", "kcidb", "json"):
        assert harness("report", "run02", "--format", form).stdout


def test_a_run_that_was_judged_by_itself(runs: Path) -> None:
    """A run with --no-compare stays good when it is reported or listed."""
    make_run(runs, 4, {"a": Outcome.PASS}, inputs=dataclasses.replace(INPUTS, compare=False))
    done = harness("report")
    assert done.ok
    assert "GOOD: 1 case passed" in done.stdout
    assert harness("list", "runs").stdout.startswith("run04  good")


def test_unfinished_run_is_not_accepted(runs: Path) -> None:
    """Cases that an unfinished run did not reach are not accepted as gone."""
    make_run(runs, 4, {"a": Outcome.PASS}, state=None)
    done = harness("report", "run04", "--accept", "it is meant")
    assert done.status == ExitCode.USAGE
    assert "the run is not finished, so nothing of it can be accepted" in done.stderr
    assert load(runs / "run04").accepted == ""


def test_accepting_a_loss(runs: Path) -> None:
    """Lost coverage is bad until it is accepted with a reason."""
    make_run(runs, 4, {"a": Outcome.PASS})
    done = harness("report")
    assert done.status == ExitCode.CASE_FAILED
    assert "BAD: tests are missing: 3 cases vanished since run03" in done.stdout
    assert harness("report", "--accept", " ").status == ExitCode.USAGE
    accepted = harness("report", "--accept", "they were merged into a")
    assert accepted.ok
    assert load(runs / "run04").accepted == "they were merged into a"


def test_a_loss_that_a_shard_accepted(runs: Path) -> None:
    """The merged run accepts it as well, if no other shard lost something."""
    other = dataclasses.replace(JOB, name="7.3.4-cdev-igb", topology="igb")
    make_run(runs, 4, job=other)
    lost = {"a": Outcome.PASS}
    make_run(runs, 5, lost)
    make_run(runs, 6, job=other)
    make_run(runs, 7, lost, job=other)
    for name in ("run04", "run05", "run06", "run07"):
        harness("report", name)
    assert harness("report", "run05", "--accept", "they were merged into a").ok
    worse = harness("report", "--merge", "run05", "run07")
    assert "not accepted: tests are missing in run run07, too" in worse.stderr
    assert worse.status == ExitCode.CASE_FAILED
    merged = harness("report", "--merge", "run05", "run06")
    assert merged.ok, merged.stdout
    directory = merged.stderr.strip().partition("merged into ")[2]
    assert load(Path(directory)).accepted == "they were merged into a"


def test_a_run_can_be_judged_by_itself(runs: Path) -> None:
    """Without a comparison, cases that are newly skipped are not bad, as bisect needs it."""
    run = load(make_run(runs, 4, {"a": Outcome.PASS, "b": Outcome.SKIP}))
    alone, among = reporting.see(run, compare=False), reporting.see(run)
    assert reach_verdict(run, alone.background.comparison).exit_code is ExitCode.GOOD
    assert reach_verdict(run, among.background.comparison).exit_code is ExitCode.CASE_FAILED


def test_a_history_from_the_future(runs: Path) -> None:
    """list and history refuse it in one sentence; a report works, but is not good."""
    harness("list", "runs")
    connection = sqlite3.connect(runs / "history.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    for words in (("list", "runs"), ("history", "kselftest:vfio/edu/a")):
        done = harness(*words)
        assert done.status == ExitCode.USAGE
        assert "history.sqlite was written by a newer vfio-harness" in done.stderr
    # A run that ends now would not be known to be good; one that is bad is bad.
    assert reporting.see(load(runs / "run01")).exit_code is ExitCode.INFRA
    assert reporting.see(load(runs / "run02")).exit_code is ExitCode.CASE_FAILED
    done = harness("report", "run01")
    assert done.status == ExitCode.INFRA
    assert "note: not compared with earlier runs" in done.stdout
    refused = harness("run", "--accel", "tcg", "--tree", "/nonexistent")
    assert refused.status == ExitCode.USAGE
    assert "newer vfio-harness" in refused.stderr


def test_a_corrupt_history(runs: Path) -> None:
    """It is moved away with one sentence and made again."""
    before = harness("list", "runs").stdout
    (runs / "history.sqlite").write_bytes(b"rubbish" * 999)
    done = harness("list", "runs")
    assert (done.ok, done.stdout) == (True, before)
    assert len(done.stderr.splitlines()) == 1
    assert "rebuilt from the run directories" in done.stderr


def test_corrupt_known_issues(runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A new run is refused; finished results are reported with a note."""
    path = tmp_path / "known-issues.yaml"
    path.write_text("issues:\n  - case: [\n")
    monkeypatch.setattr(known, "_SHIPPED", path)
    known.shipped_issues.cache_clear()
    try:
        with pytest.raises(UsageError, match=r"known-issues\.yaml:\d+: not valid YAML"):
            reporting.check_history()
        found = reporting.see(load(runs / "run01"))
        assert len(found.background.notes) == 1
        assert "the known issues cannot be read" in found.background.notes[0]
    finally:
        known.shipped_issues.cache_clear()


@pytest.mark.parametrize("words", [("report",), ("matrix", "--resume"), ("compare", "run01")])
def test_runs_that_cannot_be_read(runs: Path, words: tuple[str, ...]) -> None:
    """They are listed with what is wrong with them."""
    (runs / "run02" / "results.sqlite").write_bytes(b"rubbish" * 999)
    with contextlib.closing(sqlite3.connect(runs / "run03" / "results.sqlite")) as connection:
        connection.execute("PRAGMA user_version = 99")
    damaged, newer = harness(*words, "run02"), harness(*words, "run03")
    assert (damaged.status, newer.status) == (ExitCode.INFRA, ExitCode.USAGE)
    assert "run02/results.sqlite is damaged" in damaged.stderr
    assert "run03/results.sqlite was written by a newer vfio-harness" in newer.stderr
    (runs / "run04").mkdir()
    assert "there is no run 'run04'" in harness(*words, "run04").stderr
    assert "GOOD: 2 cases passed" in harness("report").stdout


def test_no_runs_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verbs say that there are no runs."""
    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(tmp_path / "runs"))
    assert harness("list", "runs").stdout.strip() == ""
    assert "there are no runs in" in harness("history", "x").stderr
    for words in (("compare", "a", "b"), ("report", "a")):
        said = harness(*words).stderr
        assert "there is no run 'a'" in said
        assert said.rstrip().endswith("vfio-harness run makes one")


def test_runs_name_their_tree(runs: Path) -> None:
    """As text without the digest of its files, as JSON with it."""
    inputs = dataclasses.replace(INPUTS, tree=f"v7.3-2-gdeadbeef {'ab' * 32}")
    make_run(runs, 4, inputs=inputs)
    first = harness("list", "runs").stdout.splitlines()[0]
    assert first.startswith("run04")
    assert first.endswith("; v7.3-2-gdeadbeef")
    assert json.loads(harness("list", "runs", "--json").stdout)[0]["tree"] == inputs.tree
