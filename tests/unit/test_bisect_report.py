# SPDX-License-Identifier: GPL-2.0-only
"""What a hunt came to is told with its grounds, and can be pasted into a mail."""

from __future__ import annotations

import dataclasses
import json

import pytest

from harness.bisect import plain as plain_module
from harness.bisect.gitbisect import CommitFacts
from harness.bisect.model import Aim, Observation, Sight, Step
from harness.bisect.report import Confidence, Evidence, Finding, judge_confidence, mail, summary
from harness.bisect.state import End, HuntState, Quarry
from harness.errors import ExitCode

CASE = "probes/get_pa/refusals_come_in_order"
BAD, GOOD = "b" * 40, "a" * 40


def step(commit: str, *sights: Sight, flaky: bool = False) -> Step:
    seen = tuple(Observation(sight=s, why=s.value, run_dir="runs/1") for s in sights)
    return Step(commit=commit, subject="s", sight=sights[0], why="why", observations=seen, flaky=flaky)


F2, P1 = (Sight.FAILS, Sight.FAILS), (Sight.PASSES,)


def finding(*steps: Step, aim: Aim | None = None, parent_tested: bool = True) -> Finding:
    failing, passing = step(BAD, *F2), step(GOOD, *P1)
    old, new = End(name="v7.3", commit="0" * 40), End(name="HEAD", commit="f" * 40)
    quarry = Quarry(repository="/home/me/linux", root="/home/me/linux/.git", old=old, new=new)
    state = HuntState(
        id="x", quarry=quarry, aim=aim or Aim(), hunted=(CASE,), steps=(failing, passing, *steps)
    )
    return Finding(
        state=state,
        found=CommitFacts(
            commit=BAD,
            author="A. Developer <dev@example.org>",
            date="2030-01-02",
            subject='iommufd: Be "clear"',
            parents=(GOOD,),
            files=("drivers/iommu/iommufd/ioas.c | 2 +-",),
        ),
        parent_tested=parent_tested,
        failing=Evidence(
            step=failing,
            reason=f"{CASE} FAIL: want EINVAL (22), got ERANGE (34)",
            log="why: want EINVAL (22), got ERANGE (34)\nat: x.py:2\n"
            "Traceback (most recent call last):\n  File x\nX: y\nin the end",
            splat="WARNING: at drivers/vfio/x.c:1",
            machine=("-machine q35", "-device edu"),
            rerun=f"vfio-harness run --case {CASE} --tree ",
        ),
        passing=Evidence(step=passing, rerun=f"vfio-harness run --case {CASE} --tree "),
        symbols=("CONFIG_VFIO_NOIOMMU=y",),
        config="/x/kernel.config",
        user="Me <me@example.org>",
        promises=(f"{CASE}: Each check beats all later ones. (ioas.c)",),
        bisect_log="git bisect start\n",
    )


@pytest.mark.parametrize(
    ("made", "level", "said"),
    [
        (finding(), Confidence.HIGH, "1 of 1 failing commits failed on a second VM too"),
        (finding(step("c" * 40, Sight.UNBUILDABLE)), Confidence.HIGH, "1 commit could not be tested"),
        (finding(step("c" * 40, *P1, flaky=True)), Confidence.MEDIUM, "VMs disagreed about cccccccccccc"),
        (finding(parent_tested=False), Confidence.MEDIUM, "not the commit before it"),
        (dataclasses.replace(finding(), found=None), Confidence.LOW, ""),
    ],
)
def test_confidence(made: Finding, level: Confidence, said: str) -> None:
    """It is as sure as its weakest ground, and says the grounds."""
    found, grounds = judge_confidence(made)
    assert found is level
    assert said in "; ".join(grounds)


def test_summary() -> None:
    """Commit, author, files, both sides and how to see either again."""
    text = summary(finding())
    for part in (
        f'first bad commit: {BAD} iommufd: Be "clear"',
        "author: A. Developer <dev@example.org>",
        "drivers/iommu/iommufd/ioas.c | 2 +-",
        "got ERANGE (34)",
        "WARNING: at drivers/vfio/x.c:1",
        f"again: vfio-harness run --case {CASE} --tree /home/me/linux@bbbbbbbbbbbb",
        f"again: vfio-harness run --case {CASE} --tree /home/me/linux@aaaaaaaaaaaa",
        "confidence: high",
    ):
        assert part in text


def test_tracebacks_are_left_to_the_log() -> None:
    """What the case says itself stands, before its traceback and after."""
    lines = [line.strip() for line in summary(finding()).splitlines()]
    at = lines.index("at: x.py:2")
    assert lines[at : at + 2] == ["at: x.py:2", "in the end"]


def test_suspects_are_all_named() -> None:
    """When the rest cannot be tested, there is no culprit but a few suspects, and no mail."""
    made = finding()
    assert made.found is not None
    made = dataclasses.replace(made, found=None, suspects=(made.found,))
    assert "is one of these" in summary(made)
    assert f"  {BAD} iommufd" in summary(made)
    assert mail(made) == ""


def test_culprit_outside_the_paths() -> None:
    """The last commit that touches the paths is still good: that is said, and what to do."""
    assert "leave them out" in summary(dataclasses.replace(finding(), found=None))


def test_mail_can_be_pasted() -> None:
    """Everything a maintainer asks for is in it, and nothing of our own machine."""
    text = mail(finding())
    for part in (
        f"Subject: [REGRESSION] {CASE} fails since bbbbbbbbbbbb",
        "passes at v7.3",
        "Each check beats all later ones.",
        "want EINVAL (22), got ERANGE (34)",
        "WARNING: at drivers/vfio/x.c:1",
        "--tree linux@bbbbbbbbbbbb    # fails",
        "--tree linux@aaaaaaaaaaaa    # passes",
        "-device edu",
        "CONFIG_VFIO_NOIOMMU=y",
        "Reported-by: Me <me@example.org>",
        'Fixes: bbbbbbbbbbbb ("iommufd: Be "clear"")',
        f"#regzbot introduced: {BAD}",
        "git bisect start",
    ):
        assert part in text
    for part in ("/home/me", "Traceback", "why: ", "File x", "X: y"):
        assert part not in text


KEYS = {
    *("schema", "generator", "id", "repository", "exit_code", "find_fix", "boot", "terms", "ends", "paths"),
    *("hunted", "found", "suspects", "confidence", "grounds", "failing", "passing", "tested", "host"),
    *("config", "bisect_log"),
}
"""What other programs may rely on; a key is added here, and none is taken away."""


def test_json_for_other_programs() -> None:
    """The culprit, both sides and every verdict, under keys that stay."""
    plain = json.loads(plain_module.render(finding(), ExitCode.GOOD))
    assert set(plain) == KEYS
    assert (plain["schema"], plain["exit_code"], plain["confidence"]) == (1, 0, "high")
    assert (plain["found"]["commit"], plain["failing"]["commit"]) == (BAD, BAD)
    assert plain["failing"]["again"].endswith("--tree /home/me/linux@bbbbbbbbbbbb")
    assert [(step["commit"], step["verdict"]) for step in plain["tested"]] == [(BAD, "bad"), (GOOD, "good")]
    assert plain["terms"] == {"old": "good", "new": "bad"}
    assert plain["ends"]["old"]["name"] == "v7.3"


def test_json_without_a_culprit() -> None:
    """Suspects are listed, and the exit code says whose fault it is."""
    made = finding()
    assert made.found is not None
    made = dataclasses.replace(made, found=None, suspects=(made.found,), passing=None)
    plain = json.loads(plain_module.render(made, ExitCode.KERNEL))
    assert (plain["found"], plain["passing"], plain["exit_code"]) == (None, None, 4)
    assert [suspect["commit"] for suspect in plain["suspects"]] == [BAD]


def test_mail_about_a_fix() -> None:
    """A fix is told to regzbot as one."""
    text = mail(finding(aim=Aim(find_fix=True)))
    assert '#regzbot fix: iommufd: Be "clear"' in text
    assert "introduced" not in text
    assert "it passed on 1 VM, and the commit before it did not" in " ".join(text.split())
