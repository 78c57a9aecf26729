# SPDX-License-Identifier: GPL-2.0-only
"""A guest that goes away under the user's terminal is lost, whatever paramiko calls it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import paramiko
import pytest

from harness.errors import LostGuest
from harness.remote import terminal
from harness.remote.guest import Guest

TROUBLE = (paramiko.SSHException("Channel closed."), EOFError(), OSError("Socket is closed"))


class FakeChannel:
    """A channel that is readable from the start, and on which *error* is all that happens."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error
        self._here, self._there = socket.socketpair()
        self._there.sendall(b"x")

    def fileno(self) -> int:
        return self._here.fileno()

    def recv(self, size: int) -> bytes:
        if self._error is not None:
            raise self._error
        # Never to be read: the keys come first, and they fail.
        return self._here.recv(size)

    def sendall(self, keys: bytes) -> None:
        raise OSError("Socket is closed")

    def get_pty(self, kind: str, width: int, height: int) -> None:
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self._here.close()
        self._there.close()


class FakeTransport:
    def __init__(self, channel: FakeChannel | None, error: Exception | None = None) -> None:
        self._channel = channel
        self._error = error
        self.timeout: float | None = None

    def open_session(self, timeout: float | None = None) -> FakeChannel | None:
        self.timeout = timeout
        if self._error is not None:
            raise self._error
        return self._channel


@pytest.fixture
def keys() -> Iterator[int]:
    """A standard input with a key in it."""
    reader, writer = os.pipe()
    os.write(writer, b"k")
    yield reader
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("error", TROUBLE, ids=lambda error: type(error).__name__)
def test_no_terminal_is_a_lost_guest(error: Exception) -> None:
    """Whether it opens no session, which is not waited for for ever, or gives no terminal."""
    channel = FakeChannel(error)
    for transport in (FakeTransport(None, error), FakeTransport(channel)):
        guest = Guest(transport, lambda: None)  # type: ignore[arg-type]
        with pytest.raises(LostGuest, match="the guest gave no terminal: "):
            guest.terminal("vt100", 80, 25)
        assert transport.timeout is not None
    channel.close()


@pytest.mark.parametrize("error", [*TROUBLE, None], ids=lambda error: type(error).__name__)
def test_a_guest_that_goes_away_meanwhile(
    error: Exception | None, keys: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """While its output is read, or while keys are sent."""
    channel = FakeChannel(error)
    with pytest.raises(LostGuest, match="the guest went away under the shell: "):
        terminal._pump(channel, keys)  # type: ignore[arg-type]
    channel.close()
