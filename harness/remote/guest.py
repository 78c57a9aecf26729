# SPDX-License-Identifier: GPL-2.0-only
"""Guest: run commands, stream their output and copy files over one SSH connection.

The endpoint's host key is pinned: another VM on a reused port cannot answer for the one we booted.
Exit statuses travel in the SSH channel; no verdict is read from the console.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import shlex
import socket
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import paramiko

from harness.base.cause import Cause
from harness.base.deadline import Deadline
from harness.base.endpoint import Endpoint
from harness.base.errors import LostGuest

_RETRY_SECONDS = 0.02
_CHECK_SECONDS = 1.0
_LAST_SECONDS = 0.5
"""How long output that came before a deadline may take to be read after it."""
_TERMINAL_SECONDS = 60.0
"""Timeout for opening a terminal: the guest may be emulated on a busy host."""
_CHUNK = 65536
# Without a handler logging would print paramiko's retries to stderr.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

_LOST = (paramiko.SSHException, EOFError, OSError)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pty:
    """A terminal to be made in the guest."""

    kind: str
    """TERM, such as xterm."""
    width: int
    height: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """A command that ended in the guest; status 128+N when signal N killed it, as the shell reports it."""

    command: str
    status: int
    stdout: str
    stderr: str


@contextlib.contextmanager
def losing_guest(what: str) -> Iterator[None]:
    """Turn errors of paramiko and the network into a LostGuest with the message *what*."""
    try:
        yield
    except _LOST as error:
        raise LostGuest(f"{what}: {str(error) or type(error).__name__}", cause=Cause.NO_ANSWER) from error


def _shortened(command: str) -> str:
    """Return the first 80 characters of a command for messages: some commands are whole scripts."""
    first = command.split("\n", 1)[0]
    return first if len(first) <= 80 and first == command else f"{first[:76]} ..."


def _command_line(command: str | Sequence[str]) -> str:
    return command if isinstance(command, str) else shlex.join(command)


class Stream:
    """A running command in the guest, read and written line by line."""

    def __init__(self, channel: paramiko.Channel, command: str, check: Callable[[], None]) -> None:
        self._channel = channel
        self._name = _shortened(command)
        self._check = check
        self._pending = b""
        self._last: tuple[Deadline, Deadline] | None = None
        """A deadline that was found expired, and how long what came before is still read."""

    def send(self, line: str) -> None:
        """Write one line to its standard input; raises LostGuest when the guest is gone."""
        self.write(f"{line}\n".encode())

    def write(self, data: bytes) -> None:
        """Write to its standard input; raises LostGuest when the guest is gone."""
        with losing_guest(f"the guest closed {self._name!r}"):
            self._channel.sendall(data)

    def lines(self, deadline: Deadline) -> Iterator[str]:
        """Yield its output line by line until it ends.

        Raises TimeoutError at *deadline* and LostGuest when the connection breaks.
        """
        while True:
            head, newline, rest = self._pending.partition(b"\n")
            if newline:
                self._pending = rest
                yield head.decode(errors="replace").rstrip("\r")
                continue
            chunk = self.read(deadline)
            if not chunk:
                if head:
                    self._pending = b""
                    yield head.decode(errors="replace")
                return
            self._pending += chunk

    def read(self, deadline: Deadline) -> bytes:
        """Return the next piece of its output, empty at its end; raises as lines() does."""
        while not self._is_over(deadline):
            self._channel.settimeout(min(max(deadline.remaining, _LAST_SECONDS), _CHECK_SECONDS))
            try:
                return self._channel.recv(_CHUNK)
            except TimeoutError:
                self._check()
            except _LOST as error:
                message = f"the connection broke during {self._name!r}"
                raise LostGuest(message, cause=Cause.NO_ANSWER) from error
        raise TimeoutError(f"{self._name} is not done")

    def _is_over(self, deadline: Deadline) -> bool:
        """Whether *deadline* is over, and what had come before it was read.

        This process may have been stopped (SIGSTOP, Ctrl-Z) or without a CPU while the guest went on.
        """
        if not deadline.expired:
            return False
        if self._last is None or self._last[0] is not deadline:
            self._last = deadline, Deadline.after(_LAST_SECONDS)
        return self._last[1].expired

    def status(self, deadline: Deadline) -> int:
        """Wait for its exit status; raises TimeoutError, or LostGuest when the connection broke first."""
        if not self._channel.status_event.wait(max(deadline.remaining, _LAST_SECONDS)):
            raise TimeoutError(f"{self._name} is not done")
        status = self._channel.recv_exit_status()
        if status < 0:
            message = f"{self._name!r} ended without an exit status"
            raise LostGuest(message, cause=Cause.NO_ANSWER)
        return status

    def close(self) -> None:
        self._channel.close()


class Guest:
    """One authenticated SSH connection to a running guest."""

    def __init__(self, transport: paramiko.Transport, check: Callable[[], None]) -> None:
        self._transport = transport
        self._check = check

    @classmethod
    def connect(
        cls,
        endpoint: Endpoint,
        deadline: Deadline,
        alive: Callable[[], bool],
        check: Callable[[], None] = lambda: None,
    ) -> Self:
        """Connect, retrying the whole handshake until *deadline* while *alive* returns True.

        While the guest sends nothing, *check* is called every _CHECK_SECONDS; it may raise LostGuest.
        slirp accepts TCP connections before the guest listens, so only a finished handshake with the pinned
        host key counts.  Raises LostGuest.
        """
        key = paramiko.Ed25519Key.from_private_key_file(str(endpoint.client_key))
        last: Exception | None = None
        while not deadline.expired:
            if not alive():
                raise LostGuest("the VM ended before its SSH server answered", cause=Cause.NO_SSH)
            try:
                return cls(_handshake(endpoint, key, deadline), check)
            except paramiko.BadHostKeyException as error:
                message = f"another machine answers on port {endpoint.port} (host key mismatch)"
                raise LostGuest(message, cause=Cause.WRONG_GUEST) from error
            except _LOST as error:
                last = error
                time.sleep(_RETRY_SECONDS)
        message = f"no SSH answer from the guest in time (last error: {last or 'none'})"
        raise LostGuest(message, cause=Cause.NO_SSH)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    def _open(self, command: str, deadline: Deadline) -> paramiko.Channel:
        with losing_guest(f"the guest refused {_shortened(command)!r}"):
            channel = self._transport.open_session(timeout=max(1.0, deadline.remaining))
            channel.settimeout(max(1.0, deadline.remaining))
            channel.exec_command(command)
        return channel

    def stream(self, command: str | Sequence[str], deadline: Deadline) -> Stream:
        """Start *command* and return its Stream; stderr is merged into stdout."""
        line = _command_line(command)
        channel = self._open(line, deadline)
        channel.set_combine_stderr(True)
        return Stream(channel, line, self._check)

    def dial(self, port: int, deadline: Deadline) -> Stream:
        """Connect to *port* on the guest's loopback; the Stream has no exit status.  Raises LostGuest."""
        ends = ("127.0.0.1", port), ("127.0.0.1", 0)
        with losing_guest(f"the guest refused a connection to its port {port}"):
            channel = self._transport.open_channel(
                "direct-tcpip", *ends, timeout=max(1.0, deadline.remaining)
            )
        return Stream(channel, f"port {port}", self._check)

    def run(self, command: str | Sequence[str], deadline: Deadline, *, stdin: bytes = b"") -> CommandResult:
        """Run *command* to its end.  Raises TimeoutError at *deadline*, LostGuest when the guest is gone."""
        line = _command_line(command)
        channel = self._open(line, deadline)
        with contextlib.closing(channel):
            stream = Stream(channel, line, self._check)
            if stdin:
                stream.write(stdin)
            channel.shutdown_write()
            out = b"".join(iter(lambda: stream.read(deadline), b""))
            err = b"".join(iter(lambda: channel.recv_stderr(_CHUNK), b""))
            return CommandResult(
                command=line,
                status=stream.status(deadline),
                stdout=out.decode(errors="replace"),
                stderr=err.decode(errors="replace"),
            )

    def check(self, command: str | Sequence[str], deadline: Deadline, *, stdin: bytes = b"") -> str:
        """Run *command* and return its stdout; raises LostGuest with its last line when it fails.

        For the harness's own commands, never for a case.
        """
        try:
            done = self.run(command, deadline, stdin=stdin)
        except TimeoutError as error:
            raise LostGuest(f"the guest did not answer in time: {error}", cause=Cause.TIMED_OUT) from error
        if done.status != 0:
            lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
            detail = lines[-1] if lines else "no output"
            message = f"{_shortened(done.command)} exited with {done.status} in the guest: {detail}"
            raise LostGuest(message, cause=Cause.NO_ANSWER)
        return done.stdout

    def push(self, source: Path, target: str, deadline: Deadline) -> None:
        """Copy the file or directory *source* to the path *target* in the guest, with modes.

        Raises LostGuest.
        """
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(source, arcname=Path(target).name, filter=_no_bytecode)
        parent = shlex.quote(str(Path(target).parent))
        self.check(f"mkdir -p {parent} && tar -xf - -C {parent}", deadline, stdin=archive.getvalue())

    @property
    def connected(self) -> bool:
        return self._transport.is_active()

    def session(self, command: str, pty: Pty | None = None) -> paramiko.Channel:
        """Start *command*, on a terminal in the guest if there is a *pty*.  Raises LostGuest."""
        with losing_guest(f"the guest gave no {'terminal' if pty is not None else 'session'}"):
            channel = self._transport.open_session(timeout=_TERMINAL_SECONDS)
            if pty is not None:
                channel.get_pty(pty.kind, pty.width, pty.height)
            channel.exec_command(command)
        return channel


def _no_bytecode(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    member.uid = member.gid = 0
    return None if "__pycache__" in member.name else member


def _handshake(endpoint: Endpoint, key: paramiko.PKey, deadline: Deadline) -> paramiko.Transport:
    patience = max(1.0, deadline.remaining)
    transport = paramiko.Transport(socket.create_connection((endpoint.host, endpoint.port), timeout=patience))
    transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = patience
    try:
        transport.start_client(timeout=patience)
        server = transport.get_remote_server_key()
        if f"{server.get_name()} {server.get_base64()}" != " ".join(endpoint.host_key.split()[:2]):
            raise paramiko.BadHostKeyException(endpoint.host, server, server)
        transport.auth_publickey(endpoint.user, key)
    except BaseException:
        transport.close()
        raise
    return transport
