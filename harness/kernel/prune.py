# SPDX-License-Identifier: GPL-2.0-only
"""Prune the cache: remove the least recently used entries.

That is kernels, selftests, the user's own programs, objects, configurations, unpacked sources, worktrees,
apt's lists, the user spaces and disks of guests, and their snapshots.  Each is removed under the lock that
its users take, so what is in use stays: a build holds its objects and its source, a VM its disks, kernel,
selftests and programs (harness.kernel.store.hold).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from harness.base import paths
from harness.base.errors import InfraError
from harness.base.locks import try_locked
from harness.kernel import gittree
from harness.kernel.debian import CANDIDATES_FILE, LISTS_LOCK
from harness.kernel.store import OURS, source_lock

SPARED_SECONDS = 3600.0
"""How long entries stay after their last use, by default: a process may have found one and not locked it yet.
"""

SNAPSHOTS = "snapshots"
"""The kind of the guests' snapshots, which are useless after a reboot or on another machine."""

_KINDS = {
    "objects": f"*/*/*/{OURS}*",
    "kernels": "kernels/*",
    "debug information": "debug/*",
    "selftests": "selftests/*",
    "headers": "headers/*",
    "programs": "programs/*",
    "configs": "configs/*",
    "sources": "sources/*/*",
    "worktrees": "worktrees/*/*",
    "repositories": "repositories/*",
    "apt": "apt/*",
    "images": "images/*",
    "userspaces": "userspaces/*",
    SNAPSHOTS: f"{SNAPSHOTS}/*",
    "bench": "bench/*",
    "tests": "tests/*",
    "earlier objects": "objects/*/*",
}
"""What is in the cache, each kind with the pattern of its entries; older versions left the last."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CacheEntry:
    """One thing in the cache that can be removed by itself."""

    path: Path
    kind: str
    used: float  # when it was last used, in seconds of the epoch
    size: int  # bytes on disk


def collect_garbage(
    *,
    max_bytes: int | None = None,
    max_age: float | None = None,
    spared: float = SPARED_SECONDS,
    snapshots: bool = True,
) -> tuple[CacheEntry, ...]:
    """Remove what was unused for *max_age* seconds, then the least recently used until *max_bytes* are
    enough.

    Unless *snapshots*, all snapshots are removed first.
    Returns what it removed.  What another process holds, and what was used within *spared* seconds, stays.
    """
    now = time.time()
    useless = () if snapshots else (SNAPSHOTS,)
    entries = sorted(list_entries(), key=lambda entry: (entry.kind not in useless, entry.used))
    total = sum(entry.size for entry in entries)
    removed = []
    for entry in entries:
        too_old = max_age is not None and now - entry.used > max_age
        too_much = max_bytes is not None and total > max_bytes
        if now - entry.used < spared or not (too_old or too_much or entry.kind in useless):
            continue
        if _remove(entry):
            removed.append(entry)
            total -= entry.size
    return tuple(removed)


def list_entries() -> Iterator[CacheEntry]:
    """Yield everything in the cache that can be removed by itself, half-made leftovers included."""
    for kind, pattern in _KINDS.items():
        for path in paths.cache_dir().glob(pattern):
            with contextlib.suppress(OSError):
                yield CacheEntry(path=path, kind=kind, used=path.stat().st_mtime, size=_size(path))


def _size(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_blocks * 512
    total = 0
    for directory, names, files in os.walk(path):
        # Objects in a source can be removed by themselves.
        names[:] = [name for name in names if not name.startswith(OURS)]
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512  # noqa: PTH118 (a hot loop)
    return total


def _lock_name(entry: CacheEntry) -> str:
    """Return the lock under which *entry* is made and used."""
    whole = entry.path.with_name(entry.path.name.lstrip(".").removesuffix(".partial"))
    match entry.kind:
        case "apt":
            return LISTS_LOCK
        case "worktrees":
            return source_lock(whole)
        case "objects":
            return source_lock(whole if whole.stem == f"{OURS}kconfig" else whole.parent)
        case _:
            return whole.name


def _remove(entry: CacheEntry) -> bool:
    """Remove *entry* unless a process makes or uses it; return whether it is gone."""
    with try_locked(_lock_name(entry)) as ours:
        if not ours:
            return False
        with contextlib.suppress(OSError, InfraError):
            if entry.kind == "apt":
                # The memo describes the lists, so it is removed first.
                entry.path.with_name(CANDIDATES_FILE).unlink(missing_ok=True)
            if entry.kind == "worktrees":
                gittree.remove_worktree(entry.path)
            elif entry.path.is_dir():
                _remove_directory(entry.path)
            else:
                entry.path.unlink(missing_ok=True)
        return not entry.path.exists()


def _remove_directory(path: Path) -> None:
    """Remove *path*, renamed first, so that no process finds half of it."""
    doomed = path if path.name.startswith(".") else path.with_name(f".{path.name}.partial")
    if doomed != path:
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
    shutil.rmtree(doomed)
