# SPDX-License-Identifier: GPL-2.0-only
"""How the command line ends when it is told to."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from harness import process
from harness.cli import main
from harness.deadline import Deadline
from harness.errors import ExitCode


@pytest.fixture
def terminated() -> Iterator[None]:
    """A process that was just told to end."""
    before = signal.signal(signal.SIGTERM, main._terminate)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("terminated")
def test_children_of_the_orderly_end_can_be_stopped() -> None:
    """What is deaf to SIGTERM is so by itself: nobody whom it starts."""
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

main.app = app
main.main()
"""


@pytest.mark.parametrize(
    ("second", "seconds", "said"), [(signal.SIGTERM, 0.5, "report\n"), (signal.SIGINT, 60, "")]
)
def test_only_a_person_ends_the_orderly_end(second: signal.Signals, seconds: float, said: str) -> None:
    """SIGTERM comes twice to who is in a group, and the report is written; a second Ctrl-C is meant."""
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
