# SPDX-License-Identifier: GPL-2.0-only
"""Child processes end with us, in groups, within a deadline."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from harness import process
from harness.deadline import Deadline
from harness.errors import InfraError


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


def test_a_missing_program_is_one_sentence() -> None:
    """What cannot be started is an infrastructure error, not a traceback."""
    done = process.run(["/no/such/program"])
    assert done.status == 127 or not done.ok


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


def test_child_dies_with_a_killed_parent() -> None:
    """kill -9 of the harness leaves no child behind."""
    code = (
        "from harness import process\n"
        "with process.spawn(['sleep', '600']) as child:\n"
        "    print(child.pid, flush=True)\n"
        "    child.wait(process.Deadline.after(600))\n"
    )
    import subprocess

    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    assert _gone(pid)
