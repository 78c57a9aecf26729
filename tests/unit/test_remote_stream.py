# SPDX-License-Identifier: GPL-2.0-only
"""Reading the output of a command in the guest up to a deadline."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from harness.base.deadline import Deadline
from harness.remote.guest import Stream


@pytest.fixture
def ends() -> Iterator[tuple[Any, socket.socket]]:
    """The host's and the guest's end of a channel."""
    here, there = socket.socketpair()
    with here, there:
        yield here, there


def test_what_came_before_the_deadline_counts(ends: tuple[Any, socket.socket]) -> None:
    """If this process was stopped meanwhile, the guest was in time all the same."""
    channel, guest = ends
    limit = Deadline.after(0.1)
    guest.sendall(b"one\ntwo\n")
    guest.shutdown(socket.SHUT_WR)
    time.sleep(0.3)
    assert list(Stream(channel, "x", lambda: None).lines(limit)) == ["one", "two"]


def test_a_command_that_prints_without_end_is_over(ends: tuple[Any, socket.socket]) -> None:
    """Output that comes later does not extend the deadline."""
    channel, guest = ends
    ended = threading.Event()

    def prints() -> None:
        while not ended.wait(0.01):
            guest.sendall(b"more\n")

    thread = threading.Thread(target=prints)
    thread.start()
    stop = threading.Timer(20, ended.set)
    stop.start()
    try:
        with pytest.raises(TimeoutError):
            list(Stream(channel, "x", lambda: None).lines(Deadline.after(0.1)))
        assert not ended.is_set()
    finally:
        stop.cancel()
        ended.set()
        thread.join()
