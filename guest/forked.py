# SPDX-License-Identifier: GPL-2.0-only
"""Runs a function in a child process, for what cannot be taken back: privileges given up, a death."""

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


class ChildError(Exception):
    """The function raised, or its process died; the message is one line."""


class Child:
    """A function running in a process of its own.

    The end of a `with` kills it if it still runs.  A TimeoutError in the block gives way to what the child
    raised, where it did.
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
        """Send it a signal."""
        if self._status is None:
            os.kill(self.pid, number)

    def ended(self) -> bool:
        """Whether it has ended."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = status
        return self._status is not None

    def wait(self, timeout: float = 20.0) -> int:
        """Wait for its end and return its wait status; raise TimeoutError."""
        if not self.ended() and not wait_for_end(self.pid, timeout) and not self.ended():
            raise TimeoutError(f"the child {self.pid} runs longer than {timeout:g} s")
        assert self.ended()
        assert self._status is not None
        return self._status

    def result(self, timeout: float = 20.0) -> object:
        """Wait for its end and return what the function returned (JSON values only); raise ChildError."""
        status = self.wait(timeout)
        os.set_blocking(self._report, False)
        try:
            text = os.read(self._report, 65536)
        except BlockingIOError:
            text = b""
        if not text:
            raise ChildError(f"the child ended with wait status {status:#x} and said nothing")
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
                # What was waited for in vain may be what the child failed before.
                self.result()
        finally:
            os.close(self._report)


class Gate:
    """A gate between processes that were forked after it was made: shut until one of them opens it."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()

    def open(self) -> None:
        """Let everybody pass, now and later."""
        os.write(self._writer, b"x")

    def wait(self, timeout: float = 20.0) -> None:
        """Return when it is open; raise TimeoutError."""
        if not select.select([self._reader], [], [], timeout)[0]:
            raise TimeoutError(f"nobody opened the gate within {timeout:g} s")

    def close(self) -> None:
        """Give its descriptors back."""
        os.close(self._reader)
        os.close(self._writer)


def _run(function: Callable[[], object], report: int) -> NoReturn:
    try:
        try:
            answer: dict[str, object] = {"result": function()}
        except BaseException as error:
            traceback.print_exc()
            text = " ".join(str(error).split())
            named = text if isinstance(error, AssertionError) else f"{type(error).__name__}: {text}"
            answer = {"error": named}
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(report, json.dumps(answer).encode())
    finally:
        os._exit(0)


@contextlib.contextmanager
def end_of(pid: int) -> Iterator[int]:
    """A descriptor that is readable once the child *pid* has ended and can be reaped.

    A pidfd (Linux 5.3): it wakes at once, where polling costs an emulated processor several milliseconds.
    """
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def wait_for_end(pid: int, timeout: float) -> bool:
    """Wait until the child *pid* has ended; False when it still runs after *timeout* seconds."""
    with end_of(pid) as fd:
        return bool(select.select([fd], [], [], timeout)[0])


def call(function: Callable[[], object], *, timeout: float = 20.0) -> object:
    """Run *function* in a child and return its result; raise ChildError or TimeoutError."""
    with Child(function) as child:
        return child.result(timeout)
