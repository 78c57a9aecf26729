# SPDX-License-Identifier: GPL-2.0-only
"""Run a function in a child process, for steps that cannot be undone: dropping privileges, being killed."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NoReturn, Optional

from guest import trouble


class ChildError(Exception):
    """The function raised, or its process died; the message is one line."""


class Child:
    """A function running in a child process.

    Leaving the `with` block kills the child if it still runs. If the block raises TimeoutError and the child
    has failed, the error of the child is raised instead.
    """

    def __init__(self, function: Callable[[], object]) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self._report, end = os.pipe()
        self._status: Optional[int] = None
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._report)
            _run(function, end)
        os.close(end)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send the child a signal."""
        if self._status is None:
            os.kill(self.pid, number)

    def ended(self) -> bool:
        """Return whether the child has ended."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = status
        return self._status is not None

    def wait(self, timeout: float = 20.0) -> int:
        """Wait for the child to end and return its wait status; raise TimeoutError."""
        if not self.ended() and not wait_for_end(self.pid, timeout) and not self.ended():
            raise TimeoutError(f"child {self.pid} has not ended after {timeout:g} s")
        assert self.ended()
        assert self._status is not None
        return self._status

    def result(self, timeout: float = 20.0) -> object:
        """Wait for the child to end and return the result of the function (JSON values only); raise
        ChildError."""
        status = self.wait(timeout)
        os.set_blocking(self._report, False)
        try:
            text = os.read(self._report, 65536)
        except BlockingIOError:
            text = b""
        if not text:
            raise ChildError(f"the child ended with wait status {status:#x} and without a result")
        answer = json.loads(text)
        if "error" in answer:
            raise ChildError(answer["error"])
        return answer["result"]

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        try:
            if not self.ended():
                self.kill()
                self.wait()
            elif isinstance(error, TimeoutError):
                # The block may have timed out because the child failed.
                self.result()
        finally:
            os.close(self._report)


class Gate:
    """A barrier for processes forked after it was made: wait() blocks until one of them calls open()."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()

    def open(self) -> None:
        """Let all current and later waiters pass."""
        os.write(self._writer, b"x")

    def wait(self, timeout: float = 20.0) -> None:
        """Wait until the gate is open; raise TimeoutError."""
        if not select.select([self._reader], [], [], timeout)[0]:
            raise TimeoutError(f"nobody opened the gate within {timeout:g} s")

    def close(self) -> None:
        """Close its descriptors."""
        os.close(self._reader)
        os.close(self._writer)


def _run(function: Callable[[], object], report: int) -> NoReturn:
    try:
        try:
            answer: dict[str, object] = {"result": function()}
        except BaseException as error:
            traceback.print_exc()
            is_promise = isinstance(error, AssertionError)
            answer = {"error": " ".join(str(error).split()) if is_promise else trouble.one_line(error)}
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(report, json.dumps(answer).encode())
    finally:
        os._exit(0)


@contextlib.contextmanager
def end_of(pid: int) -> Iterator[int]:
    """Yield a descriptor that is readable once the child *pid* has ended and can be reaped.

    It is a pidfd (Linux 5.3), which wakes the caller at once; polling costs an emulated vCPU several
    milliseconds.
    """
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def wait_for_end(pid: int, timeout: float) -> bool:
    """Wait until the child *pid* has ended; return False if it still runs after *timeout* seconds."""
    with end_of(pid) as fd:
        return bool(select.select([fd], [], [], timeout)[0])


def call(function: Callable[[], object], *, timeout: float = 20.0) -> object:
    """Run *function* in a child and return its result; raise ChildError or TimeoutError."""
    with Child(function) as child:
        return child.result(timeout)
