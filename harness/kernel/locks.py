# SPDX-License-Identifier: GPL-2.0-only
"""Locks between processes, on files in the cache that are never removed."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import filelock

from harness import paths
from harness.errors import InfraError

_log = logging.getLogger("harness.kernel")


def _lock_path(name: str) -> Path:
    return paths.cache_dir() / "locks" / f"{name}.lock"


@contextlib.contextmanager
def locked(name: str, busy: str) -> Iterator[None]:
    """Hold the lock *name*; when another process has it, say *busy* and wait.  Not to be nested.

    The kernel drops the lock when its holder dies.  Raises InfraError when its file cannot be made.
    """
    path = _lock_path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            _log.warning("%s: waiting", busy)
            lock.acquire()
    except OSError as error:
        raise InfraError(f"cannot write to the cache: {path}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def try_locked(name: str) -> Iterator[bool]:
    """Hold the lock *name* if nobody else does; yields whether we have it."""
    lock = filelock.FileLock(_lock_path(name))
    try:
        lock.acquire(blocking=False)
    except (filelock.Timeout, OSError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
