# SPDX-License-Identifier: GPL-2.0-only
"""Keep the runs few: drop the directories of old ones that the history has."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from harness.results.model import State
from harness.results.store import FILE_NAME, list_runs


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PrunedRun:
    """A run directory that is gone."""

    path: Path
    size: int  # bytes on disk


def prune_runs(
    root: Path, remembered: Collection[str], *, keep: int | None = None, max_age: float | None = None
) -> tuple[PrunedRun, ...]:
    """Remove finished Runs below *root*: all but the newest *keep*, and those begun *max_age* seconds ago.

    Only those go whose directory's name is *remembered*, by the history.  What was cut short and may be gone
    on with, what cannot be read and what somebody is writing to stays, and does not count.
    """
    finished = [run for run in list_runs(root) if run.state is State.FINISHED and run.info is not None]
    now = datetime.datetime.now(datetime.UTC)
    removed: list[PrunedRun] = []
    for place, run in enumerate(finished):
        assert run.info is not None
        too_old = max_age is not None and (now - run.info.started).total_seconds() > max_age
        too_many = keep is not None and place >= keep
        if (too_old or too_many) and run.directory.name in remembered:
            size = _size(run.directory)
            if _remove(run.directory):
                removed.append(PrunedRun(path=run.directory, size=size))
    return tuple(removed)


def _remove(directory: Path) -> bool:
    """Remove *directory* unless somebody writes to its Run; whether it is gone."""
    with contextlib.suppress(OSError), _alone_with(directory):
        # The results go last: what is left of a removal that is killed is a Run still, for the next one.
        for path in directory.iterdir():
            if path.name == FILE_NAME:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        shutil.rmtree(directory)
    return not directory.exists()


@contextlib.contextmanager
def _alone_with(directory: Path) -> Iterator[None]:
    """Hold what a writer holds of its Run, see is_alive().  Raises OSError when one does."""
    handle = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _size(directory: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*"))
