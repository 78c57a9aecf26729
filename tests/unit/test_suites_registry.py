# SPDX-License-Identifier: GPL-2.0-only
"""A suite is added by one file: it is found, planned, run, judged and required like the shipped ones."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from plan_jobs import job

import harness.suites
from harness.base.errors import UsageError
from harness.ktap import parse
from harness.plan import Job, Plan
from harness.results import WHOLE_PROGRAM, Address, Outcome
from harness.suites.catalogue import check_cases, check_patterns, to_do, work_by_source, work_of
from harness.suites.model import Script, Work
from harness.suites.registry import (
    all_suites,
    declared_cases,
    may_exist,
    suite_named,
    suite_names,
    work_address,
)

MODULE = """
from pathlib import Path

from harness.suites.judging import judge_program
from harness.suites.model import Script, Suite, Work, refusal


class MineSuite(Suite):
    name = "mine"
    summary = "programs of ours"

    def work(self, job):
        for program, needs in (("smoke", ("edu",)), ("heavy", ("igb",))):
            features = frozenset(job.features)
            yield Work(
                job=job.name, suite=self.name, program=program, path=Path(__file__), timeout=30.0,
                refusal=refusal(needs, features), features=features,
            )

    def how(self, work, bdfs):
        return Script(f"/opt/{work.program} {bdfs['edu0']}")

    def judge(self, work, report, status=None, cut=None):
        return judge_program(report, status, cut)


def suites():
    return (MineSuite(),)
"""


@pytest.fixture(autouse=True, name="module")
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """One file more in the package of suites."""
    path = tmp_path / "mine.py"
    path.write_text(MODULE)
    monkeypatch.setattr(harness.suites, "__path__", [*harness.suites.__path__, str(tmp_path)])
    all_suites.cache_clear()
    yield path
    all_suites.cache_clear()
    sys.modules.pop("harness.suites.mine", None)


def own_job() -> Job:
    return dataclasses.replace(job(), suites=("mine", "probes"))


def own_work() -> Work:
    return next(work for work in work_of(own_job()) if work.address == "mine/smoke")


def test_it_is_found() -> None:
    """Its name is known wherever a suite is asked for, after the probes."""
    assert suite_names()[0] == "probes"
    assert suite_named("mine").summary == "programs of ours"
    with pytest.raises(UsageError, match="did you mean 'mine'"):
        suite_named("mime")


def test_it_is_planned(module: Path) -> None:
    """Its work is in the catalogue, with the reason where it does not apply."""
    work = [one for one in work_of(own_job()) if one.suite == "mine"]
    assert [(one.address, one.refusal) for one in work] == [
        ("mine/smoke", None),
        ("mine/heavy", "not applicable here: needs igb"),
    ]
    plan = Plan(run_id="r", run_dir="/", seed=1, cases=("mine/s*",), jobs=(own_job(),))
    check_patterns(plan.cases, ("mine",))
    check_cases(plan)
    assert [one.title for one in to_do(plan)] == [f"smoke[{job().name}]"]
    assert list(work_by_source(plan)) == [module]
    with pytest.raises(UsageError, match="no case matches 'mine/zzz'"):
        check_cases(dataclasses.replace(plan, cases=("mine/zzz",)))


def test_it_says_how_it_runs() -> None:
    assert suite_named("mine").how(own_work(), {"edu0": "0000:00:04.0"}) == Script("/opt/smoke 0000:00:04.0")


def test_it_is_judged() -> None:
    """Each KTAP point is a case; a program that ends badly without saying so in a point is an ERROR."""
    suite, work = suite_named("mine"), own_work()
    told = ["TAP version 13", "1..2", "ok 1 a", "not ok 2 b"]
    points = suite.judge(work, parse(told), 1)
    addresses = [str(work.address_of(point.case)) for point in points]
    assert addresses == ["mine/smoke/a", "mine/smoke/b"]
    assert [point.outcome for point in points] == [Outcome.PASS, Outcome.FAIL]
    (whole,) = suite.judge(work, parse([]), 0)
    assert (whole.case, whole.outcome) == (WHOLE_PROGRAM, Outcome.ERROR)


def test_it_is_required_to_pass() -> None:
    """A program must pass one case, unless its suite says otherwise; a single case needs no more."""
    required = suite_named("mine").requirement(own_work(), own_job(), ())
    assert required is not None
    assert (required.fewest, required.cases) == (1, ())
    probe = work_of(own_job())[0]
    assert suite_named("probes").requirement(probe, own_job(), ()) is None


def test_its_cases_are_a_kernel_s_to_tell() -> None:
    """What declares nothing may have any case; what declares its cases has no others."""
    address = Address(suite="mine", program="smoke", case="a")
    assert may_exist(address)
    assert work_address(address) == "mine/smoke"
    first = Address.parse(declared_cases()[0].address)
    assert work_address(first) == str(first)
    assert may_exist(first)
    assert not may_exist(dataclasses.replace(first, case="no_such_case"))
    assert not may_exist(Address.parse("kselftest:vfio/build/compiles"))
