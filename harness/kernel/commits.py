# SPDX-License-Identifier: GPL-2.0-only
"""Commits of a repository as an entry of the store, which can travel to a host without the repository."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from harness.base import paths
from harness.base.cause import Cause
from harness.kernel import gittree
from harness.kernel.store import digest_of, provide_entry

_PLACE = "sources/git"


def provide_commits(repository: Path, commits: Iterable[str]) -> Path:
    """Return the entry with *commits* of *repository* and their files: a bare repository without a history.

    Raises SourceError when git cannot make it.
    """
    asked = sorted(set(commits))
    entry = paths.cache_dir() / _PLACE / digest_of("commits", *asked)

    def make(new: Path) -> None:
        _copy(repository, asked, new)

    provide_entry(entry, f"another process is packing {repository}", make)
    return entry


def _copy(repository: Path, commits: Collection[str], new: Path) -> None:
    what = f"cannot pack commits of {repository}"
    form = gittree.git(repository, ["rev-parse", "--show-object-format"]).stdout.strip()
    words = ["init", "--quiet", "--bare", "--template=", f"--object-format={form or 'sha1'}", "."]
    gittree.git(new, words).check(what, Cause.SOURCE)
    listed = "".join(f"{commit}\n" for commit in commits)
    words = ["rev-list", "--objects", "--no-walk=unsorted", "--stdin"]
    objects = gittree.git(repository, words, given=listed).check(what, Cause.SOURCE)
    # No search for deltas, which takes minutes for a kernel; those that the repository has are used.
    words = ["pack-objects", "-q", "--window=0", "--compression=1"]
    pack = os.fspath(new / "objects" / "pack" / "pack")
    gittree.git(repository, [*words, pack], given=objects.stdout).check(what, Cause.SOURCE)
    (new / "shallow").write_text(listed, encoding="ascii")
