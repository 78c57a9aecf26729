# SPDX-License-Identifier: GPL-2.0-only
"""What is left to do after a run."""

from __future__ import annotations

import dataclasses

import pytest
from plan_jobs import job
from report_sample import RUN, result

from harness.errors import ExitCode, UsageError
from harness.plan import Plan
from harness.results import BOOTS, JobRecord, Outcome
from harness.session.remaining import (
    check_inputs,
    check_trees,
    done_in,
    jobs_with_a_chance,
    left_to_try,
    pins,
)
from harness.suites.catalogue import to_do, work_of

JOB = job("edu", features=("edu", "noiommu", "noiommu-cdev", "cdev", "iommufd"))


def test_what_had_its_chance_is_done() -> None:
    """A program is done when all of its points had their chance; silence about one is an answer."""
    results = (
        result("probes/get_pa/a", Outcome.PASS, job="j"),
        result("probes/get_pa/b", Outcome.LOST, job="j"),
        result("kselftest:vfio/x/1", Outcome.PASS, job="j"),
        result("kselftest:vfio/x/2", Outcome.ERROR, job="j", reason="vanished: the manifest lists it"),
        result("kselftest:vfio/y/1", Outcome.PASS, job="j"),
        result("kselftest:vfio/y/2", Outcome.NOT_RUN, job="j", reason="not reached: 1 was LOST"),
    )
    done = done_in(dataclasses.replace(RUN, results=results))
    assert done == ("j probes/get_pa/a", "j kselftest:vfio/x")


@pytest.mark.parametrize(("outcome", "hopeless"), [(Outcome.SKIP, True), (Outcome.PASS, False)])
def test_kernel_that_died_at_one_boot_has_its_chance(outcome: Outcome, hopeless: bool) -> None:
    """One that died at all of them, so that nothing ran on it, has had it."""
    plan = Plan(run_id="r", run_dir="/", seed=1, cases=(), jobs=(JOB,))
    results = (
        dataclasses.replace(result(str(BOOTS), Outcome.CRASH), job=JOB.name),
        result("probes/get_pa/a", outcome, job=JOB.name),
    )
    run = dataclasses.replace(RUN, jobs=(JobRecord(name=JOB.name),), results=results)
    assert jobs_with_a_chance(plan, run) == (() if hopeless else (JOB,))


def test_what_was_lost_twice_is_not_tried_for_ever() -> None:
    """One more chance is for what was lost once, as with the worker that ran it, or never began."""
    twice, once, never = [work for work in work_of(JOB) if work.refusal is None][:3]
    lost = Outcome.LOST
    had = ((twice, lost, 1), (twice, lost, 2), (once, lost, 1), (never, Outcome.NOT_RUN, 1))
    results = [
        dataclasses.replace(result(work.address, outcome, job=JOB.name), attempt=attempt)
        for work, outcome, attempt in had
    ]
    asked = tuple(work.address for work in (twice, once, never))
    plan = Plan(run_id="r", run_dir="/", seed=1, cases=asked, jobs=(JOB,))
    run = dataclasses.replace(RUN, jobs=(JobRecord(name=JOB.name),), results=tuple(results))
    again = left_to_try(plan, run)
    assert again is not None
    assert [work.address for work in to_do(again)] == [once.address, never.address]


BEFORE = dataclasses.replace(
    RUN, jobs=(JobRecord(name="j", line="/src/one", tree="7.3 abc", kernel="7.3.4 aa"),)
)


@pytest.mark.parametrize(
    ("line", "tree", "refused"),
    [("/src/one", "7.3 abc", False), ("/src/one", "7.3 def", True), ("/src/two", "7.3 abc", True)],
)
def test_a_run_goes_on_with_the_sources_it_began_with(line: str, tree: str, refused: bool) -> None:
    """Another state of a tree would make one run of two kernels, and so would another tree."""
    if refused:
        with pytest.raises(UsageError, match=f"has changed since run {RUN.info.id} began"):
            check_trees(BEFORE, {line: tree})
    else:
        check_trees(BEFORE, {line: tree})


def test_a_run_goes_on_with_the_upload_it_began_with() -> None:
    """A newer one of Debian's is another kernel, also where the run asked for the latest."""
    jobs = (
        JobRecord(name="a", line="debian:latest", tree="Debian linux-source-7.3 7.3.4-1~bpo13+1 0f9b"),
        JobRecord(name="b", line="debian:7.2", tree="debian:7.2"),
        JobRecord(name="c", line="/src/one", tree="master 1a2b"),
    )
    found = pins(
        dataclasses.replace(RUN, jobs=jobs), ["debian:latest", "debian:7.2", "/src/one", "debian:6.1"]
    )
    assert found == {"debian:latest": "debian:7.3=7.3.4-1~bpo13+1"}


def test_a_source_that_could_not_be_had_may_come_later() -> None:
    """What stood in for it then is no identity that it could differ from."""
    away = JobRecord(name="k", line="debian:7.2", tree="debian:7.2", problem_code=ExitCode.INFRA)
    check_trees(dataclasses.replace(BEFORE, jobs=(*BEFORE.jobs, away)), {"debian:7.2": "7.2.13 5f3a"})


def test_a_run_goes_on_with_the_machine_it_began_with() -> None:
    """After an upgrade of the compiler or of QEMU its results would be of two kernels, or of two machines."""
    then = dataclasses.replace(RUN.info.inputs, kernels={"cdev": "aa"}, qemu="10.0.2", accel="tcg")
    before = dataclasses.replace(RUN, info=dataclasses.replace(RUN.info, inputs=then))
    check_inputs(before, {"cdev": "aa", "QEMU": "10.0.2", "the accelerator": "tcg", "group": "bb"})
    for name in ("cdev", "QEMU", "the accelerator"):
        with pytest.raises(UsageError, match=f"{name} has changed since run") as caught:
            check_inputs(before, {name: "other"})
        assert "begin a new run" in str(caught.value)
