# SPDX-License-Identifier: GPL-2.0-only
"""Drive a real `git bisect` in a worktree of its own, without a checkout.

git keeps what a bisect knows per worktree (BISECT_* files and refs/bisect/), so a bisect of the user's own is
not disturbed.  Nothing is checked out here: commits are built in another worktree, in the cache
(harness.kernel.trees).  Its path never changes, so objects are reused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from harness.base import process
from harness.base.deadline import Deadline
from harness.base.errors import InfraError, UsageError, nearest
from harness.base.locks import try_locked
from harness.bisect.state import BisectRequest, End, GitVerdict, Rules
from harness.kernel import gittree
from harness.kernel.store import source_lock

_NO_CHECKOUT = "--no-checkout"
_FOUND = re.compile(r"^# first \S+ commit: \[([0-9a-f]{40,})\]", re.MULTILINE)
_POSSIBLE = re.compile(r"^# possible first \S+ commit: \[([0-9a-f]{40,})\]", re.MULTILINE)
_OUTSIDE = "No testable commit found"
_MERGE_BASE = "Bisecting: a merge base must be tested"
_LEFT = re.compile(r"Bisecting: (\d+) revisions? left to test after this \(roughly (\d+) steps?\)")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """What git bisect says after a verdict."""

    commit: str = ""
    """The commit to test next; empty at the end."""
    left: int = 0
    """How many commits are left to test after it."""
    steps: int = 0
    """git's estimate of the steps after it."""
    found: str = ""
    """The first new commit, once it is known."""
    suspects: tuple[str, ...] = ()
    """The commits that may be the first new one, if no more of them can be tested.

    With neither `found` nor `suspects`, the first new commit touches none of the paths.
    """


def worktree_of(root: Path) -> Path:
    """Return the worktree of the bisect of the repository *root*."""
    return gittree.worktrees_of(root) / "bisect"


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Keep other processes from bisecting the repository *root*; UsageError when one already does."""
    with try_locked(source_lock(worktree_of(root))) as ours:
        if not ours:
            raise UsageError(
                f"another process is bisecting {root}", hint="wait for it, or bisect in another clone"
            )
        yield


def start_line(request: BisectRequest, rules: Rules) -> str:
    """Return the `git bisect start` of a bisect."""
    words = [_NO_CHECKOUT]
    if rules.terms != Rules().terms:
        words += [f"--term-{age}={term}" for age, term in zip(("old", "new"), rules.terms, strict=True)]
    words += ["--first-parent"] if request.first_parent else []
    words += [request.new.commit, request.old.commit]
    words += ["--", *request.paths] if request.paths else []
    # git's own parser wants every word quoted, with each quote outside the quotes and escaped.
    quoted = ("'" + word.replace("'", "'\\''") + "'" for word in words)
    return f"git bisect start {' '.join(quoted)}"


class GitBisect:
    """The `git bisect` of a request."""

    def __init__(self, request: BisectRequest, rules: Rules) -> None:
        self._request = request
        self._rules = rules
        self._root = Path(request.root)
        self._path = worktree_of(self._root)

    def start(self, verdicts: Iterable[tuple[GitVerdict, str]] = ()) -> Position:
        """Start with the *verdicts* that are known already; an earlier bisect in the worktree is dropped."""
        reset(self._root)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        words = ["worktree", "add", "--quiet", "--force", _NO_CHECKOUT, "--detach"]
        done = gittree.git(self._root, [*words, os.fspath(self._path), self._request.new.commit])
        done.check("cannot make the worktree of the bisect")
        known = [*((GitVerdict.SKIP, commit) for commit in self._skips()), *verdicts]
        lines = [f"git bisect {self._rules.word(verdict)} {commit}" for verdict, commit in known]
        replay = self._path / "replay"
        replay.write_text(
            "\n".join([start_line(self._request, self._rules), *lines]) + "\n", encoding="utf-8"
        )
        done = gittree.git(self._path, ["bisect", "replay", replay])
        return self._position(done)

    def _skips(self) -> Iterator[str]:
        for skip in self._request.skips:
            # Lists a single commit alone, and a range in full.
            done = gittree.git(self._root, ["rev-list", "--no-walk", skip])
            yield from done.check(f"cannot skip {skip}").stdout.split()

    def tell(self, verdict: GitVerdict, commit: str) -> Position:
        """Tell git the *verdict* on *commit*."""
        done = gittree.git(self._path, ["bisect", self._rules.word(verdict), commit])
        return self._position(done)

    def spread(self, position: Position, count: int) -> tuple[str, ...]:
        """Return up to *count* commits that cut what is left into parts of about the same size, oldest first.

        The one that git chose, if only one is wanted.
        """
        left = self.left() if count > 1 else ()
        if not left:
            return (position.commit,)
        # Whichever of them is the first new one, as many others are left.
        places = ((len(left) + 1) * number // (count + 1) - 1 for number in range(1, count + 1))
        return tuple(left[place] for place in sorted({max(0, place) for place in places}))

    def left(self) -> tuple[str, ...]:
        """Return the commits that may be tested next, each after its ancestors."""
        listed = gittree.git(
            self._path, ["for-each-ref", "--format=%(refname) %(objectname)", "refs/bisect/"]
        )
        refs = [line.split() for line in listed.stdout.splitlines()]
        old_word, new_word = self._rules.terms
        new = [commit for name, commit in refs if name == f"refs/bisect/{new_word}"]
        old = [commit for name, commit in refs if name.startswith(f"refs/bisect/{old_word}-")]
        known = {commit for name, commit in refs if name.startswith("refs/bisect/skip-")} | {*new}
        words = ["rev-list", "--topo-order", "--reverse", *new, *(f"^{commit}" for commit in old)]
        words += ["--first-parent"] if self._request.first_parent else []
        done = gittree.git(self._path, [*words, "--", *self._request.paths])
        commits = done.check("cannot list the commits that are left").stdout.split()
        return tuple(commit for commit in commits if commit not in known)

    def _position(self, done: process.Completed) -> Position:
        while _MERGE_BASE in done.stdout:
            # An ancestor of an old commit is old, but git would have us test it.
            done = gittree.git(self._path, ["bisect", self._rules.word(GitVerdict.OLD), "BISECT_HEAD"])
        stdout, stderr = done.stdout, done.stderr
        log = self._log()
        found, possible = _FOUND.search(log), _POSSIBLE.findall(log)
        if found:
            return Position(found=found[1])
        if possible:
            return Position(suspects=self._touching(possible))
        if _OUTSIDE in stderr:
            return Position()
        head = gittree.git(self._path, ["rev-parse", "--verify", "--quiet", "BISECT_HEAD"])
        estimate = _LEFT.findall(stdout)
        if not head.ok or not estimate:
            lines = (stderr.strip() or stdout.strip()).splitlines()
            raise InfraError(
                f"git bisect failed: {lines[-1]}" if lines else "git bisect failed without output"
            )
        left, steps = estimate[-1]
        return Position(commit=head.stdout.strip(), left=int(left), steps=int(steps))

    def _touching(self, commits: Sequence[str]) -> tuple[str, ...]:
        """Those of *commits* that touch the paths: git names all that are left."""
        request = self._request
        if not request.paths:
            return tuple(commits)
        words = ["rev-list", commits[0], "--not", request.old.commit, "--", *request.paths]
        done = gittree.git(self._root, words)
        touching = set(done.stdout.split()) | {commits[0]}
        return tuple(commit for commit in commits if commit in touching)

    def _log(self) -> str:
        done = gittree.git(self._path, ["bisect", "log"])
        return done.stdout if done.ok else ""

    def subject_of(self, commit: str) -> str:
        """Return the first line of a commit's message."""
        return subject_of(self._root, commit)

    def log(self) -> str:
        """Return `git bisect log`, ready for `git bisect replay` in any checkout."""
        return self._log().replace(f" '{_NO_CHECKOUT}'", "")


def reset(root: Path) -> None:
    """Remove the bisect of the repository *root* and its worktree."""
    if worktree_of(root).exists():
        gittree.remove_worktree(worktree_of(root))


def find_root(directory: Path) -> Path:
    """Return the git directory that all worktrees of *directory* share.

    Raises UsageError when it cannot be bisected.
    """
    if not directory.is_dir():
        raise UsageError(f"there is no directory {directory}", hint="--tree takes a git repository of Linux")
    root = gittree.repository_root(directory)
    shallow = gittree.git(directory, ["rev-parse", "--is-shallow-repository"])
    if shallow.stdout.strip() == "true":
        raise UsageError(
            f"{directory} is a shallow clone: its history is incomplete",
            hint=f"run 'git -C {directory} fetch --unshallow' first",
        )
    return root


def find_end(directory: Path, name: str) -> End:
    """Return the commit that *name* names; UsageError with the closest name when there is none."""
    commit = gittree.resolve(directory, name).commit
    return End(name=name, commit=commit, subject=subject_of(directory, commit))


def subject_of(directory: Path, commit: str) -> str:
    """Return the first line of a commit's message."""
    return gittree.git(directory, ["show", "--no-patch", "--format=%s", commit]).stdout.strip()


def check(request: BisectRequest, rules: Rules) -> int:
    """Refuse a history that cannot be bisected; return how many commits git can choose from."""
    directory, old, new = Path(request.repository), request.old, request.new
    check_terms(directory, rules)
    check_history(directory, old, new, rules)
    check_paths(directory, old, new, request.paths)
    for skip in request.skips:
        for name in filter(None, re.split(r"\.\.\.?", skip)):
            gittree.resolve(directory, name)
    count = count_commits(request, old.commit, new.commit)
    if count == 0:
        raise UsageError(
            f"no commit between {old.label} and {new.label} touches {' '.join(request.paths)}",
            hint="leave the paths out",
        )
    return count


def check_history(directory: Path, old: End, new: End, rules: Rules) -> None:
    """Refuse ends without a history from one to the other."""
    old_word, new_word = rules.terms
    if old.commit == new.commit:
        raise UsageError(
            f"{old.name} and {new.name} are the same commit", hint="there is nothing between them"
        )
    if _is_ancestor(directory, old.commit, new.commit):
        return
    if _is_ancestor(directory, new.commit, old.commit):
        other = "leave --find-fix out" if rules.find_fix else "add --find-fix if the older one is bad"
        raise UsageError(
            f"the {new_word} end {new.label} is older than the {old_word} end {old.label}",
            hint=f"swap them, or {other}",
        )
    base = gittree.git(directory, ["merge-base", old.commit, new.commit])
    instead = f"give their common ancestor {base.stdout.strip()[:12]}" if base.ok else "they share no commit"
    raise UsageError(
        f"the {old_word} end {old.label} is not an ancestor of the {new_word} end {new.label}", hint=instead
    )


def _is_ancestor(directory: Path, older: str, newer: str) -> bool:
    return gittree.git(directory, ["merge-base", "--is-ancestor", older, newer]).ok


_RESERVED = frozenset(
    ("help", "start", "skip", "next", "reset", "visualize", "view", "replay", "log", "run", "terms")
)
"""git's own commands, which cannot be terms (builtin/bisect.c, check_term_format())."""


def check_terms(directory: Path, rules: Rules) -> None:
    """Refuse terms that git refuses."""
    old, new = rules.terms
    if old == new:
        raise UsageError(f"old and new commits cannot both be called {old!r}", hint="give another --term-new")
    for option, term, swapped in (("--term-old", old, ("bad", "new")), ("--term-new", new, ("good", "old"))):
        wrong = ""
        if term in _RESERVED:
            wrong = "is a command of git bisect"
        elif term in swapped:
            wrong = "means the opposite to git"
        elif not gittree.git(directory, ["check-ref-format", f"refs/bisect/{term}"]).ok or "/" in term:
            wrong = "cannot be part of a ref's name"
        if wrong:
            raise UsageError(f"{option}: {term!r} {wrong}", hint="choose another word")


def check_paths(directory: Path, old: End, new: End, paths: Sequence[str]) -> None:
    """Refuse a path that exists at neither end."""
    for path in paths:
        if path.startswith(":") or any(letter in path for letter in "*?["):
            continue
        if not any(_exists(directory, end, path.rstrip("/")) for end in (old, new)):
            hint = _nearest_path(directory, new, path)
            raise UsageError(f"there is no {path!r} at {old.name} or {new.name}", hint=hint)


def _exists(directory: Path, end: End, path: str) -> bool:
    return gittree.git(directory, ["cat-file", "-e", f"{end.commit}:{path}"]).ok


def _nearest_path(directory: Path, end: End, path: str) -> str:
    """The closest name in the last directory of *path* that exists."""
    parent = Path(path).parent
    while parent.name and not _exists(directory, end, os.fspath(parent)):
        parent = parent.parent
    place = f"{parent}/" if parent.name else "."
    names = gittree.git(directory, ["ls-tree", "--name-only", end.commit, place]).stdout.splitlines()
    wrong = "/".join(Path(path).parts[: len(parent.parts) + 1])
    return nearest(wrong, names, otherwise=f"give it relative to the top of {directory}")


def commits_of(request: BisectRequest) -> tuple[str, ...]:
    """Return every commit that may be tested, the ends among them.

    Which of them git chooses from depends on verdicts, even with paths.
    """
    old, new = request.old.commit, request.new.commit
    done = gittree.git(Path(request.root), ["rev-list", f"{old}..{new}"])
    return (old, new, *done.check("cannot list the commits").stdout.split())


def count_commits(request: BisectRequest, older: str, newer: str) -> int:
    """Return how many commits after *older* up to *newer* git can choose from."""
    words = ["rev-list", "--count", f"{older}..{newer}"]
    words += ["--first-parent"] if request.first_parent else []
    done = gittree.git(Path(request.repository), [*words, "--", *request.paths])
    return int(done.check("cannot count the commits").stdout)


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
    """Return what a report says about *commit*."""
    shape = "%H%x00%an <%ae>%x00%ad%x00%s%x00%P"
    head = gittree.git(directory, ["show", "--no-patch", "--date=iso", f"--format={shape}", commit])
    fields = head.check(f"cannot show {commit}").stdout.rstrip("\n").split("\0")
    words = ["diff-tree", "--root", "-r", "-m", "--first-parent", "--no-commit-id", "--stat=100", commit]
    lines = gittree.git(directory, words).stdout.splitlines()
    return CommitFacts(
        commit=fields[0],
        author=fields[1],
        date=fields[2],
        subject=fields[3],
        parents=tuple(fields[4].split()),
        files=tuple(line.strip() for line in lines if line.strip()),
    )


def distance(directory: Path, older: str, newer: str) -> int | None:
    """Return how many commits *newer* is ahead of its ancestor *older*; None when it is no ancestor."""
    if not _is_ancestor(directory, older, newer):
        return None
    return int(gittree.git(directory, ["rev-list", "--count", f"{older}..{newer}"]).stdout or 0)


def user_of(directory: Path) -> str:
    """Return git's name and address of the user; empty when git does not know them."""
    done = gittree.git(directory, ["var", "GIT_AUTHOR_IDENT"])
    return re.sub(r" \d+ [-+]\d+$", "", done.stdout.strip()) if done.ok else ""


def recipients(directory: Path, commit: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the people and the mailing lists that the tree's get_maintainer.pl names for *commit*.

    Both are empty if the script is missing or fails.
    """
    top = Path(gittree.git(directory, ["rev-parse", "--show-toplevel"]).stdout.strip() or directory)
    script = top / "scripts" / "get_maintainer.pl"
    if not script.is_file() or process.find_tool("perl") is None:
        return (), ()
    patch = gittree.git(directory, ["format-patch", "--stdout", "-1", commit]).stdout
    with tempfile.NamedTemporaryFile("w", suffix=".patch", encoding="utf-8") as file:
        file.write(patch)
        file.flush()
        words = ["perl", os.fspath(script), "--nogit", "--nogit-fallback", "--norolestats", file.name]
        try:
            done = process.run(words, cwd=top, deadline=Deadline.after(_MAINTAINER_SECONDS))
        except InfraError:
            return (), ()
    lines = [line.strip() for line in done.stdout.splitlines() if "@" in line] if done.ok else []
    people = tuple(line for line in lines if "<" in line)
    return people, tuple(line for line in lines if "<" not in line)


_MAINTAINER_SECONDS = 60.0
