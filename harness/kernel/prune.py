# SPDX-License-Identifier: GPL-2.0-only
"""Keep the cache small: drop what was not used for longest.

That is kernels, selftests, objects, configurations, unpacked sources, worktrees, apt's lists, the disks of
guests and their snapshots.  Each goes under the lock that its users take, so what is in use stays: a build
holds its objects and its source, a VM its kernel and selftests (harness.kernel.store.hold) and its disks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from harness import paths
from harness.errors import InfraError
from harness.kernel import gittree
from harness.kernel.debian import CANDIDATES_FILE, LISTS_LOCK
from harness.kernel.store import kconfig_lock
from harness.kernel.trees import worktree_lock
from harness.locks import try_locked

SPARED_SECONDS = 3600.0
"""What was used this recently is not removed unasked: somebody may have found it and not hold it yet."""

SNAPSHOTS = "snapshots"
"""The kind of the guests' snapshots, which are of no use after a reboot or on another machine."""

_KINDS = {
    "kernels": "*",
    "selftests": "*",
    "objects": "*/*",
    "configs": "*",
    "sources/debian": "*",
    "sources/tarball": "*",
    "worktrees": "*/*",
    "apt": "*",
    "images": "*",
    SNAPSHOTS: "*",
    "bench": "*",
    "tests": "*",
}
"""Directories of the cache, and where in them the entries are."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing in the cache that can go by itself."""

    path: Path
    kind: str  # the directory of the cache that it is in
    used: float  # when it was last used, in seconds of the epoch
    size: int  # bytes on disk


def collect_garbage(
    *,
    max_bytes: int | None = None,
    max_age: float | None = None,
    spared: float = SPARED_SECONDS,
    snapshots: bool = True,
) -> tuple[Entry, ...]:
    """Remove what was unused for *max_age* seconds, then the least recently used until *max_bytes* suffice.

    Without *snapshots* all of those go as well, and first.
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


def list_entries() -> Iterator[Entry]:
    """Everything in the cache that can be removed by itself, half-made leftovers included."""
    for kind, pattern in _KINDS.items():
        for path in (paths.cache_dir() / kind).glob(pattern):
            with contextlib.suppress(OSError):
                yield Entry(path=path, kind=kind, used=_last_use(path, kind), size=_size(path))


def _last_use(path: Path, kind: str) -> float:
    """A directory's own time, which its users set; apt's are told by the stamps in them."""
    stamps = path.iterdir() if kind == "apt" and path.is_dir() else iter(())
    return max(path.stat().st_mtime for path in (path, *stamps))


def _size(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_blocks * 512
    total = 0
    for directory, _names, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512  # noqa: PTH118 (a hot loop)
    return total


def _lock_name(entry: Entry) -> str:
    """The lock under which *entry* is made and used."""
    whole = entry.path.with_name(entry.path.name.lstrip(".").removesuffix(".partial"))
    place = whole.parent.name
    match entry.kind:
        case "apt":
            return LISTS_LOCK
        case "worktrees":
            return worktree_lock(whole)
        case "objects":
            return kconfig_lock(place) if whole.stem == "kconfig" else place
        case _:
            return whole.name


def _remove(entry: Entry) -> bool:
    """Remove *entry* unless someone is at work on it or uses it."""
    with try_locked(_lock_name(entry)) as ours:
        if not ours:
            return False
        with contextlib.suppress(OSError, InfraError):
            if entry.kind == "apt":
                # The memo says which list a package is in: it goes first, with whichever list.
                entry.path.with_name(CANDIDATES_FILE).unlink(missing_ok=True)
            if entry.kind == "worktrees":
                gittree.remove_worktree(entry.path)
            elif entry.path.is_dir():
                _remove_directory(entry.path)
            else:
                entry.path.unlink(missing_ok=True)
        return not entry.path.exists()


def _remove_directory(path: Path) -> None:
    """Remove *path*; renamed first, so that nobody finds half of it."""
    doomed = path if path.name.startswith(".") else path.with_name(f".{path.name}.partial")
    if doomed != path:
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
    shutil.rmtree(doomed)
