# SPDX-License-Identifier: GPL-2.0-only
"""The default number of workers."""

from __future__ import annotations

import dataclasses

import pytest
from plan_jobs import job

from harness.lab import admission
from harness.plan import Plan
from harness.session import forecast
from harness.suites.catalogue import to_do

BUSY = ("edu", "noiommu", "noiommu-cdev", "noiommu-group", "group", "cdev", "container")


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that this host has 2 CPUs and 16 GiB."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(admission, "available_mib", lambda: 16 * 1024)


def plan(*cases: str) -> Plan:
    return Plan(run_id="r", run_dir="/nonexistent", seed=1, cases=cases, jobs=(job(features=BUSY),))


def test_all_probes_use_the_host() -> None:
    assert forecast.default_workers(plan()) == 2 * admission.PER_PROCESSOR


def test_few_cases_need_none() -> None:
    assert forecast.default_workers(plan("probes/taint/*")) == 0


def test_what_is_done_needs_none() -> None:
    """Three cases that are left get no workers, however many the plan had."""
    whole = plan()
    done = tuple(work.key for work in to_do(whole)[3:])
    assert forecast.default_workers(dataclasses.replace(whole, done=done)) == 0


def test_one_group_needs_none() -> None:
    """One group goes to one worker, however many cases it has."""
    assert forecast.default_workers(plan("probes/cdev/*")) == 0


@pytest.mark.parametrize(("mib", "number"), [(3 * 1024, 3), (1500, 0), (100, 0)])
def test_memory_bounds_them(monkeypatch: pytest.MonkeyPatch, mib: int, number: int) -> None:
    """Each has a VM of 1 GiB."""
    monkeypatch.setattr(admission, "available_mib", lambda: mib)
    assert forecast.default_workers(plan()) == number
