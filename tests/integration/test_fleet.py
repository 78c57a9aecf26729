# SPDX-License-Identifier: GPL-2.0-only
"""A matrix on a fleet: the outcomes of a run without one, though a worker is killed in the middle."""

from __future__ import annotations

import collections
import contextlib
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from processes import find_processes

from harness.base import itself, process
from harness.base.deadline import Deadline
from harness.base.errors import ExitCode
from harness.fleet.keys import make_keys
from harness.results import Run
from harness.results.store import load

SECONDS = 3600.0
CASES = ("probes/nodes/*", "probes/get_pa/*")
WORDS = [
    *("matrix", "smoke", "--tree", "debian:7.3"),
    *(word for case in CASES for word in ("--case", case)),
]


@pytest.fixture(name="runs")
def _runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@contextlib.contextmanager
def _started(words: Sequence[str], log: Path) -> Iterator[process.Process]:
    with (
        log.open("ab") as sink,
        process.spawn(
            itself.argv(words), env=itself.env(), stdout=sink, stderr=sink, whole_group=True
        ) as child,
    ):
        yield child


def _newest(runs: Path) -> Path:
    return max(path.parent for path in runs.glob("*/results.sqlite"))


def _outcomes(run: Run) -> dict[tuple[str, str], str]:
    return {(case.job, str(case.address)): case.outcome.value for case in run.cases}


def _wait_for(log: Path, pattern: str, since: int = 0) -> re.Match[str]:
    """Return the first match of *pattern* in what is after *since* in *log*."""
    end = time.monotonic() + SECONDS
    while not (found := re.search(pattern, log.read_text(encoding="utf-8")[since:])):
        assert time.monotonic() < end, log.read_text(encoding="utf-8")
        time.sleep(0.2)
    return found


def _directory(pid: int) -> str:
    with contextlib.suppress(OSError):
        return str(Path(f"/proc/{pid}/cwd").readlink())
    return ""


def _wait_until_at_work(runs: Path, results: int) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(Exception):
            run = load(_newest(runs))
            if sum(bool(result.vm_dir) for result in run.results) >= results:
                return
        time.sleep(0.2)
    raise AssertionError("no result came")


def test_outcomes_are_those_without_a_fleet_though_a_worker_dies(runs: Path, tmp_path: Path) -> None:
    done = process.run(itself.argv([*WORDS, "-n", "2"]), env=itself.env(), deadline=Deadline.after(SECONDS))
    assert done.status == ExitCode.GOOD, done.stderr
    plain, log = _newest(runs), tmp_path / "fleet.log"
    with _started([*WORDS, "--fleet", "local:2"], log) as child:
        while _newest(runs) == plain:
            assert child.status is None, log.read_text(encoding="utf-8")
            time.sleep(0.2)
        fleet = _newest(runs)
        _wait_until_at_work(runs, 20)
        (victim,) = find_processes("-m harness.fleet", "local-1")
        os.kill(victim, signal.SIGKILL)
        time.sleep(2.0)
        # Its VM's directory is in the worker's own cache.
        first = f"/fleet/local-1/cache/fleet/runs/{fleet.name}/"
        assert not [pid for pid in find_processes("qemu-system") if first in _directory(pid)]
        assert child.wait(Deadline.after(SECONDS)) == ExitCode.GOOD, log.read_text(encoding="utf-8")
    text, run = log.read_text(encoding="utf-8"), load(fleet)
    assert re.search(r"fleet: worker local_1 (is gone|died)", text)
    assert _outcomes(run) == _outcomes(load(plain))
    attempts = collections.Counter((one.job, str(one.address), one.attempt) for one in run.results)
    assert max(attempts.values()) == 1
    assert {one.vm_dir.rsplit("-", 2)[1] for one in run.results if one.vm_dir} == {"local_1", "local_2"}
    compared = process.run(itself.argv(["compare", plain.name, fleet.name]), env=itself.env())
    assert compared.status == ExitCode.GOOD, compared.stdout
    assert not find_processes("-m harness.fleet", "local-")


@pytest.fixture(name="scheduler")
def _scheduler(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of an encrypted scheduler, and the directory of its keys."""
    keys = tmp_path / "keys"
    ca, certificate, key = make_keys(keys)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", f"tls://127.0.0.1:{port}"]
    argv += ["--tls-ca-file", str(ca), "--tls-cert", str(certificate), "--tls-key", str(key)]
    with process.spawn([*argv, "--no-dashboard"], env=itself.env()):
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                break
            time.sleep(0.1)
        yield f"tls://127.0.0.1:{port}", keys


def test_encrypted_fleet_of_two_hosts(scheduler: tuple[str, Path], runs: Path, tmp_path: Path) -> None:
    """The kernel goes to one worker by the scheduler, and from there to the other."""
    address, keys = scheduler
    other = tmp_path / "other"
    make_keys(other)
    words = ["matrix", "smoke", "--tree", "debian:7.3", "--case", "probes/nodes/*", "--fleet", address]
    refused = process.run(itself.argv([*words, "--fleet-keys", str(other)]), env=itself.env())
    assert refused.status == ExitCode.INFRA, refused.stderr
    assert "the certificates do not match" in refused.stderr
    log = tmp_path / "workers.log"
    with contextlib.ExitStack() as stack:
        for name in ("one", "two"):
            own = ["worker", address, "--fleet-keys", str(keys), "--name", name, "--vms", "1"]
            stack.enter_context(_started([*own, "--cache", str(tmp_path / name)], log))
        _wait_for(log, "worker one: connected")
        _wait_for(log, "worker two: connected")
        done = process.run(
            itself.argv([*words, "--fleet-keys", str(keys)]),
            env=itself.env(),
            deadline=Deadline.after(SECONDS),
        )
    assert done.status == ExitCode.GOOD, done.stderr
    run = load(_newest(runs))
    assert {one.vm_dir.rsplit("-", 2)[1] for one in run.results if one.vm_dir} == {"one", "two"}
    assert list((tmp_path / "two" / "kernels").iterdir())
