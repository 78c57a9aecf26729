# SPDX-License-Identifier: GPL-2.0-only
"""Which work runs first, or alone, because it reaches what changed."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import session_values as values
from plan_jobs import KERNEL, job

from harness.base import paths
from harness.base.errors import NoCase, UsageError
from harness.kernel import gittree
from harness.kernel.trees import KernelTree, TreeKind
from harness.plan import Own, OwnProgram, Plan
from harness.results import Inputs, JobRecord
from harness.results.coverage.affected import Edit, Map, Touched, find_touched
from harness.session import affected
from harness.session.planning import PlannedKernel
from harness.session.wishes import Conduct, PytestOptions
from harness.suites.catalogue import to_do

JOB = job()
RECORD = JobRecord(name=JOB.name, suites=JOB.suites)
PLAN = Plan(run_id="r", seed=1, cases=(), jobs=(JOB,))
WORK = [work for work in to_do(PLAN) if not work.refusal]
F, G = "drivers/vfio/a.c:f", "drivers/vfio/a.c:g"
REACHED = {work.address: frozenset({G}) for work in WORK} | {WORK[2].address: frozenset({F, G})}


def choose(
    monkeypatch: pytest.MonkeyPatch,
    change: affected._Change | affected._Unknown,
    plan: Plan = PLAN,
    *,
    alone: bool = False,
) -> tuple[str, ...]:
    def change_in(kernel: PlannedKernel, job: JobRecord, inputs: Inputs) -> affected._Change:
        assert (job, inputs.suites, inputs.machine) == (RECORD, RECORD.suites, values.wish().machine.kind)
        if isinstance(change, affected._Unknown):
            raise change
        return change

    monkeypatch.setattr(affected, "_change_in", change_in)
    wish = values.wish()
    kernels = {wish.kernel: PlannedKernel(wish=wish.kernel, tree=None)}
    return affected.choose_affected(kernels, {wish: RECORD}, plan, Conduct(), PytestOptions(affected=alone))


def changed(touched: Touched, reached: Map = REACHED) -> affected._Change:
    return affected._Change(touched, reached, "the good run r0")


def test_what_reaches_the_change_goes_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert choose(monkeypatch, changed(Touched(functions=frozenset({F})))) == (WORK[2].key,)
    said = f"1 of {len(WORK)} cases reach your change since the good run r0: first"
    assert said in capsys.readouterr().err


def test_a_case_that_the_map_does_not_know_goes_first_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {address: functions for address, functions in REACHED.items() if address != WORK[0].address}
    assert set(choose(monkeypatch, changed(Touched(functions=frozenset({F})), known))) == {
        WORK[0].key,
        WORK[2].key,
    }
    assert "(1 of them are not in the map)" in capsys.readouterr().err


def test_what_no_case_reaches_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It runs at boot, say; what passed then tells nothing of it."""
    boot, file = "drivers/vfio/a.c:vfio_init", "drivers/vfio/b.c:"
    unreached = "no case is known to reach vfio_init()"
    choose(monkeypatch, changed(Touched(functions=frozenset({F, boot, "drivers/vfio/a.c:"}))), alone=True)
    assert f"since the good run r0; {unreached}: only these" in capsys.readouterr().err
    choose(monkeypatch, changed(Touched(functions=frozenset({F, boot, file}))))
    assert f"since the good run r0; {unreached} and 1 other: first" in capsys.readouterr().err
    choose(monkeypatch, changed(Touched(functions=frozenset({file}))))
    said = f"0 of {len(WORK)} cases reach your change since the good run r0; no case is known to reach b.c"
    assert f"{said}; all run in the usual order" in capsys.readouterr().err
    with pytest.raises(NoCase, match=re.escape(f"since the good run r0; {unreached}")):
        choose(monkeypatch, changed(Touched(functions=frozenset({boot}))), alone=True)


def test_everything_has_no_order(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert choose(monkeypatch, changed(Touched(everything="vfio.h may matter to all"))) == ()
    assert "all cases, because vfio.h may matter to all" in capsys.readouterr().err


def test_alone_needs_a_map_and_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    why = affected._Unknown("there is no coverage map of kernel version 7.2, only of 7.3")
    assert choose(monkeypatch, why) == ()
    with pytest.raises(UsageError, match=r"no coverage map .* 7\.2, only of 7\.3"):
        choose(monkeypatch, why, alone=True)
    with pytest.raises(NoCase, match=f"0 of {len(WORK)} cases reach your change"):
        choose(monkeypatch, changed(Touched(functions=frozenset({"drivers/vfio/b.c:f"}))), alone=True)


def test_what_selftests_share_affects_all_selftests_and_no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    header = Edit(name="tools/testing/selftests/kselftest_harness.h", texts=("", ""), lines=((), (1,)))
    touched = find_touched([header], lambda name: False)
    tests = dataclasses.replace(
        job(features=("edu", "cdev", "noiommu")), kernel=dataclasses.replace(KERNEL, selftests="s" * 32)
    )
    plan = dataclasses.replace(PLAN, jobs=(tests,))
    known = {work.address: frozenset({G}) for work in to_do(plan)}
    chosen = choose(monkeypatch, changed(touched, known), plan)
    assert chosen == (f"{tests.name} kselftest:vfio/vfio_pci_device_test@edu0",)
    reached = {"kselftest:vfio/a": frozenset({G}), "probes/a/b": frozenset({G})}
    text = "VERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 4\n"
    monkeypatch.setattr(gittree, "show", lambda repository, commit, path: text)
    monkeypatch.setattr(affected, "ask", lambda question: (reached, ("7.3",)))
    monkeypatch.setattr(affected, "_edits", lambda *commits: [header])
    assert affected.affected_between(Path(), "one", "two") == ("kselftest:vfio/a",)


def test_what_the_user_brought_along_is_affected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tree does not show whether it changed, and the map has it as it was."""
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path))
    probes = paths.programs_entry("p" * 32)
    probes.mkdir(parents=True)
    head = "from guest.case import Test, case\n\n\n@case(cites='x.c')\n"
    text = f"{head}def holds(t: Test) -> None:\n    'It holds.'\n"
    (probes / "mine.py").write_text(text)
    program = OwnProgram(name="mytest", digest="d" * 32, main="mytest", seconds=45.0, needs=("edu",))
    own = Own(programs=(program,), probes="p" * 32)
    plan = dataclasses.replace(PLAN, jobs=(dataclasses.replace(JOB, suites=("probes", "own"), own=own),))
    known = {work.address: frozenset({G}) for work in to_do(plan)}
    chosen = choose(monkeypatch, changed(Touched(), known), plan, alone=True)
    assert set(chosen) == {f"{JOB.name} own/mytest", f"{JOB.name} probes/mine/holds"}


TREE = KernelTree(
    path=Path("/cache/7.3"),
    kind=TreeKind.GIT,
    version="7.3.4",
    identity="i",
    config_identity="c",
    selftest_identity="s",
    label="v7.3.4",
    repository=Path("/src"),
    commit="c0",
    checkout="c1",
)


def test_what_else_the_kernel_is_made_of_is_affected(monkeypatch: pytest.MonkeyPatch) -> None:
    good: list[tuple[str, JobRecord]] = []
    answers = SimpleNamespace(
        read=lambda line: REACHED, lines=lambda: ("7.3",), last_good=lambda *_: good[0] if good else None
    )
    monkeypatch.setattr(affected, "ask", lambda question: question(SimpleNamespace(map=answers)))
    monkeypatch.setattr(gittree, "provide_mirror", lambda root: root)
    monkeypatch.setattr(affected, "has_commit", lambda mirror, commit: bool(commit))
    monkeypatch.setattr(affected, "_edits", lambda *commits: [])

    def touched(kernel: PlannedKernel, **fields: Any) -> Touched:
        return affected._change_in(kernel, dataclasses.replace(RECORD, **fields), Inputs()).touched

    kernel = PlannedKernel(wish=values.wish().kernel, tree=TREE)
    assert touched(kernel, addons=("debug",), topology="edu") == Touched()
    assert touched(kernel, addons=("my.config@3fa1c2",)).everything == "no good run had my.config@3fa1c2"
    assert touched(kernel, topology="mine@3fa1c2").everything == "no good run had mine@3fa1c2"
    assert touched(dataclasses.replace(kernel, tests=TREE)).has_suite("vfio")
    good.append(("run1", dataclasses.replace(RECORD, commit="c0")))
    assert touched(kernel, addons=("my.config@3fa1c2",)) == Touched()


def test_chosen_cases_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = dataclasses.replace(PLAN, cases=("probes/*",))
    assert choose(monkeypatch, changed(Touched(functions=frozenset({F}))), plan) == ()


def test_a_bisect_without_a_case_takes_what_its_ends_differ_in(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "VERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 4\n"
    monkeypatch.setattr(gittree, "show", lambda repository, commit, path: text)
    monkeypatch.setattr(affected, "ask", lambda question: ({"probes/a/b": {F}, "probes/a/c": {G}}, ("7.3",)))
    touched = Touched(functions=frozenset({F}))
    monkeypatch.setattr(affected, "find_touched", lambda edits, is_profiled: touched)
    assert affected.affected_between(Path(), "one", "two") == ("probes/a/b",)
    touched = Touched(functions=frozenset({"x.c:y"}))
    with pytest.raises(NoCase, match=r"0 of 2 cases reach what changed .*; no case is known to reach y\(\)"):
        affected.affected_between(Path(), "one", "two")
    touched = Touched(everything="vfio.h")
    assert affected.affected_between(Path(), "one", "two") == ("probes/a/b", "probes/a/c")
    monkeypatch.setattr(affected, "ask", lambda question: ({}, ("7.2",)))
    with pytest.raises(UsageError, match=r"no coverage map of kernel version 7\.3, only of 7\.2"):
        affected.affected_between(Path(), "one", "two")
