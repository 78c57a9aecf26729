# SPDX-License-Identifier: GPL-2.0-only
"""`bisect` and `bisect-step` answer wrong input in a sentence, and speak git's exit codes to git."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from kernel_fake_tree import make_fake_tree

from harness import process
from harness.bisect import campaign, gitbisect
from harness.bisect.model import Aim
from harness.bisect.state import Quarry
from harness.cli.main import app
from harness.errors import GIT_ABORT, GIT_SKIP, ExitCode, UsageError, for_git_bisect
from harness.kernel.trees import worktree_lock
from harness.locks import try_locked

CASE = "probes/get_pa/refusals_come_in_order"
needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None, reason="a bisect wants QEMU before it builds"
)
ENDS = ("--good", "v1", "--bad", "v3")


def git(directory: Path, *arguments: str) -> str:
    argv = ["git", "-C", str(directory), "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three commits, v1 to v3, of what looks like Linux; no cache and no runs."""
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(tmp_path / "runs"))
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    tree = make_fake_tree(tmp_path / "linux")
    git(tree, "init", "--quiet", "--initial-branch=main")
    for number in (1, 2, 3):
        (tree / "init" / "main.c").write_text(f"void start(void) {{}}\nint number = {number};\n")
        git(tree, "add", "--all")
        git(tree, "commit", "--quiet", f"--message=c{number}")
        git(tree, "tag", f"v{number}")
    return tree


def harness(verb: str, *words: str, cwd: Path) -> process.Completed:
    accel = () if {"--continue", "--reset"} & {*words} else ("--accel", "tcg")
    return process.run([sys.executable, "-m", "harness", verb, *accel, *words], cwd=cwd)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*ENDS,), "say what to look at: --case ADDRESS, -k EXPR or --boot"),
        (("--case", CASE), "say where it passes and where it fails: --good REV --bad REV"),
        ((*ENDS, "--case", "probes/get_pa/refusals_come_in_odrer"), f"did you mean '{CASE}'?"),
        ((*ENDS, "-k", "refusals_come_in_odrer"), "did you mean 'refusals_come_in_order'?"),
        ((*ENDS, "-k", "get_pa and nonsenseword"), "'nonsenseword' is in no name"),
        (("--good", "v1", "--bad", "mian", "--boot"), "has no ref 'mian'\n  did you mean 'main'?"),
        (("--good", "v3", "--bad", "v1", "--boot"), "is older than the good end v3"),
        (("--good", "v1", "--bad", "v1", "--boot"), "are the same commit"),
        (("--good", "v1", "--bad", "v3", "--find-fix", "--boot"), "is older than the broken end v3"),
        ((*ENDS, "--boot", "--good", "v2"), "both of which are tested: --good is given 2 times"),
        ((*ENDS, "--boot", "--term-old", "new"), "--term-old: 'new' means the opposite to git"),
        (("--good", "v3", "--bad", "v1", "--boot", "--term-new", "slow"), "the slow end v1"),
        ((*ENDS, "--boot", "--variant", "group-cedv"), "did you mean 'group-cdev'?"),
        ((*ENDS, "--boot", "--topology", "edu-ibg"), "did you mean 'edu-igb'?"),
        ((*ENDS, "--boot", "--suite", "probs"), "did you mean 'probes'?"),
        ((*ENDS, "--boot", "--skip", "v9"), "has no ref 'v9'"),
        ((*ENDS, "--boot", "--repeat", "1"), "1 is not in the range x>=2"),
        ((*ENDS, "--boot", "--", "init/mian.c"), "did you mean 'init/main.c'?"),
        ((*ENDS, "--boot", "--", "scripts"), "no commit between v1"),
        ((*ENDS, "--boot", "--", "--first-parent"), "options come before the --"),
        ((*ENDS, "--boot", "--tree", "debian:7.3"), "debian:7.3 is a package without a history"),
        ((*ENDS, "--boot", "--tree", "Makefile"), "is a file without a history"),
        ((*ENDS, "--boot", "--tree", ".@v2"), "--tree takes the repository . alone\n  name v2 with"),
        ((*ENDS, "--boot", "--tree", "/nonexistent"), "there is no directory /nonexistent"),
        ((*ENDS, "--boot", "--tree", "/"), "/ is not a git repository"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_words(repository: Path, words: tuple[str, ...], said: str) -> None:
    """What is wrong, the nearest right spelling, what to do; nothing is built and nothing is left behind."""
    done = harness("bisect", *words, cwd=repository)
    assert said in done.stderr
    assert done.status == ExitCode.USAGE
    assert "Traceback" not in done.stderr
    assert len(git(repository, "worktree", "list").splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--continue",), "no bisect of"),
        (("--continue", "--json"), "no bisect of"),
        (("--continue", "--variant", "cdev"), "--continue goes on with what was asked for then: leave"),
        (("--continue", "--topology", "nvme"), "leave --topology out"),
        (("--continue", "--memory", "4096"), "leave --memory out"),
        (("--continue", "--repeat", "3"), "leave --repeat out"),
        (("--continue", "-j", "2"), "leave -j out"),
        (("--continue", "--good", "v1"), "leave --good out"),
        (("--continue", "--", "init"), "leave -- PATH... out"),
        (("--reset", "--boot"), "--reset drops what was asked for then: leave --boot out"),
        (("--reset", "--continue"), "leave --continue out"),
    ],
)
def test_what_was_asked_for_stays(repository: Path, words: tuple[str, ...], said: str) -> None:
    """An option that would be ignored, be it the default, is refused by name."""
    done = harness("bisect", *words, cwd=repository)
    assert said in done.stderr
    assert done.status == ExitCode.USAGE


@pytest.mark.parametrize(
    "words",
    [("--case", "probes/x/y"), ("--frobnicate",), ("--tree", "/nonexistent", "--boot"), ()],
)
def test_a_step_stops_git_when_it_is_used_wrongly(repository: Path, words: tuple[str, ...]) -> None:
    """git would take 2 for bad: 128 makes it stop."""
    done = harness("bisect-step", *words, cwd=repository)
    assert done.status == GIT_ABORT
    assert "error: " in done.stderr


@needs_qemu
def test_a_step_that_cannot_be_built_is_skipped(repository: Path) -> None:
    """125 is what git takes for untestable."""
    (repository / "init" / "main.c").write_text("int broken = ;\n")
    done = harness("bisect-step", "--case", CASE, cwd=repository)
    assert done.status == GIT_SKIP, done.stderr
    assert "SKIP, does not build" in done.stdout


@needs_qemu
def test_what_makes_no_sense_is_no_missing_thing(repository: Path) -> None:
    """An end that is no Linux, or a setting that the tree does not know, is wrong use, never `not there`."""
    config = repository.parent / "my.config"
    config.write_text("CONFIG_NO_SUCH_THING=y\n")
    words = ("--case", CASE, "--config", str(config))
    done = harness("bisect-step", "--missing-fails", *words, cwd=repository)
    assert (done.status, "CONFIG_NO_SUCH_THING" in done.stderr) == (GIT_ABORT, True), done.stderr
    git(repository, "rm", "--quiet", "-r", "--cached", "MAINTAINERS")
    git(repository, "commit", "--quiet", "--message=no Linux")
    done = harness("bisect", "--good", "v1", "--bad", "main", "--case", CASE, cwd=repository)
    assert done.status == ExitCode.USAGE
    assert "the bad end main" in done.stderr
    assert "is not a Linux source tree" in done.stderr


@pytest.mark.parametrize(
    ("code", "status"), [(0, 0), (1, 1), (2, 128), (3, 125), (4, 125), (125, 125), (130, 130)]
)
def test_git_words(code: int, status: int) -> None:
    """The exit codes of the harness as git understands them."""
    assert for_git_bisect(code) == status


@needs_qemu
def test_an_end_that_cannot_be_built_is_said_at_once(repository: Path) -> None:
    """With the compiler's words, exit code 4, and nothing to continue."""
    (repository / "init" / "main.c").write_text("int broken = ;\n")
    git(repository, "commit", "--quiet", "--all", "--message=broken")
    done = harness("bisect", "--good", "v1", "--bad", "main", "--case", CASE, cwd=repository)
    assert done.status == ExitCode.KERNEL, done.stderr
    assert "the bad end main" in done.stderr
    assert "cannot be tested: the kernel failed" in done.stderr
    assert "error: expected expression" in done.stderr
    assert "no bisect of" in harness("bisect", "--continue", cwd=repository).stderr


def quarry(repository: Path) -> Quarry:
    old, new = (gitbisect.find_end(repository, name) for name in ("v1", "v3"))
    root = gitbisect.find_root(repository)
    return Quarry(repository=str(repository), root=str(root), old=old, new=new)


def test_two_that_begin_at_once(repository: Path) -> None:
    """While one looks whether it may begin, another may not: it is told to wait, and leaves nothing."""
    asked = quarry(repository)
    root = Path(asked.root)
    with try_locked(worktree_lock(gitbisect.worktree_of(root))) as ours:
        assert ours
        with pytest.raises(UsageError, match="another process is bisecting"):
            campaign.begin(asked, Aim())
    assert campaign.find_unfinished(root) is None


def test_one_bisect_at_a_time(repository: Path) -> None:
    """What is under way is not forgotten for another one: it is continued, or dropped on purpose."""
    asked = quarry(repository)
    state, directory = campaign.begin(asked, Aim())
    assert re.fullmatch(r"bisect-\d{8}-\d{6}-[0-9a-f]{8}", state.id)
    with pytest.raises(UsageError, match="is under way") as error:
        campaign.begin(asked, Aim())
    assert "--continue" in str(error.value)
    assert "--reset" in str(error.value)
    assert campaign.resume(Path(asked.root), "x") == (state, directory)
    assert harness("bisect", "--reset", cwd=repository).status == 0
    assert campaign.find_unfinished(Path(asked.root)) is None
    assert directory.is_dir()
    campaign.begin(asked, Aim())


@pytest.mark.parametrize(
    ("verb", "default"),
    [
        ("bisect-step", "the current directory"),
        ("run", "the current directory if it is a kernel tree, else debian:latest"),
    ],
)
def test_help_names_the_tree_that_is_taken(verb: str, default: str) -> None:
    """A step never judges Debian's kernel in place of the commit that git has checked out."""
    command = app.get_command(click.Context(app), verb)
    assert command is not None
    (tree,) = (one for one in command.params if isinstance(one, click.Option) and one.name == "tree")
    assert (tree.help or "").endswith(f"[default: {default}]")
