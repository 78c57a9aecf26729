# SPDX-License-Identifier: GPL-2.0-only
"""`run --series`: run on a tree with patches applied, after the last or after each of them."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from harness.base import itself
from harness.base.deadline import Deadline
from harness.base.errors import ExitCode, UsageError
from harness.base.output import emit, tell
from harness.cli.bisect_options import repository_of
from harness.kernel import gittree
from harness.kernel.patches import Patch, apply_patches
from harness.kernel.series import fetch_thread, is_message_id
from harness.kernel.trees import is_linux

_WORST_FIRST = (ExitCode.INTERRUPTED, ExitCode.CASE_FAILED, ExitCode.USAGE, ExitCode.INFRA, ExitCode.KERNEL)


def base_of(tree: str | None) -> tuple[Path, str]:
    """Return the repository and the commit that --tree names."""
    directory, at, ref = (tree or "").rpartition("@")
    if at and not Path(tree or "").is_dir():
        return repository_of(directory or "."), ref
    return repository_of(tree), "HEAD"


def apply(tree: str | None, series: str) -> tuple[Path, tuple[Patch, ...]]:
    """Return the repository, and the patches of *series*, a path or a message-id, as commits in it."""
    if tree is None and not is_linux(Path.cwd()):
        raise UsageError(
            "--series needs the tree that its patches apply to",
            hint="give --tree a git repository of Linux, or DIR@REF",
        )
    repository, base = base_of(tree)
    gittree.repository_root(repository)
    if base == "HEAD" and gittree.has_changes(repository):
        tell(f"{repository} has uncommitted changes: the series is applied without them")
    with tempfile.TemporaryDirectory(prefix="vfio-harness-thread-") as place:
        path = fetch_thread(series, Path(place)) if is_message_id(series) else Path(series)
        patches = apply_patches(repository, base, path)
    for number, patch in enumerate(patches, 1):
        tell(f"applied {number}/{len(patches)}: {patch.commit[:12]} {patch.subject}")
    return repository, patches


def spec_of(repository: Path, patch: Patch) -> str:
    """Return the --tree of the tree with the patches up to *patch*."""
    return f"{repository}@{patch.commit}"


def run_each(repository: Path, patches: Sequence[Patch], argv: Sequence[str]) -> ExitCode:
    """Run *argv* after each patch, in a process of its own; return the worst exit code."""
    ended: list[tuple[Patch, ExitCode]] = []
    for number, patch in enumerate(patches, 1):
        tell(f"after patch {number}/{len(patches)}: {patch.subject}")
        status = _meaning(_run([*argv[:1], "--tree", spec_of(repository, patch), *argv[1:]]))
        ended.append((patch, status))
        if status == ExitCode.INTERRUPTED:
            break
    for number, (patch, status) in enumerate(ended, 1):
        emit(f"{number}/{len(patches)} {patch.commit[:12]} {_word(status):<14} {patch.subject}")
    statuses = {status for _patch, status in ended}
    return next((code for code in _WORST_FIRST if code in statuses), ExitCode.GOOD)


def _word(code: ExitCode) -> str:
    words = {ExitCode.GOOD: "good", ExitCode.CASE_FAILED: "bad", ExitCode.KERNEL: "untestable"}
    return words.get(code, "infrastructure")


def _meaning(status: int | None) -> ExitCode:
    """Return what a child's exit *status* means; infrastructure, if it is not one of ours."""
    return ExitCode(status) if status in tuple(ExitCode) else ExitCode.INFRA


def _run(words: Sequence[str]) -> int | None:
    sys.stdout.flush()
    with itself.started(words) as child:
        child.wait(Deadline.after(itself.LONGEST_RUN_SECONDS))
        return child.status


def check_each(series: str | None, *, each: bool, as_json: bool, junit: Path | None, collect: bool) -> None:
    """Refuse combinations of options that make no sense."""
    if series is None:
        if each:
            raise UsageError("--each needs a series", hint="add --series FILE|DIR|MESSAGE-ID")
        return
    if each and (as_json or junit is not None):
        raise UsageError(
            "--each starts one run per patch, each with its own report",
            hint="leave --json and --junit-xml out: run.json and junit.xml are in every run's directory",
        )
    if each and collect:
        raise UsageError("--collect-only shows one run", hint="leave --each out")
