# SPDX-License-Identifier: GPL-2.0-only
"""Remove the directories of old Runs that the history has."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import shutil
from collections.abc import Collection
from pathlib import Path

from harness.results.model import RunState
from harness.results.owner import alone_in
from harness.results.store import FILE_NAME, list_runs


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PrunedRun:
    """A run directory that was removed."""

    path: Path
    size: int  # bytes on disk


def prune_runs(
    root: Path, remembered: Collection[str], *, keep: int | None = None, max_age: float | None = None
) -> tuple[PrunedRun, ...]:
    """Remove finished Runs below *root*: all but the newest *keep*, and those begun *max_age* seconds ago.

    Only directories whose names the history has (*remembered*) are removed.  Runs that may be resumed, cannot
    be read or are being written to stay, and do not count.
    """
    finished = [run for run in list_runs(root) if run.state is RunState.FINISHED and run.info is not None]
    now = datetime.datetime.now(datetime.UTC)
    removed: list[PrunedRun] = []
    for number, run in enumerate(finished):
        assert run.info is not None
        too_old = max_age is not None and (now - run.info.started).total_seconds() > max_age
        too_many = keep is not None and number >= keep
        if (too_old or too_many) and run.directory.name in remembered:
            size = sum(path.lstat().st_blocks * 512 for path in run.directory.rglob("*"))
            if _remove(run.directory):
                removed.append(PrunedRun(path=run.directory, size=size))
    return tuple(removed)


def _remove(directory: Path) -> bool:
    """Remove *directory* unless a process writes to its Run; return whether it is gone."""
    with contextlib.suppress(OSError), alone_in(directory):
        # The results go last: a removal that is killed leaves a Run, which the next one removes.
        for path in directory.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != FILE_NAME:
                path.unlink()
        shutil.rmtree(directory)
    return not directory.exists()
