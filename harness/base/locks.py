# SPDX-License-Identifier: GPL-2.0-only
"""Locks between processes: flock(2), which the kernel drops when the holder dies.

A named lock is a file in the cache that is never removed.  In a read-only cache an existing lock file still
serves; where one cannot be made, no process with our rights can change what it protects.
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

from harness.base import paths
from harness.base.deadline import Deadline
from harness.base.errors import HostError

_log = logging.getLogger("harness.base.locks")

_POLL_SECONDS = 0.05

Waiting = Callable[[], object]
"""Called repeatedly while waiting for a lock; an exception from it ends the wait."""

_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def take(handle: int, *, alone: bool = True) -> bool:
    """Lock an open file or directory without waiting, *alone* or shared; False when another process has it.

    Closing *handle* releases it.  Raises OSError where the file system has no such locks.
    """
    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def alone_with(path: Path, *, create: bool = False) -> Iterator[None]:
    """Hold the directory or lock file *path* alone; wait for it.  Raises OSError."""
    with _opened(path, os.O_RDWR | os.O_CREAT if create else os.O_RDONLY) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def locked(name: str, busy: str, waiting: Waiting = lambda: None) -> Iterator[None]:
    """Hold the lock *name* alone; while another process has it, log *busy* and wait.  Not to be nested.

    Raises InfraError when its file cannot be made, and what *waiting* raises.
    """
    with _held(name, busy, waiting, alone=True):
        yield


@contextlib.contextmanager
def shared(name: str, busy: str, waiting: Waiting = lambda: None) -> Iterator[None]:
    """Hold the lock *name* together with other readers; log *busy* and wait while a process has it alone.

    Without a lock file in a read-only cache it holds nothing: no process can change what it would protect.
    Raises InfraError when its file cannot be made for another reason, and what *waiting* raises.
    """
    with _held(name, busy, waiting, alone=False):
        yield


@contextlib.contextmanager
def making(
    name: str, busy: str, is_there: Callable[[], bool], waiting: Waiting = lambda: None
) -> Iterator[bool]:
    """Hold the lock *name* alone to make what it protects; yield False, holding nothing, once it *is_there*.

    Its users hold the lock with shared(), maybe for long: nobody who only wants it made waits for them.
    Raises InfraError when its file cannot be made, and what *waiting* raises.
    """

    def look() -> None:
        if is_there():
            raise _Made
        waiting()

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(_Made):
            stack.enter_context(_held(name, busy, look, alone=True))
        yield not is_there()


class _Made(Exception):
    """Another process made it."""


@contextlib.contextmanager
def try_locked(name: str) -> Iterator[bool]:
    """Hold the lock *name* alone if it is free; yield whether we have it."""
    with locked_by(name, Deadline.after(0)) as ours:
        yield ours


@contextlib.contextmanager
def locked_by(name: str, deadline: Deadline) -> Iterator[bool]:
    """Hold the lock *name* exclusively, waiting for it until *deadline*; yield whether it is held.

    For locks that only put processes in order: an error counts as not having it.
    """
    with contextlib.ExitStack() as stack:
        ours = False
        with contextlib.suppress(OSError):
            handle = stack.enter_context(_opened_lock(_lock_path(name)))
            while not (ours := take(handle)) and not deadline.expired:
                time.sleep(_POLL_SECONDS)
        yield ours


@contextlib.contextmanager
def _held(name: str, busy: str, waiting: Waiting, *, alone: bool) -> Iterator[None]:
    path = _lock_path(name)
    with contextlib.ExitStack() as stack:
        try:
            handle = stack.enter_context(_opened_lock(path))
            if not take(handle, alone=alone):
                _log.warning("%s: waiting", busy)
                # A blocking flock(2) could not be interrupted in a thread other than the first.
                while not take(handle, alone=alone):
                    waiting()
                    time.sleep(_POLL_SECONDS)
        except OSError as error:
            if alone or error.errno not in _READ_ONLY:
                raise HostError(f"cannot write to the cache: {path}: {error.strerror or error}") from error
        yield


def _lock_path(name: str) -> Path:
    return paths.cache_dir() / "locks" / f"{name}.lock"


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    handle = os.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
        yield handle
    finally:
        os.close(handle)


@contextlib.contextmanager
def _opened_lock(path: Path) -> Iterator[int]:
    """Open a lock file, making it if need be; OSError when it is not there and cannot be made."""
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = stack.enter_context(_opened(path, os.O_RDWR | os.O_CREAT))
        except OSError as error:
            if error.errno not in _READ_ONLY or not path.is_file():
                raise
            handle = stack.enter_context(_opened(path, os.O_RDONLY))
        yield handle
