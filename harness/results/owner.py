# SPDX-License-Identifier: GPL-2.0-only
"""Locks on a run directory, for its owner, for its writers, and for removing it.

A writer holds the directory shared; the kernel drops that with its process.  The owner, who started or
resumed the Run, also holds a lock file, from before the first build to after the reports.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from harness.base.errors import InfraError, UsageError
from harness.base.locks import take

LOCK_NAME = "session.lock"
"""Beside the results and not in the cache: users who share runs may have different caches."""

# Another process that checks at the same time holds the directory for microseconds.
_LOOKS, _LOOK_SECONDS = 5, 0.01


def hold(directory: Path) -> int:
    """Mark *directory* as being written to until the descriptor that is returned is closed.

    Where the file system has no such locks nothing marks it.  Raises OSError without the directory.
    """
    handle = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    with contextlib.suppress(OSError):
        take(handle, alone=False)
    return handle


@contextlib.contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Keep writers out of *directory*.  Raises OSError when there is one, or no directory."""
    handle = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if not take(handle):
            raise BlockingIOError(f"{directory} is in use")
        yield
    finally:
        os.close(handle)


def is_alive(directory: Path) -> bool:
    """Whether a process is writing to the Run in *directory* now."""
    if not directory.is_dir():
        return False
    for _ in range(_LOOKS):
        with contextlib.suppress(OSError), alone_in(directory):
            return False
        time.sleep(_LOOK_SECONDS)
    return True


@contextlib.contextmanager
def owned(directory: Path) -> Iterator[None]:
    """Keep the Run in *directory*, which may not have results yet, from other owners and from removal.

    Raises UsageError when another process has the Run, InfraError when the directory cannot be written to.
    """
    with contextlib.ExitStack() as stack:
        try:
            lock = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            stack.callback(os.close, lock)
            ours = _take_or_pass(lock) and not is_alive(directory)
            stack.callback(os.close, hold(directory))
        except OSError as error:
            raise InfraError(f"cannot write to {directory}: {error.strerror or error}") from error
        if not ours:
            raise UsageError(f"run {directory.name} is still going on", hint="wait for it, or stop it")
        yield


def _take_or_pass(lock: int) -> bool:
    """Whether nobody else has *lock*, as far as the file system can tell."""
    try:
        return take(lock)
    except OSError:
        return True
