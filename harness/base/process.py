# SPDX-License-Identifier: GPL-2.0-only
"""Start child processes: the only importer of subprocess.

A child gets no stdin unless it is given some, the environment of harness.base.environment, a process group of
its own and a parent-death signal: neither Ctrl-C nor `kill -9` of the harness leaves one behind, and stopping
it stops what it started.  The exception is a program that talks to the user, such as sudo: run_foreground().
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from harness.base.cause import Cause
from harness.base.deadline import Deadline
from harness.base.environment import environment
from harness.base.errors import HostError, InfraError

PIPE, STDOUT = subprocess.PIPE, subprocess.STDOUT

STOP_SECONDS = 5.0
"""Seconds between SIGTERM and SIGKILL."""

KILL_SECONDS = 60.0
"""How long to wait after SIGKILL. A process stuck in the kernel, for instance in a broken /dev/kvm, may never
end.
"""

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.05
"""Seconds between two checks of a child that is waited for."""


@dataclasses.dataclass(frozen=True, slots=True)
class Completed:
    """A finished command: its arguments, exit status (negative: killed by that signal) and output."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        return self.status == 0

    @property
    def command(self) -> str:
        """The command line, ready to paste into a shell."""
        return shlex.join(self.argv)

    @property
    def ending(self) -> str:
        """How it ended: `exited with 1`, `was killed by SIGKILL`."""
        if self.status < 0:
            return f"was killed by {signal.Signals(-self.status).name}"
        return f"exited with {self.status}"

    def check(self, what: str, cause: Cause = Cause.HOST) -> Completed:
        """Return self; raise InfraError, with *what* and the last line it printed, when it failed."""
        if self.ok:
            return self
        lines = (self.stderr.strip() or self.stdout.strip()).splitlines()
        raise InfraError(
            f"{what}: {self.command} {self.ending}: {lines[-1] if lines else 'no output'}", cause=cause
        )


class Process:
    """A running child and the process group it leads."""

    def __init__(self, popen: subprocess.Popen[bytes], argv: tuple[str, ...], *, kept: bool) -> None:
        self._popen = popen
        self._kept = kept
        self._reaping = threading.Lock()
        self._usage: resource.struct_rusage | None = None
        self.argv = argv

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def status(self) -> int | None:
        """Exit status, negative when a signal ended it; None while it runs."""
        status = self._reap()
        # The shell of *whole_group* reports 128+N when signal N ended the command.
        return 128 - status if self._kept and status is not None and status > 128 else status

    def _reap(self) -> int | None:
        """Return its status, None while it runs.  Popen would wait(2) without reading the resource usage."""
        with self._reaping:
            if self._popen.returncode is None:
                try:
                    pid, status, usage = os.wait4(self.pid, os.WNOHANG)
                except ChildProcessError:
                    # The kernel reaped it, because our parent made us ignore SIGCHLD.
                    return self._popen.poll()
                if pid:
                    self._usage = usage
                    self._popen.returncode = os.waitstatus_to_exitcode(status)
            return self._popen.returncode

    @property
    def all_cpu_seconds(self) -> float:
        """CPU time of it and of all its waited-for children; 0 until it has ended."""
        return self._usage.ru_utime + self._usage.ru_stime if self._usage else 0.0

    @property
    def cpu_seconds(self) -> float | None:
        """CPU time of it and its threads so far (proc_pid_stat(5)); None once it is gone."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            return None
        # Fields are counted after the command's name, which may contain blanks and parentheses.
        fields = stat.rpartition(")")[2].split()
        if fields[0] in "ZX":
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def stdout(self) -> IO[bytes]:
        """The pipe from its standard output; only with stdout=PIPE."""
        assert self._popen.stdout is not None
        return self._popen.stdout

    @property
    def stdin(self) -> IO[bytes]:
        """The pipe to its standard input; only with stdin=PIPE."""
        assert self._popen.stdin is not None
        return self._popen.stdin

    def wait(self, deadline: Deadline) -> int | None:
        """Wait until it ends or *deadline*; return its status, None if it still runs."""
        pause = _SHORTEST_PAUSE
        while (status := self.status) is None and not deadline.expired:
            time.sleep(min(pause, deadline.remaining))
            pause = min(2 * pause, _LONGEST_PAUSE)
        return status

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group; no error when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, number)

    def stop(self, deadline: Deadline | None = None) -> None:
        """Terminate the group, kill what is left of it at *deadline* (default: STOP_SECONDS)."""
        deadline = deadline or Deadline.after(STOP_SECONDS)
        try:
            if self.status is None:
                self.signal(signal.SIGTERM)
                self.wait(deadline)
        finally:
            # Kill at once when Ctrl-C ended the wait.
            self.signal(signal.SIGKILL)
            self.wait(Deadline.after(KILL_SECONDS))


def find_tool(name: str, *, path: str | None = None) -> str | None:
    """Return the path of a program, None when the host lacks it.

    *path*, directories with colons between them, replaces PATH and sbin, which is searched even
    if PATH leaves it out.
    """
    return shutil.which(name, path=path or _search_path(os.environ))


def _search_path(env: Mapping[str, str]) -> str:
    return f"{env.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"


def _find_program(word: str, env: Mapping[str, str], cwd: Path | None) -> str:
    """Return what execvp(3) will run for *word* in *cwd*; InfraError when there is no such program."""
    if "/" not in word:
        found = shutil.which(word, path=_search_path(env))
        if found is None:
            raise HostError(f"cannot start {word}: it is not installed", hint="see: vfio-harness doctor")
        return found
    program = (cwd or Path()) / word
    if not program.is_file():
        raise HostError(f"cannot start {word}: there is no such file")
    if not os.access(program, os.X_OK):
        raise HostError(f"cannot start {word}: it is not executable")
    return word


_ORPHAN = '[ "$PPID" = "$0" ] || exit; '
"""The start of a shell script whose $0 is the process id of its parent: end if the parent is gone."""

_KEEPER = """trap 'trap "" TERM; kill -TERM 0; wait' TERM; "$@" & wait $!"""
"""A shell that leads the group, runs the command and passes SIGTERM on to the whole group."""


def mortal(argv: Sequence[str], *, whole_group: bool = False) -> list[str]:
    """Wrap *argv* so that it is terminated when the harness dies (util-linux setpriv(1), PR_SET_PDEATHSIG).

    The kernel signals one process only; with *whole_group* that is a shell which signals the others.  If the
    harness died before setpriv had asked for the signal, the shell notices that and runs nothing.
    """
    setpriv = find_tool("setpriv")
    if setpriv is None:
        raise HostError("setpriv is missing", hint="install util-linux")
    number, script = ("TERM", _KEEPER) if whole_group else ("KILL", 'exec "$@"')
    shell = ["/bin/sh", "-c", f"{_ORPHAN}{script}", str(os.getpid())]
    return [setpriv, f"--pdeathsig={number}", "--", *shell, *argv]


@contextlib.contextmanager
def spawn(
    argv: Sequence[str | os.PathLike[str]],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = subprocess.DEVNULL,
    stderr: int | IO[bytes] | None = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
    whole_group: bool = False,
    stop_seconds: float | None = None,
) -> Iterator[Process]:
    """Run *argv* for the length of the with block; *env* is added to what environment() gives.

    The child is killed when the harness dies; with *whole_group* everything that it started is terminated as
    well.  The parent-death signal follows the *thread* that called: spawn from one that lives as long as the
    child.  A child that still runs at the end of the block is stopped, within *stop_seconds* (default:
    STOP_SECONDS).  Raises InfraError when there is no such program or it cannot be started.
    """
    words = tuple(os.fspath(a) for a in argv)
    variables = environment(env)
    wrapped = mortal((_find_program(words[0], variables, cwd), *words[1:]), whole_group=whole_group)
    try:
        popen = subprocess.Popen(
            wrapped,
            cwd=cwd,
            env=variables,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
        )
    except OSError as error:
        raise HostError(f"cannot start {words[0]}: {error.strerror}") from error
    process = Process(popen, words, kept=whole_group)
    try:
        yield process
    finally:
        process.stop(Deadline.after(stop_seconds) if stop_seconds is not None else None)
        for pipe in (popen.stdin, popen.stdout, popen.stderr):
            if pipe is not None:
                pipe.close()


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    deadline: Deadline | None = None,
    given: str = "",
) -> Completed:
    """Run *argv* to its end, with *given* as its standard input, and return status and decoded output.

    Raises InfraError when it cannot be started, or when it still runs at *deadline* and is stopped.
    """
    words = tuple(os.fspath(a) for a in argv)
    stdin = subprocess.PIPE if given else subprocess.DEVNULL
    with spawn(words, cwd=cwd, env=env, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        try:
            out, err = child._popen.communicate(
                given.encode(errors="surrogateescape") or None, deadline.remaining if deadline else None
            )
        except subprocess.TimeoutExpired:
            raise InfraError(f"{shlex.join(words)} did not end in time") from None
    return Completed(
        words, child._popen.returncode, out.decode(errors="replace"), err.decode(errors="replace")
    )


def run_foreground(argv: Sequence[str | os.PathLike[str]], *, own_stdout: bool = False) -> int:
    """Run *argv* on the user's terminal, for a program that talks to the user; return its exit status.

    It inherits standard input, the terminal and Ctrl-C.  What it prints goes to standard error, like our own
    messages, unless its output is what the user asked for (*own_stdout*).  Raises InfraError when there is no
    such program or it cannot be started.
    """
    words = tuple(os.fspath(a) for a in argv)
    variables = environment(terminal=True)
    program = _find_program(words[0], variables, None)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    try:
        return subprocess.call([program, *words[1:]], stdout=None if own_stdout else 2, env=variables)
    except OSError as error:
        raise HostError(f"cannot start {words[0]}: {error.strerror}") from error
