# SPDX-License-Identifier: GPL-2.0-only
"""The engine without VMs: what it yields for a list of work, when it tries again, what it records."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from lab_fakes import FAILS, HANGS, PASSES, Host, fake_host, splat
from plan_jobs import job

from harness.base.cause import Cause
from harness.base.errors import BootCrash, HarnessError, KernelError, LostGuest
from harness.base.outcome import Outcome
from harness.lab import execute, starved
from harness.lab import lab as under_test
from harness.lab.attempt import Again, Attempt
from harness.lab.lab import Lab
from harness.lab.records import records
from harness.lab.retries import LOST_TRIES, LOST_VCPU_TRIES
from harness.lab.settings import Settings
from harness.machine.vm import Ending
from harness.plan import Isolation
from harness.results import BOOTS, QUIET, WHOLE_PROGRAM, Result, settle
from harness.suites.catalogue import work_of
from harness.suites.model import CaseResult, Work

JOB = job("edu", features=("edu", "noiommu", "noiommu-cdev", "cdev", "iommufd"))
SINGLE = [work for work in work_of(JOB) if work.refusal is None and work.case is not None]
FRESH = [work for work in SINGLE if work.fresh]
USUAL = [work for work in SINGLE if work.turn == 1]
DAMAGING = [dataclasses.replace(USUAL[0], case=name, destructive=True) for name in ("x", "y")]
WORK = USUAL[0]

LOST = LostGuest("gone", cause=Cause.NO_ANSWER)
LOST_VCPU = LostGuest("QEMU lost a vCPU", cause=Cause.LOST_VCPU)


@pytest.fixture(name="host")
def _host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return fake_host(monkeypatch)


def settings(**given: Any) -> Settings:
    return Settings(seed=1, **given)


def run(directory: Path, *work: Work, **given: Any) -> list[Attempt]:
    return list(execute(JOB, work, directory, settings=settings(**given)))


def outcomes(attempts: Sequence[Attempt]) -> list[str]:
    return [result.outcome.value for attempt in attempts for result in attempt.results]


def test_cases_share_a_vm(host: Host, tmp_path: Path) -> None:
    """One boot for work that no other work can disturb, and an Attempt for each."""
    attempts = run(tmp_path, *USUAL[:3])
    assert [attempt.work for attempt in attempts] == USUAL[:3]
    assert outcomes(attempts) == ["PASS"] * 3
    vm = f"{JOB.name}-main-1"
    assert host.happened == [f"boot {vm}", "agent", *(work.name for work in USUAL[:3]), "stop"]
    assert {attempt.vm_dir for attempt in attempts} == {f"vm/{vm}"}
    printed = (tmp_path / "vm" / vm / "cases" / f"{WORK.name.replace('/', '.')}.log").read_text()
    assert printed == f"ok 1 {WORK.name}\n"


def test_attempts_come_as_they_end(host: Host, tmp_path: Path) -> None:
    """A consumer that stops ends the VM."""
    attempts = execute(JOB, USUAL[:3], tmp_path, settings=settings())
    assert isinstance(attempts, Iterator)
    next(attempts)
    assert host.happened[-1] == WORK.name
    attempts.close()  # type: ignore[attr-defined]
    assert host.happened[-1] == "stop"


def test_vm_ends_with_what_damages_or_hangs_it(host: Host, tmp_path: Path) -> None:
    """Damage comes last and needs a VM in which nothing else has run."""
    everything = work_of(JOB)
    assert [work.turn for work in everything] == sorted(work.turn for work in everything)
    host.answers = [HANGS, PASSES, PASSES, PASSES]
    attempts = run(tmp_path, WORK, USUAL[1], *DAMAGING)
    assert outcomes(attempts) == ["TIMEOUT", "PASS", "PASS", "PASS"]
    assert [one for one in host.happened if one == "stop" or one.startswith("boot")] == [
        word for number in range(1, 5) for word in (f"boot {JOB.name}-main-{number}", "stop")
    ]
    assert host.happened.count("diagnose") == 1


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ((HANGS, PASSES), ["LOST", "PASS"]),
        ((HANGS, HANGS), ["LOST", "LOST"]),
        ((FAILS, FAILS), ["FAIL", "FAIL"]),
    ],
)
def test_time_that_ran_out_while_the_host_had_no_cpu(
    answers: tuple[str, ...], told: list[str], host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again, and never the kernel's fault.  A failure is one all the same."""
    monkeypatch.setattr(starved, "starvation", lambda _: lambda: WORK.timeout)
    monkeypatch.setattr(starved, "processor_use", lambda _: lambda: (0.0, WORK.timeout))
    host.answers = list(answers)
    attempts = run(tmp_path, WORK, confirm=told[0] == "FAIL")
    assert outcomes(attempts) == told
    lost = [one for attempt in attempts for one in attempt.results if one.outcome is Outcome.LOST]
    assert all(one.cause is Cause.HOST and "no CPU for QEMU" in one.reason for one in lost)


def test_a_guest_with_other_probes_says_nothing_about_the_kernel(host: Host, tmp_path: Path) -> None:
    """Its agent does not know the case when the harness was changed during the run."""
    host.answers = ["# refused: no case is called 'x'\nnot ok 1 {}"]
    host.silent = {WORK.name}
    (attempt,) = run(tmp_path, WORK, confirm=False)
    (result,) = attempt.results
    assert (result.outcome, result.cause) == (Outcome.NOT_RUN, Cause.HARNESS)
    assert "its agent refused: no case is called 'x'" in result.reason


def test_fresh_cases_share_a_vm_that_stays_fresh(host: Host, tmp_path: Path) -> None:
    fresh = [FRESH[0], dataclasses.replace(FRESH[0], case="another")]
    run(tmp_path, *fresh, WORK, fresh[0])
    boots = [one for one in host.happened if one.startswith("boot")]
    assert len(boots) == 2
    assert host.happened.index(boots[1]) > host.happened.index(WORK.name)


@pytest.mark.parametrize(("isolation", "boots"), [("vm", 1), ("program", 2), ("case", 3)])
def test_isolation(host: Host, tmp_path: Path, isolation: str, boots: int) -> None:
    other = next(work for work in USUAL if work.program != WORK.program)
    assert USUAL[1].program == WORK.program
    run(tmp_path, WORK, USUAL[1], other, isolation=Isolation(isolation))
    assert sum(one.startswith("boot") for one in host.happened) == boots


@pytest.mark.parametrize(
    ("script", "label"),
    [
        ("PASS", "PASS"),
        ("FAIL FAIL", "FAIL"),
        ("FAIL PASS", "FLAKY"),
        ("LOST PASS", "PASS"),
        ("LOST LOST", "LOST"),
        ("LOST FAIL PASS", "FLAKY"),
        ("FAIL LOST PASS", "FLAKY"),
        ("FAIL LOST FAIL", "FAIL"),
    ],
)
def test_attempts(host: Host, tmp_path: Path, script: str, label: str) -> None:
    """A lost guest gives another chance, a failure is confirmed once in a new VM, every attempt is kept."""
    words: dict[str, str | Exception] = {"PASS": PASSES, "FAIL": FAILS, "LOST": LOST}
    host.answers = [words[word] for word in script.split()]
    attempts = run(tmp_path, WORK, confirm=True)
    results = [result for attempt in attempts for result in records(attempt, JOB.name)]
    assert outcomes(attempts) == script.split()
    assert [result.attempt for result in results] == list(range(1, len(results) + 1))
    assert [settled.label for settled in settle(results)] == [label]
    assert [attempt.again is None for attempt in attempts] == [False] * (len(attempts) - 1) + [True]
    boots = sum(one.startswith("boot") for one in host.happened)
    assert boots == len(attempts)


def test_splat_is_confirmed_and_stays(host: Host, tmp_path: Path) -> None:
    host.splats = [splat(case=WORK.name)]
    crash, again = run(tmp_path, WORK, confirm=True)
    assert (crash.again, again.confirms) == (Again.CONFIRM, True)
    results = [*records(crash, JOB.name), *records(again, JOB.name)]
    assert [(one.outcome, one.splat) for one in results] == [
        (Outcome.CRASH, "WARNING: x"),
        (Outcome.PASS, ""),
    ]
    assert [settled.label for settled in settle(results)] == ["CRASH"]


def test_kernel_that_falls_silent_proves_nothing(host: Host, tmp_path: Path) -> None:
    """A case that turns the console off passes nowhere: it is LOST, and so is its VM."""
    host.silent = {WORK.name}
    attempts = run(tmp_path, WORK, USUAL[1])
    assert outcomes(attempts) == ["LOST", "LOST", "PASS"]
    assert [attempt.again for attempt in attempts] == [Again.LOST, None, None]
    assert attempts[0].results[0].cause is Cause.UNHEARD
    assert sum(word.startswith("boot") for word in host.happened) == 3


def test_splat_counts_in_a_kernel_that_falls_silent(host: Host, tmp_path: Path) -> None:
    """What was heard is not taken back."""
    host.silent, host.splats = {WORK.name}, [splat(WORK.name)]
    assert outcomes(run(tmp_path, WORK)) == ["CRASH"]


def test_lost_vcpu_costs_no_verdict(host: Host, tmp_path: Path) -> None:
    """QEMU may lose one at a long case twice; other losses have one more chance."""
    host.answers = [LOST_VCPU] * 3
    assert outcomes(run(tmp_path / "a", WORK)) == ["LOST", "LOST", "LOST", "PASS"]
    for error, tries in ((LOST_VCPU, LOST_VCPU_TRIES), (LOST, LOST_TRIES)):
        host.answers = [error] * tries
        attempts = run(tmp_path / str(tries), WORK)
        assert outcomes(attempts) == ["LOST"] * tries
        assert {attempt.results[0].cause for attempt in attempts} == {error.cause}


def test_failure_stands_where_nobody_asked_to_confirm_it(host: Host, tmp_path: Path) -> None:
    host.answers = [FAILS]
    (attempt,) = run(tmp_path, WORK)
    assert outcomes([attempt]) == ["FAIL"]
    assert "stop" in host.happened


def test_not_every_failure_is_confirmed(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that fails everywhere costs no second run of everything."""
    monkeypatch.setattr(under_test, "MOST_CONFIRMED", 2)
    host.answers = [FAILS] * 8
    lab = Lab(tmp_path, settings(confirm=True))
    assert [len(list(lab.perform(JOB, work))) for work in USUAL[:4]] == [2, 2, 1, 1]


def test_no_work_begins_after_the_deadline(host: Host, tmp_path: Path) -> None:
    """Work without a chance is NOT_RUN and says so."""
    (attempt,) = run(tmp_path, WORK, until=time.time() - 1)
    (result,) = attempt.results
    assert (result.outcome, result.cause) == (Outcome.NOT_RUN, Cause.DEADLINE)
    assert not host.happened
    assert outcomes(run(tmp_path, WORK, until=time.time() + 60)) == ["PASS"]


@pytest.mark.parametrize("answer", [FAILS, LOST])
def test_no_attempt_begins_after_the_deadline(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str | Exception
) -> None:
    """What failed or was lost just before it is neither confirmed nor tried again."""
    host.answers = [answer]
    until = time.time() + 60
    began = host.run

    def late(*arguments: Any) -> Any:
        monkeypatch.setattr(time, "time", lambda: until + 1)
        return began(*arguments)

    monkeypatch.setattr(host, "run", late)
    (attempt,) = run(tmp_path, WORK, until=until, confirm=True)
    assert attempt.results[0].outcome in (Outcome.FAIL, Outcome.LOST)


def test_refused_work_needs_no_vm(host: Host, tmp_path: Path) -> None:
    refused = next(work for work in work_of(JOB) if work.refusal)
    (attempt,) = run(tmp_path, refused)
    assert attempt.results == (
        CaseResult(
            case=WHOLE_PROGRAM, outcome=Outcome.SKIP, reason=refused.refusal or "", cause=Cause.NOT_APPLICABLE
        ),
    )
    assert not host.happened


@pytest.mark.parametrize(
    ("boots", "told", "outcome"),
    [
        ([], [], "PASS"),
        ([LOST], ["LOST", "PASS"], "PASS"),
        ([LOST, LOST], ["LOST"], "NOT_RUN"),
        ([BootCrash("died", splat="Oops")], ["CRASH", "PASS"], "PASS"),
        ([BootCrash("died", splat="Oops")] * 2, ["CRASH", "CRASH"], "NOT_RUN"),
        ([LOST, BootCrash("died", splat="Oops")], ["LOST", "CRASH"], "NOT_RUN"),
        ([KernelError("does not compile", cause=Cause.COMPILER)], [], "NOT_RUN"),
    ],
)
def test_boots(host: Host, tmp_path: Path, boots: list[HarnessError], told: list[str], outcome: str) -> None:
    """A boot that failed is tried once more and recorded; a kernel that does not compile is not tried."""
    host.boots = list(boots)
    first, second = run(tmp_path, *USUAL[:2])
    assert not host.boots
    assert outcomes(first.boots) == told
    assert [boot.number for boot in first.boots] == list(range(1, len(told) + 1))
    assert not second.boots
    assert outcomes([first, second]) == [outcome] * 2
    if outcome == "NOT_RUN":
        assert {one.results[0].cause for one in (first, second)} == {boots[-1].cause}


def test_records_of_boots(host: Host, tmp_path: Path) -> None:
    """Every boot is a result about the kernel, and the crash of one boot is not settled by the next."""
    host.boots = [BootCrash("died", splat="Oops")]
    (attempt,) = run(tmp_path, WORK)
    crash, boot, passed = records(attempt, JOB.name, "rerun")
    assert (crash.address, crash.outcome, crash.cause) == (BOOTS, Outcome.CRASH, Cause.BOOT_CRASH)
    assert (crash.splat, crash.rerun) == ("Oops", "rerun")
    assert (crash.vm_dir, boot.vm_dir) == (f"vm/{JOB.name}-main-1", f"vm/{JOB.name}-main-2")
    assert (boot.address, boot.outcome, passed.outcome) == (BOOTS, Outcome.PASS, Outcome.PASS)
    assert passed.rerun == f"rerun --case {WORK.address}"
    assert {one.label for one in settle([crash, boot, passed])} == {"CRASH", "PASS"}


@pytest.mark.parametrize("after", [None, "m/c"])
def test_records_of_splats_outside_any_case(host: Host, tmp_path: Path, after: str | None) -> None:
    """They are recorded with the next attempt; one of the boot names that as its cause."""
    host.splats = [splat(after=after)]
    attempt, second = run(tmp_path, *USUAL[:2])
    result = next(one for one in records(attempt, JOB.name) if one.address == QUIET)
    assert (result.outcome, result.cause) == (Outcome.CRASH, None if after else Cause.BOOT_CRASH)
    assert (result.splat, result.vm_dir) == ("WARNING: x", attempt.vm_dir)
    assert not second.strays
    assert attempt.vm_dir != second.vm_dir


def test_last_words_of_a_kernel(host: Host, tmp_path: Path) -> None:
    """A splat after the last case comes in an Attempt about no work."""
    attempts = execute(JOB, [WORK], tmp_path, settings=settings())
    next(attempts)
    host.splats = [splat(after=WORK.name)]
    (last,) = attempts
    assert last.work is None
    (result,) = records(last, JOB.name)
    assert (result.address, result.outcome, result.vm_dir) == (
        QUIET,
        Outcome.CRASH,
        f"vm/{JOB.name}-main-1",
    )


def test_last_words_beside_the_last_result(host: Host, tmp_path: Path) -> None:
    """What the kernel prints while the VM of a destructive case is stopped is no splat of the boot."""
    host.last_words = [splat(case=DAMAGING[0].name)]
    (attempt,) = run(tmp_path, DAMAGING[0])
    result = next(one for one in records(attempt, JOB.name) if one.address == QUIET)
    assert (result.outcome, result.cause) == (Outcome.CRASH, None)
    assert f"after {DAMAGING[0].name}" in result.reason


RESET = Ending(Cause.GUEST_RESET, "the guest reset itself")


@pytest.mark.parametrize("more", [(), (USUAL[1],)])
def test_a_guest_that_resets_itself_between_cases_is_told(
    host: Host, tmp_path: Path, more: tuple[Work, ...]
) -> None:
    """The next boot does not hide it, and it is no failed boot; nor does the end of the job hide it."""
    attempts = execute(JOB, [WORK, *more], tmp_path, settings=settings())
    first = next(attempts)
    host.ending = RESET
    (after,) = attempts
    said = [one for one in records(after, JOB.name) if one.address.suite == QUIET.suite]
    assert [(one.address, one.outcome, one.cause) for one in said] == [
        (QUIET, Outcome.LOST, Cause.GUEST_RESET)
    ]
    assert said[0].reason == f"the guest reset itself outside any case, after {WORK.name}"
    assert (said[0].vm_dir, outcomes([first])) == (first.vm_dir, ["PASS"])


@pytest.mark.parametrize("times", [1, 2])
def test_a_guest_that_resets_itself_after_the_verdict_is_lost(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Once is tried again, and each time is no pass."""
    run_case, left = host.run, [RESET] * times

    def resets(*given: Any) -> Any:
        host.ending = left.pop() if left else None
        return run_case(*given)

    monkeypatch.setattr(host, "run", resets)
    attempts = run(tmp_path, WORK)
    assert outcomes(attempts) == ["LOST", "PASS" if times == 1 else "LOST"]
    assert not any(attempt.boots for attempt in attempts)


def recorded(outcome: Outcome, console: str) -> Result:
    said = CaseResult(case=WHOLE_PROGRAM, outcome=outcome, reason="r", diagnostics=("its words",))
    (result,) = records(Attempt(work=WORK, results=(said,), console=console), JOB.name)
    return result


def test_bad_results_carry_the_console() -> None:
    """So that a report shows what the kernel said without the run's files; a pass is brief."""
    assert recorded(Outcome.TIMEOUT, "[ 1.0] x").log == "its words\n\nconsole:\n[ 1.0] x"
    assert recorded(Outcome.TIMEOUT, "").log == "its words"
    assert recorded(Outcome.PASS, "x").log == ""


def test_cases_that_were_not_reached_have_no_time_and_no_output() -> None:
    work = next(work for work in work_of(JOB) if work.case is None)
    results = (
        CaseResult(case="a", outcome=Outcome.CRASH),
        CaseResult(case="b", outcome=Outcome.NOT_RUN, cause=Cause.NOT_REACHED, stopped_by=Outcome.CRASH),
    )
    crash, absent = records(Attempt(work=work, results=results, seconds=4.0, printed="x"), JOB.name)
    assert (crash.duration, crash.log) == (4.0, "x")
    assert (absent.duration, absent.log, absent.stopped_by) == (0.0, "", Outcome.CRASH)
