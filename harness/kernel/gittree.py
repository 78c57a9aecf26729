# SPDX-License-Identifier: GPL-2.0-only
"""Ask git about a kernel repository, and keep worktrees of it in the cache.

Nothing here changes the user's repository: hooks do not run, and optional locks are off, so that even
`status` does not refresh the index.  The worktrees belong to a repository of the cache, which borrows the
user's objects (gitrepository-layout(5), objects/info/alternates) and keeps all that is new to itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from harness.base import paths, process
from harness.base.cause import Cause
from harness.base.errors import HostError, SourceError, UsageError, nearest
from harness.kernel.store import OURS, provide_entry

_QUIET = (
    # Run no hook or monitor of the user's, and do not pack the repository.
    *("core.hooksPath=/dev/null", "core.fsmonitor=false", "gc.auto=0", "maintenance.auto=false"),
    # Leave nothing beside an index, and in a repository of the cache no log.
    *("core.splitIndex=false", "core.logAllRefUpdates=false"),
    # Who names a tree to build it trusts its owner: make runs its scripts.
    "safe.directory=*",
    *("core.sparseCheckout=false", "core.safecrlf=false", "submodule.recurse=false"),
    # Notice every changed file.
    *("core.checkStat=default", "core.trustctime=true", "core.ignoreStat=false"),
    # Make the same commits from patches for every user.
    *("commit.gpgSign=false", "am.keepcr=false", "am.messageId=false", "mailinfo.scissors=false"),
    *(
        "apply.whitespace=warn",
        "apply.ignoreWhitespace=no",
        "rerere.enabled=false",
        "merge.conflictStyle=merge",
    ),
    # Keep git's output parsable.
    *("color.ui=false", "log.showSignature=false", "log.follow=false", "diff.noprefix=false"),
    *("diff.mnemonicPrefix=false", "i18n.logOutputEncoding=utf-8", "core.quotePath=true"),
)
_AS_COMMITTED = (
    *("core.autocrlf=false", "core.eol=lf", "core.symlinks=true", "core.attributesFile=/dev/null"),
    # A hard link to a file of a worktree, made for another one, changes its ctime.
    "core.trustctime=false",
)
"""Settings with which files are checked out as they were committed."""


def _environment(settings: Sequence[str]) -> dict[str, str]:
    """Return the environment of a git command: *settings* override the user's git configuration."""
    pairs = [setting.partition("=") for setting in settings]
    return {
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_CONFIG_COUNT": str(len(pairs)),
        **{f"GIT_CONFIG_KEY_{number}": key for number, (key, _, _) in enumerate(pairs)},
        **{f"GIT_CONFIG_VALUE_{number}": value for number, (_, _, value) in enumerate(pairs)},
    }


_ENV = {**_environment((*_QUIET, *_AS_COMMITTED)), "GIT_ATTR_NOSYSTEM": "1"}

AS_THE_USER = {**_environment(_QUIET), "GIT_ATTR_NOSYSTEM": "0"}
"""The environment that reads files as the user's own `git add` would, line ends included."""

_AUTHOR = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in {
        "NAME": "vfio-harness",
        "EMAIL": "vfio-harness@localhost",
        "DATE": "1970-01-01T00:00:00Z",
    }.items()
}

_STALE = ("index.lock", "HEAD.lock")
"""Locks that a killed git leaves in there.  Removing them is safe, because a check-out holds our own lock."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GitState:
    """A commit, and what people call it."""

    commit: str
    name: str  # `git describe`, or the ref and the abbreviated commit


def git(
    directory: Path,
    arguments: Sequence[str | os.PathLike[str]],
    env: Mapping[str, str] | None = None,
    given: str = "",
) -> process.Completed:
    """Run git in *directory* to its end, without hooks, questions or housekeeping; *env* is added."""
    if process.find_tool("git") is None:
        raise HostError("git is missing", hint="install git")
    return process.run(["git", "-C", directory, *arguments], env={**_ENV, **(env or {})}, given=given)


def repository_root(directory: Path) -> Path:
    """Return the directory that all worktrees of a repository share; UsageError outside of one."""
    done = git(directory, ["rev-parse", "--path-format=absolute", "--git-common-dir"])
    if not done.ok:
        raise UsageError(f"{directory} is not a git repository: {reason(done)}")
    return Path(done.stdout.strip()).resolve()


def worktrees_of(root: Path) -> Path:
    """Return where the cache keeps worktrees of the repository *root* (see `repository_root`)."""
    return paths.cache_dir() / "worktrees" / _short(root)


def mirror_of(root: Path) -> Path:
    """Return the repository of the cache to which they belong, made or not."""
    return paths.cache_dir() / "repositories" / _short(root)


def _short(root: Path) -> str:
    return hashlib.sha256(os.fsencode(root)).hexdigest()[:12]


def provide_mirror(root: Path) -> Path:
    """Return mirror_of(*root*), made first if it is not there; *root* may also be a directory without git."""
    mirror = mirror_of(root)
    provide_entry(mirror, f"another process is setting up {mirror}", lambda new: _make_mirror(root, new))
    return mirror


def _make_mirror(root: Path, mirror: Path) -> None:
    is_git = (root / "objects").is_dir()
    form = git(root, ["rev-parse", "--show-object-format"]).stdout.strip() if is_git else ""
    words = ["init", "--quiet", "--bare", "--template=", f"--object-format={form or 'sha1'}"]
    git(mirror, words).check("cannot make a repository in the cache")
    if is_git:
        (mirror / "objects" / "info" / "alternates").write_text(f"{quoted(root / 'objects')}\n")
        # History ends where the user's ends.
        (mirror / "shallow").symlink_to(root / "shallow")
        if git(root, ["config", "--get-regexp", r"^remote\..*\.promisor$"]).ok:
            # git fetches from there what a mirror clone left out.
            git(mirror, ["config", "include.path", root / "config"]).check("cannot configure a repository")


def quoted(path: Path) -> str:
    """Return *path* as git reads it in a list of object directories."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n"}
    return '"' + "".join(escapes.get(letter, letter) for letter in os.fspath(path)) + '"'


def reason(done: process.Completed) -> str:
    """Return the first line with which git failed."""
    lines = done.stderr.strip().splitlines()
    return lines[0].removeprefix("fatal: ") if lines else done.ending


def split(done: process.Completed) -> list[str]:
    """Return the words that git printed with a NUL after each."""
    return [word for word in done.stdout.split("\0") if word]


def describe(path: Path, commit: str) -> str:
    """Return what people call *commit*."""
    done = git(path, ["describe", "--tags", "--always", "--abbrev=12", commit])
    return done.stdout.strip() if done.ok else commit[:12]


def resolve(repository: Path, ref: str) -> GitState:
    """Return the commit that *ref* names; UsageError with the nearest ref name when there is none."""
    repository_root(repository)
    done = git(repository, ["rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}"])
    if not done.ok:
        names = git(repository, ["for-each-ref", "--format=%(refname:short)"]).stdout.split()
        raise UsageError(f"{repository} has no ref {ref!r}", hint=nearest(ref, names) if names else None)
    commit = done.stdout.strip()
    name = ref if commit.startswith(ref) else f"{ref} ({commit[:12]})"
    return GitState(commit=commit, name=name)


def merge_base(repository: Path, one: str, other: str) -> str:
    """Return the last commit that two refs have in common; UsageError when there is none."""
    refs = [resolve(repository, ref).commit for ref in (one, other)]
    done = git(repository, ["merge-base", *refs])
    if not done.ok:
        raise UsageError(f"{one} and {other} have no commit in common in {repository}")
    return done.stdout.strip()


def show(repository: Path, commit: str, path: str) -> str:
    """Return the text of a file in a commit; UsageError when the commit has no such file."""
    done = git(repository, ["show", f"{commit}:{path}"])
    if not done.ok:
        raise UsageError(f"{repository} at {commit[:12]} is not a Linux source tree: {reason(done)}")
    return done.stdout


def tracks(directory: Path, name: str) -> bool:
    """Whether the index of the checkout *directory* has a file, which a sparse checkout may leave out."""
    return (directory / ".git").exists() and bool(git(directory, ["ls-files", "--", name]).stdout)


def tree_of(repository: Path, commit: str) -> str:
    """Return the digest of all files of a commit."""
    done = git(repository, ["rev-parse", "--verify", f"{commit}^{{tree}}"])
    return done.check(f"cannot read {commit[:12]}", Cause.SOURCE).stdout.strip()


def list_files(repository: Path, commit: str) -> dict[str, str]:
    """Return the files of a commit: name -> mode and blob."""
    done = git(repository, ["ls-tree", "-r", "-z", "--full-tree", commit])
    done.check(f"cannot list the files of {commit[:12]}", Cause.SOURCE)
    lines = (entry.partition("\t") for entry in split(done))
    return {name: " ".join(facts.split()[::2]) for facts, _, name in lines}


def list_index(worktree: Path) -> dict[str, str]:
    """Return the same of the files that are checked out in a worktree."""
    done = git(worktree, ["ls-files", "-s", "-z"]).check("cannot list the files of a worktree", Cause.SOURCE)
    lines = (entry.partition("\t") for entry in split(done))
    return {name: " ".join(facts.split()[:2]) for facts, _, name in lines}


def commit_files(mirror: Path, files: Mapping[str, str]) -> str:
    """Return a commit of *files* (see `list_files`) in *mirror*; the same ones give the same commit."""
    with tempfile.TemporaryDirectory(prefix="vfio-harness-") as scratch:
        env = {"GIT_INDEX_FILE": f"{scratch}/index"}
        lines = "".join(f"{facts}\t{name}\0" for name, facts in files.items())
        done = git(mirror, ["update-index", "-z", "--index-info"], env, given=lines)
        done.check("cannot write an index", Cause.SOURCE)
        tree = git(mirror, ["write-tree"], env).check("cannot write a tree", Cause.SOURCE).stdout.strip()
    return commit_tree(mirror, tree)


def commit_with(mirror: Path, commit: str, name: str, text: str) -> str:
    """Return a commit in *mirror* that differs from *commit* in the file *name*, which has *text*."""
    what = f"cannot write {name}"
    with tempfile.TemporaryDirectory(prefix="vfio-harness-") as scratch:
        env = {"GIT_INDEX_FILE": f"{scratch}/index"}
        blob = git(mirror, ["hash-object", "-w", "--stdin"], env, given=text).check(what, Cause.SOURCE)
        git(mirror, ["read-tree", commit], env).check(what, Cause.SOURCE)
        entry = f"100644,{blob.stdout.strip()},{name}"
        git(mirror, ["update-index", "--cacheinfo", entry], env).check(what, Cause.SOURCE)
        tree = git(mirror, ["write-tree"], env).check(what, Cause.SOURCE).stdout.strip()
    return commit_tree(mirror, tree)


def commit_tree(directory: Path, tree: str, env: Mapping[str, str] | None = None) -> str:
    """Return the one commit of *tree* without a history."""
    done = git(directory, ["commit-tree", "-m", "as it lies there", tree], {**_AUTHOR, **(env or {})})
    return done.check("cannot write a commit", Cause.SOURCE).stdout.strip()


def check_out(
    mirror: Path,
    path: Path,
    commit: str,
    prepare: Callable[[Path, Mapping[str, str]], None] = lambda _path, _files: None,
) -> None:
    """Bring the worktree of *mirror* at *path* to *commit*, made first when it is not there or broken.

    git touches only the files that differ, so objects built from the others stay valid.  *prepare* may put
    files into a new worktree before that; it is told which there will be.
    """
    if _is_worktree_of(mirror, path) and _bring_to(path, commit):
        return
    remove_worktree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    words = ["worktree", "add", "--quiet", "--force", "--no-checkout", "--detach"]
    what = f"cannot check out {commit[:12]} in the cache"
    git(mirror, [*words, path, commit]).check(what, Cause.SOURCE)
    prepare(path, list_files(mirror, commit))
    git(path, ["reset", "--quiet", "--mixed", commit]).check(what, Cause.SOURCE)
    # What *prepare* put there with the right content is not written again.
    git(path, ["update-index", "-q", "--refresh"])
    if not _bring_to(path, commit):
        raise SourceError(what, hint="is the repository whole? run 'git fsck' there")


def _is_worktree_of(mirror: Path, path: Path) -> bool:
    """Whether *path* is a worktree of *mirror*; a lock that a killed git left there is removed."""
    private = _private_directory(path)
    if private is None or private.parent.parent != mirror.resolve():
        return False
    for name in _STALE:
        (private / name).unlink(missing_ok=True)
    return True


def _bring_to(path: Path, commit: str) -> bool:
    """Bring an existing worktree to *commit*; return False if it is broken."""
    # A hard link that another source of the cache makes of a file changes its ctime, not its content.
    words = ["-c", "core.trustCtime=false", "checkout", "--quiet", "--force", "--detach", commit]
    if not git(path, words).ok:
        return False
    # Nothing that git ignores may be left: make would read it.
    words = ["clean", "--quiet", "-ffdx", f"--exclude=/{OURS}*"]
    git(path, words).check("cannot clean the worktree in the cache", Cause.SOURCE)
    return True


def _private_directory(path: Path) -> Path | None:
    """Return git's directory for the worktree *path*; None if either is missing."""
    try:
        word, _, where = (path / ".git").read_text(encoding="utf-8").strip().partition(": ")
    except (OSError, UnicodeDecodeError):
        return None
    directory = (path / where).resolve()
    return directory if word == "gitdir" and (directory / "HEAD").is_file() else None


def remove_worktree(path: Path) -> None:
    """Remove the worktree at *path*, and its record in the repository if that still exists.

    `git worktree prune` would also forget the user's own worktrees on a disk that is not mounted.
    """
    root = git(path, ["rev-parse", "--path-format=absolute", "--git-common-dir"])
    if root.ok:
        git(Path(root.stdout.strip()), ["worktree", "remove", "--force", "--force", os.fspath(path)])
    shutil.rmtree(path, ignore_errors=True)


def has_changes(directory: Path) -> bool:
    """Whether the checkout has uncommitted changes; untracked files do not count."""
    done = git(directory, ["status", "--porcelain", "--untracked-files=no"])
    return done.ok and bool(done.stdout.strip())
