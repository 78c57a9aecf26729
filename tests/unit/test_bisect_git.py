# SPDX-License-Identifier: GPL-2.0-only
"""git chooses the commits in a worktree of its own; the user's checkout and own bisect are not touched."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from harness.base.errors import UsageError
from harness.bisect import git as bisect_git
from harness.bisect.git import GitBisect, Position
from harness.bisect.state import BisectRequest, GitVerdict, Rules
from harness.kernel import gittree
from harness.kernel.commits import provide_commits

COUNT = 10


def git(directory: Path, *arguments: str) -> str:
    argv = [
        "git",
        "-C",
        str(directory),
        "-c",
        "user.name=A U Thor",
        "-c",
        "user.email=a@example.org",
        *arguments,
    ]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten commits, c0 to c9; the even ones touch drivers/vfio."""
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    path = tmp_path / "linux"
    git(tmp_path, "init", "--quiet", "--initial-branch=main", str(path))
    for number in range(COUNT):
        file = path / ("fs/file.c" if number % 2 else "drivers/vfio/main.c")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{number}\n")
        git(path, "add", "--all")
        git(path, "commit", "--quiet", f"--message=c{number}")
        git(path, "tag", f"c{number}")
    return path


def request_of(repository: Path, old: str = "c0", new: str = f"c{COUNT - 1}") -> BisectRequest:
    return BisectRequest(
        repository=str(repository),
        root=str(bisect_git.find_root(repository)),
        old=bisect_git.find_end(repository, old),
        new=bisect_git.find_end(repository, new),
    )


def drive(bisect: GitBisect, repository: Path, position: Position, culprit: int) -> Position:
    """Answer git until it has found the commit."""
    while position.commit:
        number = int(bisect_git.subject_of(repository, position.commit)[1:])
        position = bisect.tell(GitVerdict.NEW if number >= culprit else GitVerdict.OLD, position.commit)
    return position


@pytest.mark.parametrize("culprit", range(1, COUNT))
def test_git_finds_it(repository: Path, culprit: int) -> None:
    """git finds the first bad commit, whichever it is."""
    request = request_of(repository)
    bisect = GitBisect(request, Rules())
    position = bisect.start()
    assert position.steps >= 2
    assert drive(bisect, repository, position, culprit).found == git(repository, "rev-parse", f"c{culprit}")
    bisect_git.reset(Path(request.root))


def names(repository: Path, commits: Iterable[str]) -> list[str]:
    return [bisect_git.subject_of(repository, commit) for commit in commits]


@pytest.mark.parametrize(
    ("count", "chosen"),
    [(1, ["c4"]), (2, ["c3", "c6"]), (3, ["c2", "c4", "c6"]), (20, [f"c{n}" for n in range(1, COUNT - 1)])],
)
def test_several_commits_cut_what_is_left(repository: Path, count: int, chosen: list[str]) -> None:
    """Into parts of about the same size; never more than there are."""
    bisect = GitBisect(request_of(repository), Rules())
    assert names(repository, bisect.spread(bisect.start(), count)) == chosen


def test_what_is_left_follows_verdicts_skips_and_paths(repository: Path) -> None:
    request = dataclasses.replace(request_of(repository), paths=("drivers/vfio",), skips=("c4",))
    bisect = GitBisect(request, Rules(find_fix=True))
    bisect.start()
    assert names(repository, bisect.left()) == ["c2", "c6", "c8"]
    bisect.tell(GitVerdict.OLD, bisect_git.find_end(repository, "c2").commit)
    bisect.tell(GitVerdict.SKIP, bisect_git.find_end(repository, "c6").commit)
    assert names(repository, bisect.left()) == ["c8"]


@pytest.mark.parametrize("culprit", ["c3", "side1", "side3", "merge", "c8"])
@pytest.mark.parametrize("count", [2, 3])
def test_several_commits_find_it_across_a_merge(repository: Path, culprit: str, count: int) -> None:
    """A commit of a side branch is found, too; each round tells git only of what is left."""
    git(repository, "checkout", "--quiet", "-b", "side", "c2")
    for number in range(1, 5):
        git(repository, "commit", "--quiet", "--allow-empty", f"--message=side{number}")
        git(repository, "tag", f"side{number}")
    git(repository, "checkout", "--quiet", "main")
    git(repository, "merge", "--quiet", "--no-ff", "--message=merge", "side")
    git(repository, "tag", "merge")
    wanted = bisect_git.find_end(repository, culprit).commit
    bisect = GitBisect(request_of(repository, "c1", "merge"), Rules())
    position = bisect.start()
    while position.commit:
        for commit in bisect.spread(position, count):
            if commit in bisect.left():
                is_new = bisect_git.distance(repository, wanted, commit) is not None
                position = bisect.tell(GitVerdict.NEW if is_new else GitVerdict.OLD, commit)
    assert position.found == wanted


def test_commits_travel_without_their_history(repository: Path, tmp_path: Path) -> None:
    """A worker has the files of each commit under its own name, and the name does not depend on the host."""
    request = dataclasses.replace(request_of(repository, "c6", "c9"), paths=("drivers/vfio",))
    commits = bisect_git.commits_of(request)
    assert names(repository, commits) == ["c6", "c9", "c9", "c8", "c7"]
    entry = provide_commits(gittree.provide_mirror(Path(request.root)), commits)
    (tmp_path / "linux").rename(tmp_path / "gone")
    assert [git(entry, "show", f"{commit}:fs/file.c") for commit in commits] == ["5", "9", "9", "7", "7"]
    assert git(entry, "log", "--format=%s", commits[1]) == "c9"
    git(entry, "fsck", "--strict")
    assert provide_commits(repository, reversed(commits)) == entry


def test_the_log_replays(repository: Path, tmp_path: Path) -> None:
    """The log can be replayed in any checkout, without the harness's options."""
    request = request_of(repository)
    bisect = GitBisect(request, Rules(find_fix=True))
    drive(bisect, repository, bisect.start(), 6)
    log = tmp_path / "bisect.log"
    log.write_text(bisect.log())
    bisect_git.reset(Path(request.root))
    assert "no-checkout" not in bisect.log()
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(repository), str(clone))
    said = git(clone, "bisect", "replay", str(log))
    assert f"{git(repository, 'rev-parse', 'c6')} is the first fixed commit" in said


def test_terms_are_passed_on(repository: Path) -> None:
    """git and its log use the user's terms."""
    rules = Rules(term_old="fast", term_new="slow")
    request = request_of(repository)
    bisect = GitBisect(request, rules)
    found = drive(bisect, repository, bisect.start(), 6).found
    assert found == git(repository, "rev-parse", "c6")
    log = bisect.log()
    bisect_git.reset(Path(request.root))
    assert "git bisect start '--term-old=fast' '--term-new=slow'" in log
    assert f"# first slow commit: [{found}]" in log


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (Rules(term_old="same", term_new="same"), "cannot both be called 'same'"),
        (Rules(term_old="bad", term_new="x"), "--term-old: 'bad' means the opposite"),
        (Rules(term_new="old"), "--term-new: 'old' means the opposite"),
        (Rules(term_new="skip"), "--term-new: 'skip' is a command of git bisect"),
        (Rules(term_old="a b"), "--term-old: 'a b' cannot be part of a ref's name"),
        (Rules(term_old="a/b"), "--term-old: 'a/b' cannot be part of a ref's name"),
    ],
)
def test_terms_that_git_refuses(repository: Path, rules: Rules, said: str) -> None:
    """Wrong terms are refused before a build; git's own terms are allowed on their own side."""
    with pytest.raises(UsageError, match=re.escape(said)):
        bisect_git.check_terms(repository, rules)
    for fine in (Rules(), Rules(find_fix=True), Rules(term_old="old", term_new="new")):
        bisect_git.check_terms(repository, fine)


def test_it_goes_on_from_what_is_known(repository: Path) -> None:
    """A bisect that is started with verdicts continues where it was left."""
    request = request_of(repository)
    bisect = GitBisect(request, Rules())
    first = bisect.start()
    second = bisect.tell(GitVerdict.OLD, first.commit)
    third = bisect.tell(GitVerdict.SKIP, second.commit)
    log = bisect.log()
    verdicts = [(GitVerdict.OLD, first.commit), (GitVerdict.SKIP, second.commit)]
    again = GitBisect(request, Rules())
    assert again.start(verdicts) == third
    assert again.log() == log


def test_skipped_commits_leave_suspects(repository: Path) -> None:
    """When the remaining commits cannot be tested, all that may be the first bad one are suspects."""
    request = request_of(repository, "c4", "c7")
    bisect = GitBisect(request, Rules())
    position = bisect.start()
    while position.commit:
        position = bisect.tell(GitVerdict.SKIP, position.commit)
    assert not position.found
    assert {bisect_git.subject_of(repository, commit) for commit in position.suspects} == {"c5", "c6", "c7"}


def test_suspects_touch_the_paths(repository: Path) -> None:
    """Only commits that touch the paths are suspects."""
    request = dataclasses.replace(request_of(repository, "c1", "c8"), paths=("drivers/vfio",))
    bisect = GitBisect(request, Rules())
    position = bisect.start()
    while position.commit:
        position = bisect.tell(GitVerdict.SKIP, position.commit)
    assert {bisect_git.subject_of(repository, commit) for commit in position.suspects} == {
        "c2",
        "c4",
        "c6",
        "c8",
    }


def test_paths_and_skips(repository: Path) -> None:
    """Only commits that touch the paths are offered, and no skipped one."""
    request = dataclasses.replace(request_of(repository), paths=("drivers/vfio",), skips=("c3..c4", "c6"))
    assert bisect_git.check(request, Rules()) == 4
    bisect = GitBisect(request, Rules())
    position = bisect.start()
    offered = []
    while position.commit:
        offered.append(bisect_git.subject_of(repository, position.commit))
        position = bisect.tell(GitVerdict.OLD, position.commit)
    assert set(offered) <= {"c2", "c8"}
    assert position == Position()  # good up to the last one that touches them: the culprit is another


def state_of(repository: Path) -> tuple[str, ...]:
    """Everything of the user: HEAD, refs, index, changes, stashes, their own bisect."""
    inside = repository / ".git"
    own = sorted(path for path in inside.iterdir() if path.is_file())
    return (
        *(
            git(repository, *words)
            for words in (["for-each-ref"], ["status", "--porcelain"], ["diff"], ["bisect", "log"])
        ),
        *(f"{path.name} {path.read_bytes()!r}" for path in own),
    )


def test_the_users_own_bisect_is_not_disturbed(repository: Path) -> None:
    """A dirty checkout, staged changes and the user's bisect stay the same, during and after a bisect."""
    git(repository, "bisect", "start", "--no-checkout", "c9", "c1")
    (repository / "fs" / "file.c").write_text("mine\n")
    (repository / "drivers" / "vfio" / "main.c").write_text("staged\n")
    git(repository, "add", "drivers/vfio/main.c")
    git(repository, "status")
    before = state_of(repository)
    request = request_of(repository)
    bisect = GitBisect(request, Rules())
    position = bisect.start()
    bisect.tell(GitVerdict.OLD, position.commit)
    assert state_of(repository) == before
    bisect_git.reset(Path(request.root))
    assert state_of(repository) == before
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_ends_that_make_no_history(repository: Path) -> None:
    """Ends without a history between them are refused, with what to do."""

    def said(old: str, new: str, rules: Rules | None = None) -> str:
        ends = [bisect_git.find_end(repository, name) for name in (old, new)]
        with pytest.raises(UsageError) as error:
            bisect_git.check_history(repository, ends[0], ends[1], rules or Rules())
        return str(error.value)

    assert "the same commit" in said("c3", "c3")
    assert "the bad end c1" in said("c4", "c1")
    assert "is older than the good end c4" in said("c4", "c1")
    assert "--find-fix" in said("c4", "c1")
    git(repository, "checkout", "--quiet", "-b", "side", "c2")
    git(repository, "commit", "--quiet", "--allow-empty", "--message=side")
    assert f"common ancestor {git(repository, 'rev-parse', 'c2')[:12]}" in said("side", "c5")


def test_unknown_names(repository: Path, tmp_path: Path) -> None:
    """The hint has the closest name."""
    with pytest.raises(UsageError, match="did you mean 'main'"):
        bisect_git.find_end(repository, "mian")
    request = request_of(repository)
    for path, hint in {"drivers/vifo": "'drivers/vfio'", "driver/vfio": "'drivers'"}.items():
        with pytest.raises(UsageError, match=f"did you mean {hint}"):
            bisect_git.check_paths(repository, request.old, request.new, [path])
    bisect_git.check_paths(repository, request.old, request.new, ["drivers/vfio/", "fs/file.c", "*.c"])
    with pytest.raises(UsageError, match="there is no directory"):
        bisect_git.find_root(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is not a git repository"):
        bisect_git.find_root(tmp_path)


def test_shallow_clone_is_refused(repository: Path, tmp_path: Path) -> None:
    """A shallow clone is refused, with the command that completes it."""
    clone = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth=2", f"file://{repository}", str(clone))
    with pytest.raises(UsageError, match="fetch --unshallow"):
        bisect_git.find_root(clone)


def test_commit_is_described(repository: Path) -> None:
    """The report has author, subject, parent and files of a commit."""
    facts = bisect_git.read_commit(repository, git(repository, "rev-parse", "c4"))
    assert (facts.author, facts.subject) == ("A U Thor <a@example.org>", "c4")
    assert facts.parents == (git(repository, "rev-parse", "c3"),)
    assert any(line.startswith("drivers/vfio/main.c") for line in facts.files)
    assert bisect_git.distance(repository, "c1", "c4") == 3
    assert bisect_git.distance(repository, "c4", "c1") is None
