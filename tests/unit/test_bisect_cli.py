# SPDX-License-Identifier: GPL-2.0-only
"""`bisect` and `bisect-step` refuse wrong input in one sentence, and use git's exit codes."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from kernel_fake_tree import git, make_fake_tree

from harness.base import process
from harness.base.errors import GIT_ABORT, GIT_SKIP, ExitCode, Interrupted, UsageError, for_git_bisect
from harness.base.locks import try_locked
from harness.bisect import git as bisect_git
from harness.bisect import start
from harness.bisect.state import BisectRequest, Rules
from harness.cli import bisect_verb, main
from harness.cli.main import app
from harness.kernel.store import source_lock

CASE = "probes/get_pa/refusals_come_in_order"
needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None, reason="a bisect wants QEMU before it builds"
)
ENDS = ("--good", "v1", "--bad", "v3")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three commits, v1 to v3, of a tree like Linux; no cache and no runs."""
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
        ((*ENDS,), "say what to bisect: --case ADDRESS, -k EXPR or --boot"),
        (("--case", CASE), "give a commit that passes and one that fails: --good REV --bad REV"),
        ((*ENDS, "--case", "probes/get_pa/refusals_come_in_odrer"), f"did you mean '{CASE}'?"),
        (("--good", "v1", "--bad", "mian", "--boot"), "has no ref 'mian'\n  did you mean 'main'?"),
        (("--good", "v3", "--bad", "v1", "--boot"), "is older than the good end v3"),
        (("--good", "v1", "--bad", "v1", "--boot"), "are the same commit"),
        (("--good", "v1", "--bad", "v3", "--find-fix", "--boot"), "is older than the broken end v3"),
        ((*ENDS, "--boot", "--good", "v2"), "one good end and one bad end: --good is given 2 times"),
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
    """The message has the closest spelling or what to do; nothing is built and nothing is left behind."""
    done = harness("bisect", *words, cwd=repository)
    assert said in done.stderr
    assert done.status == ExitCode.USAGE
    assert "Traceback" not in done.stderr
    assert len(git(repository, "worktree", "list").splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--continue",), "has no unfinished bisect"),
        (("--continue", "--json"), "has no unfinished bisect"),
        (
            ("--continue", "--variant", "cdev"),
            "--continue uses the options that the bisect was started with",
        ),
        (("--continue", "--topology", "nvme"), "leave --topology out"),
        (("--continue", "--memory", "4096"), "leave --memory out"),
        (("--continue", "--repeat", "3"), "leave --repeat out"),
        (("--continue", "-j", "2"), "leave -j out"),
        (("--continue", "--good", "v1"), "leave --good out"),
        (("--continue", "--", "init"), "leave -- PATH... out"),
        (("--reset", "--boot"), "--reset takes no other options: leave --boot out"),
        (("--reset", "--continue"), "leave --continue out"),
    ],
)
def test_what_was_asked_for_stays(repository: Path, words: tuple[str, ...], said: str) -> None:
    """An option that would be ignored is refused by name, even with its default."""
    done = harness("bisect", *words, cwd=repository)
    assert said in done.stderr
    assert done.status == ExitCode.USAGE


@pytest.mark.parametrize(
    "words",
    [("--case", "probes/x/y"), ("--frobnicate",), ("--tree", "/nonexistent", "--boot"), ()],
)
def test_a_step_stops_git_when_it_is_used_wrongly(repository: Path, words: tuple[str, ...]) -> None:
    """Exit code 128 stops git bisect; 2 would mean bad."""
    done = harness("bisect-step", *words, cwd=repository)
    assert done.status == GIT_ABORT
    assert "error: " in done.stderr


@needs_qemu
def test_a_step_that_cannot_be_built_is_skipped(repository: Path) -> None:
    """Exit code 125 makes git skip the commit."""
    (repository / "init" / "main.c").write_text("int broken = ;\n")
    done = harness("bisect-step", "--case", CASE, cwd=repository)
    assert done.status == GIT_SKIP, done.stderr
    assert "SKIP, does not build" in done.stdout


@needs_qemu
def test_invalid_is_not_missing(repository: Path) -> None:
    """An end that is not Linux, or an unknown CONFIG_ option, is wrong use and never `not applicable`."""
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
    """Exit codes of the harness become exit codes for git."""
    assert for_git_bisect(code) == status


@needs_qemu
def test_an_end_that_cannot_be_built_is_reported_at_once(repository: Path) -> None:
    """The error has the compiler's message and exit code 4, and there is nothing to continue."""
    (repository / "init" / "main.c").write_text("int broken = ;\n")
    git(repository, "commit", "--quiet", "--all", "--message=broken")
    done = harness("bisect", "--good", "v1", "--bad", "main", "--case", CASE, cwd=repository)
    assert done.status == ExitCode.KERNEL, done.stderr
    assert "the bad end main" in done.stderr
    assert "cannot be tested: building the kernel failed: " in done.stderr
    assert "error: expected expression" in done.stderr
    assert "has no unfinished bisect" in harness("bisect", "--continue", cwd=repository).stderr


def request(repository: Path) -> BisectRequest:
    old, new = (bisect_git.find_end(repository, name) for name in ("v1", "v3"))
    root = bisect_git.find_root(repository)
    return BisectRequest(repository=str(repository), root=str(root), old=old, new=new)


def test_two_that_start_at_once(repository: Path) -> None:
    """While one process starts a bisect, another one is refused and leaves nothing behind."""
    asked = request(repository)
    root = Path(asked.root)
    with try_locked(source_lock(bisect_git.worktree_of(root))) as ours:
        assert ours
        with pytest.raises(UsageError, match="another process is bisecting"):
            start.start(asked, Rules())
    assert start.find_unfinished(root) is None


def test_one_bisect_at_a_time(repository: Path) -> None:
    """A second bisect is refused until the first is continued to its end or dropped."""
    asked = request(repository)
    state, directory = start.start(asked, Rules())
    assert re.fullmatch(r"bisect-\d{8}-\d{6}-[0-9a-f]{8}", state.id)
    with pytest.raises(UsageError, match="has an unfinished bisect") as error:
        start.start(asked, Rules())
    assert "--continue" in str(error.value)
    assert "--reset" in str(error.value)
    assert start.resume(Path(asked.root), "x") == (state, directory)
    assert harness("bisect", "--reset", cwd=repository).status == 0
    assert start.find_unfinished(Path(asked.root)) is None
    assert directory.is_dir()
    start.start(asked, Rules())


@pytest.mark.parametrize(
    ("verb", "default"),
    [
        ("bisect-step", "the current directory"),
        ("run", "the current directory if it is a kernel tree, else debian:latest"),
    ],
)
def test_help_names_the_tree_that_is_taken(verb: str, default: str) -> None:
    """A step tests the current directory by default, never Debian's kernel."""
    command = app.get_command(click.Context(app), verb)
    assert command is not None
    (tree,) = (one for one in command.params if isinstance(one, click.Option) and one.name == "tree")
    assert (tree.help or "").endswith(f"[default: {default}]")


def test_an_interrupt_says_how_to_go_on(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last words of an interrupted bisect name --continue and the repository."""
    request = SimpleNamespace(repository="/src/my linux", options=None)
    state = SimpleNamespace(request=request, rules=SimpleNamespace(boot=False))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.bisect.bisect.bisect", interrupted)
    with pytest.raises(Interrupted) as found:
        bisect_verb._bisect(state, repository, None, as_json=False)  # type: ignore[arg-type]
    assert found.value.hint == "to continue: vfio-harness bisect --continue --tree '/src/my linux'"

    @click.command()
    def verb() -> None:
        raise found.value

    monkeypatch.setattr(sys, "argv", ["vfio-harness"])
    said: list[object] = []
    monkeypatch.setattr(main, "complain", lambda *words: said.extend(words))
    assert main._run(verb) == ExitCode.INTERRUPTED
    assert said == ["interrupted", found.value.hint]
