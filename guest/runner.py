# SPDX-License-Identifier: GPL-2.0-only
"""Run one case in a fork: stream its output, enforce its timeout, notice its death, get its verdict
separately."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Callable, NamedTuple, NoReturn, Optional, TextIO

from guest import bounded, kmsg, libc, trouble, whereabouts
from guest.case import Case, Failure, Skip, Test
from guest.forked import end_of
from guest.ground import reap_group

Diagnose = Callable[[str], None]

_CHUNK = 65536


class Verdict(NamedTuple):
    """How a case ended."""

    kept: bool
    skip: str = ""
    directive: str = ""
    dirty: tuple[str, ...] = ()


def run_forked(one: Case, features: frozenset[str], timeout: float, seed: int, diagnose: Diagnose) -> Verdict:
    """Run *one* in a child in its own process group; pass every line it prints to *diagnose*.

    The child sends its verdict through a pipe of its own, apart from its output. Without a verdict the case
    fails.
    """
    output, output_end = os.pipe()
    report, report_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(output)
        os.close(report)
        _child(one, features, seed, output_end, report_end)
    os.close(output_end)
    os.close(report_end)
    with contextlib.suppress(OSError):
        os.setpgid(pid, pid)  # the child does it too, whichever is first
    try:
        with end_of(pid) as end:
            said, status = _watch(pid, output, report, end, time.monotonic() + timeout, diagnose)
        # Kill what the case left running; only then is its output complete.
        dirty = tuple(reap_group(pid))
        _drain(output, diagnose)
    finally:
        os.close(output)
        os.close(report)
    return _judge(one, said, status, timeout, dirty, diagnose)


def _watch(
    pid: int, output: int, report: int, end: int, deadline: float, diagnose: Diagnose
) -> tuple[bytes, Optional[int]]:
    """Follow the child; return its wait status when it has ended, None when the time is up."""
    said = b""
    lines = _Lines(diagnose)
    watched = [output, report, end]
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        ready = select.select(watched, [], [], 0 if ended else max(0.0, deadline - time.monotonic()))[0]
        for fd in ready:
            if fd == end:
                continue
            data = os.read(fd, _CHUNK)
            if not data:
                # The case closed its end, by mistake or by dying.
                watched = [other for other in watched if other != fd]
            elif fd == report:
                said += data
                if said.endswith(b"\n"):
                    # What is left is to exit. Each of the pipes that it closes would wake this process.
                    watched = [end]
            else:
                lines.feed(data)
        if ended:
            said += _rest(report)
            lines.feed(_rest(output))
            lines.close()
            return said, status
        if time.monotonic() > deadline:
            lines.close()
            for line in whereabouts.of_group(pid):
                diagnose(line)
            return said, None


def _rest(fd: int) -> bytes:
    os.set_blocking(fd, False)
    data = b""
    with contextlib.suppress(BlockingIOError):
        while chunk := os.read(fd, _CHUNK):
            data += chunk
    return data


def _drain(output: int, diagnose: Diagnose) -> None:
    lines = _Lines(diagnose)
    lines.feed(_rest(output))
    lines.close()


class _Lines:
    """Split a stream into lines. One that looks like a line of the agent's own is indented by a blank."""

    _OWN = ("late:", "why:", "refused:", "dirty:", "cleaned:", "gcov:", "END ")

    def __init__(self, diagnose: Diagnose) -> None:
        self._diagnose = diagnose
        self._partial = b""

    def feed(self, data: bytes) -> None:
        *whole, self._partial = (self._partial + data).split(b"\n")
        for line in whole:
            self._emit(line)

    def close(self) -> None:
        if self._partial:
            self._emit(self._partial)
            self._partial = b""

    def _emit(self, line: bytes) -> None:
        # A carriage return, too, would begin another line.
        for text in line.decode(errors="replace").splitlines() or [""]:
            self._diagnose(f" {text}" if text.startswith(self._OWN) else text)


def _judge(
    one: Case,
    said: bytes,
    status: Optional[int],
    timeout: float,
    dirty: tuple[str, ...],
    diagnose: Diagnose,
) -> Verdict:
    if status is None:
        diagnose(f"why: the case did not end within {timeout:g} s")
        return Verdict(kept=False, directive=f"TIMEOUT after {timeout:g}s", dirty=dirty)
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        diagnose(f"why: killed by {name}")
        diagnose(f"killed by {name}")
        return Verdict(kept=False, dirty=dirty)
    try:
        report = json.loads(said)
    except ValueError:
        diagnose(f"why: the case exited with status {os.WEXITSTATUS(status)} without a verdict")
        return Verdict(kept=False, dirty=dirty)
    if report["outcome"] == "skip":
        return Verdict(kept=True, skip=report["why"] or "no reason given", dirty=dirty)
    if report["outcome"] == "pass":
        return Verdict(kept=True, dirty=dirty)
    if report["late"]:
        diagnose("late: the case had waited in vain")
    diagnose(f"why: {report['why']}")
    diagnose(f"at: {report['at']}")
    diagnose(report["traceback"])
    return Verdict(kept=False, dirty=dirty)


def _child(one: Case, features: frozenset[str], seed: int, output: int, report: int) -> NoReturn:
    code = 0
    try:
        os.setpgid(0, 0)
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = sys.stderr = _text_stream(1)
        answer = _try(one, features, seed)
        sys.stdout.flush()
        os.write(report, json.dumps(answer).encode() + b"\n")
    except BaseException:
        code = 70  # EX_SOFTWARE of sysexits.h: the runner itself failed
        with contextlib.suppress(BaseException):
            traceback.print_exc()
            sys.stderr.flush()
    finally:
        # No atexit handler and no destructor of the agent may run here.
        os._exit(code)


def _text_stream(fd: int) -> TextIO:
    return os.fdopen(fd, "w", encoding="utf-8", errors="replace", buffering=1, closefd=False)


def _try(one: Case, features: frozenset[str], seed: int) -> dict[str, str]:
    test = Test(one, features=features, seed=seed, kmsg=kmsg.KernelLog())
    try:
        one.function(test)
    except Skip as skip:
        return {"outcome": "skip", "why": " ".join(str(skip).split())}
    except BaseException as error:
        # With an errno it is the kernel's answer ETIMEDOUT.
        waited = isinstance(error, TimeoutError) and error.errno is None
        return {
            "outcome": "fail",
            "late": "yes" if waited or bounded.expired else "",
            "why": _one_line(error),
            "at": _where(error, one.path),
            "traceback": "".join(traceback.format_exception(type(error), error, error.__traceback__)),
        }
    return {"outcome": "pass"}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) if isinstance(error, Failure) else trouble.one_line(error)


def _where(error: BaseException, path: str) -> str:
    """Return the innermost line of the probe module itself, as `file:line: source`."""
    frames = [frame for frame in _frames(error) if frame.filename == path]
    if not frames:
        return path
    return f"{os.path.basename(path)}:{frames[-1].lineno}: {frames[-1].line}"


def _frames(error: BaseException) -> Iterator[traceback.FrameSummary]:
    yield from traceback.extract_tb(error.__traceback__)
