# SPDX-License-Identifier: GPL-2.0-only
"""`run --watch`: which saves start a run, and what becomes of the run that they overtake."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from kernel_fake_tree import make_fake_tree
from watchfiles import Change

from harness.base import itself, process
from harness.base.errors import ExitCode, UsageError
from harness.cli import watch_runs
from harness.cli.main import app
from harness.cli.watch_runs import watch_tree
from harness.results import Inputs, Run, RunInfo, RunState, Verdict, reach_verdict
from harness.results.store import RunStore, load, new_run_id


class Runs:
    """Stands in for the processes of runs: each makes a run that is under way, and lasts *seconds*."""

    def __init__(self, root: Path, seconds: Sequence[float]) -> None:
        self.root = root
        self.words: list[list[str]] = []
        self._seconds = list(seconds)

    @contextlib.contextmanager
    def started(self, words: Iterable[str]) -> Iterator[process.Process]:
        words = list(words)
        self.words.append(words)
        fact, _, value = words[words.index("--about") + 1].partition("=")
        started = datetime.datetime.now(datetime.UTC)
        info = RunInfo(
            id=new_run_id(started), started=started, harness_version="1", inputs=Inputs(extra={fact: value})
        )
        with RunStore.create(self.root / info.id, info) as store:
            seconds = self._seconds.pop(0)
            if not seconds:
                store.finish(Verdict.GOOD)
        with process.spawn(["sleep", str(seconds)]) as child:
            yield child

    def read(self) -> list[Run]:
        """Return the runs, oldest first."""
        return sorted((load(path) for path in self.root.iterdir()), key=lambda run: run.info.started)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    tree = make_fake_tree(tmp_path / "linux")
    (tree / ".gitignore").write_text("/generated/\n")
    for words in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "-m", "all")):
        process.run(["git", "-C", tree, "-c", "user.name=A", "-c", "user.email=a@b.c", *words]).check("git")
    return tree


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


Moved = Callable[[], tuple[Change, Path]]


def _watch(
    monkeypatch: pytest.MonkeyPatch, tree: Path, runs: Runs, *saves: Mapping[str, str] | Moved
) -> None:
    """Watch *tree* while its files are saved, one mapping of name to text after the other, or moved."""

    def changes(top: Path) -> Iterator[set[tuple[Change, str]]]:
        yield set()
        for texts in saves:
            if callable(texts):
                change, path = texts()
                yield {(change, str(path))}
                continue
            for name, text in texts.items():
                (top / name).parent.mkdir(parents=True, exist_ok=True)
                (top / name).write_text(text)
            yield {(Change.modified, str(top / name)) for name in texts}

    monkeypatch.setattr(itself, "started", runs.started)
    monkeypatch.setattr(watch_runs, "_changes", changes)
    assert watch_tree(str(tree), ["run", "-k", "nodes"]) == ExitCode.INTERRUPTED


def test_newest_save_wins(tree: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save interrupts the run under way, which keeps its results and is marked."""
    runs = Runs(root, (60, 60))
    _watch(monkeypatch, tree, runs, {"Makefile": "# new\n"})
    states = [run.state for run in runs.read()]
    assert states == [RunState.OVERTAKEN, RunState.RUNNING]
    verdict = reach_verdict(runs.read()[0])
    assert (verdict.why, verdict.exit_code) == ("the run was overtaken by a newer save", ExitCode.INTERRUPTED)


def test_run_that_ended_is_not_overtaken(tree: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(root, (0, 60))
    _watch(monkeypatch, tree, runs, {}, {"Makefile": "# new\n"})
    assert [run.state for run in runs.read()] == [RunState.FINISHED, RunState.RUNNING]


def test_each_run_has_the_options_of_the_first(
    tree: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(root, (60, 60))
    _watch(monkeypatch, tree, runs, {"Makefile": "# new\n"})
    assert [[*words[:1], *words[3:]] for words in runs.words] == [["run", "-k", "nodes"]] * 2


@pytest.mark.parametrize(
    "saved",
    [
        {"vfio.o": "product"},
        {"generated/x.h": "ignored by git"},
        {"runs/20261130-042808-58b46d66/plan.json": "ours"},
        {},
    ],
)
def test_what_no_build_reads_starts_no_run(
    saved: Mapping[str, str], tree: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(root, (60,))
    # As in a tree that is the current directory.
    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(tree / "runs"))
    _watch(monkeypatch, tree, runs, saved)
    assert len(runs.words) == 1


def test_source_that_only_debians_gitignore_hides_starts_a_run(
    tree: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's sources ignore everything at the top; such a file is built all the same."""
    (tree / ".gitignore").write_text("/*\n")
    runs = Runs(root, (60, 60))
    _watch(monkeypatch, tree, runs, {"new.c": "int x;\n"}, {"notes.txt": "no source"})
    assert len(runs.words) == 2


def test_save_without_a_change_starts_no_run(tree: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An editor's second save of the same text."""
    runs = Runs(root, (60, 60))
    _watch(monkeypatch, tree, runs, {"new.c": "int x;\n"}, {"new.c": "int x;\n"})
    assert len(runs.words) == 2


def test_first_touch_of_a_file_starts_no_run(tree: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of one that is committed nor of one that was edited before the watch began."""
    (tree / "new.c").write_text("int x;\n")
    (tree / "link.c").symlink_to("new.c")
    runs = Runs(root, (60, 60))
    same = {name: (tree / name).read_text() for name in ("Makefile", "new.c", "link.c")}
    _watch(monkeypatch, tree, runs, same)
    assert len(runs.words) == 1


def test_directory_that_is_moved_starts_a_run(
    tree: Path,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its files have no changes of their own."""
    outside, inside = tmp_path / "outside", tree / "drivers" / "mine"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "x.c").write_text("int x;\n")
    (outside / "deep" / "x.o").write_text("product")

    def moved(change: Change, before: Path, after: Path) -> tuple[Change, Path]:
        after.parent.mkdir(exist_ok=True)
        before.rename(after)
        return change, inside

    runs = Runs(root, (60,) * 3)
    _watch(
        monkeypatch,
        tree,
        runs,
        lambda: moved(Change.added, outside, inside),
        lambda: (Change.modified, inside),
        lambda: moved(Change.deleted, inside, outside),
    )
    assert len(runs.words) == 3
    said = "saved: drivers/mine/deep/x.c; the run under way was interrupted"
    assert capsys.readouterr().err.splitlines() == [said, said]


@pytest.mark.parametrize("spec", ["debian:7.3", "/no/such/dir", "."])
def test_only_a_directory_of_sources_is_watched(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="--watch needs a directory with Linux sources that you edit"):
        watch_tree(spec, ["run"])


@pytest.mark.parametrize("other", [["--json"], ["--collect-only"], ["--series", "x.mbox"]])
def test_options_that_do_not_go_together(other: list[str]) -> None:
    done = CliRunner().invoke(app, ["run", "--watch", *other])
    assert isinstance(done.exception, UsageError)
    assert f"--watch starts a run for each save: leave {other[0]} out" in str(done.exception)
