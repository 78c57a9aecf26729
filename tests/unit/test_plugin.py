# SPDX-License-Identifier: GPL-2.0-only
"""The pytest plugin without VMs: collection, node ids, recording, and what pytest is told.

The kernel of the plan does not exist and its features are few, so most cases do not apply and the rest
have no VM to run in: exactly the paths that must not lie.
"""

from __future__ import annotations

import dataclasses
import datetime
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from plan_jobs import job

import harness
from guest.case import Case, discover
from harness import paths, process
from harness.boot import Booted
from harness.deadline import Deadline
from harness.errors import ExitCode, LostGuest, StoodStill, UsageError
from harness.ktap import KtapReport, parse
from harness.machine.splat import Splat
from harness.machine.vm import VM
from harness.plan import Job, Plan, load_plan
from harness.plugin.done import Done
from harness.plugin.items import CaseFailed, conclude
from harness.plugin.jobvm import JobVM, _Attempt, _crashed, _excerpt
from harness.plugin.recorder import _key
from harness.results import (
    WHOLE_PROGRAM,
    Address,
    Outcome,
    Result,
    Run,
    RunInfo,
    RunStore,
    State,
    exit_code,
    load,
)
from harness.suites.alongside import Answer
from harness.suites.catalogue import ProbeWork, check_cases, work_of
from harness.suites.judging import Judged
from harness.suites.known import shipped_issues


def plan(directory: Path, *jobs: Job, cases: tuple[str, ...] = ()) -> Path:
    directory.mkdir(exist_ok=True)
    value = Plan(run_id="r", run_dir=str(directory), seed=1, cases=cases, jobs=jobs or (job(),))
    path = directory / "plan.json"
    value.save(path)
    info = RunInfo(id="r", started=datetime.datetime.now(datetime.UTC), harness_version="test")
    RunStore.create(directory, info).close()
    return path


def run_pytest(plan_file: Path, *words: str) -> process.Completed:
    ini = Path(harness.__file__).parent / "plugin" / "pytest.ini"
    argv = [sys.executable, "-m", "pytest", "-p", "harness.plugin", f"--plan={plan_file}"]
    argv += [f"--config-file={ini}", f"--rootdir={paths.guest_dir().parent}"]
    return process.run([*argv, "-o", f"cache_dir={plan_file.parent / 'cache'}", *words])


def outcomes(run: Run) -> set[Outcome]:
    return {case.outcome for case in run.cases}


def test_plan_survives_its_file(tmp_path: Path) -> None:
    """A plan read back is the plan that was saved."""
    value = load_plan(plan(tmp_path, job("edu"), job("igb")))
    assert value.jobs == (job("edu"), job("igb"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', '{"format": 1, "jobs": [{}]}'])
def test_what_is_no_plan_is_refused(tmp_path: Path, text: str) -> None:
    """Any other file is refused in one sentence."""
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UsageError, match="not a plan"):
        load_plan(tmp_path / "plan.json")


def test_node_ids_name_file_case_and_job(tmp_path: Path) -> None:
    """Collection needs no boot, and its ids can be typed."""
    done = run_pytest(plan(tmp_path), "--collect-only", "-q")
    assert "guest/probes/get_pa.py::" in done.stdout
    assert (
        "harness/suites/kselftest-vfio.yaml::vfio_pci_device_test@edu0[7.3.4-group-cdev-edu]" in done.stdout
    )


def test_without_a_vm_nothing_passes_and_every_case_is_accounted_for(tmp_path: Path) -> None:
    """Cases that apply are NOT_RUN with the boot's trouble, the others SKIP; the exit code says 3."""
    done = run_pytest(plan(tmp_path), "-q", "--tb=no")
    run = load(tmp_path)
    assert outcomes(run) == {Outcome.SKIP, Outcome.NOT_RUN}
    assert exit_code(run) is ExitCode.INFRA
    lost = [case for case in run.cases if case.outcome is Outcome.NOT_RUN]
    assert all("is not in the store and nobody is building it" in case.reason for case in lost)
    assert f"{len(lost)} not run" in done.stdout
    assert "failed" not in done.stdout
    collected = run_pytest(plan(tmp_path / "again"), "--collect-only", "-q").stdout.count("::")
    assert len(run.cases) == collected
    assert done.status != 0


def test_workers_agree_and_record_the_same(tmp_path: Path) -> None:
    """Under xdist the same cases get the same outcomes, one group per job."""
    run_pytest(plan(tmp_path / "one", job("edu"), job("igb")), "-q", "-p", "no:xdist", "--tb=no")
    done = run_pytest(
        plan(tmp_path / "two", job("edu"), job("igb")), "-q", "-n", "2", "--dist", "loadgroup", "--tb=no"
    )
    alone, together = load(tmp_path / "one"), load(tmp_path / "two")
    assert {(c.job, c.address, c.outcome) for c in alone.cases} == {
        (c.job, c.address, c.outcome) for c in together.cases
    }, done.stdout


def test_stopping_early_leaves_not_run(tmp_path: Path) -> None:
    """With -x what was not reached is NOT_RUN, not forgotten."""
    done = run_pytest(plan(tmp_path), "-q", "-x", "--tb=no")
    run = load(tmp_path)
    assert any(case.reason == "the run stopped before it" for case in run.cases), done.stdout


def test_stopping_early_with_workers_is_no_interrupt(tmp_path: Path) -> None:
    """-x ends an xdist run by an exception that looks like Ctrl-C; the run is finished all the same."""
    run_pytest(
        plan(tmp_path, job("edu"), job("igb")), "-q", "-x", "-n", "2", "--dist", "loadgroup", "--tb=no"
    )
    run = load(tmp_path)
    assert run.state is State.FINISHED
    assert exit_code(run) is ExitCode.INFRA


def test_plugin_alone_makes_and_remakes_the_run(tmp_path: Path) -> None:
    """Without our CLI the plugin makes the run itself; a second time it does not write into the first."""
    path = plan(tmp_path / "first")
    (tmp_path / "first" / "results.sqlite").unlink()
    run_pytest(path, "-q", "--tb=no")
    first = load(tmp_path / "first")
    assert first.state is State.FINISHED
    run_pytest(path, "-q", "--tb=no")
    assert len(load(tmp_path / "first").results) == len(first.results)
    (second,) = [d for d in tmp_path.iterdir() if d.name not in ("first", "cache")]
    assert {c.address for c in load(second).cases} == {c.address for c in first.cases}


def test_last_failed_reruns_only_those(tmp_path: Path) -> None:
    """--lf picks what was bad, by node ids that stay the same."""
    path = plan(tmp_path)
    run_pytest(path, "-q", "--tb=no")
    bad = sum(case.outcome.is_bad for case in load(tmp_path).cases)
    again = run_pytest(path, "-q", "--lf", "--collect-only").stdout
    assert again.count("[7.3.4-group-cdev-edu]") == bad


def test_unknown_case_is_refused(tmp_path: Path) -> None:
    """A pattern that matches nothing is an error that names the nearest address."""
    done = run_pytest(plan(tmp_path, cases=("probes/get_pa/lengthzero",)), "-q")
    assert "no case matches 'probes/get_pa/lengthzero'" in done.stderr
    assert done.status == pytest.ExitCode.USAGE_ERROR


def test_key_survives_root_directory_and_xdist() -> None:
    """A node id names its work whatever pytest's root is and whatever xdist appends."""
    wanted = ("get_pa.py", "unmapped[j]")
    assert _key("guest/probes/get_pa.py::unmapped[j]") == wanted
    assert _key("../x/get_pa.py::unmapped[j]@j") == wanted


def result(outcome: Outcome, reason: str = "why") -> Result:
    return Result(address=Address.parse("probes/get_pa/x"), job="j", outcome=outcome, reason=reason)


def test_pytest_hears_the_worst() -> None:
    """One bad result makes the item fail; XFAIL and SKIP end it the way pytest knows; no result is bad."""
    with pytest.raises(CaseFailed):
        conclude([result(Outcome.PASS), result(Outcome.FAIL)])
    with pytest.raises(CaseFailed):
        conclude([])
    with pytest.raises(pytest.xfail.Exception):
        conclude([result(Outcome.PASS), result(Outcome.XFAIL)])
    with pytest.raises(pytest.skip.Exception):
        conclude([result(Outcome.SKIP)])
    conclude([result(Outcome.PASS), result(Outcome.SKIP)])


def attempt(*judged: Judged, destructive: bool = False) -> _Attempt:
    case = dataclasses.replace(discover()[0], destructive=destructive)
    return _Attempt(case.address, case, judged=judged)


def test_splat_outranks_what_was_printed() -> None:
    """A probe during which the kernel complained is a CRASH, whatever it printed."""
    (crashed,) = _crashed(attempt(Judged(case="x", outcome=Outcome.PASS, reason="")), "WARNING: ...")
    assert crashed.outcome is Outcome.CRASH


def test_splat_of_a_known_issue_is_excused_only_where_it_does_damage() -> None:
    """A known issue of a case that does not say so is no excuse for a kernel that complains."""
    printed = Judged(case="x", outcome=Outcome.XFAIL, reason="")
    issue = shipped_issues()[0]
    (excused,) = _crashed(attempt(printed, destructive=True), "WARNING: ...", issue)
    (crashed,) = _crashed(attempt(printed), "WARNING: ...", issue)
    assert (excused.outcome, crashed.outcome) == (Outcome.XFAIL, Outcome.CRASH)


def test_damage_comes_after_everything_else_in_a_vm_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Destructive cases are the last work of a job; each gets a new VM, which ends with it."""
    everything = work_of(job())
    turns = [work.turn for work in everything]
    assert turns == sorted(turns)
    assert {turns[0], turns[-1]} == {0, 2}
    damaging = everything[-1]
    assert isinstance(damaging, ProbeWork)
    jobvm = JobVM.__new__(JobVM)
    happened: list[str] = []
    jobvm._booted, jobvm._unit, jobvm._broken = Booted(None, None, {}), "", None  # type: ignore[arg-type]
    jobvm._used = False

    def end() -> None:
        happened.append("end")
        jobvm._booted = None

    def start() -> None:
        happened.append("boot")
        jobvm._booted = Booted(None, None, {})  # type: ignore[arg-type]

    monkeypatch.setattr(jobvm, "_end", end)
    monkeypatch.setattr(jobvm, "_boot", start)
    jobvm._ready("", fresh=False, alone=True)
    assert happened == ["end", "boot"]


@pytest.mark.parametrize("destructive", [False, True])
def test_a_vm_ends_with_the_case_that_damages_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, destructive: bool
) -> None:
    """After any other quiet case it is used on."""
    closed: list[bool] = []
    plan = Plan(run_id="r", run_dir=str(tmp_path), seed=1, cases=(), jobs=(job(),))
    jobvm = JobVM(plan, plan.jobs[0], "main")
    monkeypatch.setattr(jobvm, "close", lambda: closed.append(True))
    unaltered = SimpleNamespace(hostlink=SimpleNamespace(actions=SimpleNamespace(altered=False)))
    booted = Booted(unaltered, None, {})  # type: ignore[arg-type]
    monkeypatch.setattr(Booted, "directory", tmp_path)
    monkeypatch.setattr(Booted, "splats", lambda self, name=None: ())
    jobvm._conclude(booted, attempt(destructive=destructive))
    assert closed == [True] * destructive


def test_finished_points_survive_a_crash() -> None:
    """Points a program had finished keep their outcomes; the program takes the blame."""
    points = (
        Judged(case="a", outcome=Outcome.PASS, reason=""),
        Judged(case="b", outcome=Outcome.FAIL, reason=""),
        Judged(case=WHOLE_PROGRAM, outcome=Outcome.LOST, reason="gone"),
    )
    judged = {j.case: j.outcome for j in _crashed(_Attempt("x", None, judged=points), "Oops")}
    assert judged == {"a": Outcome.PASS, "b": Outcome.FAIL, WHOLE_PROGRAM: Outcome.CRASH}


def test_rerun_is_one_line(tmp_path: Path) -> None:
    """Every bad result carries the command that reruns just it."""
    run_pytest(plan(tmp_path), "-q", "--tb=no")
    bad = [case for case in load(tmp_path).cases if case.outcome.is_bad]
    assert bad
    for case in bad:
        assert case.rerun.startswith("vfio-harness run --case probes/") or "kselftest" in case.rerun
        assert "\n" not in case.rerun


def test_jobs_are_values() -> None:
    """A Job cannot be changed behind a worker's back."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        job().cpus = 4  # type: ignore[misc]


class SilentGuest:
    """A guest that has stopped answering."""

    def check(self, command: str, deadline: Deadline) -> str:
        raise LostGuest("no answer")


class TalkingGuest:
    """A guest in which one program hangs."""

    def check(self, command: str, deadline: Deadline) -> str:
        return ""


@pytest.mark.parametrize(
    ("guest", "final", "outcome"),
    [
        (TalkingGuest(), False, Outcome.TIMEOUT),
        (TalkingGuest(), True, Outcome.TIMEOUT),
        (SilentGuest(), False, Outcome.LOST),
        (SilentGuest(), True, Outcome.TIMEOUT),
    ],
)
def test_a_guest_that_stands_still_is_blamed_on_the_second_time(
    tmp_path: Path, guest: object, final: bool, outcome: Outcome
) -> None:
    """Once may be the host's doing and is tried again; twice at the same work is the kernel's."""
    jobvm = JobVM.__new__(JobVM)
    jobvm.final, jobvm._factor = final, 1.0
    booted = Booted(vm=None, guest=guest, bdfs={})  # type: ignore[arg-type]
    assert jobvm._too_late(booted).outcome is outcome


@pytest.mark.parametrize(
    ("error", "final", "outcome"),
    [
        (LostGuest("gone"), False, Outcome.LOST),
        (LostGuest("gone"), True, Outcome.LOST),
        (StoodStill("still"), False, Outcome.LOST),
        (StoodStill("still"), True, Outcome.TIMEOUT),
    ],
)
def test_a_processor_that_sleeps_is_blamed_on_the_second_time(
    error: LostGuest, final: bool, outcome: Outcome
) -> None:
    """A guest that is gone is never blamed on the kernel, one that sleeps for good in two VMs is."""
    jobvm = JobVM.__new__(JobVM)
    jobvm.final = final
    booted = SimpleNamespace(cause_of_loss=lambda error: error.message)
    assert jobvm._gone(booted, error).outcome is outcome  # type: ignore[arg-type]


def vm_that_said(*lines: str) -> VM:
    console = SimpleNamespace(tail=lambda most: lines[-most:], wait_for=lambda *_: None)
    return SimpleNamespace(console=console, alive=False)  # type: ignore[return-value]


def test_excerpt_of_the_console_begins_with_the_work() -> None:
    """What the kernel said before is another's; where it said too much since, the end counts."""
    begin = "[ 1.0][ T1] vfio-harness: begin m/c"
    assert _excerpt(vm_that_said("before", begin, "after"), "m/c") == f"{begin}\nafter"
    assert _excerpt(vm_that_said("no", "word"), "m/c") == "no\nword"
    long = _excerpt(vm_that_said(begin, *map(str, range(99))), "m/c").splitlines()
    assert (len(long), long[-1]) == (60, "98")


MEETING = [work.case for work in work_of(job()) if isinstance(work, ProbeWork) and work.case.alongside][:3]
SPLAT = Splat(
    kind="warn", title="WARNING: x", lines=("WARNING: x",), offset=0, fatal=False, case=None, after="y"
)


def said_of(case: Case, words: str) -> KtapReport:
    return parse(["KTAP version 1", "1..1", words.format(case.address)])


@pytest.fixture(name="meet")
def _meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[dict[str, Done], list[str]]]:
    """Let cases come to given answers while the kernel says what it says; tell what became of the VM."""

    def meet(answers: Sequence[Answer], *said: Splat) -> tuple[dict[str, Done], list[str]]:
        plan = Plan(run_id="r", run_dir=str(tmp_path), seed=1, cases=(), jobs=(job(),))
        jobvm, happened = JobVM(plan, plan.jobs[0], "main"), list[str]()
        booted = Booted(vm_that_said(), None, {})  # type: ignore[arg-type]
        monkeypatch.setattr(Booted, "directory", tmp_path)
        monkeypatch.setattr(Booted, "splats", lambda self, name=None: said)
        monkeypatch.setattr(Booted, "diagnose", lambda self: None)
        monkeypatch.setattr(jobvm, "_ready", lambda unit, fresh: booted)
        monkeypatch.setattr(jobvm, "close", lambda: happened.append("closed"))
        monkeypatch.setattr("harness.plugin.jobvm.run_alongside", lambda dial, cases, **how: answers)
        done = jobvm.alongside(MEETING)
        happened.extend(splat.title for splat in jobvm.with_unheard(Done()).strays)
        return done, happened

    return meet


@pytest.mark.parametrize(
    ("spoilt", "said", "happened"),
    [("", [], []), ("dirty", [], ["closed"]), ("", [SPLAT], ["closed", "WARNING: x"])],
)
def test_what_the_kernel_says_of_several_is_blamed_on_none(
    meet: Callable[..., tuple[dict[str, Done], list[str]]],
    spoilt: str,
    said: Sequence[Splat],
    happened: Sequence[str],
) -> None:
    """They are tried one by one then, and the complaint is told with the next result, whoever's it is."""
    answers = [Answer(case, said_of(case, "ok 1 {}"), spoilt, None, ("ok",), 0.5) for case in MEETING]
    done, what = meet(answers, *said)
    assert [one.judged[0].outcome for one in done.values()] == ([] if said else [Outcome.PASS] * 3)
    assert what == happened


@pytest.mark.parametrize("outcome", [Outcome.LOST, Outcome.TIMEOUT])
def test_a_vm_ends_with_what_was_lost_or_hung_in_it(
    meet: Callable[..., tuple[dict[str, Done], list[str]]], outcome: Outcome
) -> None:
    """What was lost beside others is LOST, and thus tried again by itself; what did not begin is left out."""
    case = MEETING[0]
    report = said_of(case, "not ok 1 {} # TIMEOUT after 1s") if outcome is Outcome.TIMEOUT else None
    done, happened = meet([Answer(case, report, "it hangs", None if report else TimeoutError(), (), 0.5)])
    assert {address: one.judged[0].outcome for address, one in done.items()} == {case.address: outcome}
    assert happened == ["closed"]


def test_cases_of_a_suite_that_did_not_compile_may_be_asked_for() -> None:
    """That it did not is the answer; where it did, a case that is not there is a mistake."""
    built = job()
    broken = dataclasses.replace(built, kernel=dataclasses.replace(built.kernel, programs=()))
    asked = Plan(run_id="r", run_dir="/", seed=1, cases=("kselftest:vfio/vfio_dma*",), jobs=(broken,))
    check_cases(asked)
    with pytest.raises(UsageError, match="no case matches"):
        check_cases(dataclasses.replace(asked, jobs=(built,)))
    with pytest.raises(UsageError, match="no case matches"):
        check_cases(dataclasses.replace(asked, cases=("kselftest:iommu/*",)))
