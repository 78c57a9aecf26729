# SPDX-License-Identifier: GPL-2.0-only
"""A step whose image was tested before says so, and boots no VM."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
from kernel_fake_tree import make_fake_tree

from harness.base import paths
from harness.bisect.state import CommitRun, Rules, Status, Step, StepOptions
from harness.bisect.step import BuiltCommit, VMTester, run_step
from harness.cli import bisect_step_verb
from harness.cli.bisect_step_verb import deciding, memory_path, recall, remember
from harness.session.wishes import KernelWish

OPTIONS = StepOptions(
    kernel=KernelWish(variant="group-cdev", compilers=1), suites=("probes",), cases=("probes/a/b",)
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no runs."""
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(tmp_path / "runs"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def a_step(image: str = "x", status: Status = Status.FAILS, **more: object) -> Step:
    step = Step(commit="a" * 40, subject="s", status=status, why="because", image=image)
    return dataclasses.replace(step, **more)  # type: ignore[arg-type]


def test_step_is_found_again() -> None:
    """A step is found by its image and everything else that decides."""
    remember(a_step(), "d")
    found = recall("x", "d")
    assert found is not None
    assert (found.status, found.why, found.commit) == (Status.FAILS, "because", "a" * 40)
    assert recall("y", "d") is None
    assert recall("x", "e") is None
    remember(a_step(status=Status.PASSES), "d")
    found = recall("x", "d")
    assert found is not None
    assert found.status is Status.PASSES


@pytest.mark.parametrize(
    "step",
    [
        a_step(status=Status.UNTESTED),
        a_step(image="", status=Status.NO_BUILD),
        a_step(same_as="b"),
        a_step(flaky=True),
    ],
)
def test_undecided_steps_are_not_kept(step: Step) -> None:
    """Steps that were not tested, not built, found by their image or flaky are not kept."""
    remember(step, "d")
    assert not memory_path().exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2, "steps": [1]}', '{"format": 99}'])
def test_unreadable_file(text: str) -> None:
    """A file that cannot be read counts as empty and is replaced."""
    memory_path().write_text(text)
    assert recall("x", "d") is None
    remember(a_step(), "d")
    assert recall("x", "d") is not None


def test_file_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest steps are dropped first."""
    monkeypatch.setattr(bisect_step_verb, "KEPT", 3)
    for content in "abcd":
        remember(a_step(content), "d")
    assert [content for content in "abcd" if recall(content, "d")] == ["b", "c", "d"]


def test_cache_that_cannot_be_written(cache: Path) -> None:
    """Without a cache, the next step is tested again."""
    cache.rmdir()
    cache.write_text("in the way")
    remember(a_step(), "d")
    assert recall("x", "d") is None


def test_what_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases, machine, confirmation, QEMU and the harness's own files decide; git's terms do not."""
    usual = deciding(OPTIONS, Rules(), ["qemu 1"])
    assert deciding(OPTIONS, Rules(find_fix=True), ["qemu 1"]) == usual
    others = {
        deciding(dataclasses.replace(OPTIONS, cases=("probes/a/c",)), Rules(), ["qemu 1"]),
        deciding(dataclasses.replace(OPTIONS, machine=("--memory", "4096")), Rules(), ["qemu 1"]),
        deciding(OPTIONS, Rules(repeat=5), ["qemu 1"]),
        deciding(OPTIONS, Rules(boot=True), ["qemu 1"]),
        deciding(OPTIONS, Rules(), ["qemu 2"]),
    }
    (tmp_path / "guest").mkdir()
    (tmp_path / "guest" / "probe.py").write_text("1")
    monkeypatch.setattr(paths, "guest_dir", lambda: tmp_path / "guest")
    others.add(deciding(OPTIONS, Rules(), ["qemu 1"]))
    assert len(others - {usual}) == 6


class OneImage(VMTester):
    """A tester for which all commits are one image, which fails."""

    boots = 0

    def __init__(self, *arguments: object, **named: object) -> None:
        """Take the arguments of VMTester."""

    def build(self, commit: str) -> BuiltCommit | CommitRun:
        return BuiltCommit(image="x", seconds=1.0)

    def run(self, commit: str, cases: tuple[str, ...]) -> CommitRun:
        type(self).boots += 1
        return CommitRun(status=Status.FAILS, why="it fails", run_dir="runs/x")


def test_second_step_is_not_run() -> None:
    """The second step with the same image boots no VM."""
    OneImage.boots = 0
    first = run_step(
        OneImage(), Step(commit="1", subject="c1"), Rules(), tested_image=lambda image: recall(image, "d")
    )
    remember(first, "d")
    second = run_step(
        OneImage(), Step(commit="2", subject="c2"), Rules(), tested_image=lambda image: recall(image, "d")
    )
    assert (second.status, second.same_as, OneImage.boots) == (Status.FAILS, "1", 2)


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="a step wants QEMU")
def test_verb_tells_where_the_verdict_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second step with the same image is bad without a VM, and names the file to remove."""
    tree = make_fake_tree(tmp_path / "linux")
    monkeypatch.setattr(bisect_step_verb, "VMTester", OneImage)
    OneImage.boots = 0
    words = ["--tree", os.fspath(tree), "--accel", "tcg", "--boot", "--case", "probes/*"]
    codes = [bisect_step_verb.command.main(words, standalone_mode=False) for _ in range(2)]
    said = capsys.readouterr()
    assert (codes, OneImage.boots) == ([1, 1], 2)
    assert "BAD: same image as" in said.out
    assert f"it was tested then: it fails\nto test it again: rm {memory_path()}" in said.err
