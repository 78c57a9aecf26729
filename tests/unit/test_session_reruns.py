# SPDX-License-Identifier: GPL-2.0-only
"""The command that reruns a failure, what counts as the user's known issues, and limits of the host."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest
import session_values as values
from plan_jobs import job

from harness.base.errors import UsageError
from harness.base.host import total_mib
from harness.cli import run_verb
from harness.kernel.trees import KernelTree, TreeKind
from harness.lab.admission import most_vms
from harness.machine.qemu import Qemu
from harness.plan import Isolation
from harness.session import pipeline, planning, running
from harness.session.forecast import workers_for
from harness.session.planning import PlannedKernel
from harness.session.wishes import Conduct, JobWish, PytestOptions
from harness.suites.known import issue_texts, issues_in, issues_of, own_lists

ENTRY = "issues:\n  - {case: %s, kernels: '>=7.3', reason: it fails, link: x}\n"


def asked_by(line: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the verb of the rerun *line*; return the Request that it plans."""
    found: dict[str, Any] = {}

    def check(request: pipeline.Request) -> None:
        found.update(request=request)
        raise LookupError

    monkeypatch.setattr(run_verb, "check", check)
    head, verb, *words = shlex.split(line)
    assert (head, verb) == ("vfio-harness", "run")
    with pytest.raises(LookupError):
        run_verb.command.main(words, standalone_mode=False)
    return found


@pytest.fixture
def lists(tmp_path: Path) -> tuple[Path, ...]:
    paths = (tmp_path / "a.yaml", tmp_path / "b.yaml")
    for path, case in zip(paths, ("probes/nodes/*", "probes/cdev/*"), strict=True):
        path.write_text(ENTRY % case, encoding="utf-8")
    return paths


def planned(run_dir: Path, conduct: Conduct, wish: JobWish | None = None) -> pipeline.PlannedRun:
    wish = wish or values.wish(tree="/")
    request = values.request(wish, conduct=conduct)
    run_dir.mkdir(exist_ok=True)
    return values.planned(run_dir, request, jobs={wish: job()})


@pytest.mark.parametrize(
    "conduct",
    [
        Conduct(),
        Conduct(confirm=True, isolation=Isolation.CASE, compare=False, seed=7),
    ],
)
def test_a_rerun_line_reproduces_its_verdict(
    conduct: Conduct, lists: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that decides the verdict on a case is in the line that reruns it, known issues above all."""
    for own in ((), lists):
        asked = dataclasses.replace(conduct, known_issues=own)
        wish = dataclasses.replace(values.wish(tree="/"), seed=conduct.seed)
        run = planned(tmp_path / f"run{len(own)}", asked, wish)
        plan = run.plan()
        _copy(run, plan)
        again = asked_by(plan.reruns[plan.jobs[0].name] + " --case 'probes/nodes/x'", monkeypatch)["request"]
        assert again.wishes == (wish.absolute(),)
        copies = own_lists(run.checked.run_dir)
        expected = dataclasses.replace(asked, known_issues=copies, cases=("probes/nodes/x",))
        assert again.conduct == expected
        assert issues_in(issue_texts(copies)) == issues_in(plan.known_issues)


def _copy(run: pipeline.PlannedRun, plan: Any) -> None:
    run.checked.run_dir.rmdir()
    bare = dataclasses.replace(run, kernels={})
    running._fill_run_dir(bare, plan)


def test_known_issues_given_twice_both_count(
    lists: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first list is not dropped: both are in the plan, and in the run's directory."""
    words = " ".join(f"--known-issues {path}" for path in lists)
    conduct = asked_by(f"vfio-harness run {words}", monkeypatch)["request"].conduct
    assert conduct.known_issues == lists
    run = planned(tmp_path / "run", conduct)
    plan = run.plan()
    _copy(run, plan)
    for found in (issues_in(plan.known_issues), issues_of(run.checked.run_dir)):
        assert [issue.case for issue in found[:2]] == ["probes/nodes/*", "probes/cdev/*"]


def test_a_rerun_names_the_very_source() -> None:
    """A rerun opens the same source, even if a ref has moved or Debian has uploaded a newer one."""
    wish = values.wish(tree="/src@topic").kernel
    tree = KernelTree(
        path=Path("/cache/7.3"),
        kind=TreeKind.REF,
        version="7.3.4",
        identity="i",
        config_identity="c",
        selftest_identity="s",
        label="topic (abc)",
        repository=Path("/src"),
        commit="abcdef",
    )
    assert PlannedKernel(wish=wish, tree=tree).pinned.tree == "/src@abcdef"
    debian = dataclasses.replace(tree, kind=TreeKind.DEBIAN, exact="debian:7.3=7.3.4-1")
    latest = dataclasses.replace(wish, tree="debian:latest")
    assert PlannedKernel(wish=latest, tree=debian).pinned.tree == "debian:7.3=7.3.4-1"
    own = dataclasses.replace(tree, kind=TreeKind.GIT)
    assert PlannedKernel(wish=wish, tree=own).pinned == wish


def test_as_many_workers_as_vms(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """-n 9999 starts no 9,999 workers, and says so once."""
    plan = planned(tmp_path, Conduct()).plan()
    assert workers_for(plan, PytestOptions(workers=9999)) == most_vms()
    assert workers_for(plan, PytestOptions(workers=0)) == 0
    pipeline._tell_most_workers(9999)
    assert f"so {most_vms()} workers start" in capfd.readouterr().err
    pipeline._tell_most_workers(1)
    assert capfd.readouterr().err == ""


def test_memory_that_the_host_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused in one sentence, before anything boots."""
    monkeypatch.setattr(planning, "load_topology", lambda name, qemu: load())
    machine = dataclasses.replace(values.wish().machine, memory=99999999)
    qemu = Qemu(path=Path("qemu"), version=(10, 0, 2), devices=frozenset(), identity="")
    with pytest.raises(UsageError, match=rf"--memory 99999999: this host has {total_mib()} MiB of memory"):
        planning.check_machine(machine, qemu)
    planning.check_machine(dataclasses.replace(machine, memory=1024), qemu)


def load() -> Any:
    return values._topology("edu-igb")
