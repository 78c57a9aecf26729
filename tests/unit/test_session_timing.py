# SPDX-License-Identifier: GPL-2.0-only
"""Where a run's time went, also when VMs left no figures."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from history_runs import make_run

from harness.base.errors import InfraError
from harness.fleet.address import FleetAddress
from harness.fleet.cluster import FleetWish
from harness.lab import boot
from harness.lab.abilities import Abilities
from harness.plan import Plan
from harness.report.files import FORMATS
from harness.report.view import NOTHING
from harness.results.store import RunStore, load
from harness.session import on_fleet
from harness.session.reporting import account, phase_line


def leave(run_dir: Path, vm: str, text: str) -> None:
    (run_dir / "vm" / vm).mkdir(parents=True)
    (run_dir / "vm" / vm / "timing.json").write_text(text)


def timing(cpu: float | None) -> str:
    return json.dumps({"to_ssh": 1.0, "to_proof": 2.0, "cpu_to_proof": 1.5, "cpu": cpu})


def test_the_account_is_kept(tmp_path: Path) -> None:
    """Builds of all parts of a run add up, lost VMs are left out, and every report shows it."""
    run = make_run(tmp_path, 1)
    account(run, 0.0)
    assert load(run).spent == {}
    leave(run, "a", timing(10.0))
    leave(run, "b", timing(None))
    account(run, 100.0)
    account(run, 20.0)
    assert load(run).spent == {"builds": 120.0, "boots": 1.5, "cases": 8.5}
    for form in ("text", "markdown", "html", "junit"):
        assert "builds 120 s, boots 2 s, cases 8 s" in FORMATS[form](load(run), NOTHING)
    assert json.loads(FORMATS["json"](load(run), NOTHING))["processor_seconds"]["builds"] == 120.0


def test_a_run_that_stays_as_it_is_is_not_written(tmp_path: Path) -> None:
    """Without new figures the results file is not written."""
    run = make_run(tmp_path, 1)
    leave(run, "a", timing(10.0))
    account(run, 1.0)
    before = (run / "results.sqlite").stat().st_mtime_ns
    account(run, 0.0)
    assert (run / "results.sqlite").stat().st_mtime_ns == before


def test_what_a_fleet_built_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the scheduler stayed away in the end: the run can be resumed."""

    class Lost:
        joined: ClassVar[dict[str, Abilities]] = {}
        build_cpu_seconds = 70.0

        def __init__(self, *_: object, **_more: object) -> None:
            pass

        def run(self) -> None:
            raise InfraError("no scheduler answers")

    link = SimpleNamespace(close=lambda: None, dashboard="", address="")
    monkeypatch.setattr(on_fleet, "FleetClient", Lost)
    monkeypatch.setattr(on_fleet, "Link", lambda *_: link)
    for name in ("connector", "store_process"):
        monkeypatch.setattr(on_fleet, name, lambda *_: contextlib.nullcontext())
    run = make_run(tmp_path, 1)
    account(run, 20.0)
    plan = Plan(run_id="r", run_dir=str(run), seed=1, cases=(), jobs=())
    with pytest.raises(InfraError):
        on_fleet.run_on_fleet(plan, FleetWish(address=FleetAddress(local=2), text="local:2"), {}, print)
    leave(run, "a", timing(10.0))
    account(run, 0.0)
    assert load(run).spent == {"builds": 90.0, "boots": 1.5, "cases": 8.5}


def test_a_full_disk_costs_the_figures_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report is shown even if its figures cannot be recorded."""
    run = make_run(tmp_path, 1)

    def full(*_: object) -> None:
        raise InfraError("no space left")

    monkeypatch.setattr(RunStore, "account", full)
    account(run, 5.0)
    assert load(run).spent == {}


@pytest.mark.parametrize("rubbish", ["", "{", "[]", "{}", "\x00\x00"])
def test_an_account_that_cannot_be_read(tmp_path: Path, rubbish: str) -> None:
    """A broken file of one VM costs only that VM's figures."""
    run = make_run(tmp_path, 1)
    leave(run, "a", timing(10.0))
    leave(run, "b", rubbish)
    account(run, 0.0)
    assert load(run).spent["cases"] == 8.5
    assert phase_line({"test": 3.0}, run) == "time: test 3.0 s (1 VM, ready in 2.0 s)"


def test_waiting_for_others_is_told(tmp_path: Path) -> None:
    """The time that VMs waited for other VMs is shown, if it is long enough."""
    run = make_run(tmp_path, 1)
    for vm, waited in (("a", 80.2), ("b", 4.0), ("c", 0.0)):
        leave(run, vm, json.dumps({"to_proof": 2.0, "waited": waited}))
    told = phase_line({"test": 99.0}, run)
    assert told.endswith("(3 VMs, ready in 2.0 s, after waiting 84 s for other VMs of this host)")


def test_an_account_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old file stays when the new one cannot be written."""
    boot._write_timing(tmp_path, {"to_proof": 1.0})

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        boot._write_timing(tmp_path, {"to_proof": 2.0})
    assert json.loads((tmp_path / "timing.json").read_text()) == {"to_proof": 1.0}
