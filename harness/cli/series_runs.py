# SPDX-License-Identifier: GPL-2.0-only
"""`run --series`: the same run on a tree with patches applied, at their end or after each of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from harness import itself, process
from harness.cli.asking import repository_of
from harness.deadline import Deadline
from harness.errors import ExitCode, UsageError
from harness.kernel import gittree
from harness.kernel.series import Patch, apply_series
from harness.output import emit, tell

_END_SECONDS = 60.0
"""How long a run that is interrupted has to stop its VMs and to write its report."""

_WORST_FIRST = (ExitCode.INTERRUPTED, ExitCode.CASE_FAILED, ExitCode.USAGE, ExitCode.INFRA, ExitCode.KERNEL)


def base_of(tree: str | None) -> tuple[Path, str]:
    """The repository and the commit that --tree names for a series."""
    directory, at, ref = (tree or "").rpartition("@")
    if at and not Path(tree or "").is_dir():
        return repository_of(directory or "."), ref
    return repository_of(tree), "HEAD"


def apply(tree: str | None, series: Path) -> tuple[Path, tuple[Patch, ...]]:
    """The repository, and the patches of *series* as commits in it."""
    repository, base = base_of(tree)
    gittree.repository_root(repository)
    if base == "HEAD" and gittree.has_changes(repository):
        tell(f"{repository} has local changes, which are in no commit: the series is applied without them")
    patches = apply_series(repository, base, series)
    for number, patch in enumerate(patches, 1):
        tell(f"applied {number}/{len(patches)}: {patch.commit[:12]} {patch.subject}")
    return repository, patches


def spec_of(repository: Path, patch: Patch) -> str:
    """What --tree must say for the tree with the patches up to *patch*."""
    return f"{repository}@{patch.commit}"


def run_each(repository: Path, patches: Sequence[Patch], argv: Sequence[str]) -> ExitCode:
    """Run what *argv* asks for after each patch, in a process of its own; the worst exit code."""
    ended: list[tuple[Patch, ExitCode]] = []
    for number, patch in enumerate(patches, 1):
        tell(f"after patch {number}/{len(patches)}: {patch.subject}")
        status = _meaning(_run([*argv[:1], "--tree", spec_of(repository, patch), *argv[1:]]))
        ended.append((patch, status))
        if status == ExitCode.INTERRUPTED:
            break
    for number, (patch, status) in enumerate(ended, 1):
        emit(f"{number}/{len(patches)} {patch.commit[:12]} {_word(status):<12} {patch.subject}")
    statuses = {status for _patch, status in ended}
    return next((code for code in _WORST_FIRST if code in statuses), ExitCode.GOOD)


def _word(code: ExitCode) -> str:
    words = {ExitCode.GOOD: "good", ExitCode.CASE_FAILED: "bad", ExitCode.KERNEL: "untestable"}
    return words.get(code, "our fault")


def _meaning(status: int | None) -> ExitCode:
    """What a child's exit *status* means; one that is none of ours, or a signal's, says nothing good."""
    return ExitCode(status) if status in tuple(ExitCode) else ExitCode.INFRA


def _run(words: Sequence[str]) -> int | None:
    sys.stdout.flush()
    argv, env = itself.argv(words), itself.env()
    with process.spawn(
        argv, env=env, stdout=None, stderr=None, whole_group=True, stop_seconds=_END_SECONDS
    ) as child:
        child.wait(Deadline.after(itself.LONGEST_RUN_SECONDS))
        return child.status


def without_series(argv: Sequence[str]) -> list[str]:
    """*argv*, a verb and its options, less what is about the series and the tree."""
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            kept += [word, *words]
        elif word in ("--series", "--tree"):
            next(words, None)
        elif word != "--each" and not word.startswith(("--series=", "--tree=")):
            kept.append(word)
    return kept


def check_each(series: Path | None, *, each: bool, as_json: bool, junit: Path | None, collect: bool) -> None:
    """Refuse options that go together badly."""
    if series is None:
        if each:
            raise UsageError("--each says how to run a series", hint="add --series FILE|DIR")
        return
    if each and (as_json or junit is not None):
        raise UsageError(
            "--each makes one run after another, each with its own report",
            hint="leave --json and --junit-xml out: run.json and junit.xml are in every run's directory",
        )
    if each and collect:
        raise UsageError("--collect-only shows one run", hint="leave --each out")
