# SPDX-License-Identifier: GPL-2.0-only
"""Two runs side by side, and one case over many."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from history_runs import GOOD, INPUTS, JOB, case, flaky, made_run, make_run

from harness.report import compared
from harness.results import Outcome, compare
from harness.results.historyfile import consult

SPLAT = "BUG: unable to handle page fault\n vfio_x+0x1/0x2\n"


def test_what_changed_is_listed(tmp_path: Path) -> None:
    """Each change has its kind, its case, its job and how it was before; the conclusion comes last."""
    before = made_run(tmp_path, 1)
    job = dataclasses.replace(JOB, name="7.3.5-cdev-edu")
    after = made_run(tmp_path, 2, {"a": Outcome.FAIL, "c": Outcome.XFAIL, "d": Outcome.SKIP}, job=job)
    told = compared.render(before, after, compare(before, after)).splitlines()
    assert told[:2] == ["before run01: 1 XFAIL, 2 PASS, 1 SKIP", "       unknown tree"]
    assert told[4:] == [
        "new failures:",
        "  kselftest:vfio/edu/a [7.3.5-cdev-edu]: PASS -> FAIL",
        "vanished:",
        "  kselftest:vfio/edu/b [7.3.5-cdev-edu]: PASS, now absent",
        "WORSE: 1 new failure, 1 vanished",
    ]
    plain = compared.to_plain(before, after, compare(before, after))
    assert (plain["worse"], plain["why"]) == (True, "1 new failure, 1 vanished")


def test_case_that_the_harness_has_no_more_is_no_loss(tmp_path: Path) -> None:
    """Renamed, it is judged under its new name; neither is the night worse for it."""
    before, after = made_run(tmp_path, 1), made_run(tmp_path, 2, {"a": Outcome.PASS})
    assert compare(before, after).is_worse
    assert not compare(before, after, exists=lambda address: address.case == "a").is_worse


def test_two_lines_can_be_compared(tmp_path: Path) -> None:
    """Runs about one line each pair their jobs by variant and topology; a job of one only is named."""
    before = made_run(tmp_path, 1)
    after = made_run(tmp_path, 2, job=dataclasses.replace(JOB, line="debian:7.2", name="7.2-cdev-edu"))
    same = compare(before, after)
    assert same.against == {"7.2-cdev-edu": "run01"}
    assert compared.render(before, after, same).endswith("NOT WORSE: nothing changed\n")
    other = made_run(tmp_path, 3, job=dataclasses.replace(JOB, topology="igb", name="7.3.4-cdev-igb"))
    assert compared.conclusion(other, compare(before, other)) == "the runs have no job in common"
    assert "in one of them only: 7.3.4-cdev-igb, 7.3.4-cdev-edu" in compared.render(
        before, other, compare(before, other)
    )


def test_two_toolchains_can_be_compared(tmp_path: Path) -> None:
    """Runs of one toolchain each pair their jobs too."""
    llvm = dataclasses.replace(JOB, toolchain="llvm", name="7.3.4-cdev-llvm-edu")
    before, after = made_run(tmp_path, 1), made_run(tmp_path, 2, job=llvm)
    assert compare(before, after).against == {"7.3.4-cdev-llvm-edu": "run01"}
    assert compare(after, before).against == {JOB.name: "run02"}


def test_what_still_fails_is_no_worse(tmp_path: Path) -> None:
    """compare asks for changes: a failure on both sides is told, and is none."""
    before, after = (made_run(tmp_path, day, {**GOOD, "a": Outcome.FAIL}) for day in (1, 2))
    found = compare(before, after)
    assert "still failing:\n" in compared.render(before, after, found)
    assert not found.is_worse


def test_the_history_of_a_case(tmp_path: Path) -> None:
    """Symbols oldest first, durations by accelerator with their spread, splats by fingerprint, the events."""
    for day, seconds in enumerate((1.0, 1.2, 1.1)):
        make_run(tmp_path, day, {}, results=(case("a", Outcome.PASS, duration=seconds),))
    kvm = dataclasses.replace(INPUTS, accel="kvm")
    make_run(tmp_path, 4, {"a": Outcome.PASS}, inputs=kvm)
    make_run(tmp_path, 5, {}, results=(case("a", Outcome.CRASH, splat=SPLAT, reason="page fault"),))
    make_run(tmp_path, 6, {}, results=flaky("a"))
    past = consult(tmp_path, lambda history: history.of_case("kselftest:vfio/edu/a"))
    told = compared.render_history("kselftest:vfio/edu/a", past, detailed=True).splitlines()
    print_ = past[4].fingerprint
    assert told == [
        "kselftest:vfio/edu/a",
        "  debian:7.3 cdev edu: ....!~  (6 runs: 1 CRASH, 1 FLAKY, 4 PASS)",
        "    tcg: median 1.10 s, deviation 0.10 s, 1.00 to 1.20 s",
        "    kvm: median 1.00 s, deviation 0.00 s, 1.00 to 1.00 s",
        f"    splat {print_}: 1 x, last in run05: page fault",
        "    run05 7.3.4 aa: CRASH: page fault",
        "    run06 7.3.4 aa: FLAKY: failed (not again in a fresh VM)",
    ]
    plain = compared.history_to_plain("kselftest:vfio/edu/a", past)["series"]["debian:7.3 cdev edu"]
    assert plain["durations"]["tcg"]["median"] == pytest.approx(1.1)
    assert [one["label"] for one in plain["runs"]][-2:] == ["CRASH", "FLAKY"]
