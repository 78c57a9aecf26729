# SPDX-License-Identifier: GPL-2.0-only
"""Hunts through a real kernel history: each lands on the commit that was put there, and on nothing else.

One short hunt always runs.  VFIO_HARNESS_TEST_HUNTS=1 runs all of them: an hour, the builds of 7.2 included.
"""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kernel_history import GROWN, History, grow_history, make_history, users_state

from harness import itself, process
from harness.bisect.model import Sight
from harness.bisect.state import HuntState, load_state
from harness.deadline import Deadline
from harness.errors import GIT_SKIP, ExitCode
from harness.kernel.trees import KernelTree, open_tree

CLI = (sys.executable, "-m", "harness")

STEP_SECONDS = 75.0
"""What a step may take in the median: a change of one file, built, booted and judged."""

all_hunts = pytest.mark.skipif(
    not os.environ.get("VFIO_HARNESS_TEST_HUNTS"), reason="long: VFIO_HARNESS_TEST_HUNTS=1 runs it"
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Quest:
    """A hunt, and the tag of what it must find."""

    culprit: str
    good: str
    bad: str
    words: tuple[str, ...]


SHORT = Quest(
    culprit="lost-name",
    good="steady-again",
    bad="named-again~1",
    words=("-k", "cdev_is_named_noiommu", "--", "drivers/vfio"),
)

QUESTS = (
    Quest(
        culprit="wrong-errno",
        good="v7.3.4",
        bad="named-again",
        words=("--case", "probes/get_pa/refusals_come_in_order"),
    ),
    Quest(
        culprit="lost-capability",
        good="v7.3.4",
        bad="topic",
        words=("--case", "probes/capabilities/cdev_open_needs_rawio"),
    ),
    Quest(
        culprit="lost-name",
        good="v7.3.4",
        bad="named-again~1",
        words=("-k", "cdev_is_named_noiommu", "--", "drivers/vfio"),
    ),
    Quest(culprit="boot-panic", good="v7.3.4", bad="boots-again~1", words=("--boot",)),
    Quest(
        culprit="warning",
        good="v7.3.4",
        bad="topic",
        words=("--case", "probes/get_pa/refusal_writes_nothing"),
    ),
    # Its first step is in the middle of what answers by the clock.
    Quest(
        culprit="warning",
        good="lost-capability~1",
        bad="warning",
        words=("--case", "probes/get_pa/refusal_writes_nothing", "--repeat", "5"),
    ),
)


@pytest.fixture(scope="module")
def history(tree: KernelTree) -> History:
    return make_history(tree.path)


def bisect(history: History, *words: str, seconds: float = 3600) -> process.Completed:
    argv = [*CLI, "bisect", "--tree", str(history.path), "--topology", "edu", *words]
    return process.run(argv, deadline=Deadline.after(seconds))


def state_of(done: process.Completed) -> HuntState:
    """The hunt that *done* has left."""
    where = re.search(r"everything is in (\S+)$", done.stderr, re.MULTILINE)
    assert where is not None, done.stderr
    directory = Path(where[1])
    assert (directory / "bisect.log").read_text().startswith("# ")
    assert (directory / "report.txt").is_file()
    return load_state(directory)


def go(history: History, quest: Quest, *more: str) -> HuntState:
    """Hunt, and check that it found what it should have found, and left the user's own things alone."""
    history.git("bisect", "reset")
    history.git("bisect", "start", "--no-checkout", "topic", "v7.3.4")
    before = users_state(history)
    done = bisect(history, "--good", quest.good, "--bad", quest.bad, *more, *quest.words)
    assert done.status == ExitCode.GOOD, done.stderr
    assert f"commit: {history.commit(quest.culprit)}" in done.stdout, done.stdout
    assert users_state(history) == before
    state = state_of(done)
    print(done.stderr)  # the transcript, for pytest -s
    return state


def test_hunt(history: History) -> None:
    """By name and path, with a bisect of the user's own under way; each failure was seen twice."""
    state = go(history, SHORT)
    assert [step.vms for step in state.tested if step.sight is Sight.FAILS] == [2] * 2
    worktrees = history.git("worktree", "list")
    assert "/bisect " not in worktrees


@all_hunts
@pytest.mark.parametrize("quest", QUESTS, ids=lambda quest: f"{quest.culprit}-{quest.good}")
def test_every_hunt(history: History, quest: Quest) -> None:
    """Through what does not compile, does not boot, changes nothing in the image, and flakes."""
    state = go(history, quest)
    built = [step.seconds for step in state.steps if step.observations]
    assert statistics.median(built) < STEP_SECONDS


@all_hunts
def test_killed_hunt_goes_on(history: History) -> None:
    """kill -9 in the middle of a step costs no verdict."""
    quest = QUESTS[1]
    argv = [*CLI, "bisect", "--tree", str(history.path), "--topology", "edu", *quest.words]
    argv += ["--good", quest.good, "--bad", quest.bad]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if line.startswith("step 2:"):
                time.sleep(5)
                child.send_signal(signal.SIGKILL)
                break
        child.stderr.read()
    done = process.run(
        [*CLI, "bisect", "--tree", str(history.path), "--continue"], deadline=Deadline.after(3600)
    )
    assert done.status == ExitCode.GOOD, done.stderr
    assert "3 verdicts so far" in done.stderr
    assert "step 1:" not in done.stderr
    assert f"commit: {history.commit(quest.culprit)}" in done.stdout


@all_hunts
def test_when_the_noiommu_cdev_appeared(history: History) -> None:
    """Between 7.2, which cannot express it, and 7.3: the commit that made it work."""
    grow_history(history, open_tree("debian:7.2").path)
    done = bisect(
        history,
        "--find-fix",
        "--bad",
        "v7.2",
        "--good",
        "growth",
        "--case",
        "probes/get_pa/kernel_has_the_ioctl",
    )
    assert done.status == ExitCode.GOOD, done.stderr
    assert f"first fixed commit: {history.commit(GROWN)}" in done.stdout


@all_hunts
def test_step_tells_git(history: History) -> None:
    """What `git bisect run` is told of a commit that passes, one that does not compile and one that fails."""
    statuses = []
    for name in ("lost-capability~1", "no-compile", "lost-capability"):
        argv = [
            *CLI,
            "bisect-step",
            "--tree",
            f"{history.path}@{name}",
            "--topology",
            "edu",
            *QUESTS[1].words,
        ]
        statuses.append(process.run(argv, deadline=Deadline.after(1800)).status)
    assert statuses == [ExitCode.GOOD, GIT_SKIP, ExitCode.CASE_FAILED]


@all_hunts
def test_git_drives(history: History) -> None:
    """`git bisect run` lands on the culprit; when it does so again, every step reuses its verdict."""
    tree = f"{history.path}@BISECT_HEAD"
    step = itself.argv(["bisect-step", "--tree", tree, "--topology", "edu", *QUESTS[1].words])
    history.git("bisect", "reset")
    for again in (False, True):
        history.git("bisect", "start", "--no-checkout", "boot-panic~1", "compiles-again")
        argv = ["git", "-C", os.fspath(history.path), "bisect", "run", *step]
        done = process.run(argv, env=itself.env(), deadline=Deadline.after(3600))
        history.git("bisect", "reset")
        assert done.ok, done.stderr
        assert f"{history.commit('lost-capability')} is the first bad commit" in done.stdout, done.stdout
        verdicts = re.findall(r": (?:GOOD|BAD): (.*)", done.stdout)
        assert 2 <= len(verdicts) <= 4, done.stdout
        assert not again or all(said.startswith("the same image as ") for said in verdicts)


@all_hunts
def test_series_after_each_patch(history: History, tmp_path: Path) -> None:
    """Three patches, the second of which takes the name away: each is judged for itself."""
    history.git("format-patch", "--quiet", "-o", str(tmp_path), "lost-name~2..lost-name")
    argv = [*CLI, "run", "--tree", f"{history.path}@lost-name~2", "--series", str(tmp_path), "--each"]
    argv += ["--topology", "edu", "--suite", "probes", "--case", "probes/nodes/cdev_is_named_noiommu"]
    done = process.run(argv, deadline=Deadline.after(1800))
    assert done.status == ExitCode.CASE_FAILED, done.stderr
    assert [line.split()[2] for line in done.stdout.splitlines()[-2:]] == ["good", "bad"]
