# SPDX-License-Identifier: GPL-2.0-only
"""Bisects of a real kernel history: each finds the planted commit and no other.

One short bisect always runs. VFIO_HARNESS_TEST_BISECTS=1 runs all of them: an hour, including the builds of
7.2.
"""

from __future__ import annotations

import dataclasses
import json
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
from processes import find_processes

from harness.base import itself, process
from harness.base.deadline import Deadline
from harness.base.errors import GIT_SKIP, ExitCode
from harness.bisect.state import BisectState, Status, load_state
from harness.kernel.trees import KernelTree, open_tree

CLI = (sys.executable, "-m", "harness")

STEP_SECONDS = 75.0
"""The median of the steps' durations; each step changes one file."""

all_bisects = pytest.mark.skipif(
    not os.environ.get("VFIO_HARNESS_TEST_BISECTS"), reason="long: VFIO_HARNESS_TEST_BISECTS=1 runs it"
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A bisect, and the tag of the commit that it must find."""

    culprit: str
    good: str
    bad: str
    words: tuple[str, ...]


SHORT = Target(
    culprit="lost-name",
    good="steady-again",
    bad="named-again~1",
    words=("-k", "cdev_is_named_noiommu", "--", "drivers/vfio"),
)

TARGETS = (
    Target(
        culprit="wrong-errno",
        good="v7.3.4",
        bad="named-again",
        words=("--case", "probes/get_pa/refusals_come_in_order"),
    ),
    Target(
        culprit="lost-capability",
        good="v7.3.4",
        bad="topic",
        words=("--case", "probes/capabilities/cdev_open_needs_rawio"),
    ),
    Target(
        culprit="lost-name",
        good="v7.3.4",
        bad="named-again~1",
        words=("-k", "cdev_is_named_noiommu", "--", "drivers/vfio"),
    ),
    Target(culprit="boot-panic", good="v7.3.4", bad="boots-again~1", words=("--boot",)),
    Target(
        culprit="warning",
        good="v7.3.4",
        bad="topic",
        words=("--case", "probes/get_pa/refusal_writes_nothing"),
    ),
    # Its first step is among the commits that answer by the clock.
    Target(
        culprit="warning",
        good="lost-capability~1",
        bad="warning",
        words=("--case", "probes/get_pa/refusal_writes_nothing", "--repeat", "5"),
    ),
)


@pytest.fixture(scope="module")
def history(tree: KernelTree) -> History:
    made = make_history(tree.path)
    # Tests that were killed leave one that is not finished.
    process.run([*CLI, "bisect", "--tree", str(made.path), "--reset"], deadline=Deadline.after(600))
    return made


def bisect(history: History, *words: str, seconds: float = 3600) -> process.Completed:
    argv = [*CLI, "bisect", "--tree", str(history.path), "--topology", "edu", *words]
    return process.run(argv, deadline=Deadline.after(seconds))


def state_of(done: process.Completed) -> BisectState:
    """Return the state that *done* left."""
    where = re.search(r"everything is in (\S+)$", done.stderr, re.MULTILINE)
    assert where is not None, done.stderr
    directory = Path(where[1])
    assert (directory / "bisect.log").read_text().startswith("# ")
    assert (directory / "report.txt").is_file()
    return load_state(directory)


def go(history: History, target: Target, *more: str) -> BisectState:
    """Bisect, and check that it finds *target* and changes nothing of the user's."""
    history.git("bisect", "reset")
    history.git("bisect", "start", "--no-checkout", "topic", "v7.3.4")
    before = users_state(history)
    done = bisect(history, "--good", target.good, "--bad", target.bad, *more, *target.words)
    assert done.status == ExitCode.GOOD, done.stderr
    assert f"commit: {history.commit(target.culprit)}" in done.stdout, done.stdout
    assert users_state(history) == before
    state = state_of(done)
    print(done.stderr)  # the transcript, for pytest -s
    return state


def test_bisect(history: History) -> None:
    """A bisect finds a commit by name and path while the user bisects too; each failing commit runs twice."""
    state = go(history, SHORT)
    assert [step.vms for step in state.tested if step.status is Status.FAILS] == [2] * 2
    worktrees = history.git("worktree", "list")
    assert "/bisect " not in worktrees


@all_bisects
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.culprit}-{target.good}")
def test_every_bisect(history: History, target: Target) -> None:
    """A bisect passes commits that do not compile or boot, leave the image unchanged, or are flaky."""
    state = go(history, target)
    built = [step.seconds for step in state.steps if step.runs]
    assert statistics.median(built) < STEP_SECONDS


@all_bisects
def test_killed_bisect_continues(history: History) -> None:
    """kill -9 in the middle of a step loses no verdict."""
    target = TARGETS[1]
    argv = [*CLI, "bisect", "--tree", str(history.path), "--topology", "edu", *target.words]
    argv += ["--good", target.good, "--bad", target.bad]
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
    assert f"commit: {history.commit(target.culprit)}" in done.stdout


@all_bisects
def test_when_the_noiommu_cdev_appeared(history: History) -> None:
    """A bisect finds the commit between 7.2, which lacks the cdev, and 7.3 that made the cdev work."""
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


@all_bisects
def test_step_tells_git(history: History) -> None:
    """A step exits with 0, 125 and 1 for a commit that passes, does not compile and fails."""
    statuses = []
    for name in ("lost-capability~1", "no-compile", "lost-capability"):
        argv = [
            *CLI,
            "bisect-step",
            "--tree",
            f"{history.path}@{name}",
            "--topology",
            "edu",
            *TARGETS[1].words,
        ]
        statuses.append(process.run(argv, deadline=Deadline.after(3600)).status)
    assert statuses == [ExitCode.GOOD, GIT_SKIP, ExitCode.CASE_FAILED]


@all_bisects
def test_git_drives(history: History) -> None:
    """`git bisect run` finds the commit; the second time every step reuses its verdict."""
    tree = f"{history.path}@BISECT_HEAD"
    step = itself.argv(["bisect-step", "--tree", tree, "--topology", "edu", *TARGETS[1].words])
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
        assert not again or all(said.startswith("same image as ") for said in verdicts)


@all_bisects
def test_series_after_each_patch(history: History, tmp_path: Path) -> None:
    """Each of three patches, the second of which removes the name, gets a verdict."""
    history.git("format-patch", "--quiet", "-o", str(tmp_path), "lost-name~2..lost-name")
    argv = [*CLI, "run", "--tree", f"{history.path}@lost-name~2", "--series", str(tmp_path), "--each"]
    argv += ["--topology", "edu", "--suite", "probes", "--case", "probes/nodes/cdev_is_named_noiommu"]
    done = process.run(argv, deadline=Deadline.after(3600))
    assert done.status == ExitCode.CASE_FAILED, done.stderr
    assert [line.split()[2] for line in done.stdout.splitlines()[-2:]] == ["good", "bad"]


@all_bisects
def test_a_fleet_finds_it_though_a_worker_dies(history: History) -> None:
    """Two workers test both ends, then two commits at once; each builds anew, which takes most of it."""
    target = TARGETS[1]
    argv = [*CLI, "bisect", "--tree", str(history.path), "--topology", "edu", *target.words]
    argv += ["--good", target.good, "--bad", target.bad, "--fleet", "local:2"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        assert child.stdout is not None
        said = []
        for line in child.stderr:
            said.append(line)
            if line.startswith("step 2:"):
                time.sleep(5)
                (victim,) = find_processes("-m harness.fleet", "local-1")
                os.kill(victim, signal.SIGKILL)
        report = child.stdout.read()
    assert child.returncode == ExitCode.GOOD, said
    assert f"commit: {history.commit(target.culprit)}" in report
    (last,) = (line for line in said if "everything is in" in line)
    found = re.search(r"in (\d+) rounds, and 2 ends", last)
    assert found is not None, last
    # 39 commits, and one part in three is left after a round; some do not compile or boot.
    assert int(found[1]) <= 6
    assert not find_processes("-m harness.fleet", "local-")


@all_bisects
def test_faults_are_planted_on_a_fleet(history: History) -> None:
    """With the kernels that the workers have built before."""
    place = "drivers/iommu/iommufd/ioas.c:iommufd_ioas_noiommu_get_pa"
    argv = [*CLI, "mutate", "--tree", f"{history.path}@v7.3.4", "--topology", "edu", "--limit", "4"]
    argv += ["--case", "probes/get_pa/*", "--fleet", "local:2", "--json", place]
    done = process.run(argv, deadline=Deadline.after(3600))
    assert done.status in (ExitCode.GOOD, ExitCode.CASE_FAILED), done.stderr
    mutation = json.loads(done.stdout)
    assert len(mutation["mutants"]) == 4
    killed = [one for one in mutation["mutants"] if one["fate"] == "killed"]
    assert killed
    assert all((Path(one["run_dir"]) / "results.sqlite").is_file() for one in killed)
