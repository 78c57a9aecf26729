# SPDX-License-Identifier: GPL-2.0-only
"""Calls a function that may never return, and waits only so long for it.

A thread does it, for a process is dear: forking this interpreter and writing to its pages costs an emulated
processor some 50 ms.  The thread has a file table of its own, with only the standard streams in it: one that
sleeps in the kernel for good keeps no device open beyond the death of its process.  Memory stays, so whoever
has a BAR mapped and waits for his own device needs a process (pci.PendingWrite).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from guest import libc

T = TypeVar("T")

MOST_FILES = 4096


def within(seconds: float, function: Callable[[], T]) -> T:
    """Return what *function* returns, or raise what it raises; TimeoutError when it does neither in time."""
    call = _Call(function)
    thread = threading.Thread(target=call.run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer after {seconds:g} s")
    return call.result()


class _Call(Generic[T]):
    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._answers: list[T] = []
        self._error: BaseException = RuntimeError("the call was not made")

    def run(self) -> None:
        try:
            libc.unshare(libc.CLONE_FILES)
            os.closerange(3, MOST_FILES)
            self._answers.append(self._function())
        except BaseException as error:
            self._error = error

    def result(self) -> T:
        if self._answers:
            return self._answers[0]
        raise self._error
