# SPDX-License-Identifier: GPL-2.0-only
"""What is left of a plan after a run."""

from __future__ import annotations

import dataclasses

import pytest
from plan_jobs import job
from report_sample import RUN, result

from harness.base.cause import Cause
from harness.base.errors import ExitCode, UsageError
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
from harness.session.wishes import KernelWish
from harness.suites.catalogue import to_do, work_of

JOB = job("edu", features=("edu", "noiommu", "noiommu-cdev", "cdev", "iommufd"))


def test_what_had_its_chance_is_done() -> None:
    """A program is done when all its test points ran or are missing from its output."""
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
    """A kernel that crashed at every boot is not tried again."""
    plan = Plan(run_id="r", run_dir="/", seed=1, cases=(), jobs=(JOB,))
    results = (
        dataclasses.replace(result(str(BOOTS), Outcome.CRASH), job=JOB.name),
        result("probes/get_pa/a", outcome, job=JOB.name),
    )
    run = dataclasses.replace(RUN, jobs=(JobRecord(name=JOB.name),), results=results)
    assert jobs_with_a_chance(plan, run) == (() if hopeless else (JOB,))


def test_what_was_lost_twice_is_not_tried_for_ever() -> None:
    """Work that was lost once, or never started, is tried again."""
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


def test_what_killed_its_workers_is_not_tried_again() -> None:
    """Three workers of a fleet died of it; work that waited on workers that died is tried again."""
    deadly, waited = [work for work in work_of(JOB) if work.refusal is None][:2]
    causes = ((deadly, Cause.WORKER_DIED), (waited, Cause.NO_WORKER))
    results = tuple(
        result(work.address, Outcome.NOT_RUN, job=JOB.name, cause=cause) for work, cause in causes
    )
    asked = tuple(work.address for work in (deadly, waited))
    plan = Plan(run_id="r", run_dir="/", seed=1, cases=asked, jobs=(JOB,))
    run = dataclasses.replace(RUN, jobs=(JobRecord(name=JOB.name),), results=results)
    again = left_to_try(plan, run)
    assert again is not None
    assert [work.address for work in to_do(again)] == [waited.address]


BEFORE = dataclasses.replace(
    RUN, jobs=(JobRecord(name="j", line="/src/one", tree="7.3 abc", kernel="7.3.4 aa"),)
)


@pytest.mark.parametrize(
    ("line", "tree", "refused"),
    [("/src/one", "7.3 abc", False), ("/src/one", "7.3 def", True), ("/src/two", "7.3 abc", True)],
)
def test_a_run_goes_on_with_the_sources_it_began_with(line: str, tree: str, refused: bool) -> None:
    """A changed tree, or another one, is refused."""
    if refused:
        with pytest.raises(UsageError, match=f"has changed since run {RUN.info.id} began"):
            check_trees(BEFORE, {line: tree})
    else:
        check_trees(BEFORE, {line: tree})


def test_a_run_goes_on_with_the_upload_it_began_with() -> None:
    """debian:latest stays the release that the run started with."""
    jobs = (
        JobRecord(name="a", line="debian:latest", exact_tree="debian:7.3=7.3.4-1~bpo13+1"),
        JobRecord(name="b", line="debian:7.2", tree="debian:7.2"),
        JobRecord(name="c", line="/src/one", tree="master 1a2b"),
    )
    specs = ("debian:latest", "debian:7.2", "/src/one", "debian:6.1")
    wishes = [KernelWish(tree=spec, variant="cdev") for spec in specs]
    found = pins(dataclasses.replace(RUN, jobs=jobs), wishes)
    assert found == {"debian:latest": "debian:7.3=7.3.4-1~bpo13+1"}
    assert pins(None, wishes) == {}


def test_a_resumed_run_has_the_same_selftests() -> None:
    """Those of another tree are opened as they were when the run began."""
    kernel = KernelWish(tree="debian:latest", variant="cdev", selftests="/src@topic")
    jobs = (JobRecord(name="a", line=kernel.line, exact_tree="debian:7.3=7.3.4-1"),)
    inputs = dataclasses.replace(RUN.info.inputs, extra={"selftests": "/src@fedcba 0123456789ab"})
    before = dataclasses.replace(RUN, jobs=jobs, info=dataclasses.replace(RUN.info, inputs=inputs))
    assert pins(before, [kernel]) == {"debian:latest": "debian:7.3=7.3.4-1", "/src@topic": "/src@fedcba"}
    with pytest.raises(UsageError, match="selftests has changed since run"):
        check_inputs(before, {"selftests": "/src@fedcba ba9876543210"})


def test_a_source_that_could_not_be_had_may_come_later() -> None:
    """A tree that could not be fetched then may be fetched now."""
    away = JobRecord(name="k", line="debian:7.2", tree="debian:7.2", problem_code=ExitCode.INFRA)
    check_trees(dataclasses.replace(BEFORE, jobs=(*BEFORE.jobs, away)), {"debian:7.2": "7.2.13 5f3a"})


def test_a_run_goes_on_with_the_machine_it_began_with() -> None:
    """Another kernel, QEMU or accelerator is refused."""
    then = dataclasses.replace(RUN.info.inputs, kernels={"cdev": "aa"}, qemu="10.0.2", accel="tcg")
    before = dataclasses.replace(RUN, info=dataclasses.replace(RUN.info, inputs=then))
    check_inputs(before, {"cdev": "aa", "QEMU": "10.0.2", "the accelerator": "tcg", "group": "bb"})
    for name in ("cdev", "QEMU", "the accelerator"):
        with pytest.raises(UsageError, match=f"{name} has changed since run") as caught:
            check_inputs(before, {name: "other"})
        assert "begin a new run" in str(caught.value)
