# SPDX-License-Identifier: GPL-2.0-only
"""What is read of the host."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.base import cgroup, host
from harness.base.host import available_mib, default_compilers, processor_use, run_delay, starvation


@pytest.fixture(autouse=True)
def no_cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "_PROC", tmp_path)


def test_memory_is_the_kernels_own_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MemAvailable, not what happens to be free; nothing where the kernel does not tell."""
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr(host, "_MEMINFO", meminfo)
    meminfo.write_text("MemFree: 1 kB\nMemAvailable:  4194304 kB\n", encoding="ascii")
    assert available_mib() == 4096
    meminfo.write_text("MemFree: 1 kB\n", encoding="ascii")
    assert available_mib() == 0


def test_compilers_for_the_processors_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is bound to a few processors of many builds on those."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3, 7})
    assert default_compilers() == 3


def test_how_long_a_thread_got_no_cpu(tmp_path: Path) -> None:
    """The second number of schedstat, in nanoseconds; nothing where the kernel does not count it."""
    (tmp_path / "schedstat").write_text("5000000 2500000000 7\n", encoding="ascii")
    assert run_delay(tmp_path) == 2.5
    (tmp_path / "schedstat").write_text("", encoding="ascii")
    assert run_delay(tmp_path) == run_delay(tmp_path / "gone") == 0.0


def test_a_process_waits_as_long_as_its_worst_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads wait at the same time, so that a sum would be longer than the time that passed."""
    delays = iter([0.0, 0.0, 0.0, 1.5, 4.0, 2.0])
    monkeypatch.setattr(host, "_schedstat", lambda _: (0.0, next(delays, 0.0)))
    monkeypatch.setattr(Path, "iterdir", lambda _: iter([Path("1"), Path("2"), Path("3")]))
    monkeypatch.setattr(host._OwnPulse, "missed", lambda _: 0.0)
    assert starvation(1)() == 4.0


def test_how_long_a_process_wanted_a_cpu() -> None:
    """A busy one all the time, with a CPU or without; one that sleeps hardly ever."""
    code = "import time; print(1, flush=True); {}"
    wanted = []
    for what in ("exec('while 1: 1')", "time.sleep(60)"):
        with subprocess.Popen([sys.executable, "-c", code.format(what)], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            since, began = processor_use(child.pid), time.monotonic()
            time.sleep(1)
            wanted.append(sum(since()) / (time.monotonic() - began))
            child.kill()
    assert wanted[0] > 0.9
    assert wanted[1] < 0.5


def test_a_process_that_is_gone_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host._OwnPulse, "missed", lambda _: 0.0)
    assert starvation(2**22 + 1)() == 0.0


def test_a_process_that_was_stopped_has_starved_its_children() -> None:
    """The freezer of a container stops QEMU too, which waits for no CPU then."""
    code = (
        "import time; from harness.base.host import starvation; since = starvation(2**22 + 1);"
        "print(since(), flush=True); input(); print(since())"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "0.0\n"
        child.send_signal(signal.SIGSTOP)
        time.sleep(6)
        child.send_signal(signal.SIGCONT)
        print(file=child.stdin, flush=True)
        assert float(child.stdout.readline()) > 3
