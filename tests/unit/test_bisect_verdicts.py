# SPDX-License-Identifier: GPL-2.0-only
"""A step that comes to an image that was judged before says so, and takes no VM."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from kernel_fake_tree import make_fake_tree

from harness import paths
from harness.bisect import verdicts
from harness.bisect.hunt import Prepared, fresh_step, settle
from harness.bisect.judge import Trial
from harness.bisect.model import Aim, Observation, Sight, Step
from harness.bisect.verdicts import Verdicts, deciding, verdicts_path
from harness.cli import bisect_step_verb

TRIAL = Trial(variant="group-cdev", jobs=1, suites=("probes",), cases=("probes/a/b",))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and runs of its own."""
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(tmp_path / "runs"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def judged(content: str = "x", sight: Sight = Sight.FAILS, **more: object) -> Step:
    step = Step(commit="a" * 40, subject="s", sight=sight, why="because", content=content)
    return dataclasses.replace(step, **more)  # type: ignore[arg-type]


def test_verdict_is_found_again() -> None:
    """By the image and by everything else that decides it."""
    Verdicts("d").remember(judged())
    found = Verdicts("d").known("x")
    assert found is not None
    assert (found.sight, found.why, found.commit) == (Sight.FAILS, "because", "a" * 40)
    assert Verdicts("d").known("y") is None
    assert Verdicts("e").known("x") is None
    Verdicts("d").remember(judged(sight=Sight.PASSES))
    found = Verdicts("d").known("x")
    assert found is not None
    assert found.sight is Sight.PASSES


@pytest.mark.parametrize(
    "step",
    [
        judged(sight=Sight.NO_CHANCE),
        judged(content="", sight=Sight.UNBUILDABLE),
        judged(same_as="b"),
        judged(flaky=True),
    ],
)
def test_what_is_no_verdict_is_not_kept(step: Step) -> None:
    """The host's trouble, what was borrowed, and what VMs disagreed about."""
    Verdicts("d").remember(step)
    assert not verdicts_path().exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "verdicts": [1]}', '{"format": 99}'])
def test_file_that_is_not_ours(text: str) -> None:
    """It is as good as none, and the next verdict takes its place."""
    verdicts_path().write_text(text)
    assert Verdicts("d").known("x") is None
    Verdicts("d").remember(judged())
    assert Verdicts("d").known("x") is not None


def test_file_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go first."""
    monkeypatch.setattr(verdicts, "KEPT", 3)
    for content in "abcd":
        Verdicts("d").remember(judged(content))
    assert [content for content in "abcd" if Verdicts("d").known(content)] == ["b", "c", "d"]


def test_cache_that_cannot_be_written_to(cache: Path) -> None:
    """The next step does the work again."""
    cache.rmdir()
    cache.write_text("in the way")
    Verdicts("d").remember(judged())
    assert Verdicts("d").known("x") is None


def test_what_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases, machine, confirmation, QEMU and the harness's own files; not what git calls the result."""
    usual = deciding(TRIAL, Aim(), ["qemu 1"])
    assert deciding(TRIAL, Aim(find_fix=True), ["qemu 1"]) == usual
    others = {
        deciding(dataclasses.replace(TRIAL, cases=("probes/a/c",)), Aim(), ["qemu 1"]),
        deciding(dataclasses.replace(TRIAL, machine=("--memory", "4096")), Aim(), ["qemu 1"]),
        deciding(TRIAL, Aim(repeat=5), ["qemu 1"]),
        deciding(TRIAL, Aim(boot=True), ["qemu 1"]),
        deciding(TRIAL, Aim(), ["qemu 2"]),
    }
    (tmp_path / "guest").mkdir()
    (tmp_path / "guest" / "probe.py").write_text("1")
    monkeypatch.setattr(paths, "guest_dir", lambda: tmp_path / "guest")
    others.add(deciding(TRIAL, Aim(), ["qemu 1"]))
    assert len(others - {usual}) == 6


class OneImage:
    """A judge to whom everything is one image, which fails."""

    looks = 0

    def __init__(self, *arguments: object) -> None:
        """Whatever the real one takes."""

    def prepare(self, commit: str) -> Prepared | Observation:
        return Prepared(content="x", seconds=1.0)

    def look(self, commit: str, hunted: Sequence[str]) -> Observation:
        type(self).looks += 1
        return Observation(sight=Sight.FAILS, why="it fails", run_dir="runs/x")


def test_settled_step_is_borrowed() -> None:
    """The second step with that image asks no VM."""
    known = Verdicts("d")
    OneImage.looks = 0
    first = settle(OneImage(), fresh_step("1", "c1"), Aim(), known=known.known)
    known.remember(first)
    second = settle(OneImage(), fresh_step("2", "c2"), Aim(), known=known.known)
    assert (second.sight, second.same_as, OneImage.looks) == (Sight.FAILS, "1", 2)


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="a step wants QEMU")
def test_verb_says_when_it_borrows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twice the same image: bad both times, the second time without a VM and with the file to remove."""
    tree = make_fake_tree(tmp_path / "linux")
    monkeypatch.setattr(bisect_step_verb, "RealJudge", OneImage)
    OneImage.looks = 0
    words = ["--tree", os.fspath(tree), "--accel", "tcg", "--boot", "--case", "probes/*"]
    codes = [bisect_step_verb.command.main(words, standalone_mode=False) for _ in range(2)]
    said = capsys.readouterr()
    assert (codes, OneImage.looks) == ([1, 1], 2)
    assert "BAD: the same image as" in said.out
    assert f"it was judged then: it fails\nto have it judged again: rm {verdicts_path()}" in said.err
