# SPDX-License-Identifier: GPL-2.0-only
"""Old runs go, and what they came to stays."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path

import pytest
from history_runs import GOOD, STARTED, make_run

from harness.base import process
from harness.base.errors import ExitCode
from harness.results import Outcome, RunState, owned
from harness.results.historyfile import consult
from harness.results.prune import PrunedRun, prune_runs
from harness.results.store import RunStore

DAY = 24 * 3600.0


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six days, of which one was cut short, one was killed, and one cannot be read; today is the ninth."""
    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(tmp_path))
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    for day in (1, 2, 3):
        make_run(tmp_path, day)
    make_run(tmp_path, 4, state=RunState.INTERRUPTED)
    make_run(tmp_path, 5, state=None)
    (make_run(tmp_path, 6) / "results.sqlite").write_bytes(b"rubbish" * 999)
    log = tmp_path / "run01" / "vm1" / "console.log"
    log.parent.mkdir()
    log.write_text("x" * 100_000)
    (tmp_path / "run01" / "latest").symlink_to(log.parent)
    return tmp_path


def left(root: Path) -> list[str]:
    return sorted(path.name for path in root.glob("run*"))


def prune(root: Path, keep: int | None = None, max_age: float | None = None) -> tuple[PrunedRun, ...]:
    remembered = consult(root, lambda history: {run.directory.name for run in history.runs()})
    return prune_runs(root, remembered, keep=keep, max_age=max_age)


def test_the_newest_are_kept(runs: Path) -> None:
    """Only finished ones go, and only they count."""
    removed = prune(runs, keep=1)
    assert [one.path.name for one in removed] == ["run02", "run01"]
    assert removed[1].size >= 100_000
    assert left(runs) == ["run03", "run04", "run05", "run06"]
    assert prune(runs, keep=1) == ()


def test_the_old_ones_go(runs: Path) -> None:
    """By when they began."""
    age = datetime.datetime.now(datetime.UTC) - STARTED
    removed = prune(runs, max_age=age.total_seconds() - 2.5 * DAY)
    assert [one.path.name for one in removed] == ["run02", "run01"]


def test_a_run_that_is_alive_stays(runs: Path) -> None:
    """Finished as it may look: somebody goes on with it."""
    with RunStore.open(runs / "run01"):
        assert [one.path.name for one in prune(runs, keep=1)] == ["run02"]
    assert (runs / "run01" / "vm1" / "console.log").is_file()


def test_a_run_that_somebody_is_about_to_go_on_with_stays(runs: Path) -> None:
    """Its kernels may be built for half an hour before anything is written to it."""
    with owned(runs / "run01"):
        assert [one.path.name for one in prune(runs, keep=1)] == ["run02"]
    assert [one.path.name for one in prune(runs, keep=1)] == ["run01"]


def test_what_the_history_does_not_have_stays(runs: Path) -> None:
    assert prune_runs(runs, {"run02"}, keep=1)[0].path.name == "run02"
    assert "run01" in left(runs)


def test_what_a_run_came_to_outlives_it(runs: Path) -> None:
    """The next one is compared with a run whose directory is gone."""
    done = process.run([sys.executable, "-m", "harness", "gc", "--keep-runs", "1", "--json"])
    assert done.ok, done.stderr
    assert [Path(one["path"]).name for one in json.loads(done.stdout)] == ["run02", "run01"]
    assert (runs / "history.sqlite").is_file()
    listed = process.run([sys.executable, "-m", "harness", "list", "runs"]).stdout
    assert "run01" in listed
    make_run(runs, 7, {**GOOD, "a": Outcome.FAIL})
    report = process.run([sys.executable, "-m", "harness", "report"])
    assert report.status == ExitCode.CASE_FAILED
    assert "compared with run03" in report.stdout
