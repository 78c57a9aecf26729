# SPDX-License-Identifier: GPL-2.0-only
"""Locks between processes, on files in the cache that are never removed.

flock(2): the kernel drops a lock when its holder dies.  Where the cache is read-only a lock file that is
there still serves; where one cannot even be made, nobody who shares our rights can change anything either.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from harness import paths
from harness.deadline import Deadline
from harness.errors import InfraError

_log = logging.getLogger("harness.locks")

_POLL_SECONDS = 0.05

Waiting = Callable[[], object]
"""Called again and again while a lock is waited for; what it raises ends the waiting."""

_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def _lock_path(name: str) -> Path:
    return paths.cache_dir() / "locks" / f"{name}.lock"


def _open(path: Path) -> int:
    """Open the lock file, making it if need be; OSError when it is not there and cannot be made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        with contextlib.suppress(OSError):
            return os.open(path, os.O_RDONLY)
        raise


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    handle = _open(path)
    try:
        yield handle
    finally:
        os.close(handle)


def wait_patiently() -> None:
    """The Waiting of who waits for as long as it takes."""


def _acquire(handle: int, kind: int, busy: str, waiting: Waiting) -> None:
    if _is_had(handle, kind):
        return
    _log.warning("%s: waiting", busy)
    # Not by a blocking flock(2), which a thread other than the first never comes back from in time.
    while not _is_had(handle, kind):
        waiting()
        time.sleep(_POLL_SECONDS)


def _is_had(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def locked(name: str, busy: str, waiting: Waiting = wait_patiently) -> Iterator[None]:
    """Hold the lock *name* alone; when another process has it, say *busy* and wait.  Not to be nested.

    Raises InfraError when its file cannot be made, and what *waiting* raises.
    """
    path = _lock_path(name)
    with contextlib.ExitStack() as stack:
        try:
            handle = stack.enter_context(_opened(path))
            _acquire(handle, fcntl.LOCK_EX, busy, waiting)
        except OSError as error:
            raise InfraError(f"cannot write to the cache: {path}: {error.strerror or error}") from error
        yield


@contextlib.contextmanager
def shared(name: str, busy: str, waiting: Waiting = wait_patiently) -> Iterator[None]:
    """Hold the lock *name* together with other readers; wait, saying *busy*, for who holds it alone.

    Without a lock file in a read-only cache it holds nothing, for nobody can change what it would protect.
    Raises InfraError when its file cannot be made for another reason, and what *waiting* raises.
    """
    path = _lock_path(name)
    with contextlib.ExitStack() as stack:
        try:
            handle = stack.enter_context(_opened(path))
            _acquire(handle, fcntl.LOCK_SH, busy, waiting)
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise InfraError(f"cannot write to the cache: {path}: {error.strerror or error}") from error
        yield


@contextlib.contextmanager
def try_locked(name: str) -> Iterator[bool]:
    """Hold the lock *name* alone if nobody holds it; yields whether we have it."""
    with contextlib.ExitStack() as stack:
        try:
            handle = stack.enter_context(_opened(_lock_path(name)))
        except OSError:
            yield False
            return
        yield _try(handle)


@contextlib.contextmanager
def locked_by(name: str, deadline: Deadline) -> Iterator[bool]:
    """Hold the lock *name* alone, waiting for it until *deadline*; yields whether we have it.

    For an order that is good to have and not needed: without it things go on.
    """
    with contextlib.ExitStack() as stack:
        try:
            handle = stack.enter_context(_opened(_lock_path(name)))
        except OSError:
            yield False
            return
        while not (ours := _try(handle)) and not deadline.expired:
            time.sleep(_POLL_SECONDS)
        yield ours


def _try(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
