# SPDX-License-Identifier: GPL-2.0-only
"""Call a function that may never return, with a timeout.

The call runs in a thread because a process is expensive: forking this interpreter and writing to its pages
costs an emulated vCPU some 50 ms. The thread has its own file table with only the standard streams in it, so
a thread that is stuck in the kernel keeps no device open after its process has died. It does share memory, so
a caller that has a BAR mapped and waits for that device needs a process (pci.PendingWrite).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from guest import libc

T = TypeVar("T")

MOST_FILES = 4096

expired: list[float] = []
"""The seconds of each wait of this process that ended without what it was for.

On a busy host that may be the host's doing; a failure after such a wait says so (guest/runner.py).
"""


def within(seconds: float, function: Callable[[], T]) -> T:
    """Return what *function* returns, or raise what it raises; raise TimeoutError after *seconds*."""
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
