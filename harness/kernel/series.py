# SPDX-License-Identifier: GPL-2.0-only
"""Apply a patch series to a commit, in the worktree of the cache that the commit is built from.

The commits that come of it are the same ones every time (fixed committer, the author's date), so that what
was built of them once is in the store.  No ref points to them, and the user's checkout is left alone.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

from harness import process
from harness.errors import KernelError, UsageError
from harness.kernel import gittree
from harness.kernel.trees import KernelTree, open_tree

_SUFFIXES = (".patch", ".mbox", ".mbx", ".eml")
_FAILED = re.compile(r"^Patch failed at \d+ (.*)$", re.MULTILINE)
_WHY = re.compile(r"^(?:error: patch failed: .*|error: .*: .*|CONFLICT .*)$", re.MULTILINE)
_CONFLICT_LINES = 24
"""Of the first conflict, in the error."""

_COMMITTER = {"GIT_COMMITTER_NAME": "vfio-harness", "GIT_COMMITTER_EMAIL": "vfio-harness@localhost"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """A patch that was applied."""

    commit: str
    subject: str


def find_mails(series: Path) -> tuple[Path, ...]:
    """The files of a series in order; UsageError when there is none."""
    if series.is_file():
        return (series,)
    if not series.is_dir():
        raise UsageError(f"--series: there is no {series}", hint="give an mbox, or a directory of patches")
    found = tuple(sorted(path for path in series.iterdir() if path.suffix in _SUFFIXES and path.is_file()))
    if not found:
        raise UsageError(
            f"--series: {series} holds no patches", hint=f"they are called *{' or *'.join(_SUFFIXES)}"
        )
    return found


def apply_series(repository: Path, base: str, series: Path) -> tuple[Patch, ...]:
    """Apply *series* on top of *base*; what came of each patch, in order.

    Raises UsageError when there is nothing to apply, KernelError naming the patch that does not apply.
    """
    mails = [path.resolve() for path in find_mails(series)]
    tree = open_tree(f"{repository}@{base}")
    with tree.held():
        _forget_earlier(tree)
        words = ["am", "--3way", "--empty=drop", "--no-gpg-sign", "--committer-date-is-author-date"]
        done = gittree.git(tree.path, [*words, *map(os.fspath, mails)], env=_COMMITTER)
        if not done.ok:
            error = _explain(tree, series, done)
            _forget_earlier(tree)
            raise error
        log = gittree.git(tree.path, ["log", "--reverse", "--format=%H %s", f"{tree.commit}..HEAD"])
        lines = log.check("cannot list the patches").stdout.splitlines()
    if not lines:
        raise UsageError(f"--series: {series} changes nothing")
    return tuple(Patch(commit=line[:40], subject=line[41:]) for line in lines)


def _forget_earlier(tree: KernelTree) -> None:
    """End what a killed or failed `git am` has left."""
    # It wants to know who we are even for this.
    gittree.git(tree.path, ["am", "--quit"], env=_COMMITTER)
    assert tree.repository is not None
    assert tree.commit is not None
    gittree.check_out(tree.repository, tree.path, tree.commit)


def _explain(tree: KernelTree, series: Path, done: process.Completed) -> KernelError | UsageError:
    said = done.stdout + done.stderr
    failed = _FAILED.search(said)
    if failed is None:
        return UsageError(f"--series: {series} holds no patch that git am understands", hint=_last(said))
    reasons = list(dict.fromkeys(match[0].removeprefix("error: ") for match in _WHY.finditer(said)))
    conflict = gittree.git(tree.path, ["diff", "--diff-filter=U"]).stdout.splitlines()
    shown = [*reasons[:4], *conflict[:_CONFLICT_LINES]]
    return KernelError(
        f"{failed[1]!r} of {series.name} does not apply to {tree.label}",
        hint="\n  ".join(shown) or None,
    )


def _last(text: str) -> str:
    lines: Sequence[str] = [line for line in text.splitlines() if line and not line.startswith("hint: ")]
    return lines[-1] if lines else "it says nothing"
