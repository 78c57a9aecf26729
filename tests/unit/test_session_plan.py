# SPDX-License-Identifier: GPL-2.0-only
"""harness.session.session and what it keeps for a run that goes on: no VM, no kernel."""

from __future__ import annotations

import dataclasses
import datetime
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from plan_jobs import job

from harness.errors import InfraError, NotApplicable, SourceError, UsageError
from harness.plan import Plan
from harness.results import RunInfo, RunStore
from harness.session import outputs, planning
from harness.session.plan_table import PlannedKernel, plan_as_json, plan_of_job
from harness.session.planning import Planned
from harness.session.session import Session
from harness.session.wishes import Conduct, JobWish, KernelWish, MachineWish, load_wishes, save_wishes
from harness.suites.catalogue import work_of


def wish(tree: str | None) -> JobWish:
    return JobWish(kernel=KernelWish(tree=tree, variant="cdev"), machine=MachineWish(topology="edu"))


def linux(directory: Path) -> Path:
    """Just enough of a tree to be taken for one."""
    for name in ("drivers", "scripts"):
        (directory / name).mkdir(parents=True)
    for name in ("Kbuild", "Kconfig", "MAINTAINERS"):
        (directory / name).write_text("", encoding="utf-8")
    return directory


@pytest.mark.parametrize("spec", [None, ".", "../one"])
def test_a_run_goes_on_with_its_tree_from_anywhere(
    spec: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was meant by no --tree, or by a relative one, does not change with the working directory."""
    first = linux(tmp_path / "one")
    monkeypatch.chdir(first)
    save_wishes(tmp_path, [wish(spec)], Conduct())
    monkeypatch.chdir(linux(tmp_path / "two"))
    (loaded,), _ = load_wishes(tmp_path)
    assert loaded.kernel.tree is not None
    assert Path(loaded.kernel.tree).resolve() == first


def opened(trees: dict[str, str | Exception], monkeypatch: pytest.MonkeyPatch) -> dict[str | None, object]:
    """What a Session has after opening *trees*, each of which is there or is trouble."""

    def open_tree(spec: str) -> object:
        found = trees[spec]
        if isinstance(found, Exception):
            raise found
        return SimpleNamespace(label=found, path="/")

    monkeypatch.setattr(planning, "open_wished_tree", open_tree)
    return dict(planning.open_trees(tuple(trees)))


def test_trouble_with_one_tree_costs_only_its_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror that is away for an older kernel must not cost the night of the newer one."""
    away = SourceError("the mirror does not answer")
    found = opened({"debian:7.3": "7.3.4", "debian:7.2": away}, monkeypatch)
    assert found["debian:7.2"] is away
    assert not isinstance(found["debian:7.3"], Exception)


def test_trouble_with_every_tree_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError):
        opened({"debian:7.3": SourceError("away")}, monkeypatch)


def test_tree_that_nobody_has_is_wrong_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError):
        opened({"debian:7.3": "7.3.4", "debian:9.9": UsageError("there is no such")}, monkeypatch)


def test_job_without_its_tree_is_in_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says why it had no chance, and is no other job of the run."""
    kernel = wish("debian:7.2").kernel
    records = [
        Planned(wish=kernel, tree=tree, problem=InfraError("away")).record("edu", None)  # type: ignore[arg-type]
        for tree in (None, SimpleNamespace(label="x", identity="i", version="6.12.1"))
    ]
    assert [record.name for record in records] == ["debian-7.2-cdev-edu", "6.12.1-cdev-edu"]
    assert records[0].problem == "away"
    assert (records[0].tree, records[0].line) == ("debian:7.2", "debian:7.2")


def test_order_of_jobs() -> None:
    """Kernels that are there first, whatever they are called; then what may take longest."""
    session = Session([], Conduct())
    there, built_late = (KernelWish(tree="t", variant=name) for name in ("group", "cdev"))
    for kernel, is_built in ((there, True), (built_late, False)):
        session._planned[kernel] = SimpleNamespace(wish=kernel, is_built=is_built)  # type: ignore[assignment]
    for kernel, name in ((built_late, "a"), (there, "short"), (there, "unknown"), (there, "long")):
        wished = JobWish(kernel=kernel, machine=MachineWish(topology=name))
        session._jobs[wished] = dataclasses.replace(job(name), name=name)
    session._seconds = {"short/x": 3.0, "long/x": 2.0, "long/y": 2.0, "a/x": 90.0}
    assert [one.name for one in session._jobs_in_order()] == ["unknown", "long", "short", "a"]


def test_blocked_variant_is_one_job_whatever_became_of_it(tmp_path: Path) -> None:
    """Not applicable as well as proved: no machine is part of it, and it stays in one series."""
    wishes = [
        JobWish(kernel=KernelWish(tree=None, variant="blocked-group"), machine=MachineWish(topology=topology))
        for topology in ("edu", "igb")
    ]
    session = Session(wishes, Conduct())
    refusal = NotApplicable("its rules are other ones")
    session._planned = {wishes[0].kernel: Planned(wish=wishes[0].kernel, tree=None, problem=refusal)}
    info = RunInfo(id="r", started=datetime.datetime.now(datetime.UTC), harness_version="test")
    with RunStore.create(tmp_path, info) as store:
        session._record_jobs(store)
        (found,) = store.read().jobs
    assert (found.topology, found.applicable) == ("", False)
    assert found.name.endswith("blocked-group")


def test_full_disk_is_told_before_anything_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU and SQLite would each tell in their own way, minutes later."""
    monkeypatch.setattr(outputs, "free_mib", lambda _: 3)
    with pytest.raises(InfraError, match="only 3 MiB are free"):
        outputs.check_outputs(tmp_path, None)


def test_plan_for_other_programs() -> None:
    """Every field under its own name; seconds are null where no run tells."""
    plan = Plan(run_id="r", run_dir="/", seed=1, cases=(), jobs=(job(),))
    kernel = PlannedKernel(name="cdev", tree="7.3", fate="to be built", seconds=54.0)
    plain = json.loads(plan_as_json([kernel], [plan_of_job(plan.jobs[0], plan)], 2))
    assert plain["kernels"] == [{"name": "cdev", "tree": "7.3", "fate": "to be built", "seconds": 54.0}]
    (found,) = plain["jobs"]
    assert (found["name"], found["seconds"], found["done"]) == (job().name, None, 0)
    assert found["applicable"] + found["not_applicable"] == len(work_of(job()))
    assert plain["workers"] == 2
