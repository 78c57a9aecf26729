# SPDX-License-Identifier: GPL-2.0-only
"""What workers say comes into the run: every attempt, once."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator
from pathlib import Path

import pytest
from plan_jobs import job

from harness.fleet.messages import Account, Said
from harness.lab.abilities import Abilities, Emulator
from harness.plan import Plan
from harness.results import Outcome, Result, RunInfo
from harness.results.model import QUIET
from harness.results.store import RunStore
from harness.session import on_fleet
from harness.session.on_fleet import _accel, _Recorder, _workers
from harness.suites.catalogue import to_do

JOB = job("edu", features=("edu", "noiommu", "noiommu-cdev", "cdev", "iommufd"))


@pytest.fixture(name="store")
def _store(tmp_path: Path) -> Iterator[RunStore]:
    info = RunInfo(id="r", started=datetime.datetime.now(datetime.UTC), harness_version="1")
    with RunStore.create(tmp_path / "r", info) as store:
        yield store


def test_a_failure_that_a_dead_worker_saw_is_kept(store: RunStore) -> None:
    """Two workers die while they try a failure again; on a third the case passes."""
    plan = Plan(run_id="r", seed=1, cases=(), jobs=(JOB,), run_dir=str(store.directory))
    work = next(one for one in to_do(plan) if one.refusal is None)
    recorder = _Recorder(plan, store)

    def tried(outcome: Outcome, worker: str, attempt: int = 1) -> Result:
        vm_dir = f"vm/{worker}-{attempt}"
        address = work.address_of()
        return Result(address=address, job=JOB.name, outcome=outcome, attempt=attempt, vm_dir=vm_dir)

    failed = (tried(Outcome.FAIL, "w1"), tried(Outcome.LOST, "w2"))
    for worker, result in zip(("w1", "w2"), failed, strict=True):
        recorder.keep(Said(worker=worker, key=work.key, results=(result,), final=False))
    recorder.keep(Said(worker="w3", key=work.key, results=(tried(Outcome.LOST, "w3"),), final=False))
    both = (tried(Outcome.LOST, "w3"), tried(Outcome.PASS, "w3", 2))
    recorder.keep(Said(worker="w3", key=work.key, results=both))
    # A worker of an earlier connection is late.
    recorder.keep(Said(worker="w1", key=work.key, results=failed))
    run = store.read()
    assert run.results == (*failed, *both)
    assert [case.outcome for case in run.cases] == [Outcome.FAIL]
    assert not list((store.directory / "spool").glob("*"))


def test_evidence_has_one_limit_for_all_parts_of_a_run(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(run_id="r", seed=1, cases=(), jobs=(JOB,), run_dir=str(store.directory))
    kept: list[int] = []
    monkeypatch.setattr(on_fleet, "EVIDENCE_MIB", 1)
    monkeypatch.setattr(on_fleet, "take_in", lambda packed, *_, **__: kept.append(len(packed)))
    for size in (600, 300, 200, 100):
        # Each part of the run has a recorder of its own.
        _Recorder(plan, store).take_in(Account(worker="w1", evidence=bytes(size << 10)))
    assert [size >> 10 for size in kept] == [600, 300, 100]


def test_a_resumed_run_knows_the_workers_of_all_parts(store: RunStore) -> None:
    """And their accelerators: durations with KVM and without are not compared."""

    def has(accel: str) -> Abilities:
        emulator = Emulator(version="10.0.2", devices=(), accel=accel, reason="")
        return Abilities(host="here", memory_mib=4096, emulators={"x86_64": emulator})

    auto = dataclasses.replace(JOB, accel="auto")
    plan = Plan(run_id="r", seed=1, cases=(), jobs=(auto,), run_dir=str(store.directory))
    parts: list[dict[str, Abilities]] = [{"b": has("tcg"), "a": has("tcg")}, {}, {"c": has("kvm")}]
    for joined in parts:
        before = store.read()
        store.amend(_accel(plan, joined.values(), before), _workers(joined, before))
        store.add(Result(address=QUIET, job=JOB.name, outcome=Outcome.PASS, vm_dir="vm/a-1"))
    inputs = store.read().info.inputs
    assert inputs.accel == "kvm; tcg"
    assert [one.partition(":")[0] for one in inputs.extra["workers"].split(" | ")] == ["a", "b", "c"]


def test_a_damaged_archive_does_not_end_the_run(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    """Its unit has its results."""
    plan = Plan(run_id="r", seed=1, cases=(), jobs=(JOB,), run_dir=str(store.directory))
    recorder = _Recorder(plan, store)
    recorder.take_in(Account(worker="w1", evidence=b"no archive"))
    assert "files of VM directories from w1 are refused: the archive is damaged" in capsys.readouterr().err
