# SPDX-License-Identifier: GPL-2.0-only
"""Workers under real pytest-xdist that die in their start, and that a Ctrl-C ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.base import process
from harness.base.deadline import Deadline
from harness.plugin import engine
from harness.plugin.engine import Ended

CONFTEST = """
from harness.plugin.workers import Workers, heed_one_interrupt

def pytest_xdist_setupnodes(config, specs):
    config.pluginmanager.register(Workers.of(config, specs))

def pytest_configure(config):
    if hasattr(config, "workerinput"):
        heed_one_interrupt()
"""

SECONDS = 120.0


def argv(directory: Path, text: str) -> list[str]:
    """Return the command that runs the tests in *text* in one worker."""
    (directory / "conftest.py").write_text(CONFTEST)
    (directory / "test_it.py").write_text(textwrap.dedent(text))
    words = [sys.executable, "-m", "pytest", "-n", "1", "-p", "no:cacheprovider"]
    return [*words, f"--rootdir={directory}", str(directory)]


@pytest.mark.parametrize(
    ("deaths", "said"), [(2, "1 passed"), (3, "InfraError: 3 workers died while starting: ")]
)
def test_workers_that_die_in_their_start(tmp_path: Path, deaths: int, said: str) -> None:
    """Another one is started, but not for ever."""
    tool = tmp_path / "bin" / "setsid"
    tool.parent.mkdir()
    died = "$(ls $0-* 2>/dev/null | wc -l)"
    real = shutil.which("setsid")
    tool.write_text(
        f'#!/bin/sh\n[ {died} -ge {deaths} ] && exec {real} "$@"\nmktemp $0-XXXXXX >/dev/null\nkill -9 $$\n'
    )
    tool.chmod(0o755)
    words = argv(tmp_path, "def test_it(): pass")
    env = {"PATH": f"{tool.parent}:{os.environ['PATH']}"}
    done = process.run(words, cwd=tmp_path, env=env, deadline=Deadline.after(SECONDS))
    assert said in done.stdout, done.stdout


LONG = """
    import os, pathlib, time

    HERE = pathlib.Path(__file__).parent

    def test_it():
        (HERE / "pid").write_text(str(os.getpid()))
        (HERE / "begun").touch()
        try:
            time.sleep(100)
        finally:
            (HERE / "cleaning").touch()
            time.sleep({seconds})
            (HERE / "cleaned").touch()
"""


def wait_until(condition: Callable[[], bool]) -> None:
    limit = Deadline.after(SECONDS)
    while not condition():
        assert not limit.expired
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("interrupts", "seconds", "cleaned"), [(1, 7.0, True), (2, 100.0, False)], ids=["once", "twice"]
)
def test_an_interrupt_of_the_terminal(tmp_path: Path, interrupts: int, seconds: float, cleaned: bool) -> None:
    """The first lets a worker clean up, longer than execnet waits for it; the second ends it at once."""
    words = ["env", "--default-signal=INT", *argv(tmp_path, LONG.format(seconds=seconds))]
    with subprocess.Popen(
        words, cwd=tmp_path, start_new_session=True, stdout=-1, stderr=subprocess.STDOUT, text=True
    ) as run:
        wait_until((tmp_path / "begun").exists)
        worker = int((tmp_path / "pid").read_text())
        os.killpg(run.pid, signal.SIGINT)
        wait_until((tmp_path / "cleaning").exists)
        if interrupts == 2:
            os.killpg(run.pid, signal.SIGINT)
        said, _ = run.communicate(timeout=SECONDS)
    wait_until(lambda: not is_alive(worker))
    assert (tmp_path / "cleaned").exists() is cleaned
    assert run.returncode != 0
    if interrupts == 1:
        assert "Traceback" not in said
        assert "KeyboardInterrupt" in said


def test_a_worker_dies_with_its_run(tmp_path: Path) -> None:
    """However the run is killed."""
    words = argv(tmp_path, LONG.format(seconds=100))
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL) as run:
        wait_until((tmp_path / "begun").exists)
        run.kill()
    worker = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_alive(worker))
    assert not (tmp_path / "cleaning").exists()


@pytest.mark.parametrize("begun", [False, True])
def test_an_interrupt_before_pytest_has_begun(
    begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No plugin has closed the run then, so the caller must not take it for one."""

    def main(words: list[str], plugins: list[engine._Session]) -> pytest.ExitCode:
        if begun:
            plugins[0].pytest_sessionfinish()
        return pytest.ExitCode.INTERRUPTED

    monkeypatch.setattr(pytest, "main", main)
    if begun:
        assert engine.run_pytest([], tmp_path) is Ended.INTERRUPTED
        return
    with pytest.raises(KeyboardInterrupt):
        engine.run_pytest([], tmp_path)
