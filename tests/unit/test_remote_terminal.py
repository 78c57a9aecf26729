# SPDX-License-Identifier: GPL-2.0-only
"""The user's standard streams and a guest, with a channel in place of SSH."""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pytest
from remote_fakes import FakeChannel, FakeTransport, guest_with

from harness.base.errors import HostError, InfraError, LostGuest
from harness.remote import terminal
from harness.remote.guest import Guest, Pty
from harness.remote.terminal import interact

TROUBLE = (paramiko.SSHException("Channel closed."), EOFError(), OSError("Socket is closed"))
PTY = Pty(kind="vt100", width=80, height=25)
BLOB = bytes(range(256)) * 100 + b"\r\n\x04\x03end"


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    """A standard input that is a file; call it to set what the file holds."""
    with tempfile.TemporaryFile() as file:
        monkeypatch.setattr(sys, "stdin", file)

        def hold(data: bytes) -> None:
            file.write(data)
            file.seek(0)

        yield hold


@pytest.mark.parametrize("wanted", [PTY, None])
@pytest.mark.parametrize("error", TROUBLE, ids=lambda error: type(error).__name__)
def test_no_session_is_a_lost_guest(error: Exception, wanted: Pty | None) -> None:
    """A session that is not opened within a timeout, or that has no terminal, is a LostGuest."""
    channel = FakeChannel(error=error)
    for transport in (FakeTransport(None, error), FakeTransport(channel)):
        guest = Guest(transport, lambda: None)  # type: ignore[arg-type]
        with pytest.raises(LostGuest, match=r"the guest gave no (terminal|session): "):
            guest.session("true", wanted)
        assert transport.timeout is not None
    channel.close()


@pytest.mark.parametrize("error", TROUBLE, ids=lambda error: type(error).__name__)
def test_a_guest_that_goes_away_meanwhile(
    error: Exception, stdin: Callable[[bytes], None], capfd: pytest.CaptureFixture[str]
) -> None:
    """A broken connection is a LostGuest while output is read and while keys are sent."""
    stdin(b"k")
    read, written = FakeChannel(), FakeChannel()
    for channel, silent in ((read, False), (written, True)):
        guest = guest_with(channel)
        channel.exec_command = lambda command, channel=channel: setattr(channel, "error", error)  # type: ignore[method-assign,misc]
        if silent:
            channel.recv_ready = lambda: False  # type: ignore[method-assign]
        with pytest.raises(LostGuest, match="the connection to the guest broke: "):
            interact(guest)


def test_piped_data_are_clean_both_ways(
    stdin: Callable[[bytes], None], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """No terminal is made; every byte arrives, output and errors apart, and the end of input is passed on."""
    stdin(BLOB)
    channel = FakeChannel(out=BLOB, err=b"trouble\n", status=7)
    assert interact(guest_with(channel), ["cat"]) == 7
    assert channel.pty is None
    assert channel.sent == BLOB
    assert capfdbinary.readouterr() == (BLOB, b"trouble\n")


def test_input_and_output_that_wait_for_each_other(
    stdin: Callable[[bytes], None], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """A command that takes no input before its output is read, as cat, gets all of it."""
    stdin(BLOB)
    channel = FakeChannel(window=5, echoes=True)
    assert interact(guest_with(channel), ["cat"]) == 0
    assert capfdbinary.readouterr().out == BLOB


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_a_stream_that_is_closed(
    stream: str, monkeypatch: pytest.MonkeyPatch, stdin: Callable[[bytes], None]
) -> None:
    """`shell -- id <&-`: no input, or no place for output, is no error."""
    monkeypatch.setattr(sys, stream, None)
    channel = FakeChannel(out=b"x", err=b"y")
    assert interact(guest_with(channel), ["id"]) == 0
    assert channel.ended


def test_a_reader_that_stops_reading(stdin: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """`shell -- cat FILE | head`: as a shell reports SIGPIPE, and nobody waits for the rest."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb", buffering=0) as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        assert interact(guest_with(FakeChannel(out=b"x" * 5000)), ["yes"]) == 128 + 13


def test_a_disk_that_is_full(stdin: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """`shell -- cat FILE >copy`: one sentence, and not a bug of the harness."""
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(HostError, match="cannot write what the guest printed: No space left on device"):
            interact(guest_with(FakeChannel(out=b"x")), ["yes"])


def run_here(command: str) -> subprocess.CompletedProcess[str]:
    """Run what the guest's SSH server would run."""
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, stdin=-3)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("printf", "%s|", "a  b", "$$", "'x'", ";", "*"), 0, "a  b|$$|'x'|;|*|"),
        (("sh", "-c", "exit 7"), 7, ""),
        (("sh", "-c", "kill -9 $$"), 137, ""),
        (("sh", "-c", "kill -TERM $$"), 143, ""),
        (("/no/such",), 127, ""),
        ((), 0, ""),
    ],
)
def test_words_are_a_program_and_its_arguments(
    words: tuple[str, ...], status: int, said: str, stdin: Callable[[bytes], None]
) -> None:
    """No word is read by a shell, and the signal that ends the program is reported."""
    channel = FakeChannel()
    interact(guest_with(channel), words)
    done = run_here(channel.command)
    assert (done.returncode, done.stdout) == (status, said)


def test_a_shell_that_is_killed_is_no_lost_guest(stdin: Callable[[bytes], None]) -> None:
    """Without a status it counts whether the guest is still connected."""
    with pytest.raises(InfraError, match="was killed") as caught:
        interact(guest_with(FakeChannel(status=-1)), ["x"])
    assert not isinstance(caught.value, LostGuest)
    with pytest.raises(LostGuest, match="the connection to the guest broke"):
        interact(guest_with(FakeChannel(status=-1), active=False), ["x"])


AT_A_TERMINAL = """
import os, sys, termios
sys.path.insert(0, {here!r})
from remote_fakes import FakeChannel, guest_with
from harness.base.errors import UsageError
from harness.remote.terminal import interact

channel = FakeChannel(out=b"said", status=7)
channel.shutdown_write()
before = termios.tcgetattr(0)
child = os.fork()
if not child:
    if {background}:
        os.setpgid(0, 0)
    try:
        status = interact(guest_with(channel), {words!r})
    except UsageError as error:
        print(error, flush=True)
        os._exit(2)
    print(f" pty {{channel.pty is not None}}", flush=True)
    os._exit(status)
_, status = os.waitpid(child, os.WUNTRACED)
if os.WIFSTOPPED(status):
    os.kill(child, 9)
    print("it stopped")
else:
    print("status", os.waitstatus_to_exitcode(status), "same modes", termios.tcgetattr(0) == before)
"""


IN_THE_BACKGROUND = (
    "a shell in the background cannot use the terminal "
    "(start it in the foreground; timeout(1) has --foreground)"
)


@pytest.mark.parametrize(
    ("background", "words", "said"),
    [
        (False, ["x"], ["said pty True", "status 7 same modes True"]),
        (False, [], ["said pty True", "status 7 same modes True"]),
        # As below timeout(1): the terminal belongs to another process group.
        (True, ["x"], ["said pty False", "status 7 same modes True"]),
        (
            True,
            [],
            [IN_THE_BACKGROUND, "status 2 same modes True"],
        ),
    ],
)
def test_at_a_terminal(background: bool, words: list[str], said: list[str]) -> None:
    """A terminal is made in the guest and ours is restored; in the background ours is left alone."""
    text = AT_A_TERMINAL.format(here=str(Path(__file__).parent), background=background, words=words)
    pid, terminal_fd = pty.fork()
    if not pid:
        os.execv(sys.executable, [sys.executable, "-c", text])
    out = b""
    try:
        while piece := os.read(terminal_fd, 4096):
            out += piece
    except OSError:
        # EIO: the last process on the terminal has ended.
        pass
    os.close(terminal_fd)
    os.waitpid(pid, 0)
    assert out.decode().splitlines() == said


def test_a_window_that_changes_its_size() -> None:
    """The size is that of the terminal, whatever COLUMNS says."""
    master, slave = pty.openpty()
    os.environ["COLUMNS"], before = "7", os.environ.get("COLUMNS")
    try:
        subprocess.run(["stty", "rows", "31", "cols", "99"], stdin=slave, check=True)
        asked = terminal._pty(slave)
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
        os.close(master)
        os.close(slave)
    assert (asked.width, asked.height) == (99, 31)


def test_words_survive_the_login_shell_of_the_guest(stdin: Callable[[bytes], None]) -> None:
    """The server gives the line to a shell, which must see three words."""
    channel = FakeChannel()
    interact(guest_with(channel), ["a b"])
    assert shlex.split(channel.command)[:2] == ["sh", "-c"]
    assert len(shlex.split(channel.command)) == 3
    channel = FakeChannel()
    interact(guest_with(channel), ["a b"], {"VFIO_BDF": "0 1"})
    assert shlex.split(channel.command)[:4] == ["env", "VFIO_BDF=0 1", "sh", "-c"]
