# SPDX-License-Identifier: GPL-2.0-only
"""A planned Job is a value: it survives its file, and names nothing of the host that planned it."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kernel_fake_tree import make_fake_tree, needs_build_tools
from plan_jobs import job

from harness.base import paths, values
from harness.base.errors import InfraError, UsageError
from harness.kernel.arch import Arch
from harness.kernel.trees import open_tree
from harness.machine import image
from harness.machine.topology import SHIPPED, load_topology
from harness.plan import Job, Plan, load_plan
from harness.session import pipeline
from harness.session.jobs import make_job, rerun_command
from harness.session.planning import plan_wished_kernel
from harness.session.wishes import Conduct, JobWish, KernelWish, MachineWish
from harness.suites.known import issue_texts, issues_in, load_issues, shipped_issues


@pytest.fixture(name="wish")
def _wish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobWish:
    """A job of a tree and a topology below *tmp_path*."""
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    topology = tmp_path / "mine.yaml"
    topology.write_text((SHIPPED / "edu-igb.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    source = make_fake_tree(tmp_path / "linux")
    machine = MachineWish(topology=str(topology))
    kernel = KernelWish(tree=str(source), variant="cdev")
    return JobWish(kernel=kernel, machine=machine, suites=("probes", "kselftest:vfio"))


def planned(wish: JobWish) -> Job:
    assert wish.kernel.tree is not None
    kernel = plan_wished_kernel(open_tree(wish.kernel.tree), wish.kernel, with_selftests=False)
    found = dataclasses.replace(kernel, selftests=None)
    return make_job(found, wish, load_topology(wish.machine.topology))


def test_each_job_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three worktrees of one commit, with local changes, have one label and one version."""
    wishes = [
        JobWish(kernel=KernelWish(tree=tree, variant="cdev"), machine=MachineWish(topology="edu"))
        for tree in ("/a", "/b", "/c", "/d")
    ]
    monkeypatch.setattr(pipeline, "make_job", lambda *_: job("edu"))
    kernel = SimpleNamespace(plan="a plan", tree_label="v7.3 with local changes")
    planned: Any = SimpleNamespace(
        request=SimpleNamespace(wishes=wishes),
        checked=SimpleNamespace(topologies={"edu": None}),
        kernels=dict.fromkeys((wish.kernel for wish in wishes), kernel),
        refused={},
    )
    name, label = job("edu").name, "v7.3-with-local-changes"
    found = [one.name for one in pipeline._make_jobs(planned).values()]
    assert found == [name, f"{label}-{name}", f"{label}-2-{name}", f"{label}-3-{name}"]


@needs_build_tools
def test_job_names_nothing_of_its_host(
    wish: JobWish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the cache nor the tree, the topology's file, the working directory or the user's home."""
    listing = SimpleNamespace(
        python="/usr/bin/python3",
        stamps={"/usr/bin/python3": "1 1"},
        packages="",
        identity="{}",
        compiler="/usr/bin/python3",
    )
    monkeypatch.setattr(image, "_listing", lambda _arch: listing)
    plain = json.dumps(values.unstructure(planned(wish)))
    places = (tmp_path, paths.cache_dir(), Path.cwd(), Path.home(), Path(tempfile.gettempdir()))
    for place in places:
        assert f"{place}/" not in plain
        assert f'"{place}"' not in plain
    assert str(tmp_path) in rerun_command(wish, Conduct(), ())


@needs_build_tools
def test_job_survives_its_file(wish: JobWish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read elsewhere it is the same, after its topology's file and its tree are gone."""

    def unable(_arch: Arch) -> None:
        raise InfraError("no dropbear")

    monkeypatch.setattr(image, "_listing", unable)
    made = planned(wish)
    assert made.root.disks == {}
    plan = Plan(run_id="r", run_dir=os.fspath(tmp_path), seed=1, cases=(), jobs=(made,))
    target = tmp_path / "elsewhere"
    target.mkdir()
    plan.save(target / "plan.json")
    Path(wish.machine.topology).unlink()
    found = load_plan(target / "plan.json")
    assert found == dataclasses.replace(plan, run_dir=str(target))
    assert found.jobs[0].topology.features == made.topology.features
    assert sorted(target.iterdir()) == [target / "plan.json"]
    assert str(tmp_path) not in (target / "plan.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"text": "summary: another"}, "does not have its digest"),
        ({"text": "summary: [1]"}, "'summary' in the file must be text"),
        ({"path": "/x"}, "expected a topology's name, text and digest"),
    ],
)
def test_damaged_topology_of_a_plan(tmp_path: Path, change: dict[str, str], problem: str) -> None:
    """It is refused with the file and the key."""
    path = tmp_path / "plan.json"
    Plan(run_id="r", seed=1, cases=(), jobs=(job(),)).save(path)
    plain: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    plain["jobs"][0]["topology"].update(change)
    path.write_text(json.dumps(plain), encoding="utf-8")
    with pytest.raises(UsageError, match=problem) as refused:
        load_plan(path)
    assert str(path) in str(refused.value)
    assert "topology" in str(refused.value)


def test_known_issues_travel_as_text(tmp_path: Path) -> None:
    """The user's list comes first."""
    own = tmp_path / "own.yaml"
    own.write_text(
        "issues:\n  - {case: probes/nodes/*, kernels: '>=7.3', reason: it fails, link: x}\n", encoding="utf-8"
    )
    texts = issue_texts([own])
    found = issues_in(texts)
    assert [one.case for one in found] == [
        *(one.case for one in load_issues(own)),
        *(one.case for one in shipped_issues()),
    ]
    assert issue_texts([]) == texts[1:]
