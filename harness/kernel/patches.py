# SPDX-License-Identifier: GPL-2.0-only
"""Apply patches to a commit, in the worktree of the cache that the commit is built from.

The resulting commits are the same every time (fixed committer, the author's date), so that their kernels are
found in the store.  They are copied into the user's repository, but no ref points to them, and the checkout
is left alone.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from harness.base import process
from harness.base.cause import Cause
from harness.base.errors import KernelError, UsageError
from harness.kernel import gittree
from harness.kernel.series import read_series
from harness.kernel.trees import KernelTree, open_tree

_FAILED = re.compile(r"^Patch failed at \d+ (.*)$", re.MULTILINE)
_WHY = re.compile(r"^(?:error: patch failed: .*|error: .*: .*|CONFLICT .*)$", re.MULTILINE)
_CONFLICT_LINES = 24
"""How many lines of the first conflict the error shows."""

_log = logging.getLogger("harness.kernel.patches")

_COMMITTER = {"GIT_COMMITTER_NAME": "vfio-harness", "GIT_COMMITTER_EMAIL": "vfio-harness@localhost"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """An applied patch."""

    commit: str
    subject: str


def apply_patches(repository: Path, base: str, patches: Path) -> tuple[Patch, ...]:
    """Apply *patches*, an mbox or a directory, on top of *base*; return the new commits in order.

    Raises UsageError when there is nothing to apply, KernelError naming the patch that does not apply.
    """
    tree = open_tree(f"{repository}@{base}")
    with tempfile.TemporaryDirectory(prefix="vfio-harness-series-") as directory, tree.held():
        series = read_series(patches, Path(directory))
        _tell_base(repository, tree, series.base)
        _forget_earlier(tree)
        words = ["am", "--3way", "--empty=drop", "--quoted-cr=strip"]
        words += ["--no-gpg-sign", "--committer-date-is-author-date"]
        done = gittree.git(tree.path, [*words, "--", *map(os.fspath, series.mails)], env=_COMMITTER)
        if not done.ok:
            error = _explain(tree, patches, done)
            _forget_earlier(tree)
            raise error
        log = gittree.git(tree.path, ["log", "--reverse", "--format=%H %s", f"{tree.commit}..HEAD"])
        lines = log.check("cannot list the patches", Cause.SOURCE).stdout.splitlines()
    if not lines:
        raise UsageError(f"--series: {patches} changes nothing")
    words = ["fetch", "--quiet", "--no-write-fetch-head", "--no-tags", os.fspath(tree.path), "HEAD"]
    gittree.git(repository, words).check("cannot copy the commits into the repository", Cause.SOURCE)
    return tuple(Patch(commit=line[:40], subject=line[41:]) for line in lines)


def _tell_base(repository: Path, tree: KernelTree, base: str) -> None:
    """Log when the series was made for another commit than that of *tree*, and how to test it there."""
    assert tree.commit is not None
    if not base or tree.commit.startswith(base):
        return
    there = gittree.git(tree.path, ["rev-parse", "--verify", "--quiet", f"{base}^{{commit}}"]).ok
    way = f"--tree {repository}@{base[:12]}" if there else "the repository lacks that commit"
    said = "the series was made for commit %s, and is applied to %s (%s)"
    _log.warning(said, base[:12], tree.commit[:12], way)


def _forget_earlier(tree: KernelTree) -> None:
    """Clean up after a killed or failed `git am`."""
    # Even --quit needs a committer.
    gittree.git(tree.path, ["am", "--quit"], env=_COMMITTER)
    assert tree.repository is not None
    assert tree.commit is not None
    gittree.check_out(gittree.mirror_of(tree.repository), tree.path, tree.commit)


def _explain(tree: KernelTree, patches: Path, done: process.Completed) -> KernelError | UsageError:
    said = done.stdout + done.stderr
    failed = _FAILED.search(said)
    if failed is None:
        return UsageError(f"--series: {patches} has no patch that git am understands", hint=_last(said))
    reasons = list(dict.fromkeys(match[0].removeprefix("error: ") for match in _WHY.finditer(said)))
    conflict = gittree.git(tree.path, ["diff", "--no-ext-diff", "--diff-filter=U"]).stdout.splitlines()
    shown = [*reasons[:4], *conflict[:_CONFLICT_LINES]]
    return KernelError(
        f"{failed[1]!r} of {patches.name} does not apply to {tree.label}",
        hint="\n  ".join(shown) or None,
        cause=Cause.SOURCE,
    )


def _last(text: str) -> str:
    lines: Sequence[str] = [line for line in text.splitlines() if line and not line.startswith("hint: ")]
    return lines[-1] if lines else "git am failed without output"
