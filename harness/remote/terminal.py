# SPDX-License-Identifier: GPL-2.0-only
"""Connect the user's standard streams to a shell or a command in the guest.

A terminal in the guest is made only for a user at a terminal: it would echo input and turn line ends, and
piped data must arrive as they were sent.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import sys
import termios
import tty
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

import paramiko

from harness.base.cause import Cause
from harness.base.errors import HostError, InfraError, LostGuest, UsageError
from harness.remote.guest import Guest, Pty, losing_guest

_CHUNK = 16384
_FULL_SECONDS = 0.01
"""How often to try again while the guest takes no more input."""

_GONE = "the connection to the guest broke"
_CLOSED_PIPE = 128 + signal.SIGPIPE

# Without exec, so that the shell reports the signal that ends its child as 128 + N; the SSH server would
# report no status.  Ctrl-C goes to the child only.
_WRAPPER = "trap : INT QUIT; {}; exit $?"
_LOGIN = '"${SHELL:-/bin/sh}" -l'


def interact(guest: Guest, words: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> int:
    """Run the command *words*, or a login shell, on the user's standard streams; return its exit status.

    *environment* is added to the guest's.
    The status is 128 + N when signal N ended it.  Raises LostGuest, HostError when its output cannot be
    written, and UsageError as refuse_background().
    """
    refuse_background(words)
    stdin, stdout, stderr = (_number(stream) for stream in (sys.stdin, sys.stdout, sys.stderr))
    if _in_background(stdin):
        # Reading would stop this process, and the VM with it.
        stdin = None
    at_terminal = stdin is not None and stdout is not None and os.isatty(stdin) and os.isatty(stdout)
    added = [f"{name}={value}" for name, value in (environment or {}).items()]
    line = shlex.join(
        [
            *(["env", *added] if added else []),
            "sh",
            "-c",
            _WRAPPER.format(shlex.join(words) if words else _LOGIN),
        ]
    )
    pty = _pty(stdin) if stdin is not None and at_terminal else None
    channel = guest.session(line, pty)
    with contextlib.closing(channel):
        try:
            if stdin is not None and pty is not None:
                with _raw(stdin), _following_size(channel, stdin):
                    _pump(channel, stdin, stdout, stderr)
            else:
                _pump(channel, stdin, stdout, stderr)
        except BrokenPipeError:
            return _CLOSED_PIPE
        status = channel.recv_exit_status()
    if status >= 0:
        return status
    if guest.connected:
        raise InfraError("the shell in the guest was killed before it could report a status")
    raise LostGuest(_GONE, cause=Cause.NO_ANSWER)


def refuse_background(words: Sequence[str]) -> None:
    """Raise UsageError for a login shell, without *words*, that is in the background of its terminal."""
    if not words and _in_background(_number(sys.stdin)):
        raise UsageError(
            "a shell in the background cannot use the terminal",
            hint="start it in the foreground; timeout(1) has --foreground",
        )


def _number(stream: IO[str] | None) -> int | None:
    """Return the file descriptor of a standard stream; None when it is closed."""
    return None if stream is None else stream.fileno()


def _in_background(fd: int | None) -> bool:
    """Whether *fd* is our terminal, with another process group in the foreground."""
    if fd is not None:
        with contextlib.suppress(OSError):
            return os.tcgetpgrp(fd) != os.getpgrp()
    return False


def _pty(fd: int) -> Pty:
    size = os.get_terminal_size(fd)
    return Pty(kind=os.environ.get("TERM", "vt100"), width=size.columns, height=size.lines)


@contextlib.contextmanager
def _raw(fd: int) -> Iterator[None]:
    """Put the terminal into raw mode, so that Ctrl-C too goes to the guest, and restore it afterwards."""
    before = termios.tcgetattr(fd)
    try:
        with _unstopped():
            tty.setraw(fd)
        yield
    finally:
        # The terminal may be gone.
        with _unstopped(), contextlib.suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _unstopped() -> Iterator[None]:
    """Block SIGTTOU, which stops a background process that sets its terminal."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _following_size(channel: paramiko.Channel, fd: int) -> Iterator[None]:
    """Tell the guest when the window changes its size."""

    def resized(number: int, frame: object) -> None:
        # A lost guest is reported where its output is read.
        with contextlib.suppress(paramiko.SSHException, OSError):
            size = os.get_terminal_size(fd)
            channel.resize_pty(size.columns, size.lines)

    before = signal.signal(signal.SIGWINCH, resized)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


def _pump(channel: paramiko.Channel, stdin: int | None, stdout: int | None, stderr: int | None) -> None:
    """Copy until the guest's output ends.  Raises LostGuest, and as _write()."""
    waiting = b""
    if stdin is None:
        _end_input(channel)
    while True:
        inputs: list[paramiko.Channel | int] = [channel]
        if stdin is not None and not waiting:
            inputs.append(stdin)
        ready, _, _ = select.select(inputs, [], [], _FULL_SECONDS if waiting else None)
        if channel in ready and _copy_output(channel, stdout, stderr):
            return
        if stdin in ready and stdin is not None:
            waiting = _read(stdin)
            if not waiting:
                stdin = None
                _end_input(channel)
        # A guest that takes no input may be waiting for its output to be read.
        if waiting and channel.send_ready():
            with losing_guest(_GONE):
                waiting = waiting[channel.send(waiting) :]


def _end_input(channel: paramiko.Channel) -> None:
    # Reading the output will notice a lost guest or an ended command.
    with contextlib.suppress(paramiko.SSHException, OSError, EOFError):
        channel.shutdown_write()


def _copy_output(channel: paramiko.Channel, stdout: int | None, stderr: int | None) -> bool:
    """Write what the guest has sent; return whether its output has ended."""
    # Check for the end first, so that all output before it has arrived.
    ended = bool(channel.eof_received) or channel.closed
    with losing_guest(_GONE):
        pieces = []
        while channel.recv_ready():
            pieces.append((stdout, channel.recv(_CHUNK)))
        while channel.recv_stderr_ready():
            pieces.append((stderr, channel.recv_stderr(_CHUNK)))
    for target, data in pieces:
        _write(target, data)
    return ended


def _read(fd: int) -> bytes:
    """Return what can be read; nothing at the end, or when the terminal is gone."""
    with contextlib.suppress(OSError):
        return os.read(fd, _CHUNK)
    return b""


def _write(fd: int | None, data: bytes) -> None:
    """Write all of *data*.  Raises BrokenPipeError, and HostError for a full disk and the like."""
    try:
        while data and fd is not None:
            data = data[os.write(fd, data) :]
    except BrokenPipeError:
        raise
    except OSError as error:
        raise HostError(f"cannot write what the guest printed: {error.strerror}") from error
