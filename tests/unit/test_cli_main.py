# SPDX-License-Identifier: GPL-2.0-only
"""How the command line ends on SIGTERM and Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from harness.base import process
from harness.base.deadline import Deadline
from harness.base.errors import ExitCode
from harness.cli import main


@pytest.fixture
def terminated() -> Iterator[None]:
    """Send SIGTERM to this process."""
    before = signal.signal(signal.SIGTERM, main._terminate)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("terminated")
def test_children_of_the_orderly_end_can_be_stopped() -> None:
    """Children do not inherit that SIGTERM is ignored."""
    signal.raise_signal(signal.SIGTERM)
    with process.spawn(["sleep", "60"]) as child:
        time.sleep(0.3)
        child.stop(Deadline.after(30))
        assert child.status == -signal.SIGTERM


VERB = """\
import signal, time
from harness.cli import main
# Who starts the tests in the background of a shell has SIGINT ignored in all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

def app(**_):
    try:
        print("at work", flush=True)
        time.sleep(60)
    finally:
        print("ending", flush=True)
        time.sleep({})
        print("report", flush=True)

main.main(app)
"""


@pytest.mark.parametrize(
    ("second", "seconds", "said"), [(signal.SIGTERM, 0.5, "report\n"), (signal.SIGINT, 60, "")]
)
def test_only_a_person_ends_the_orderly_end(second: signal.Signals, seconds: float, said: str) -> None:
    """A second SIGTERM does not interrupt the report; a Ctrl-C does."""
    with subprocess.Popen(
        [sys.executable, "-c", VERB.format(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "at work\n"
        child.send_signal(signal.SIGTERM)
        assert child.stdout.readline() == "ending\n"
        child.send_signal(second)
        assert child.stdout.read() == said
    assert child.returncode == ExitCode.INTERRUPTED


AT_EXIT = """\
import atexit, signal, sys, threading, time
from harness.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)

def app(**_):
    atexit.register(time.sleep, 60)
    threading.Thread(target=time.sleep, args=(60,)).start()
    print("ready", flush=True)
    time.sleep(60)

main.main(app)
"""


def test_an_interrupted_verb_waits_for_nothing_at_exit() -> None:
    """Not for threads of libraries or for what they do at exit; nor does another Ctrl-C print a traceback."""
    with subprocess.Popen([sys.executable, "-c", AT_EXIT], stdout=-1, stderr=-1, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        assert child.stderr is not None
        assert child.stderr.readline() == "error: interrupted\n"
        child.send_signal(signal.SIGINT)
        assert child.stderr.read() == ""
    assert child.returncode == ExitCode.INTERRUPTED
