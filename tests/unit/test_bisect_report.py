# SPDX-License-Identifier: GPL-2.0-only
"""The result of a bisect is shown with its grounds, and as a mail for the mailing list."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from harness.base import process
from harness.base.errors import ExitCode
from harness.bisect.git import CommitFacts, recipients
from harness.bisect.report import Confidence, Evidence, Report, confidence, mail, render_json, summary
from harness.bisect.state import BisectRequest, BisectState, CommitRun, End, Rules, Status, Step

CASE = "probes/get_pa/refusals_come_in_order"
BAD, GOOD = "b" * 40, "a" * 40


def step(commit: str, *statuses: Status, flaky: bool = False) -> Step:
    runs = tuple(CommitRun(status=s, why=s.value, run_dir="runs/1") for s in statuses)
    return Step(commit=commit, subject="s", status=statuses[0], why="why", runs=runs, flaky=flaky)


F2, P1 = (Status.FAILS, Status.FAILS), (Status.PASSES,)


def report(*steps: Step, rules: Rules | None = None, parent_tested: bool = True) -> Report:
    failing, passing = step(BAD, *F2), step(GOOD, *P1)
    old, new = End(name="v7.3", commit="0" * 40), End(name="HEAD", commit="f" * 40)
    request = BisectRequest(repository="/home/me/linux", root="/home/me/linux/.git", old=old, new=new)
    state = BisectState(
        id="x", request=request, rules=rules or Rules(), cases=(CASE,), steps=(failing, passing, *steps)
    )
    return Report(
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
            command=f"vfio-harness run --case {CASE}",
        ),
        passing=Evidence(step=passing, command=f"vfio-harness run --case {CASE}"),
        symbols=("CONFIG_VFIO_NOIOMMU=y",),
        config="/x/kernel.config",
        user="Me <me@example.org>",
        promises=(f"{CASE}: Each check beats all later ones. (ioas.c)",),
        bisect_log="git bisect start\n",
    )


@pytest.mark.parametrize(
    ("made", "level", "said"),
    [
        (report(), Confidence.HIGH, "1 of 1 failing commits failed on a second VM too"),
        (report(step("c" * 40, Status.NO_BUILD)), Confidence.HIGH, "1 commit could not be tested"),
        (report(step("c" * 40, *P1, flaky=True)), Confidence.MEDIUM, "VMs disagreed about cccccccccccc"),
        (report(parent_tested=False), Confidence.MEDIUM, "not the commit before it"),
        (dataclasses.replace(report(), found=None), Confidence.LOW, ""),
    ],
)
def test_confidence(made: Report, level: Confidence, said: str) -> None:
    """The weakest ground decides, and all grounds are listed."""
    found, grounds = confidence(made)
    assert found is level
    assert said in "; ".join(grounds)


def test_summary() -> None:
    """It has the commit, its author and files, both sides and the command that runs each again."""
    text = summary(report())
    for part in (
        f'first bad commit: {BAD} iommufd: Be "clear"',
        "author: A. Developer <dev@example.org>",
        "drivers/iommu/iommufd/ioas.c | 2 +-",
        "got ERANGE (34)",
        "WARNING: at drivers/vfio/x.c:1",
        f"rerun: vfio-harness run --case {CASE} --tree /home/me/linux@bbbbbbbbbbbb",
        f"rerun: vfio-harness run --case {CASE} --tree /home/me/linux@aaaaaaaaaaaa",
        "confidence: high",
    ):
        assert part in text


def test_tracebacks_are_left_out() -> None:
    """The case's own output stays, before its traceback and after."""
    lines = [line.strip() for line in summary(report()).splitlines()]
    at = lines.index("at: x.py:2")
    assert lines[at : at + 2] == ["at: x.py:2", "in the end"]


def test_suspects_are_all_named() -> None:
    """When the rest cannot be tested, all suspects are listed, and there is no mail."""
    made = report()
    assert made.found is not None
    made = dataclasses.replace(made, found=None, suspects=(made.found,))
    assert "is one of these" in summary(made)
    assert f"  {BAD} iommufd" in summary(made)
    assert mail(made) == ""


def test_first_bad_commit_outside_the_paths() -> None:
    """The summary says that the paths hide it, and what to do."""
    assert "leave them out" in summary(dataclasses.replace(report(), found=None))


def test_mail_can_be_pasted() -> None:
    """It has what a maintainer asks for, and no path of this host."""
    text = mail(report())
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
    *("cases", "found", "suspects", "confidence", "grounds", "failing", "passing", "tested", "host"),
    *("config", "bisect_log"),
}
"""Other programs rely on these: keys are only added."""


def test_json_for_other_programs() -> None:
    """It has the first bad commit, both sides and every verdict."""
    plain = json.loads(render_json(report()))
    assert set(plain) == KEYS
    assert (plain["schema"], plain["exit_code"], plain["confidence"]) == (2, 0, "high")
    assert (plain["found"]["commit"], plain["failing"]["commit"]) == (BAD, BAD)
    assert plain["failing"]["rerun"].endswith("--tree /home/me/linux@bbbbbbbbbbbb")
    assert [(step["commit"], step["verdict"]) for step in plain["tested"]] == [(BAD, "bad"), (GOOD, "good")]
    assert plain["terms"] == {"old": "good", "new": "bad"}
    assert plain["ends"]["old"]["name"] == "v7.3"


def test_json_with_suspects() -> None:
    """Suspects are listed, and the exit code tells whether the kernels or the host hide the commit."""
    made = report()
    assert made.found is not None
    made = dataclasses.replace(made, found=None, suspects=(made.found,), passing=None)
    plain = json.loads(render_json(made))
    assert (plain["found"], plain["passing"], plain["exit_code"]) == (None, None, 4)
    assert [suspect["commit"] for suspect in plain["suspects"]] == [BAD]
    untested = dataclasses.replace(made.state, steps=(step(BAD, Status.UNTESTED),))
    assert dataclasses.replace(made, state=untested).exit_code is ExitCode.INFRA
    assert dataclasses.replace(made, suspects=()).exit_code is ExitCode.USAGE


def test_mail_about_a_fix() -> None:
    """A fix has the regzbot command for a fix."""
    text = mail(report(rules=Rules(find_fix=True)))
    assert '#regzbot fix: iommufd: Be "clear"' in text
    assert "introduced" not in text
    assert "it passed on 1 VM, and the commit before it did not" in " ".join(text.split())


def test_mail_names_no_ref_of_ours() -> None:
    """A release is named by its tag, any other end by commit; its head has people and lists."""
    text = mail(dataclasses.replace(report(), to=("A <a@example.org>",), cc=("kvm@vger.kernel.org",)))
    head, _, body = text.partition("\n\n")
    assert head.splitlines()[:2] == ["To: A <a@example.org>", "Cc: kvm@vger.kernel.org"]
    assert "HEAD" not in body.partition("git bisect start")[0]
    assert 'fails at ffffffffffff ("")' in " ".join(body.split())


def test_recipients_are_those_of_the_tree(tmp_path: Path) -> None:
    """get_maintainer.pl of the checkout is asked about the commit; without it there is nobody."""
    for words in (("init", "-q"), ("config", "user.name", "Me"), ("config", "user.email", "me@example.org")):
        process.run(["git", "-C", tmp_path, *words]).check("git")
    (tmp_path / "file").write_text("text")
    process.run(["git", "-C", tmp_path, "add", "."]).check("git")
    process.run(["git", "-C", tmp_path, "commit", "-q", "-m", "change"]).check("git")
    assert recipients(tmp_path, "HEAD") == ((), ())
    (tmp_path / "scripts").mkdir()
    script = 'open(P, $ARGV[-1]) or die; print "A <a\\@x.org>\\nl\\@x.org\\n"'
    (tmp_path / "scripts" / "get_maintainer.pl").write_text(script)
    assert recipients(tmp_path, "HEAD") == (("A <a@x.org>",), ("l@x.org",))
    (tmp_path / "scripts" / "get_maintainer.pl").write_text("die 'broken'")
    assert recipients(tmp_path, "HEAD") == ((), ())
