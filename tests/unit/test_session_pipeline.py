# SPDX-License-Identifier: GPL-2.0-only
"""Checks and builds of a run, and its exit codes."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import session_values as values
from history_runs import GOOD, make_run
from plan_jobs import job

from harness.base.errors import ExitCode, HostError, NoCase, UsageError
from harness.kernel.arch import ARCHES, host_arch
from harness.kernel.store import Built
from harness.machine.accel import Choice
from harness.machine.qemu import Qemu
from harness.machine.topology import load_topology
from harness.plugin import engine
from harness.plugin.engine import Ended
from harness.results import RunState, is_alive, owned
from harness.results.store import RunStore, load, new_run_id
from harness.session import pipeline, planning, running
from harness.session.pipeline import BuiltRun, PlannedRun
from harness.session.reporting import see
from harness.session.selection import check_selection
from harness.session.wishes import Conduct, KernelWish, MachineWish, PytestOptions


def test_a_run_is_named_by_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(tmp_path))
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("secrets.token_hex", lambda size: "ab" * size)
    here = values.checked(tmp_path)
    monkeypatch.setattr(planning, "choose", lambda machine, arch: (here.qemu, here.accel))
    monkeypatch.setattr(planning, "check_machine", lambda machine, qemu: load_topology("edu-igb"))
    found = pipeline.check(values.request())
    assert found.run_id == new_run_id(found.started) == found.run_dir.name
    assert dict(found.topologies) == {"edu-igb": load_topology("edu-igb")}


def test_an_architecture_that_this_host_lacks_costs_only_its_own_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the QEMU for one of two architectures the other one is tested; without both there is no run."""
    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(tmp_path))
    here = values.checked(tmp_path)
    reason = HostError("its QEMU is not installed")
    lacks = {"arm64"}

    def choose(machine: MachineWish, arch: str) -> tuple[Qemu, Choice]:
        if arch in lacks:
            raise reason
        return here.qemu, here.accel

    monkeypatch.setattr(planning, "choose", choose)
    monkeypatch.setattr(planning, "check_machine", lambda machine, qemu: load_topology("edu-igb"))
    kernels = {arch: KernelWish(tree=None, variant="group-cdev", arch=arch) for arch in ARCHES}
    wishes = [dataclasses.replace(values.wish(), kernel=kernel) for kernel in kernels.values()]
    found = pipeline.check(values.request(*wishes))
    assert (set(found.qemus), dict(found.lacking)) == ({"x86_64"}, {"arm64": reason})
    assert pipeline._plan_kernel(found, {}, kernels["arm64"], build=False).problem is reason
    lacks.add("x86_64")
    with pytest.raises(HostError):
        pipeline.check(values.request(*wishes))


@pytest.mark.parametrize(("is_new", "seconds"), [(True, 70.0), (False, 0.0)])
def test_a_run_is_charged_for_what_it_built(
    is_new: bool, seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CPU time of a kernel that another process built does not count."""
    built = Built(
        digest="d",
        arch=host_arch(),
        release="7.3.4",
        image=Path("image"),
        vmlinux=Path("vmlinux"),
        config=Path("config"),
        modules_dir=None,
        build_id="b",
        toolchain="gcc",
        build_seconds=40.0,
        build_cpu_seconds=70.0,
        is_new=is_new,
    )
    monkeypatch.setattr(planning, "build_planned", lambda kernel, check: built)
    run = values.planned(tmp_path, jobs={values.wish(): job()})
    assert pipeline._build_one(BuiltRun(planned=run)).cpu_seconds == seconds


@pytest.mark.parametrize("left", [-1.0, 60.0])
def test_no_kernel_is_built_past_the_deadline(
    left: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No build starts, a running one stops, and neither is a problem of the kernel."""
    now = time.time()
    asked = values.request(conduct=Conduct(until=now + left))
    begun: list[str] = []

    def build(kernel: planning.PlannedKernel, check: Callable[[], None]) -> Built:
        begun.append(kernel.wish.name)
        check()
        monkeypatch.setattr(time, "time", lambda: now + 61)
        check()
        raise AssertionError("it was built to its end")

    monkeypatch.setattr(planning, "build_planned", build)
    built = pipeline.build(values.planned(tmp_path, asked, jobs={values.wish(): job()}))
    assert begun == ["group-cdev"] * (left > 0)
    assert all(kernel.problem is None for kernel in built.planned.kernels.values())
    assert built.failed == {}


def test_number_of_vms_that_is_none_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before anything else, as wrong use."""
    monkeypatch.setenv("VFIO_HARNESS_VMS", "four")
    with pytest.raises(UsageError, match="VFIO_HARNESS_VMS must be a positive integer, got 'four'"):
        pipeline.check(values.request())


def test_an_interrupted_collection_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C exits with 130, not as wrong use."""
    monkeypatch.setattr(pipeline, "run_pytest", lambda *_: Ended.INTERRUPTED)
    planned = values.planned(tmp_path, jobs={values.wish(): job()})
    assert pipeline.collect(planned) == ExitCode.INTERRUPTED


def selecting(tmp_path: Path, keyword: str, *extra: str) -> None:
    """Check, by a real collection, what -k *keyword* and *extra* select."""
    plan = values.planned(tmp_path / "run", jobs={values.wish(): job()}).plan()
    check_selection(plan, PytestOptions(keyword=keyword, extra=extra))


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(
    "keyword",
    [
        *("get_pa", "VFIO_PCI_DEVICE", "kselftest", "get_pa.py", "7.3.4-group", "edu", ""),
        *("get_pa and refusals", "GET_PA and not Refusals", "(get_pa or nonsenseword) and probes"),
    ],
)
def test_a_keyword_may_be_in_any_name(keyword: str, tmp_path: Path) -> None:
    """It matches names of cases, files, programs and jobs; expressions are those of pytest."""
    selecting(tmp_path, keyword)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(
    ("keyword", "hint"),
    [
        ("get_pq", "did you mean 'get_pa'?"),
        ("refusals_come_in_odrer", "did you mean 'refusals_come_in_order'?"),
        ("vfio_pci_devise_test", "did you mean 'vfio_pci_device_test@edu0'?"),
        ("7.2", "see: vfio-harness list cases"),
        ("nonsenseword or other_nonsense", "see: vfio-harness list cases"),
        ("get_pa and not get_pa", "see: vfio-harness list cases"),
    ],
)
def test_a_keyword_that_selects_nothing(
    keyword: str, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused before there is a kernel or a run, in one sentence."""
    with pytest.raises(NoCase) as error:
        selecting(tmp_path, keyword)
    assert (error.value.message, error.value.hint) == (f"no case matches -k {keyword!r}", hint)
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(("keyword", "extra"), [("get_pa and", ()), ("", ("--no-such-option",))])
def test_options_that_pytest_refuses(
    keyword: str, extra: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="pytest refused its options"):
        selecting(tmp_path, keyword, *extra)
    assert (keyword or extra[0]) in capsys.readouterr().err


def test_the_callers_pytest_settings_stay_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PYTEST_* is dropped while pytest runs and restored afterwards."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "--no-such-option")
    seen: list[bool] = []

    def main(words: list[str], plugins: list[object]) -> int:
        seen.append(any(name.startswith("PYTEST_") for name in os.environ))
        return 0

    monkeypatch.setattr(pytest, "main", main)
    assert engine.run_pytest([], tmp_path / "plan.json") is Ended.RAN
    assert seen == [False]
    assert os.environ["PYTEST_ADDOPTS"] == "--no-such-option"


@pytest.mark.parametrize("state", [RunState.FINISHED, RunState.INTERRUPTED])
def test_lost_coverage_is_accepted_at_the_end(
    state: RunState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is then good and the new baseline; an interrupted run accepts nothing."""
    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(tmp_path))
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    make_run(tmp_path, 1)
    less = {name: outcome for name, outcome in GOOD.items() if name != "a"}
    make_run(tmp_path, 2, less)
    directory = make_run(tmp_path, 3, less, state=state)
    built = BuiltRun(planned=values.planned(directory, values.request(accept="it is meant")))
    finished = state is RunState.FINISHED
    code = running.report(built)
    assert code == (ExitCode.GOOD if finished else ExitCode.INTERRUPTED)
    assert load(directory).accepted == ("it is meant" if finished else "")
    later = see(load(make_run(tmp_path, 4, less)))
    assert later.exit_code == (ExitCode.GOOD if finished else ExitCode.CASE_FAILED)


@pytest.fixture
def beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlannedRun:
    """A run of one job that is about to be carried out."""
    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(tmp_path))
    directory = make_run(tmp_path, 1, {})
    monkeypatch.setattr(running, "_fill_run_dir", lambda run, plan: None)
    monkeypatch.setattr(running, "open_store", lambda run: RunStore.open(directory))
    monkeypatch.setattr(running, "record_jobs", lambda built, store: None)
    kernel = SimpleNamespace(wish=values.wish().kernel, pinned=values.wish().kernel, is_built=True)
    run = values.planned(directory, jobs={values.wish(): job()})
    return dataclasses.replace(run, kernels={kernel.wish: kernel})  # type: ignore[dict-item]


def test_a_run_is_ours_all_along(beginning: PlannedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is owned also while pytest, not the session, has its results open."""
    directory = beginning.checked.run_dir

    def look(*_: object) -> Ended:
        assert is_alive(directory)
        with pytest.raises(UsageError, match="still going on"), owned(directory):
            pass
        return Ended.RAN

    def report(built: BuiltRun, *, as_json: bool) -> int:
        look()
        return 0

    monkeypatch.setattr(running, "run_pytest", look)
    monkeypatch.setattr(running, "report", report)
    assert running.carry_out(BuiltRun(planned=beginning)) == 0


def test_an_interrupted_run_is_reported(beginning: PlannedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """After Ctrl-C, and after -x with several workers: finished results are kept and shown."""
    monkeypatch.setattr(running, "run_pytest", lambda *_: Ended.INTERRUPTED)
    monkeypatch.setattr(running, "report", lambda built, *, as_json: len(built.planned.phases))
    assert running.carry_out(BuiltRun(planned=beginning)) == len(("test",))
