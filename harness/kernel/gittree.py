# SPDX-License-Identifier: GPL-2.0-only
"""Ask git about a kernel repository, and keep worktrees of it in the cache.

Nothing here changes the user's checkout or index: optional locks are off, so that even `status` does not
refresh the index, and hooks do not run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness import paths, process
from harness.errors import InfraError, UsageError, nearest

_ENV = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GitState:
    """What a checkout is: its commit, and the content of every file that differs from it."""

    commit: str
    name: str  # `git describe`, or the ref and the abbreviated commit
    changes: dict[str, str] = dataclasses.field(default_factory=dict)  # path -> digest of its content


def git(
    directory: Path, arguments: Sequence[str | os.PathLike[str]], env: Mapping[str, str] | None = None
) -> process.Completed:
    """Run git in *directory* to its end; *env* is added to its environment.

    No hooks, no questions, no housekeeping, messages in English.
    """
    if process.find_tool("git") is None:
        raise InfraError("git is missing", hint="install git")
    settings = ["-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0", "-c", "maintenance.auto=false"]
    return process.run(["git", *settings, "-C", directory, *arguments], env={**_ENV, **(env or {})})


def repository_root(directory: Path) -> Path:
    """The directory that all worktrees of a repository share; UsageError when *directory* is in none."""
    done = git(directory, ["rev-parse", "--path-format=absolute", "--git-common-dir"])
    if not done.ok:
        raise UsageError(f"{directory} is not a git repository: {_reason(done)}")
    return Path(done.stdout.strip()).resolve()


def place_of(root: Path) -> Path:
    """Where the cache keeps worktrees of the repository *root* (see `repository_root`)."""
    return paths.cache_dir() / "worktrees" / hashlib.sha256(os.fsencode(root)).hexdigest()[:12]


def _reason(done: process.Completed) -> str:
    lines = done.stderr.strip().splitlines()
    return lines[0].removeprefix("fatal: ") if lines else done.ending


def read_state(path: Path) -> GitState | None:
    """The state of the checkout whose top is *path*; None when *path* is not the top of one.

    Untracked files count, ignored ones do not.
    """
    if not (path / ".git").exists():
        return None
    commit = git(path, ["rev-parse", "--verify", "HEAD^{commit}"])
    if not commit.ok:
        raise UsageError(f"git cannot read {path}: {_reason(commit)}")
    status = git(path, ["status", "--porcelain=v1", "-z", "--no-renames", "--untracked-files=all"])
    status.check("cannot tell whether the tree has local changes")
    changed = [entry[3:] for entry in status.stdout.split("\0") if entry]
    return GitState(
        commit=commit.stdout.strip(),
        name=_describe(path, commit.stdout.strip()),
        changes={name: _content_digest(path / name) for name in changed},
    )


def _content_digest(path: Path) -> str:
    if path.is_symlink():
        return f"link {path.readlink()}"
    if not path.is_file():
        return "gone"
    mode = "x" if os.access(path, os.X_OK) else "-"
    return mode + hashlib.sha256(path.read_bytes()).hexdigest()


def _describe(path: Path, commit: str) -> str:
    done = git(path, ["describe", "--tags", "--always", "--abbrev=12", commit])
    return done.stdout.strip() if done.ok else commit[:12]


def resolve(repository: Path, ref: str) -> GitState:
    """The commit that *ref* names; UsageError with the nearest ref name when it names none."""
    repository_root(repository)
    done = git(repository, ["rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}"])
    if not done.ok:
        names = git(repository, ["for-each-ref", "--format=%(refname:short)"]).stdout.split()
        raise UsageError(f"{repository} has no ref {ref!r}", hint=nearest(ref, names) if names else None)
    commit = done.stdout.strip()
    name = ref if commit.startswith(ref) else f"{ref} ({commit[:12]})"
    return GitState(commit=commit, name=name)


def show(repository: Path, commit: str, path: str) -> str:
    """The text of a file in a commit; UsageError when the commit has no such file."""
    done = git(repository, ["show", f"{commit}:{path}"])
    if not done.ok:
        raise UsageError(f"{repository} at {commit[:12]} is not a Linux source tree: {_reason(done)}")
    return done.stdout


def files_digest(repository: Path, commit: str, *patterns: re.Pattern[str]) -> tuple[str, ...]:
    """One digest per pattern: of the names and contents of the commit's files that it matches whole."""
    done = git(repository, ["ls-tree", "-r", "-z", "--full-tree", commit])
    done.check(f"cannot list the files of {commit[:12]}")
    entries = [(line, line.partition("\t")[2]) for line in done.stdout.split("\0") if line]
    digests = []
    for pattern in patterns:
        lines = [line for line, name in entries if pattern.fullmatch(name)]
        digests.append(hashlib.sha256("\0".join(lines).encode()).hexdigest())
    return tuple(digests)


def check_out(repository: Path, path: Path, commit: str) -> None:
    """Bring the worktree at *path* to *commit*, making it first when it is not there.

    git touches only the files that differ, so objects built from the others stay valid.
    """
    if (path / ".git").exists():
        head = git(path, ["rev-parse", "HEAD"])
        if head.ok and head.stdout.strip() == commit and not _is_changed(path):
            return
        done = git(path, ["checkout", "--quiet", "--force", "--detach", commit])
        if done.ok:
            git(path, ["clean", "--quiet", "-ffdx"]).check("cannot clean the worktree in the cache")
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    done = git(repository, ["worktree", "add", "--quiet", "--force", "--detach", os.fspath(path), commit])
    done.check(f"cannot check out {commit[:12]} in the cache")


def remove_worktree(path: Path) -> None:
    """Remove the worktree at *path* and what its repository keeps about it, which may be gone itself.

    Touches nothing else: `git worktree prune` would also forget the user's own on a disk that is not mounted.
    """
    root = git(path, ["rev-parse", "--path-format=absolute", "--git-common-dir"])
    if root.ok:
        git(Path(root.stdout.strip()), ["worktree", "remove", "--force", "--force", os.fspath(path)])
    shutil.rmtree(path, ignore_errors=True)


def has_changes(directory: Path) -> bool:
    """Whether the checkout has changes that are in no commit; untracked files do not count."""
    done = git(directory, ["status", "--porcelain", "--untracked-files=no"])
    return done.ok and bool(done.stdout.strip())


def _is_changed(path: Path) -> bool:
    return bool(git(path, ["status", "--porcelain", "--untracked-files=all"]).stdout)
