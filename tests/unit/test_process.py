# SPDX-License-Identifier: GPL-2.0-only
"""Child processes end with us, in groups, within a deadline."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from harness.base import process
from harness.base.cause import Cause
from harness.base.deadline import Deadline
from harness.base.errors import InfraError


def _gone(pid: int, seconds: float = 5.0) -> bool:
    deadline = Deadline.after(seconds)
    while not deadline.expired:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_run_returns_status_and_output() -> None:
    """Status and both outputs come back; a signal shows as a negative status."""
    done = process.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (done.status, done.stdout, done.stderr) == (3, "out\n", "err\n")
    killed = process.run(["sh", "-c", "kill -9 $$"])
    assert killed.status == -9
    assert killed.ending == "was killed by SIGKILL"


def test_check_says_what_failed_and_why() -> None:
    """A failed helper command names the purpose, the command and its last line."""
    with pytest.raises(InfraError, match=r"unpacking: sh -c .* exited with 1: no space"):
        process.run(["sh", "-c", "echo no space >&2; exit 1"]).check("unpacking")


@pytest.mark.parametrize("program", ["/no/such/program", "no-such-program", "./no-such-program"])
def test_a_missing_program_is_one_sentence(program: str) -> None:
    """What is not there is an infrastructure error, not a status that looks like the program's own."""
    with pytest.raises(InfraError, match=f"cannot start {program}: "):
        process.run([program])
    with pytest.raises(InfraError, match=f"cannot start {program}: "), process.spawn([program]):
        pass
    with pytest.raises(InfraError, match=f"cannot start {program}: "):
        process.run_foreground([program])


def test_a_file_that_is_no_program_is_one_sentence(tmp_path: Path) -> None:
    """So is a file that may not be executed."""
    (tmp_path / "notes").touch(0o644)
    with pytest.raises(InfraError, match="not executable"):
        process.run([tmp_path / "notes"])


def test_a_program_is_found_where_it_will_run(tmp_path: Path) -> None:
    """A relative path counts from the child's directory, a name from the child's PATH; 127 is a status."""
    (tmp_path / "tool").write_text("#!/bin/sh\necho here; exit 127\n", encoding="utf-8")
    (tmp_path / "tool").chmod(0o755)
    assert process.run(["./tool"], cwd=tmp_path).stdout == "here\n"
    assert process.run(["tool"], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}).status == 127


def test_foreground_has_the_users_terminal() -> None:
    """It reads our standard input, prints beside our messages and stays in our session."""
    script = "import os; print(input(), os.getsid(0)); raise SystemExit(3)"
    code = (
        "import os, sys\n"
        "from harness.base import process\n"
        f"status = process.run_foreground([sys.executable, '-c', {script!r}])\n"
        "print(status, os.getsid(0))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input="secret\n", capture_output=True, text=True, check=True
    )
    status, session = done.stdout.split()
    assert status == "3"
    assert done.stderr.split() == ["secret", session]


def test_deadline_stops_the_whole_group() -> None:
    """At the deadline the command and everything it started are gone."""
    with pytest.raises(InfraError, match="did not end in time"):
        process.run(["sh", "-c", "sleep 600 & echo $! > /dev/null; wait"], deadline=Deadline.after(0.3))


def test_stop_escalates_to_kill() -> None:
    """A child that ignores SIGTERM is killed at the deadline."""
    with process.spawn(["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"]) as child:
        time.sleep(0.3)
        began = time.monotonic()
        child.stop(Deadline.after(0.3))
        assert child.status == -signal.SIGKILL
        assert time.monotonic() - began < 5


def test_stop_that_is_interrupted_kills_at_once() -> None:
    """Whoever presses Ctrl-C a second time waits no longer, and leaves nothing behind."""
    with process.spawn(["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"]) as child:
        time.sleep(0.3)
        threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                child.stop(Deadline.after(60))
        finally:
            signal.signal(signal.SIGINT, before)
        assert child.status == -signal.SIGKILL


def test_stop_leaves_what_cannot_be_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that hangs in the kernel, as in a broken /dev/kvm, ends after no signal: we go on."""
    monkeypatch.setattr(process, "KILL_SECONDS", 0.2)
    began = time.monotonic()
    with process.spawn(["sleep", "60"]) as child, monkeypatch.context() as patch:
        patch.setattr(process.Process, "signal", lambda *_: None)
        child.stop(Deadline.after(0.1))
        assert time.monotonic() - began < 10
        assert child.status is None
    assert _gone(child.pid)


def test_child_dies_with_a_killed_parent() -> None:
    """kill -9 of the harness leaves no child behind."""
    code = (
        "from harness.base import process\n"
        "with process.spawn(['sleep', '600']) as child:\n"
        "    print(child.pid, flush=True)\n"
        "    child.wait(process.Deadline.after(600))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        # setpriv(1) has asked for the death signal once the program runs in its place.
        deadline = Deadline.after(10)
        while Path(f"/proc/{pid}/comm").read_text() != "sleep\n" and not deadline.expired:
            time.sleep(0.01)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    assert _gone(pid)


@pytest.mark.parametrize("whole_group", [False, True])
def test_child_of_a_dead_parent_never_starts(tmp_path: Path, whole_group: bool) -> None:
    """Nor does the kill before the child has asked for the death signal."""
    with subprocess.Popen(["sleep", "600"]) as parent:
        parent.kill()
    ran = tmp_path / "ran"
    words = process.mortal(["touch", str(ran)], whole_group=whole_group)
    orphan = [str(parent.pid) if word == str(os.getpid()) else word for word in words]
    assert orphan != words
    subprocess.run(orphan, check=False)
    assert not ran.exists()
    subprocess.run(words, check=True)
    assert ran.exists()


def test_errors_carry_their_cause() -> None:
    """A program that is missing, or that fails, is the host's trouble unless the caller knows better."""
    with pytest.raises(InfraError) as caught:
        process.run(["no-such-program"])
    assert caught.value.cause is Cause.HOST
    failed = process.run(["false"])
    with pytest.raises(InfraError) as caught:
        failed.check("fetching", Cause.SOURCE)
    assert caught.value.cause is Cause.SOURCE
