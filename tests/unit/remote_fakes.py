# SPDX-License-Identifier: GPL-2.0-only
"""A scripted SSH channel."""

from __future__ import annotations

import dataclasses
import socket
from typing import Any

from harness.remote.guest import Guest


@dataclasses.dataclass
class FakeChannel:
    """A channel that sends *out* and *err*, reads its input until it ends and reports *status*."""

    out: bytes = b""
    err: bytes = b""
    status: int = 0
    error: Exception | None = None
    """Raised by every call."""
    window: int = 1 << 20
    """How much input it takes before its output has been read."""
    echoes: bool = False
    """Whether it sends its input back."""

    def __post_init__(self) -> None:
        self.pty: tuple[str, int, int] | None = None
        self.command = ""
        self.sent = b""
        self.ended = False
        self.closed = False
        self._here, self._there = socket.socketpair()
        # Readable at all times: whoever waits for it looks again.
        self._there.sendall(b"x")

    def _trouble(self) -> None:
        if self.error is not None:
            raise self.error

    def fileno(self) -> int:
        return self._here.fileno()

    def get_pty(self, kind: str, width: int, height: int) -> None:
        self._trouble()
        self.pty = kind, width, height

    def exec_command(self, command: str) -> None:
        self._trouble()
        self.command = command

    @property
    def eof_received(self) -> bool:
        return self.ended

    def recv_ready(self) -> bool:
        return bool(self.out) or self.error is not None

    def recv(self, size: int) -> bytes:
        self._trouble()
        # Small pieces, as they come over a network.
        data, self.out = self.out[: min(size, 1000)], self.out[min(size, 1000) :]
        return data

    def recv_stderr_ready(self) -> bool:
        return bool(self.err)

    def recv_stderr(self, size: int) -> bytes:
        data, self.err = self.err[:size], self.err[size:]
        return data

    def send_ready(self) -> bool:
        return len(self.out) < self.window

    def send(self, data: bytes) -> int:
        self._trouble()
        taken = data[: min(700, self.window)]
        self.sent += taken
        if self.echoes:
            self.out += taken
        return len(taken)

    def shutdown_write(self) -> None:
        self.ended = True

    def recv_exit_status(self) -> int:
        return self.status

    def close(self) -> None:
        self._here.close()
        self._there.close()


@dataclasses.dataclass
class FakeTransport:
    """A connection that opens *channel*, or raises *error*."""

    channel: FakeChannel | None
    error: Exception | None = None
    active: bool = True
    timeout: float | None = None

    def open_session(self, timeout: float | None = None) -> FakeChannel | None:
        self.timeout = timeout
        if self.error is not None:
            raise self.error
        return self.channel

    def is_active(self) -> bool:
        return self.active


def guest_with(channel: FakeChannel, *, active: bool = True) -> Guest:
    """Return a Guest whose next session is *channel*; *active*: whether the connection outlives it."""
    transport: Any = FakeTransport(channel, active=active)
    return Guest(transport, lambda: None)
