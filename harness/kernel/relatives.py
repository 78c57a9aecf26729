# SPDX-License-Identifier: GPL-2.0-only
"""Start a new source of the cache from one that is much the same, and its builds from the other's.

Equal files become links to one file and so have one time; the others are newer than all that was built
before.  So make finds a copy of the other's objects up to date, except for what differs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from harness.base import paths, process
from harness.base.deadline import Deadline
from harness.base.files import write_atomic
from harness.base.locks import locked_by
from harness.kernel import gittree
from harness.kernel.build import BuildTree, find_build_trees
from harness.kernel.kconfig import ResolvedConfig
from harness.kernel.store import OURS, source_lock

_RELATIVE = f"{OURS}relative"
_FILES = f"{OURS}files"

_ASKED = 4
"""How many sources, the most recently used, are compared: listing the files of one takes half a second."""

_EVERYWHERE = frozenset({"GCOV_KERNEL", "HZ", "KASAN", "LOCKDEP"})
"""Symbols that change the commands, or a header, of nearly all objects: scripts/Makefile.lib, Makefile.kasan,
linux/jiffies.h, linux/lockdep_types.h.  Of a build that differs in one of them next to nothing can be kept.
"""

_ALIKE = 0.5
"""The least part of equal files with which a copy of the objects saves anything."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Relative:
    """The source from which another one was started."""

    path: Path
    time: float  # when, in seconds of the epoch


def start_from_relative(source: Path, files: Mapping[str, str] | None = None) -> None:
    """Link the files of *source*, in which nothing was built, to equal ones of the most similar source.

    *files* is what will be in it, as from gittree.list_files(); without, it is what is there.
    """
    candidates = _sources(source)
    if not candidates:
        return
    began = time.time()
    wanted = list_source(source) if files is None else files
    alike, relative = max(
        ((len(wanted.items() & list_source(path).items()), path) for path in candidates),
        key=lambda pair: pair[0],
    )
    if alike < _ALIKE * len(wanted):
        return
    with locked_by(source_lock(relative), Deadline.after(0)) as ours:
        if not ours and _is_worktree(relative):
            # Its files are changing.
            return
        equal = wanted.items() & list_source(relative).items()
        for name in wanted:
            if (name, wanted[name]) not in equal or not _link(relative / name, source / name):
                with contextlib.suppress(FileNotFoundError):
                    os.utime(source / name, follow_symlinks=False)
    facts = {"path": os.fspath(relative), "time": began}
    write_atomic(source / _RELATIVE, json.dumps(facts))


def _sources(source: Path) -> list[Path]:
    """Return the other sources of the cache in which a build was finished, the most recently used first."""
    found = [*paths.cache_dir().glob("worktrees/*/*"), *paths.cache_dir().glob("sources/*/*")]
    others = (path for path in found if path != source)
    built = [path for path in others if any(tree.facts.finished for tree in find_build_trees(path))]
    return sorted(built, key=lambda path: path.stat().st_mtime, reverse=True)[:_ASKED]


def _is_worktree(source: Path) -> bool:
    return (source / ".git").exists()


def list_source(source: Path) -> Mapping[str, str]:
    """Return the files of a source of the cache: name -> mode and blob."""
    if _is_worktree(source):
        return gittree.list_index(source)
    memo = source / _FILES
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads(memo.read_text(encoding="utf-8", errors="surrogateescape")))
    files = _list_unpacked(source)
    with contextlib.suppress(OSError):
        write_atomic(memo, json.dumps(files).encode(errors="surrogateescape"))
    return files


def _list_unpacked(source: Path) -> dict[str, str]:
    """Return the files below *source* as git would name them (git-hash-object(1))."""
    found = {}
    for directory, names, files in os.walk(source):
        names[:] = [name for name in names if not name.startswith(OURS)]
        for name in files:
            path = Path(directory, name)
            if not name.startswith(OURS) and path.is_file() and not path.is_symlink():
                content = path.read_bytes()
                mode = "100755" if os.access(path, os.X_OK) else "100644"
                blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
                found[os.path.relpath(path, source)] = f"{mode} {blob.hexdigest()}"
    return found


def _link(theirs: Path, ours: Path) -> bool:
    """Make *ours* a link to the file *theirs*; return False where that cannot be."""
    try:
        try:
            os.link(theirs, ours, follow_symlinks=False)
        except FileNotFoundError:
            ours.parent.mkdir(parents=True, exist_ok=True)
            os.link(theirs, ours, follow_symlinks=False)
        except FileExistsError:
            beside = ours.with_name(f"{OURS}link")
            beside.unlink(missing_ok=True)
            os.link(theirs, beside, follow_symlinks=False)
            beside.replace(ours)
    except OSError:
        return False
    return True


def start_from_nearest(objects: BuildTree, config: ResolvedConfig) -> int | None:
    """Make *objects* a copy of this compiler's finished build tree of which the most can be kept.

    Return in how many symbols that differs; None, and *objects* is empty, when there is none.  Copied with
    its times, beside and then renamed; shares blocks where the file system can.  Objects with debug
    information name the directory in which they were built, so they are not copied.
    """
    partial = objects.path.with_name(f"{objects.path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    source = objects.path.parent
    ranked: list[tuple[frozenset[str], BuildTree]] = []
    if config.get("DEBUG_INFO") == "n":
        ranked = _rank(source, config)
        if not ranked and not find_build_trees(source):
            # When it was unpacked nothing was built from any other yet.
            start_from_relative(source)
            ranked = _rank(source, config)
    symbols, nearest = min(
        ranked, key=lambda pair: (bool(pair[0] & _EVERYWHERE), len(pair[0])), default=(frozenset[str](), None)
    )
    differing = None
    if nearest is not None:
        before, differing = nearest.facts, len(symbols)
        if not copy_objects(nearest.path, partial, objects.path) or nearest.facts != before:
            # Another process builds there, or has removed it.
            shutil.rmtree(partial, ignore_errors=True)
            differing = None
    partial.mkdir(exist_ok=True)
    partial.rename(objects.path)
    return differing


def _rank(source: Path, config: ResolvedConfig) -> list[tuple[frozenset[str], BuildTree]]:
    """Return the build trees that are good for *config* in *source*, with the symbols that differ."""
    return [
        (theirs.differing(config), tree)
        for tree in _usable(source)
        # Of another compiler's objects none could be kept.
        if (theirs := tree.config) and theirs.get("CC_VERSION_TEXT") == config.get("CC_VERSION_TEXT")
    ]


def copy_objects(objects: Path, target: Path, later: Path) -> bool:
    """Copy the build tree *objects* to *target*, which will be moved to *later* before it is used.

    Return whether it was copied whole.
    """
    if not process.run(["cp", "--archive", "--reflink=auto", objects, target]).ok:
        return False
    _move(target, {objects: later, objects.parent: later.parent})
    return True


def _usable(source: Path) -> Iterator[BuildTree]:
    """Yield the finished build trees of *source*, then those of its relatives that are good for it.

    Files of *source* that differ are newer than it, and the relative's builds must be older.
    """
    yield from (tree for tree in find_build_trees(source) if tree.facts.finished)
    latest = float("inf")
    while (relative := _read_relative(source)) is not None:
        source, latest = relative.path, min(latest, relative.time)
        for tree in find_build_trees(source):
            if tree.facts.finished and tree.facts.began < latest and not tree.is_under_way:
                yield tree


def _read_relative(source: Path) -> _Relative | None:
    with contextlib.suppress(OSError, ValueError, KeyError):
        facts = json.loads((source / _RELATIVE).read_text(encoding="utf-8"))
        return _Relative(path=Path(facts["path"]), time=float(facts["time"]))
    return None


def _move(copy: Path, moved: Mapping[Path, Path]) -> None:
    """Rewrite the paths in the records of the host programs below `tools`, with their times.

    Those alone are built with absolute paths, and all objects depend on objtool.
    """
    for directory, _names, files in os.walk(copy / "tools"):
        for file in (Path(directory, name) for name in files if name.endswith((".cmd", ".d"))):
            facts, text = file.stat(), file.read_bytes()
            for old, new in moved.items():
                # Names of worktrees may begin with that of another one.
                text = re.sub(re.escape(os.fsencode(old)) + rb"(?![\w.-])", os.fsencode(new), text)
            file.write_bytes(text)
            os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
