# SPDX-License-Identifier: GPL-2.0-only
"""`run --watch`: build and test again each time a source file of the tree is saved.

Each run is a process of its own.  The newest save wins: a run that is under way is interrupted, keeps its
finished results and is marked as overtaken.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from watchfiles import Change, DefaultFilter, watch

from harness.base import itself, paths
from harness.base.errors import ExitCode, HostError, UsageError
from harness.base.output import tell
from harness.base.process import Process
from harness.kernel.trees import is_linux
from harness.kernel.working_tree import files_below, take_working_tree, unread
from harness.results import RunState, Verdict
from harness.results.store import RunStore, list_runs
from harness.session.wishes import default_tree

FACT = "watch"
"""Key in Inputs.extra of `ID/NUMBER`: the `run --watch` process, and which of its runs this is."""

_QUIET_MS = 100
"""Milliseconds without another save that end a group of saves; an editor writes several files at once."""

_LOOK_MS = 100
"""How often the process of the run is looked at, in milliseconds."""


def watch_tree(tree: str | None, argv: Sequence[str]) -> ExitCode:
    """Run `vfio-harness ARGV` now and after each save in *tree*, until interrupted.

    Raises UsageError when *tree* is no directory with sources that can change, SourceError when it cannot be
    read, HostError when it cannot be watched.
    """
    top = _directory(tree)
    rounds, saves = _Rounds(argv), _Saves(top)
    try:
        for changes in _changes(top):
            names = saves.news(changes)
            if names:
                tell(f"saved: {_list(names)}{rounds.overtake()}")
            if names or not rounds.number:
                rounds.start()
            elif rounds.ended():
                tell(f"waiting for the next save in {top}; Ctrl-C ends")
    finally:
        rounds.stop()
    return ExitCode.INTERRUPTED


def _directory(tree: str | None) -> Path:
    path = paths.expanded(tree or default_tree())
    if not path.is_dir() or not is_linux(path):
        raise UsageError(
            f"--watch needs a directory with Linux sources that you edit, not {tree or default_tree()}",
            hint="give it with --tree DIR",
        )
    return path.resolve()


def _changes(top: Path) -> Iterator[Collection[tuple[Change, str]]]:
    """Yield what changed below *top*; at least each _LOOK_MS, if only that nothing did."""
    try:
        yield from watch(
            top,
            watch_filter=DefaultFilter(),
            debounce=_QUIET_MS,
            rust_timeout=_LOOK_MS,
            yield_on_timeout=True,
            raise_interrupt=True,
        )
    except (OSError, RuntimeError) as error:
        # The library wraps the errors of inotify(7) in errors of its own.
        raise HostError(
            f"cannot watch {top}: {error}", hint="raise the sysctl fs.inotify.max_user_watches"
        ) from error


class _Saves:
    """What the files of a tree held when they were last saved."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._blobs: dict[str, str] | None = None
        """File -> git's digest of it; None until the tree is watched."""

    def news(self, changes: Iterable[tuple[Change, str]]) -> list[str]:
        """Return the names of the files of *changes* that a build reads and that hold something new."""
        if self._blobs is None:
            files = take_working_tree(self._top).files
            self._blobs = {name: facts.partition(" ")[2] for name, facts in files.items()}
        blobs = self._blobs
        names = {name for kind, path in changes for name in self._names(kind, Path(path))}
        # A directory that was moved away.
        gone = {name for name in names - blobs.keys() if not os.path.lexists(self._top / name)}
        if gone:
            names |= {name for name in blobs if not gone.isdisjoint(accumulate(name.split("/"), _joined))}
        read = sorted(names - unread(self._top, names)) if names else []
        return [name for name in read if self._is_new(name, blobs)]

    def _names(self, kind: Change, path: Path) -> Iterator[str]:
        """Yield *path*, or the files below a directory that was moved here: none has a change of its own."""
        name = os.fspath(path.relative_to(self._top))
        if not path.is_dir() or path.is_symlink():
            yield name
        elif kind is Change.added:
            with contextlib.suppress(OSError):
                yield from (f"{name}/{below}" for below in files_below(path, f"{name}/"))

    def _is_new(self, name: str, blobs: dict[str, str]) -> bool:
        path, before = self._top / name, blobs.pop(name, "")
        with contextlib.suppress(OSError):
            content = os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes()
            head = f"blob {len(content)}\0".encode()
            blobs[name] = hashlib.sha1(head + content, usedforsecurity=False).hexdigest()
        return before != blobs.get(name, "")


class _Rounds:
    """The runs, one after the other."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = argv
        self._watch = secrets.token_hex(4)
        self.number = 0
        self._child: Process | None = None
        self._block = contextlib.ExitStack()

    def start(self) -> None:
        """Start the next run; the one before has ended."""
        self.number += 1
        sys.stdout.flush()
        words = [*self._argv[:1], "--about", f"{FACT}={self._round}", *self._argv[1:]]
        self._child = self._block.enter_context(itself.started(words))

    @property
    def _round(self) -> str:
        return f"{self._watch}/{self.number}"

    def ended(self) -> bool:
        """Whether the run has ended since the last call."""
        if self._child is None or self._child.status is None:
            return False
        self.stop()
        return True

    def overtake(self) -> str:
        """Interrupt the run under way and mark it as overtaken; return what to say of it."""
        under_way = self._child is not None and self._child.status is None
        self.stop()
        if not under_way:
            return ""
        for summary in list_runs(paths.runs_dir()):
            ours = summary.info is not None and summary.info.inputs.extra.get(FACT) == self._round
            if ours and summary.state is not RunState.FINISHED:
                with RunStore.open(summary.directory) as store:
                    store.finish(store.read().verdict or Verdict.INFRASTRUCTURE, RunState.OVERTAKEN)
        return "; the run under way was interrupted"

    def stop(self) -> None:
        """End the process of the run, if there is one."""
        self._child = None
        self._block.close()


def _joined(directory: object, name: str) -> str:
    return f"{directory}/{name}"


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
