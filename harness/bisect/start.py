# SPDX-License-Identifier: GPL-2.0-only
"""Start, continue and drop the bisect of a repository: one at a time."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path

from harness.base import paths
from harness.base.errors import InfraError, UsageError
from harness.base.files import write_atomic
from harness.bisect import git
from harness.bisect.git import alone, worktree_of
from harness.bisect.state import BisectRequest, BisectState, Rules, load_state
from harness.results.store import new_run_id
from harness.session.own import NOTHING, OWN_DIRECTORY, TakenOwn


def _pointer(root: Path) -> Path:
    """Return the file that names the directory of the repository's bisect."""
    return paths.cache_dir() / "bisects" / worktree_of(root).parent.name


def _read_pointer(root: Path) -> Path | None:
    try:
        return Path(_pointer(root).read_text(encoding="utf-8").strip())
    except OSError:
        return None


def find_unfinished(root: Path) -> tuple[BisectState, Path] | None:
    """Return the unfinished bisect of the repository *root* with its directory; None when there is none."""
    directory = _read_pointer(root)
    if directory is None or not directory.is_dir():
        return None
    state = load_state(directory)
    return None if state.finished else (state, directory)


def start(request: BisectRequest, rules: Rules, own: TakenOwn = NOTHING) -> tuple[BisectState, Path]:
    """Start a bisect, with a new directory; UsageError when the repository has an unfinished one.

    All steps run the copies of *own* in that directory: the user may go on writing.
    """
    root = Path(request.root)
    with alone(root):
        unfinished = find_unfinished(root)
        if unfinished is not None:
            state, directory = unfinished
            raise UsageError(
                f"{request.repository} has an unfinished bisect, "
                f"with {len(state.tested)} verdicts in {directory}",
                hint="continue it: bisect --continue, or drop it: bisect --reset",
            )
        name = f"bisect-{new_run_id(datetime.datetime.now(datetime.UTC))}"
        directory = paths.runs_dir() / name
        kept = dataclasses.replace(request.options, own=own.kept_in(directory / OWN_DIRECTORY))
        request = dataclasses.replace(request, options=kept)
        state = BisectState(id=name, request=request, rules=rules)
        try:
            directory.mkdir(parents=True)
            own.keep(directory / OWN_DIRECTORY)
            pointer = _pointer(root)
            pointer.parent.mkdir(parents=True, exist_ok=True)
            state.save(directory)
            write_atomic(pointer, f"{directory}\n")
        except OSError as error:
            raise InfraError(f"cannot write {error.filename or directory}: {error.strerror}") from error
        return state, directory


def resume(root: Path, repository: str) -> tuple[BisectState, Path]:
    """Return the unfinished bisect; UsageError when there is none."""
    found = find_unfinished(root)
    if found is None:
        raise UsageError(
            f"{repository} has no unfinished bisect", hint="start one: bisect --good REV --bad REV"
        )
    return found


def reset(root: Path) -> Path | None:
    """Drop the bisect; return its directory, which stays, or None when there is none."""
    with alone(root):
        directory = _read_pointer(root)
        if directory is not None:
            git.reset(root)
            _pointer(root).unlink(missing_ok=True)
        return directory
