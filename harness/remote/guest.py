# SPDX-License-Identifier: GPL-2.0-only
"""Guest: run, stream, push and pull over one SSH connection.

The endpoint's host key is pinned, so a stale VM on a reused port can never answer for the one we booted.
Exit statuses travel out of band, in the SSH channel; the console is never parsed for a verdict.
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
from types import TracebackType
from typing import Self

import paramiko

from harness.deadline import Deadline
from harness.errors import LostGuest

_RETRY_SECONDS = 0.02
_CHECK_SECONDS = 1.0
_TERMINAL_SECONDS = 60.0
"""For a guest to open a terminal, emulated and on a busy host."""
_CHUNK = 65536
# Without a handler logging would print paramiko's retries to stderr.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

_LOST = (paramiko.SSHException, EOFError, OSError)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a guest's SSH server listens and how both sides prove who they are."""

    host: str
    port: int
    user: str
    client_key: Path
    """Private key file, OpenSSH format, ed25519."""
    host_key: str
    """The server's public key in one OpenSSH line: `ssh-ed25519 AAAA...`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A command that ended in the guest; status 128+N when signal N killed it, as the shell reports it."""

    command: str
    status: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        return self.status == 0


@contextlib.contextmanager
def losing_guest(what: str) -> Iterator[None]:
    """Turn what paramiko and the network raise into a LostGuest that says *what* came of it."""
    try:
        yield
    except _LOST as error:
        raise LostGuest(f"{what}: {str(error) or type(error).__name__}") from error


def _shortened(command: str) -> str:
    """The beginning of a command, for messages: some are whole scripts."""
    first = command.split("\n", 1)[0]
    return first if len(first) <= 80 and first == command else f"{first[:76]} ..."


def _command_line(command: str | Sequence[str]) -> str:
    return command if isinstance(command, str) else shlex.join(command)


class Stream:
    """A command that runs in the guest while we talk to it, a line at a time."""

    def __init__(self, channel: paramiko.Channel, command: str, check: Callable[[], None]) -> None:
        self._channel = channel
        self._command = command
        self._check = check
        self._pending = b""

    def send(self, line: str) -> None:
        """Write one line to its standard input; raises LostGuest when the guest is gone."""
        try:
            self._channel.sendall(f"{line}\n".encode())
        except _LOST as error:
            raise LostGuest(f"the guest closed {_shortened(self._command)!r}") from error

    def lines(self, deadline: Deadline) -> Iterator[str]:
        """Its output line by line until it ends.

        Raises TimeoutError at *deadline* and LostGuest when the connection breaks.
        """
        while True:
            head, newline, rest = self._pending.partition(b"\n")
            if newline:
                self._pending = rest
                yield head.decode(errors="replace").rstrip("\r")
                continue
            chunk = self._receive(deadline)
            if not chunk:
                if head:
                    self._pending = b""
                    yield head.decode(errors="replace")
                return
            self._pending += chunk

    def _receive(self, deadline: Deadline) -> bytes:
        while not deadline.expired:
            self._channel.settimeout(min(deadline.remaining, _CHECK_SECONDS))
            try:
                return self._channel.recv(_CHUNK)
            except TimeoutError:
                self._check()
            except _LOST as error:
                raise LostGuest(f"the connection broke during {_shortened(self._command)!r}") from error
        raise TimeoutError(f"{_shortened(self._command)} is not done")

    def status(self, deadline: Deadline) -> int:
        """Wait for its exit status; LostGuest when none comes (the connection broke first)."""
        if not self._channel.status_event.wait(deadline.remaining):
            raise TimeoutError(f"{_shortened(self._command)} is not done")
        status = self._channel.recv_exit_status()
        if status < 0:
            raise LostGuest(f"{_shortened(self._command)!r} ended without an exit status")
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
        """Connect, retrying the whole handshake until *deadline* while *alive* says the VM runs.

        While the guest is silent, *check* is called every _CHECK_SECONDS; it may raise LostGuest.
        slirp accepts before the guest listens, so an accepted TCP connection means nothing; only a finished
        handshake with the pinned host key counts.  Raises LostGuest.
        """
        key = paramiko.Ed25519Key.from_private_key_file(str(endpoint.client_key))
        last: Exception | None = None
        while not deadline.expired:
            if not alive():
                raise LostGuest("the VM ended before its SSH server answered")
            try:
                return cls(_handshake(endpoint, key, deadline), check)
            except paramiko.BadHostKeyException as error:
                raise LostGuest(f"port {endpoint.port} is answered by another machine") from error
            except _LOST as error:
                last = error
                time.sleep(_RETRY_SECONDS)
        raise LostGuest(f"no SSH answer from the guest in time (last: {last or 'nothing'})")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    def _open(self, command: str, deadline: Deadline) -> paramiko.Channel:
        try:
            channel = self._transport.open_session(timeout=max(1.0, deadline.remaining))
            channel.settimeout(max(1.0, deadline.remaining))
            channel.exec_command(command)
        except _LOST as error:
            raise LostGuest(f"the guest refused {_shortened(command)!r}: {error}") from error
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
        patience = max(1.0, deadline.remaining)
        try:
            channel = self._transport.open_channel("direct-tcpip", *ends, timeout=patience)
        except paramiko.ChannelException as error:
            raise LostGuest(f"nothing answers on port {port} in the guest") from error
        except _LOST as error:
            raise LostGuest(f"the guest refused a connection to port {port}: {error}") from error
        return Stream(channel, f"port {port}", self._check)

    def run(self, command: str | Sequence[str], deadline: Deadline, *, stdin: bytes = b"") -> Completed:
        """Run *command* to its end.  Raises TimeoutError at *deadline*, LostGuest when the guest is gone."""
        line = _command_line(command)
        channel = self._open(line, deadline)
        with contextlib.closing(channel):
            stream = Stream(channel, line, self._check)
            if stdin:
                try:
                    channel.sendall(stdin)
                except _LOST as error:
                    raise LostGuest(f"the guest closed {line!r}") from error
            channel.shutdown_write()
            out = bytearray()
            while chunk := stream._receive(deadline):
                out += chunk
            err = bytearray()
            while chunk := channel.recv_stderr(_CHUNK):
                err += chunk
            status = stream.status(deadline)
        return Completed(
            command=line,
            status=status,
            stdout=out.decode(errors="replace"),
            stderr=err.decode(errors="replace"),
        )

    def check(self, command: str | Sequence[str], deadline: Deadline) -> str:
        """Run *command* and return its stdout; LostGuest with its last line when it fails.

        For what the harness itself needs from the guest; never for a case.
        """
        try:
            done = self.run(command, deadline)
        except TimeoutError as error:
            raise LostGuest(f"the guest did not answer in time: {error}") from error
        if not done.ok:
            lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
            detail = lines[-1] if lines else "no output"
            raise LostGuest(f"{done.command} exited with {done.status} in the guest: {detail}")
        return done.stdout

    def push(self, source: Path, target: str, deadline: Deadline) -> None:
        """Copy the file or directory *source* to the path *target* in the guest, with modes."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(source, arcname=Path(target).name, filter=_no_bytecode)
        parent = shlex.quote(str(Path(target).parent))
        unpack = f"mkdir -p {parent} && tar -xf - -C {parent}"
        try:
            done = self.run(unpack, deadline, stdin=archive.getvalue())
        except TimeoutError as error:
            raise LostGuest(f"copying {source.name} into the guest took too long") from error
        if not done.ok:
            raise LostGuest(f"cannot copy {source.name} into the guest: {done.stderr.strip()}")

    def terminal(self, kind: str, width: int, height: int, command: str | None = None) -> paramiko.Channel:
        """An interactive channel with a terminal of *width* x *height* characters: a shell, or *command*.

        Raises LostGuest.
        """
        with losing_guest("the guest gave no terminal"):
            channel = self._transport.open_session(timeout=_TERMINAL_SECONDS)
            channel.get_pty(kind, width, height)
            if command is None:
                channel.invoke_shell()
            else:
                channel.exec_command(command)
        return channel


def _no_bytecode(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    member.uid = member.gid = 0
    return None if "__pycache__" in member.name else member


def _handshake(endpoint: Endpoint, key: paramiko.PKey, deadline: Deadline) -> paramiko.Transport:
    sock = socket.create_connection((endpoint.host, endpoint.port), timeout=max(0.1, deadline.remaining))
    transport = paramiko.Transport(sock)
    transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = max(
        1.0, deadline.remaining
    )
    try:
        transport.start_client(timeout=max(1.0, deadline.remaining))
        server = transport.get_remote_server_key()
        if f"{server.get_name()} {server.get_base64()}" != " ".join(endpoint.host_key.split()[:2]):
            raise paramiko.BadHostKeyException(endpoint.host, server, server)
        transport.auth_publickey(endpoint.user, key)
    except BaseException:
        transport.close()
        raise
    return transport
