# SPDX-License-Identifier: GPL-2.0-only
"""One owner for a Run: who begins it or goes on with it has it alone, from the first moment to the report."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from harness.errors import InfraError, UsageError
from harness.results.store import is_alive

LOCK_NAME = "session.lock"
"""Beside the results and not in the cache, for whoever shares the runs may have a cache of his own."""


@contextlib.contextmanager
def owned(directory: Path) -> Iterator[None]:
    """Keep the Run in *directory*, made already or yet to be, from other owners and from being pruned.

    A RunStore says so while it is open, but kernels are built before that and reports made after it.  Raises
    UsageError when somebody else has the Run, InfraError when the directory cannot be written to.
    """
    with contextlib.ExitStack() as stack:
        try:
            lock = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            stack.callback(os.close, lock)
            sign = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, sign)
        except OSError as error:
            raise InfraError(f"cannot go on in {directory}: {error.strerror or error}") from error
        if not _is_had(lock) or is_alive(directory):
            raise UsageError(f"run {directory.name} is still going on", hint="wait for it, or stop it")
        # What is_alive() looks for and what prunes must have alone.
        with contextlib.suppress(OSError):
            fcntl.flock(sign, fcntl.LOCK_SH)
        yield


def _is_had(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # A file system without such locks: nobody can be kept out.
        return True
    return True
