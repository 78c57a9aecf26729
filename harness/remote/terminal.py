# SPDX-License-Identifier: GPL-2.0-only
"""Connects the user's terminal to a shell in the guest."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Iterator

import paramiko

from harness.errors import LostGuest
from harness.remote.guest import Guest, losing_guest

_CHUNK = 4096
_GONE = "the guest went away under the shell"


@contextlib.contextmanager
def _raw(fd: int) -> Iterator[None]:
    """Hand every key to the guest, Ctrl-C included, and put the terminal back afterwards."""
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _following_size(channel: paramiko.Channel) -> Iterator[None]:
    """Tell the guest whenever the window changes its size."""

    def resized(number: int, frame: object) -> None:
        size = shutil.get_terminal_size()
        # A guest that is gone is told of where its output is read.
        with contextlib.suppress(paramiko.SSHException, OSError):
            channel.resize_pty(size.columns, size.lines)

    before = signal.signal(signal.SIGWINCH, resized)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


def interact(guest: Guest, command: str | None = None) -> int:
    """Run *command*, or a login shell, on the user's terminal; return its exit status.

    Without a terminal on standard input the input is sent as it is and its end ends the shell.
    """
    size = shutil.get_terminal_size()
    channel = guest.terminal(os.environ.get("TERM", "vt100"), size.columns, size.lines, command)
    fd = sys.stdin.fileno()
    with contextlib.closing(channel):
        if os.isatty(fd):
            with _raw(fd), _following_size(channel):
                _pump(channel, fd)
        else:
            _pump(channel, fd)
        status = channel.recv_exit_status()
    if status < 0:
        raise LostGuest(_GONE)
    return status


def _pump(channel: paramiko.Channel, fd: int) -> None:
    inputs: list[paramiko.Channel | int] = [channel, fd]
    while True:
        ready, _, _ = select.select(inputs, [], [])
        if channel in ready:
            with losing_guest(_GONE):
                data = channel.recv(_CHUNK)
            if not data:
                return
            os.write(sys.stdout.fileno(), data)
        if fd in ready:
            keys = os.read(fd, _CHUNK)
            if keys:
                _send(channel, keys)
            else:
                inputs.remove(fd)
                # A terminal channel has no half-close that a shell would notice: send its end-of-file key.
                _send(channel, b"\x04")


def _send(channel: paramiko.Channel, keys: bytes) -> None:
    with losing_guest(_GONE):
        channel.sendall(keys)
