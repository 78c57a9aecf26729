# SPDX-License-Identifier: GPL-2.0-only
"""Plans, and what a run keeps to go on with: no VM, no kernel."""

from __future__ import annotations

import dataclasses
import datetime
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import session_values as values
from plan_jobs import job

from harness.base.errors import InfraError, NotApplicable, SourceError, UsageError
from harness.plan import Plan
from harness.results import RunInfo
from harness.results.store import RunStore
from harness.session import pipeline, planning, reporting
from harness.session.forecast import KernelRow, job_row, rows_as_json
from harness.session.pipeline import BuiltRun
from harness.session.planning import PlannedKernel
from harness.session.records import record_jobs
from harness.session.wishes import Conduct, JobWish, KernelWish, MachineWish, load_wishes, save_wishes
from harness.suites.catalogue import work_of


def wish(tree: str | None) -> JobWish:
    return JobWish(kernel=KernelWish(tree=tree, variant="cdev"), machine=MachineWish(topology="edu"))


def linux(directory: Path) -> Path:
    """Make just enough of a kernel tree to be recognised."""
    for name in ("drivers", "scripts"):
        (directory / name).mkdir(parents=True)
    for name in ("Kbuild", "Kconfig", "MAINTAINERS"):
        (directory / name).write_text("", encoding="utf-8")
    return directory


@pytest.mark.parametrize("spec", [None, ".", "../one"])
def test_a_run_goes_on_with_its_tree_from_anywhere(
    spec: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No --tree, or a relative one, is saved as an absolute path."""
    first = linux(tmp_path / "one")
    monkeypatch.chdir(first)
    save_wishes(tmp_path, [wish(spec)], Conduct())
    monkeypatch.chdir(linux(tmp_path / "two"))
    (loaded,), _ = load_wishes(tmp_path)
    assert loaded.kernel.tree is not None
    assert Path(loaded.kernel.tree).resolve() == first


def opened(trees: dict[str, str | Exception], monkeypatch: pytest.MonkeyPatch) -> dict[str | None, object]:
    """Open *trees*, each of which exists or raises."""

    def open_tree(spec: str) -> object:
        found = trees[spec]
        if isinstance(found, Exception):
            raise found
        return SimpleNamespace(label=found, path="/", checkout="")

    monkeypatch.setattr(planning, "open_tree", open_tree)
    return dict(planning.open_trees(tuple(trees)))


def test_trouble_with_one_tree_costs_only_its_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreachable mirror of one kernel does not stop the others."""
    away = SourceError("the mirror does not answer")
    found = opened({"debian:7.3": "7.3.4", "debian:7.2": away}, monkeypatch)
    assert found["debian:7.2"] is away
    assert not isinstance(found["debian:7.3"], Exception)


def test_trouble_with_every_tree_ends_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """That of a single one is the error, and not told before."""
    with pytest.raises(SourceError):
        opened({"debian:7.3": SourceError("away")}, monkeypatch)
    assert capsys.readouterr().err == ""
    with pytest.raises(SourceError, match="one"):
        opened({"debian:7.3": SourceError("one"), "debian:7.2": SourceError("two")}, monkeypatch)
    assert "tree: debian:7.2: two" in capsys.readouterr().err


def test_infrastructure_problem_of_a_single_kernel_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def plan_wished_kernel(_tree: object, kernel: KernelWish, **_: object) -> PlannedKernel:
        return PlannedKernel(wish=kernel, tree=None, problem=InfraError("no compiler"))

    monkeypatch.setattr(planning, "plan_wished_kernel", plan_wished_kernel)
    opened({"/a": "7.3.4"}, monkeypatch)
    one, other = (values.wish(name, tree="/a") for name in ("cdev", "group"))
    for wishes, told in (((one,), 0), ((one, other), 2)):
        with pytest.raises(InfraError, match="no compiler"):
            pipeline.plan(values.checked(tmp_path, values.request(*wishes)))
        assert capsys.readouterr().err.count("no compiler") == told


def test_tree_that_nobody_has_is_wrong_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError):
        opened({"debian:7.3": "7.3.4", "debian:9.9": UsageError("there is no such")}, monkeypatch)


def test_job_without_its_tree_is_in_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its record has the problem, and a name that no other job has."""
    kernel = wish("debian:7.2").kernel
    records = [
        PlannedKernel(wish=kernel, tree=tree, problem=InfraError("away")).record("edu", None)  # type: ignore[arg-type]
        for tree in (None, SimpleNamespace(label="x", identity="i", version="6.12.1", exact=""))
    ]
    assert [record.name for record in records] == ["debian-7.2-cdev-edu", "6.12.1-cdev-edu"]
    assert records[0].problem == "away"
    assert (records[0].tree, records[0].line) == ("debian:7.2", "debian:7.2")


@pytest.mark.parametrize(
    ("first_ends", "order"),
    [(False, ["unknown", "long", "short", "a"]), (True, ["short", "long", "unknown", "a"])],
)
def test_order_of_jobs(tmp_path: Path, first_ends: bool, order: list[str]) -> None:
    """Jobs of built kernels come first; among them those that may take longest, with -x the shortest."""
    there, built_late = (KernelWish(tree="t", variant=name) for name in ("group", "cdev"))
    kernels = {
        kernel: SimpleNamespace(wish=kernel, pinned=kernel, is_built=is_built)
        for kernel, is_built in ((there, True), (built_late, False))
    }
    jobs = {
        JobWish(kernel=kernel, machine=MachineWish(topology=name)): dataclasses.replace(job(), name=name)
        for kernel, name in ((built_late, "a"), (there, "short"), (there, "unknown"), (there, "long"))
    }
    seconds = {"short/x": 3.0, "long/x": 2.0, "long/y": 2.0, "a/x": 90.0}
    run = values.planned(tmp_path, kernels=kernels, jobs=jobs, seconds=seconds)  # type: ignore[arg-type]
    pytest_options = dataclasses.replace(run.request.pytest, exit_first=first_ends)
    request = dataclasses.replace(run.request, pytest=pytest_options)
    run = dataclasses.replace(run, checked=dataclasses.replace(run.checked, request=request))
    assert [one.name for one in run.plan().jobs] == order


def test_blocked_variant_is_one_job_whatever_became_of_it(tmp_path: Path) -> None:
    """It is one job without a topology, also when it is not applicable."""
    wishes = [values.wish("blocked-group", topology) for topology in ("edu", "igb")]
    kernel = wishes[0].kernel
    refused = PlannedKernel(wish=kernel, tree=None, problem=NotApplicable("its rules are other ones"))
    run = values.planned(tmp_path, values.request(*wishes), kernels={kernel: refused})
    info = RunInfo(id="r", started=datetime.datetime.now(datetime.UTC), harness_version="test")
    with RunStore.create(tmp_path, info) as store:
        record_jobs(BuiltRun(planned=run), store)
        (found,) = store.read().jobs
    assert (found.topology, found.applicable) == ("", False)
    assert found.name.endswith("blocked-group")


def test_full_disk_is_told_before_anything_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A nearly full disk is refused before QEMU or SQLite fail on it."""
    monkeypatch.setattr(reporting, "free_mib", lambda _: 3)
    with pytest.raises(InfraError, match="only 3 MiB are free"):
        reporting.check_outputs(tmp_path, None)


def test_plan_for_other_programs() -> None:
    """Fields have names; seconds are null without history."""
    plan = Plan(run_id="r", run_dir="/", seed=1, cases=(), jobs=(job(),))
    kernel = KernelRow(name="cdev", tree="7.3", fate="to be built", to_build=True, seconds=54.0)
    plain = json.loads(rows_as_json([kernel], [job_row(plan.jobs[0], plan)], 2))
    (built,) = plain["kernels"]
    assert built == {"name": "cdev", "tree": "7.3", "fate": "to be built", "to_build": True, "seconds": 54.0}
    (found,) = plain["jobs"]
    assert (found["name"], found["seconds"], found["done"]) == (job().name, None, 0)
    assert found["applicable"] + found["not_applicable"] == len(work_of(job()))
    assert plain["workers"] == 2
