# SPDX-License-Identifier: GPL-2.0-only
"""A matrix whose VMs, worker and harness are killed: every result is kept and none is duplicated."""

from __future__ import annotations

import collections
import contextlib
import datetime
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from harness.base import process
from harness.base.deadline import Deadline
from harness.base.errors import ExitCode
from harness.base.process import Process
from harness.results import Outcome, Run
from harness.results.store import load

MATRIX = """\
matrices:
  two:
    summary: two kernels and two topologies, some cases of each
    trees: [debian:7.3]
    variants: [group-cdev, cdev]
    topologies: [edu, edu-edu]
    suites: [probes, kselftest:vfio]
"""

CASES = (
    *(f"probes/{module}/*" for module in ("get_pa", "descriptors", "ioas", "mapping", "addresses")),
    # The addresses of its test points are known only after it has run.
    "kselftest:vfio/vfio_dma_mapping_test*",
)

SECONDS = 3600.0


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    path = tmp_path / "matrix.yaml"
    path.write_text(MATRIX)
    cases = [word for case in CASES for word in ("--case", case)]
    return ["matrix", "two", "--file", str(path), "-n", "2", *cases]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runs directory of this test's own, and so a history of its own."""
    directory = tmp_path / "runs"
    directory.mkdir()
    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(directory))
    return directory


@contextlib.contextmanager
def start(words: Sequence[str], log: Path) -> Iterator[Process]:
    with (
        log.open("ab") as sink,
        process.spawn(
            [sys.executable, "-m", "harness", *words], stdout=sink, stderr=sink, whole_group=True
        ) as child,
    ):
        yield child


def only_run(runs: Path) -> Path | None:
    found = [path.parent for path in runs.glob("*/results.sqlite")]
    return found[0] if found else None


def wait(what: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.2)


def finished(runs: Path) -> int:
    """Return how many cases have a result so far."""
    directory = only_run(runs)
    return len(load(directory).results) if directory is not None else 0


def descendants(pid: int) -> dict[int, str]:
    """Return every process below *pid* with its command line."""
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            for child in map(int, task.read_text().split()):
                waiting.append(child)
                found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def kill_one(pid: int, word: str) -> None:
    """Kill with SIGKILL a process below *pid* whose command line contains *word*."""
    victims = [child for child, line in descendants(pid).items() if word in line and "setpriv" not in line]
    os.kill(victims[0], signal.SIGKILL)


def check_whole(run: Run) -> None:
    """Check that every probe of both kernels on both topologies has its result."""
    per_job = collections.Counter(case.job for case in run.cases if case.address.suite == "probes")
    assert len(per_job) == 4
    assert set(per_job.values()) == {max(per_job.values())}
    assert max(per_job.values()) > 60


def test_killed_vms_and_a_killed_worker_cost_nothing(words: list[str], runs: Path, tmp_path: Path) -> None:
    """Cases lost with a VM or a worker are retried, attempts are counted, and the verdict is good."""
    log = tmp_path / "log"
    with start(words, log) as child:
        wait(lambda: finished(runs) > 20)
        kill_one(child.pid, "qemu-system")
        wait(lambda: finished(runs) > 60)
        kill_one(child.pid, "sys.stdin.readline")
        wait(lambda: finished(runs) > 120)
        kill_one(child.pid, "qemu-system")
        status = child.wait(Deadline.after(SECONDS))
    directory = only_run(runs)
    assert directory is not None
    run = load(directory)
    told = log.read_text()
    assert status == ExitCode.GOOD, told
    check_whole(run)
    assert not any(case.outcome.is_bad for case in run.cases)
    lost = [result for result in run.results if result.outcome is Outcome.LOST]
    assert lost, told
    assert "GOOD" in told


def test_resume_does_nothing_twice(words: list[str], runs: Path, tmp_path: Path) -> None:
    """After a kill of the harness `--resume` continues the run; finished cases keep their one result."""
    log = tmp_path / "log"
    with start(words, log) as child:
        wait(lambda: finished(runs) > 60)
        child.signal(signal.SIGKILL)
        child.wait(Deadline.after(20))
    directory = only_run(runs)
    assert directory is not None
    before = load(directory)
    kept = {(result.job, result.address) for result in before.results if not result.outcome.is_infra}
    argv = [sys.executable, "-m", "harness", "matrix", "--resume", directory.name, "-n", "2"]
    done = process.run(argv, deadline=Deadline.after(SECONDS))
    assert done.status == ExitCode.GOOD, done.stdout + done.stderr
    after = load(directory)
    check_whole(after)
    times = collections.Counter((result.job, result.address) for result in after.results)
    assert {times[key] for key in kept} == {1}
    again = process.run(argv, deadline=Deadline.after(SECONDS))
    assert "nothing is left to do" in again.stderr
    assert again.status == ExitCode.GOOD
    assert load(directory).finished == after.finished


def test_deadline_ends_it_in_order(words: list[str], runs: Path) -> None:
    """At the deadline cases not started say so and results are kept; resuming finishes the run with a good
    verdict."""
    soon = datetime.datetime.now() + datetime.timedelta(seconds=20)
    argv = [sys.executable, "-m", "harness", *words, "--deadline", soon.isoformat(timespec="seconds")]
    done = process.run(argv, deadline=Deadline.after(SECONDS))
    directory = only_run(runs)
    assert directory is not None
    run = load(directory)
    check_whole(run)
    late = [case for case in run.cases if case.outcome is Outcome.NOT_RUN]
    assert done.status == ExitCode.INFRA, done.stdout + done.stderr
    assert late
    assert all("the deadline" in case.reason for case in late)
    assert any(case.outcome is Outcome.PASS for case in run.cases)
    assert any(case.address.suite != "probes" for case in late)
    argv = [sys.executable, "-m", "harness", "matrix", "--resume", directory.name, "-n", "2"]
    done = process.run(argv, deadline=Deadline.after(SECONDS))
    assert done.status == ExitCode.GOOD, done.stdout + done.stderr
    assert not any(case.outcome.is_infra for case in load(directory).cases)
