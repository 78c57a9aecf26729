# SPDX-License-Identifier: GPL-2.0-only
"""Drive a real `git bisect` in a worktree of its own, without a checkout.

git keeps what a bisect knows per worktree (BISECT_* files and refs/bisect/), so a bisect of the user's own
goes on undisturbed.  Nothing is checked out here: what is tested is built from the worktree in the cache that
every ref of the repository is built from (harness.kernel.trees), whose path is stable for the objects' sake.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.bisect.model import Aim, Mark
from harness.bisect.state import End, Quarry
from harness.errors import InfraError, UsageError, nearest
from harness.kernel import gittree

_NO_CHECKOUT = "--no-checkout"
_FOUND = re.compile(r"^# first \S+ commit: \[([0-9a-f]{40,})\]", re.MULTILINE)
_POSSIBLE = re.compile(r"^# possible first \S+ commit: \[([0-9a-f]{40,})\]", re.MULTILINE)
_OUTSIDE = "No testable commit found"
_LEFT = re.compile(r"Bisecting: (\d+) revisions? left to test after this \(roughly (\d+) steps?\)")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where git stands."""

    commit: str = ""
    """To be tested next; empty at the end."""
    left: int = 0
    """Commits that will still be suspects after it."""
    steps: int = 0
    """git's guess of the steps after it."""
    found: str = ""
    """The first new commit, once it is known."""
    suspects: tuple[str, ...] = ()
    """What is left when all that is left cannot be tested.

    Without these and without `found` the culprit is none of the commits that touch the paths.
    """


def worktree_of(root: Path) -> Path:
    """Where the bisect of the repository *root* has its worktree."""
    return gittree.place_of(root) / "bisect"


def start_line(quarry: Quarry, aim: Aim) -> str:
    """The `git bisect start` of a hunt."""
    words = [_NO_CHECKOUT]
    if aim.terms != Aim().terms:
        words += [f"--term-{age}={term}" for age, term in zip(("old", "new"), aim.terms, strict=True)]
    words += ["--first-parent"] if quarry.first_parent else []
    words += [quarry.new.commit, quarry.old.commit]
    words += ["--", *quarry.paths] if quarry.paths else []
    # git's own parser wants every word quoted, and a quote in a path closed round a backslash.
    quoted = (_quoted(word) for word in words)
    return f"git bisect start {' '.join(quoted)}"


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


class GitBisect:
    """One bisect under way."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._path = worktree_of(root)
        self._aim = Aim()
        self._paths: tuple[str, ...] = ()
        self._old: tuple[str, ...] = ()

    def begin(self, quarry: Quarry, aim: Aim, marks: Iterable[tuple[Mark, str]]) -> Position:
        """Start it and tell git all that is known already; whatever was under way there is forgotten."""
        self._aim, self._paths, self._old = aim, quarry.paths, (quarry.old.commit,)
        self.end()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        words = [
            "worktree",
            "add",
            "--quiet",
            "--force",
            _NO_CHECKOUT,
            "--detach",
            os.fspath(self._path),
            quarry.new.commit,
        ]
        gittree.git(self._root, words).check("cannot make the bisect's worktree")
        skips = [(Mark.SKIP, commit) for commit in self._expand(quarry.skips)]
        lines = [start_line(quarry, aim), *(f"git bisect {aim.word(m)} {c}" for m, c in [*skips, *marks])]
        replay = self._path / "replay"
        replay.write_text("\n".join(lines) + "\n", encoding="utf-8")
        done = gittree.git(self._path, ["bisect", "replay", replay])
        return self._position(done.stdout, done.stderr)

    def _expand(self, skips: Sequence[str]) -> list[str]:
        commits: list[str] = []
        for skip in skips:
            words = ["rev-list", skip] if ".." in skip else ["rev-parse", f"{skip}^{{commit}}"]
            commits += gittree.git(self._root, words).check(f"cannot skip {skip}").stdout.split()
        return commits

    def mark(self, mark: Mark, commit: str) -> Position:
        """Tell git what *commit* is."""
        done = gittree.git(self._path, ["bisect", self._aim.word(mark), commit])
        return self._position(done.stdout, done.stderr)

    def _position(self, said: str, complained: str) -> Position:
        log = self._log()
        found, possible = _FOUND.search(log), _POSSIBLE.findall(log)
        if found:
            return Position(found=found[1])
        if possible:
            return Position(suspects=self._touching(possible))
        if _OUTSIDE in complained:
            return Position()
        head = gittree.git(self._path, ["rev-parse", "--verify", "--quiet", "BISECT_HEAD"])
        guess = _LEFT.findall(said)
        if not head.ok or not guess:
            lines = (complained.strip() or said.strip()).splitlines()
            raise InfraError(f"git bisect does not go on: {lines[-1] if lines else 'it says nothing'}")
        left, steps = guess[-1]
        return Position(commit=head.stdout.strip(), left=int(left), steps=int(steps))

    def _touching(self, commits: Sequence[str]) -> tuple[str, ...]:
        """Those that touch the paths: git names all that are left."""
        if not self._paths:
            return tuple(commits)
        done = gittree.git(self._root, ["rev-list", commits[0], "--not", *self._old, "--", *self._paths])
        touching = set(done.stdout.split()) | {commits[0]}
        return tuple(commit for commit in commits if commit in touching)

    def _log(self) -> str:
        done = gittree.git(self._path, ["bisect", "log"])
        return done.stdout if done.ok else ""

    def log(self) -> str:
        """`git bisect log`, as it can be replayed in any checkout."""
        return self._log().replace(f" '{_NO_CHECKOUT}'", "")

    def end(self) -> None:
        """Forget the bisect and its worktree."""
        if self._path.exists():
            gittree.remove_worktree(self._path)


# What must be true of a history before it is hunted through.


def find_root(directory: Path) -> Path:
    """What all worktrees of the repository of *directory* share.  UsageError when it cannot be bisected."""
    if not directory.is_dir():
        raise UsageError(f"there is no directory {directory}", hint="--tree takes a git repository of Linux")
    root = gittree.repository_root(directory)
    shallow = gittree.git(directory, ["rev-parse", "--is-shallow-repository"])
    if shallow.stdout.strip() == "true":
        raise UsageError(
            f"{directory} is a shallow clone, whose history ends somewhere",
            hint=f"run 'git -C {directory} fetch --unshallow' first",
        )
    return root


def find_end(directory: Path, name: str) -> End:
    """The commit that *name* names; UsageError with the nearest name when it names none."""
    commit = gittree.resolve(directory, name).commit
    return End(name=name, commit=commit, subject=subject_of(directory, commit))


def subject_of(directory: Path, commit: str) -> str:
    """The first line of a commit's message."""
    return gittree.git(directory, ["show", "--no-patch", "--format=%s", commit]).stdout.strip()


def check_history(directory: Path, old: End, new: End, aim: Aim) -> None:
    """Refuse ends between which there is no history."""
    old_word, new_word = aim.terms
    if old.commit == new.commit:
        raise UsageError(
            f"{old.name} and {new.name} are the same commit", hint="there is nothing between them"
        )
    if _is_ancestor(directory, old.commit, new.commit):
        return
    if _is_ancestor(directory, new.commit, old.commit):
        other = "leave --find-fix out" if aim.find_fix else "or --find-fix, when the older one is the bad one"
        raise UsageError(
            f"the {new_word} end {new.label} is older than the {old_word} end {old.label}",
            hint=f"swap them, {other}",
        )
    base = gittree.git(directory, ["merge-base", old.commit, new.commit])
    instead = f"give their common ancestor {base.stdout.strip()[:12]}" if base.ok else "they share no commit"
    raise UsageError(
        f"the {old_word} end {old.label} is no ancestor of the {new_word} end {new.label}", hint=instead
    )


def _is_ancestor(directory: Path, older: str, newer: str) -> bool:
    return gittree.git(directory, ["merge-base", "--is-ancestor", older, newer]).ok


_RESERVED = frozenset(
    ("help", "start", "skip", "next", "reset", "visualize", "view", "replay", "log", "run", "terms")
)
"""git's own commands, which no term may be (builtin/bisect.c, check_term_format())."""


def check_terms(directory: Path, aim: Aim) -> None:
    """Refuse words for old and new that git would not take."""
    old, new = aim.terms
    if old == new:
        raise UsageError(f"old and new commits cannot both be called {old!r}", hint="give another --term-new")
    for option, term, swapped in (("--term-old", old, ("bad", "new")), ("--term-new", new, ("good", "old"))):
        if term in _RESERVED:
            raise UsageError(f"{option}: {term!r} is a command of git bisect", hint="choose another word")
        if term in swapped:
            raise UsageError(f"{option}: {term!r} means the opposite to git", hint="choose another word")
        if not gittree.git(directory, ["check-ref-format", f"refs/bisect/{term}"]).ok or "/" in term:
            raise UsageError(f"{option}: {term!r} cannot be part of a ref's name", hint="choose another word")


def check_paths(directory: Path, old: End, new: End, limits: Sequence[str]) -> None:
    """Refuse a path that is at neither end."""
    for path in limits:
        if any(
            gittree.git(directory, ["cat-file", "-e", f"{end.commit}:{path.rstrip('/')}"]).ok
            for end in (old, new)
        ):
            continue
        if path.startswith(":") or any(letter in path for letter in "*?["):
            continue
        raise UsageError(
            f"there is no {path!r} at {old.name} or {new.name}", hint=_nearest_path(directory, new, path)
        )


def _nearest_path(directory: Path, end: End, path: str) -> str:
    """The nearest name in the last directory of *path* that is there."""
    parent = Path(path).parent
    while os_path := ("" if parent == Path() else f"{parent}/"):
        if gittree.git(directory, ["cat-file", "-e", f"{end.commit}:{parent}"]).ok:
            break
        parent = parent.parent
    names = gittree.git(directory, ["ls-tree", "--name-only", end.commit, os_path or "."]).stdout.splitlines()
    wrong = "/".join(Path(path).parts[: len(parent.parts) + 1])
    hint = nearest(wrong, names)
    return hint if hint.startswith("did") else f"write it as it is below the top of {directory}"


def count_commits(directory: Path, quarry: Quarry) -> int:
    """How many commits there are to choose from."""
    return count_between(directory, quarry, quarry.old.commit, quarry.new.commit)


def count_between(directory: Path, quarry: Quarry, older: str, newer: str) -> int:
    """How many commits after *older* up to *newer* git would offer."""
    words = ["rev-list", "--count", f"{older}..{newer}"]
    words += ["--first-parent"] if quarry.first_parent else []
    done = gittree.git(directory, [*words, "--", *quarry.paths]).check("cannot count the commits")
    return int(done.stdout)


def check_skips(directory: Path, skips: Sequence[str]) -> None:
    """Refuse what --skip cannot take."""
    for skip in skips:
        for name in filter(None, re.split(r"\.\.\.?", skip)):
            gittree.resolve(directory, name)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CommitFacts:
    """A commit as a report shows it."""

    commit: str
    author: str
    date: str
    subject: str
    parents: tuple[str, ...]
    files: tuple[str, ...]
    """`git show --stat`, one line per file."""


def read_commit(directory: Path, commit: str) -> CommitFacts:
    """What a report says of *commit*."""
    shape = "%H%x00%an <%ae>%x00%ad%x00%s%x00%P"
    head = gittree.git(directory, ["show", "--no-patch", "--date=iso", f"--format={shape}", commit])
    fields = head.check(f"cannot show {commit}").stdout.rstrip("\n").split("\0")
    stat = gittree.git(
        directory,
        ["diff-tree", "--root", "-r", "-m", "--first-parent", "--no-commit-id", "--stat=100", commit],
    )
    return CommitFacts(
        commit=fields[0],
        author=fields[1],
        date=fields[2],
        subject=fields[3],
        parents=tuple(fields[4].split()),
        files=tuple(line.strip() for line in stat.stdout.splitlines() if line.strip()),
    )


def distance(directory: Path, older: str, newer: str) -> int | None:
    """How many commits *newer* is ahead of its ancestor *older*; None when that is no ancestor."""
    if not _is_ancestor(directory, older, newer):
        return None
    return int(gittree.git(directory, ["rev-list", "--count", f"{older}..{newer}"]).stdout or 0)


def user_of(directory: Path) -> str:
    """Who git takes the user for; empty when it does not know."""
    done = gittree.git(directory, ["var", "GIT_AUTHOR_IDENT"])
    return re.sub(r" \d+ [-+]\d+$", "", done.stdout.strip()) if done.ok else ""
