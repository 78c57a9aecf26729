# SPDX-License-Identifier: GPL-2.0-only
"""A plan in units, and the evidence that comes back."""

from __future__ import annotations

import dataclasses
import io
import os
import tarfile
from pathlib import Path

import pytest
from plan_jobs import job

from harness.base import paths
from harness.base.cause import Cause
from harness.base.errors import InfraError
from harness.fleet.evidence import Evidence, take_in
from harness.fleet.version import own_version
from harness.lab.units import UNIT_SECONDS, refused, units_of
from harness.plan import Plan
from harness.results import Outcome, Result
from harness.results.model import Address
from harness.suites.catalogue import to_do

JOB = job("edu", features=("edu", "noiommu", "noiommu-cdev", "cdev", "iommufd"))
PLAN = Plan(run_id="r", seed=1, cases=(), jobs=(JOB,))


def test_units_have_all_work_that_applies_once() -> None:
    work = to_do(PLAN)
    keys = [key for unit in units_of(PLAN, 2) for key in unit.keys]
    assert sorted(keys) == sorted(one.key for one in work if one.refusal is None)
    assert {result.cause for result in refused(PLAN)} == {Cause.NOT_APPLICABLE}
    assert len(keys) + len(list(refused(PLAN))) == len(work)


def test_groups_stay_together_and_destructive_work_apart() -> None:
    work = {one.key: one for one in to_do(PLAN)}
    seen: dict[str, int] = {}
    for number, unit in enumerate(units_of(PLAN, 50)):
        assert len({work[key].destructive for key in unit.keys}) == 1
        for key in unit.keys:
            assert seen.setdefault(work[key].group, number) == number


def test_units_are_as_long_as_they_should_be() -> None:
    groups = {one.group for one in to_do(PLAN) if one.refusal is None}
    plan = dataclasses.replace(PLAN, seconds=dict.fromkeys(groups, 25.0))
    units = units_of(plan, 1)
    assert max(unit.seconds for unit in units) <= UNIT_SECONDS
    assert sum(unit.seconds for unit in units) == pytest.approx(25.0 * len(groups))


@pytest.mark.parametrize("file", ["harness/a.py", "guest/probes/b.py", "guest/init.c", "kconfigs/c.config"])
def test_version_depends_on_the_files(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with other probes would judge by other promises."""
    for top in ("harness", "guest", "kconfigs"):
        (tmp_path / top).mkdir()
        monkeypatch.setattr(
            paths, {"harness": "package"}.get(top, top) + "_dir", lambda top=top: tmp_path / top
        )
    before = own_version.__wrapped__()
    assert before == own_version.__wrapped__()
    assert before.count("+") == 1
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("other", encoding="utf-8")
    assert own_version.__wrapped__() != before


def test_evidence_of_bad_cases_alone(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    for name in ("job-w1-1", "job-w1-2", "job-w10-1"):
        (there / "vm" / name / "cases").mkdir(parents=True)
        (there / "vm" / name / "timing.json").write_text("{}", encoding="utf-8")
        (there / "vm" / name / "console.log").write_text("a splat", encoding="utf-8")
        (there / "vm" / name / "ram").symlink_to("/dev/zero")
    (there / "vm" / "job-w1-2" / "memory.json").write_text("{}", encoding="utf-8")
    with (there / "vm" / "job-w1-2" / "guest.dump").open("wb") as file:
        os.ftruncate(file.fileno(), 1 << 30)
    evidence = Evidence(there, "w1")
    bad = Result(address=Address.parse("probes/p/c"), job="job", outcome=Outcome.FAIL, vm_dir="vm/job-w1-2")
    evidence.note(bad)
    evidence.note(dataclasses.replace(bad, outcome=Outcome.PASS, vm_dir="vm/job-w1-1"))
    packed, dropped = evidence.pack()
    assert dropped == 1
    take_in(packed, here)
    assert {str(path.relative_to(here)) for path in here.rglob("*") if path.is_file()} == {
        "vm/job-w1-1/timing.json",
        "vm/job-w1-2/timing.json",
        "vm/job-w1-2/console.log",
        "vm/job-w1-2/memory.json",
    }
    assert evidence.pack() == (b"", 0)
    (there / "vm" / "job-w1-2" / "console.log").write_text("a splat, and more", encoding="utf-8")
    take_in(evidence.pack()[0], here)
    assert (here / "vm/job-w1-2/console.log").read_text(encoding="utf-8") == "a splat, and more"


def _archive(name: str, **fields: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(b"other")
        for field, value in fields.items():
            setattr(member, field, value)
        tar.addfile(member, io.BytesIO(b"other"))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("results.sqlite", {}),
        ("vm/../results.sqlite", {}),
        ("/vm/a", {}),
        ("vm/a", {"type": tarfile.LNKTYPE, "linkname": "results.sqlite"}),
        ("vm/a", {"type": tarfile.SYMTYPE, "linkname": "../results.sqlite"}),
        ("vm/a", {"type": tarfile.FIFOTYPE}),
    ],
)
def test_evidence_is_below_vm_alone(name: str, fields: dict[str, object], tmp_path: Path) -> None:
    """The results of the run are beside it."""
    (tmp_path / "results.sqlite").write_text("results", encoding="utf-8")
    with pytest.raises(InfraError, match="is no file below vm/"):
        take_in(_archive(name, **fields), tmp_path, below="vm")
    assert (tmp_path / "results.sqlite").read_text(encoding="utf-8") == "results"
    assert not list((tmp_path / "vm").glob("*"))


def test_damaged_evidence_is_refused(tmp_path: Path) -> None:
    whole = _archive("vm/a")
    take_in(whole, tmp_path, below="vm")
    assert (tmp_path / "vm" / "a").read_text(encoding="utf-8") == "other"
    bodies = (b"no archive", whole[:30], whole[:60], whole[:20] + b"xx" + whole[22:])
    for damaged in (*bodies, _archive("../a"), _archive("a", type=tarfile.CHRTYPE)):
        with pytest.raises(InfraError, match="the archive is damaged: "):
            take_in(damaged, tmp_path)
