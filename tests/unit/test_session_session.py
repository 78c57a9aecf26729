# SPDX-License-Identifier: GPL-2.0-only
"""A session's checks, and the exit codes that it makes of pytest's."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from history_runs import GOOD, make_run
from plan_jobs import job

from harness.errors import ExitCode, UsageError
from harness.kernel.store import Built
from harness.plan import Plan
from harness.results import RunStore, State, is_alive, load, new_run_id, owned
from harness.session import planning, session
from harness.session.background import see
from harness.session.engine import PytestOptions
from harness.session.planning import Planned
from harness.session.session import Session
from harness.session.wishes import Conduct, JobWish, KernelWish, MachineWish
from harness.suites.keyword import check_choice, check_keyword


def one_job(keyword: str = "", suites: tuple[str, ...] = ("probes",)) -> Session:
    """A session of one job, as its verb makes it."""
    kernel = KernelWish(tree=None, variant="group-cdev")
    wish = JobWish(kernel=kernel, machine=MachineWish(topology="edu-igb", accel="tcg"), suites=suites)
    return Session([wish], Conduct())


def test_a_session_is_named_like_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda size: "ab" * size)
    asked = one_job()
    assert asked.run_id == new_run_id(asked._started)


@pytest.mark.parametrize(("is_new", "seconds"), [(True, 70.0), (False, 0.0)])
def test_a_run_is_charged_for_what_it_built(
    is_new: bool, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And for no kernel that another process built meanwhile."""
    built = Built(
        digest="d",
        release="7.3.4",
        vmlinux=Path("vmlinux"),
        config=Path("config"),
        modules_dir=None,
        build_id="b",
        build_seconds=40.0,
        build_cpu_seconds=70.0,
        is_new=is_new,
    )
    monkeypatch.setattr(planning, "build_planned", lambda planned, check: built)
    asked = one_job()
    asked._build_now(Planned(wish=asked._kernels[0], tree=None))
    assert asked._build_cpu == seconds


@pytest.mark.parametrize("left", [-1.0, 60.0])
def test_no_kernel_is_built_past_the_deadline(left: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """None is begun, and one that is being built is given up, to nobody's blame."""
    now = time.time()
    asked = one_job()
    asked._conduct = Conduct(until=now + left)
    planned = Planned(wish=asked._kernels[0], tree=None)
    asked._planned[planned.wish] = planned
    monkeypatch.setattr(asked, "_waiting", lambda: [planned])
    begun: list[str] = []

    def build(planned: Planned, check: Callable[[], None]) -> Built:
        begun.append(planned.wish.name)
        check()
        monkeypatch.setattr(time, "time", lambda: now + 61)
        check()
        raise AssertionError("it was built to its end")

    monkeypatch.setattr(planning, "build_planned", build)
    asked.build()
    assert begun == ["group-cdev"] * (left > 0)
    assert asked._planned[planned.wish].problem is None


def test_number_of_vms_that_is_none_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when the first VM asks for room, which made the host's trouble of a misspelt number."""
    monkeypatch.setenv("VFIO_HARNESS_VMS", "four")
    with pytest.raises(UsageError, match="VFIO_HARNESS_VMS must be a number of VMs, not 'four'"):
        one_job().check()


def test_an_interrupted_collection_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is no wrong use."""
    plan = Plan(run_id="r", run_dir=str(tmp_path), seed=1, cases=(), jobs=(job(),))
    asked = one_job()
    asked._jobs = dict.fromkeys(asked._wishes, plan.jobs[0])
    monkeypatch.setattr(asked, "_plan", lambda: plan)
    monkeypatch.setattr(asked, "_store", lambda directory, made_with: io.BytesIO())
    monkeypatch.setattr(session, "run_pytest", lambda words: pytest.ExitCode.INTERRUPTED)
    assert asked.collect(PytestOptions()) == ExitCode.INTERRUPTED


def test_a_keyword_that_chooses_nothing_is_refused_at_once() -> None:
    """Before a tree is looked at."""
    with pytest.raises(UsageError, match="no case matches -k get_pq") as error:
        one_job().check("get_pq")
    assert "did you mean 'get_pa'" in str(error.value)


@pytest.mark.parametrize(
    "keyword", ["get_pa", "VFIO_PCI_DEVICE", "kselftest", "get_pa.py", "7.3.4-group", "edu"]
)
def test_a_keyword_may_be_in_any_name(keyword: str) -> None:
    """Of the case, its file, the program or the job."""
    check_choice(keyword, [job()])


@pytest.mark.parametrize("keyword", ["vfio_pci_devise", "cdev_opem", "7.2"])
def test_a_keyword_that_is_in_none(keyword: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"no case matches -k {keyword}")):
        check_choice(keyword, [job()])


@pytest.mark.parametrize("keyword", ["", "nothing or other", "not nothing"])
def test_expressions_are_pytests(keyword: str) -> None:
    check_choice(keyword, [job()])
    check_keyword(keyword, ("probes",))


@pytest.mark.parametrize("state", [State.FINISHED, State.INTERRUPTED])
def test_lost_coverage_is_accepted_at_the_end(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is good then, and what later ones are held against; a run cut short proves no loss."""
    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(tmp_path))
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    make_run(tmp_path, 1)
    less = {name: outcome for name, outcome in GOOD.items() if name != "a"}
    make_run(tmp_path, 2, less)
    accepting = Session(one_job()._wishes, Conduct(), accept="it is meant")
    make_run(tmp_path, 3, less, state=state).rename(accepting.run_dir)
    finished = state is State.FINISHED
    assert accepting._report(as_json=False) == (ExitCode.GOOD if finished else ExitCode.INTERRUPTED)
    assert load(accepting.run_dir).accepted == ("it is meant" if finished else "")
    later = see(load(make_run(tmp_path, 4, less)))
    assert later.exit_code == (ExitCode.GOOD if finished else ExitCode.CASE_FAILED)


@pytest.fixture
def choosing_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A session of which pytest will choose no case."""
    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(tmp_path))
    plan = Plan(run_id="r", run_dir=str(tmp_path), seed=1, cases=(), jobs=(job(),))
    asked = one_job()
    make_run(tmp_path, 1, {}).rename(asked.run_dir)
    monkeypatch.setattr(asked, "_plan", lambda: plan)
    monkeypatch.setattr(asked, "_fill_run_dir", lambda plan: None)
    monkeypatch.setattr(asked, "_begin", lambda: RunStore.open(asked.run_dir))
    monkeypatch.setattr(asked, "_record_jobs", lambda store: None)
    monkeypatch.setattr(session, "run_pytest", lambda words: pytest.ExitCode.NO_TESTS_COLLECTED)
    return asked


def test_an_empty_run_is_forgotten(choosing_nothing: Session) -> None:
    """What pytest chose nothing of leaves nothing to report."""
    with pytest.raises(UsageError, match="no case matches what was asked for"):
        choosing_nothing.test(PytestOptions(keyword="this or that"), as_json=False)
    assert not choosing_nothing.run_dir.exists()


def test_a_run_is_ours_all_along(choosing_nothing: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while nobody has its results open, which pytest opens for itself."""

    def look(words: list[str]) -> pytest.ExitCode:
        assert is_alive(choosing_nothing.run_dir)
        with pytest.raises(UsageError, match="still going on"), owned(choosing_nothing.run_dir):
            pass
        return pytest.ExitCode.NO_TESTS_COLLECTED

    monkeypatch.setattr(session, "run_pytest", look)
    with pytest.raises(UsageError, match="no case matches what was asked for"):
        choosing_nothing.test(PytestOptions(), as_json=False)
