# SPDX-License-Identifier: GPL-2.0-only
"""Keep the cache small: drop the kernels, selftests, objects and sources that were not used for longest."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from harness import paths
from harness.kernel.locks import try_locked

SPARED_SECONDS = 3600.0
"""What was used this recently is never removed: a running VM may still load its modules from there."""

_KINDS = ("kernels", "selftests", "objects", "configs", "sources/debian", "sources/tarball")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing in the cache that can go by itself."""

    path: Path
    kind: str  # the directory of the cache that it is in
    used: float  # when it was last used, in seconds of the epoch
    size: int  # bytes on disk


def collect_garbage(*, max_bytes: int | None = None, max_age: float | None = None) -> tuple[Entry, ...]:
    """Remove what was unused for *max_age* seconds, then the least recently used until *max_bytes* suffice.

    Returns what it removed.  What another process holds, and what was used within SPARED_SECONDS, stays.
    """
    now = time.time()
    entries = sorted(list_entries(), key=lambda entry: entry.used)
    total = sum(entry.size for entry in entries)
    removed = []
    for entry in entries:
        too_old = max_age is not None and now - entry.used > max_age
        too_much = max_bytes is not None and total > max_bytes
        if now - entry.used < SPARED_SECONDS or not (too_old or too_much):
            continue
        if _remove(entry):
            removed.append(entry)
            total -= entry.size
    return tuple(removed)


def list_entries() -> Iterator[Entry]:
    """Everything in the cache that can be removed by itself, half-made leftovers included."""
    for kind in _KINDS:
        root = paths.cache_dir() / kind
        if not root.is_dir():
            continue
        found = root.glob("*/*") if kind == "objects" else root.iterdir()
        for path in found:
            with contextlib.suppress(OSError):
                yield Entry(path=path, kind=kind, used=path.stat().st_mtime, size=_size(path))


def _size(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_blocks * 512
    total = 0
    for directory, _names, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512  # noqa: PTH118 (a hot loop)
    return total


def _remove(entry: Entry) -> bool:
    """Remove *entry* unless someone is at work on it; renamed first, so that nobody finds half of it."""
    own = entry.path.name.strip(".").removesuffix(".partial")
    with try_locked(entry.path.parent.name if entry.kind == "objects" else own) as ours:
        if not ours:
            return False
        with contextlib.suppress(OSError):
            if not entry.path.is_dir():
                entry.path.unlink()
                return True
            doomed = entry.path.with_name(f".{entry.path.name}.partial")
            if doomed != entry.path:
                shutil.rmtree(doomed, ignore_errors=True)
                entry.path.rename(doomed)
            shutil.rmtree(doomed)
            return True
    return False
