# SPDX-License-Identifier: GPL-2.0-only
"""git chooses the commits, in a worktree of ours; the user's checkout and own bisect stay as they are."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from pathlib import Path

import pytest

from harness.bisect import gitbisect
from harness.bisect.gitbisect import GitBisect, Position
from harness.bisect.model import Aim, Mark
from harness.bisect.state import Quarry
from harness.errors import UsageError

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


def quarry_of(repository: Path, old: str = "c0", new: str = f"c{COUNT - 1}") -> Quarry:
    return Quarry(
        repository=str(repository),
        root=str(gitbisect.find_root(repository)),
        old=gitbisect.find_end(repository, old),
        new=gitbisect.find_end(repository, new),
    )


def hunt(bisect: GitBisect, repository: Path, position: Position, culprit: int) -> Position:
    """Answer git truthfully until it knows."""
    while position.commit:
        number = int(gitbisect.subject_of(repository, position.commit)[1:])
        position = bisect.mark(Mark.NEW if number >= culprit else Mark.OLD, position.commit)
    return position


@pytest.mark.parametrize("culprit", range(1, COUNT))
def test_git_finds_it(repository: Path, culprit: int) -> None:
    """Every commit can be the first one."""
    quarry = quarry_of(repository)
    bisect = GitBisect(Path(quarry.root))
    position = bisect.begin(quarry, Aim(), ())
    assert position.steps >= 2
    assert hunt(bisect, repository, position, culprit).found == git(repository, "rev-parse", f"c{culprit}")
    bisect.end()


def test_the_log_replays(repository: Path, tmp_path: Path) -> None:
    """What git said can be replayed in a checkout of anybody's, without our options."""
    quarry = quarry_of(repository)
    bisect = GitBisect(Path(quarry.root))
    hunt(bisect, repository, bisect.begin(quarry, Aim(find_fix=True), ()), 6)
    log = tmp_path / "bisect.log"
    log.write_text(bisect.log())
    bisect.end()
    assert "no-checkout" not in bisect.log()
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(repository), str(clone))
    said = git(clone, "bisect", "replay", str(log))
    assert f"{git(repository, 'rev-parse', 'c6')} is the first fixed commit" in said


def test_terms_are_passed_on(repository: Path) -> None:
    """git speaks of commits as the user does, and so does its log."""
    aim = Aim(term_old="fast", term_new="slow")
    bisect = GitBisect(Path(quarry_of(repository).root))
    found = hunt(bisect, repository, bisect.begin(quarry_of(repository), aim, ()), 6).found
    assert found == git(repository, "rev-parse", "c6")
    log = bisect.log()
    bisect.end()
    assert "git bisect start '--term-old=fast' '--term-new=slow'" in log
    assert f"# first slow commit: [{found}]" in log
    assert (aim.other_term("fast"), aim.other_term("slow")) == ("slow", "fast")


@pytest.mark.parametrize(
    ("aim", "said"),
    [
        (Aim(term_old="same", term_new="same"), "cannot both be called 'same'"),
        (Aim(term_old="bad", term_new="x"), "--term-old: 'bad' means the opposite"),
        (Aim(term_new="old"), "--term-new: 'old' means the opposite"),
        (Aim(term_new="skip"), "--term-new: 'skip' is a command of git bisect"),
        (Aim(term_old="a b"), "--term-old: 'a b' cannot be part of a ref's name"),
        (Aim(term_old="a/b"), "--term-old: 'a/b' cannot be part of a ref's name"),
    ],
)
def test_terms_that_git_refuses(repository: Path, aim: Aim, said: str) -> None:
    """They are refused before an end is built; git's own opposites are fine on their own side."""
    with pytest.raises(UsageError, match=re.escape(said)):
        gitbisect.check_terms(repository, aim)
    for fine in (Aim(), Aim(find_fix=True), Aim(term_old="old", term_new="new")):
        gitbisect.check_terms(repository, fine)


def test_it_goes_on_from_what_is_known(repository: Path) -> None:
    """A bisect that is begun with verdicts stands where it was left."""
    quarry = quarry_of(repository)
    bisect = GitBisect(Path(quarry.root))
    first = bisect.begin(quarry, Aim(), ())
    second = bisect.mark(Mark.OLD, first.commit)
    third = bisect.mark(Mark.SKIP, second.commit)
    log = bisect.log()
    marks = [(Mark.OLD, first.commit), (Mark.SKIP, second.commit)]
    again = GitBisect(Path(quarry.root))
    assert again.begin(quarry, Aim(), marks) == third
    assert again.log() == log


def test_skipped_commits_leave_suspects(repository: Path) -> None:
    """When all that is left cannot be tested, git names everything that it may be."""
    quarry = quarry_of(repository, "c4", "c7")
    bisect = GitBisect(Path(quarry.root))
    position = bisect.begin(quarry, Aim(), ())
    while position.commit:
        position = bisect.mark(Mark.SKIP, position.commit)
    assert not position.found
    assert {gitbisect.subject_of(repository, commit) for commit in position.suspects} == {"c5", "c6", "c7"}


def test_suspects_touch_the_paths(repository: Path) -> None:
    """Of what is left only those that touch the paths are suspects."""
    quarry = dataclasses.replace(quarry_of(repository, "c1", "c8"), paths=("drivers/vfio",))
    bisect = GitBisect(Path(quarry.root))
    position = bisect.begin(quarry, Aim(), ())
    while position.commit:
        position = bisect.mark(Mark.SKIP, position.commit)
    assert {gitbisect.subject_of(repository, commit) for commit in position.suspects} == {
        "c2",
        "c4",
        "c6",
        "c8",
    }


def test_paths_and_skips(repository: Path) -> None:
    """Only commits that touch the paths are offered, and none that is to be left out."""
    quarry = dataclasses.replace(quarry_of(repository), paths=("drivers/vfio",), skips=("c3..c4", "c6"))
    assert gitbisect.count_commits(repository, quarry) == 4
    bisect = GitBisect(Path(quarry.root))
    position = bisect.begin(quarry, Aim(), ())
    offered = []
    while position.commit:
        offered.append(gitbisect.subject_of(repository, position.commit))
        position = bisect.mark(Mark.OLD, position.commit)
    assert set(offered) <= {"c2", "c8"}
    assert position == Position()  # good up to the last one that touches them: the culprit is another


def state_of(repository: Path) -> tuple[str, ...]:
    """All that a user may care about: HEAD, refs, index, changes, stashes, their own bisect."""
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
    """A dirty checkout, staged changes and a bisect under way are the same before, meanwhile and after."""
    git(repository, "bisect", "start", "--no-checkout", "c9", "c1")
    (repository / "fs" / "file.c").write_text("mine\n")
    (repository / "drivers" / "vfio" / "main.c").write_text("staged\n")
    git(repository, "add", "drivers/vfio/main.c")
    git(repository, "status")
    before = state_of(repository)
    quarry = quarry_of(repository)
    bisect = GitBisect(Path(quarry.root))
    position = bisect.begin(quarry, Aim(), ())
    bisect.mark(Mark.OLD, position.commit)
    assert state_of(repository) == before
    bisect.end()
    assert state_of(repository) == before
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_ends_that_make_no_history(repository: Path) -> None:
    """Each is refused with what to do."""

    def said(old: str, new: str, aim: Aim | None = None) -> str:
        ends = [gitbisect.find_end(repository, name) for name in (old, new)]
        with pytest.raises(UsageError) as error:
            gitbisect.check_history(repository, ends[0], ends[1], aim or Aim())
        return str(error.value)

    assert "the same commit" in said("c3", "c3")
    assert "the bad end c1" in said("c4", "c1")
    assert "is older than the good end c4" in said("c4", "c1")
    assert "--find-fix" in said("c4", "c1")
    git(repository, "checkout", "--quiet", "-b", "side", "c2")
    git(repository, "commit", "--quiet", "--allow-empty", "--message=side")
    assert f"common ancestor {git(repository, 'rev-parse', 'c2')[:12]}" in said("side", "c5")


def test_unknown_names(repository: Path, tmp_path: Path) -> None:
    """The nearest right spelling is told."""
    with pytest.raises(UsageError, match="did you mean 'main'"):
        gitbisect.find_end(repository, "mian")
    quarry = quarry_of(repository)
    for path, hint in {"drivers/vifo": "'drivers/vfio'", "driver/vfio": "'drivers'"}.items():
        with pytest.raises(UsageError, match=f"did you mean {hint}"):
            gitbisect.check_paths(repository, quarry.old, quarry.new, [path])
    gitbisect.check_paths(repository, quarry.old, quarry.new, ["drivers/vfio/", "fs/file.c", "*.c"])
    with pytest.raises(UsageError, match="there is no directory"):
        gitbisect.find_root(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is not a git repository"):
        gitbisect.find_root(tmp_path)


def test_shallow_clone_is_refused(repository: Path, tmp_path: Path) -> None:
    """Its history ends somewhere, and git would bisect what is left."""
    clone = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth=2", f"file://{repository}", str(clone))
    with pytest.raises(UsageError, match="fetch --unshallow"):
        gitbisect.find_root(clone)


def test_commit_is_described(repository: Path) -> None:
    """Author, subject, parent and files, for the report."""
    facts = gitbisect.read_commit(repository, git(repository, "rev-parse", "c4"))
    assert (facts.author, facts.subject) == ("A U Thor <a@example.org>", "c4")
    assert facts.parents == (git(repository, "rev-parse", "c3"),)
    assert any(line.startswith("drivers/vfio/main.c") for line in facts.files)
    assert gitbisect.distance(repository, "c1", "c4") == 3
    assert gitbisect.distance(repository, "c4", "c1") is None
