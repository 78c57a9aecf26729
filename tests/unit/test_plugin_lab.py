# SPDX-License-Identifier: GPL-2.0-only
"""How often a Lab tries a piece of work, and what comes of the attempts together."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from plan_jobs import job

from guest.case import Case
from harness.errors import BootCrash, InfraError, KernelError, LostGuest
from harness.plan import Isolation, Plan
from harness.plugin import lab
from harness.plugin.done import Done, FalseStart
from harness.plugin.jobvm import JobVM
from harness.plugin.lab import Lab
from harness.plugin.spool import Spool
from harness.results import BOOTS, WHOLE_PROGRAM, Address, Outcome, Result, settle
from harness.suites.catalogue import ProbeWork, Work, work_of
from harness.suites.judging import Judged

JOB = job("edu", features=("edu", "noiommu", "noiommu-cdev", "cdev", "iommufd"))
WORK = next(work for work in work_of(JOB) if work.refusal is None)


@pytest.fixture(autouse=True, name="spooled")
def _spooled(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What the labs of a test write down before they go on, each time."""
    spooled: dict[str, list[str]] = {}

    def keep(self: Spool, work: Work, results: Sequence[Result]) -> None:
        spooled.setdefault(work.address, []).append(" ".join(result.outcome.value for result in results))

    monkeypatch.setattr(Spool, "keep", keep)
    return spooled


class Scripted(Lab):
    """A Lab whose work comes to what it is told, attempt by attempt."""

    def __init__(self, *outcomes: Outcome, **plan: Any) -> None:
        super().__init__(Plan(run_id="r", run_dir="/", seed=1, cases=(), jobs=(JOB,), **plan), "main")
        self._outcomes = list(outcomes)
        self.renewed = 0
        self.done = Done()
        self._jobvm = SimpleNamespace(renew=self._renew)  # type: ignore[assignment]

    def _renew(self) -> None:
        self.renewed += 1

    def _try(self, work: Work, *, final: bool) -> tuple[Done, Sequence[Result]]:
        address = Address.parse(work.address)
        return self.done, [Result(address=address, job=work.job, outcome=self._outcomes.pop(0))]


@pytest.mark.parametrize(
    ("script", "label"),
    [
        ("PASS", "PASS"),
        ("FAIL FAIL", "FAIL"),
        ("FAIL PASS", "FLAKY"),
        ("CRASH PASS", "CRASH"),
        ("LOST PASS", "PASS"),
        ("LOST LOST", "LOST"),
        ("LOST FAIL PASS", "FLAKY"),
        ("FAIL LOST PASS", "FLAKY"),
        ("FAIL LOST FAIL", "FAIL"),
    ],
)
def test_attempts(script: str, label: str) -> None:
    """A lost guest gives another chance, a failure is confirmed once, and every attempt is kept."""
    one = Scripted(*map(Outcome, script.split()), confirm=True)
    results = one.perform(WORK)
    assert [result.outcome.value for result in results] == script.split()
    assert [result.attempt for result in results] == list(range(1, len(results) + 1))
    assert [settled.label for settled in settle(results)] == [label]
    assert one.renewed == (1 if "FAIL" in script or "CRASH" in script else 0)


def test_processor_that_qemu_lost_costs_no_verdict() -> None:
    """It may lose one at a long case twice; what else is lost has one more chance."""
    one = Scripted(*map(Outcome, ["LOST", "LOST", "LOST", "PASS"]))
    one.done = Done(lost_processor=True)
    assert settle(one.perform(WORK))[0].outcome is Outcome.PASS
    for done, tries in ((Done(lost_processor=True), 4), (Done(), 2)):
        one = Scripted(*[Outcome.LOST] * 9)
        one.done = done
        assert len(one.perform(WORK)) == tries


def test_what_is_tried_again_is_written_down_before(spooled: dict[str, list[str]]) -> None:
    """A worker may be killed in the middle of the next attempt."""
    Scripted(*map(Outcome, ["LOST", "FAIL", "PASS"]), confirm=True).perform(WORK)
    assert spooled == {WORK.address: ["LOST", "LOST FAIL"]}


def test_failure_stands_where_nobody_asked_to_confirm_it() -> None:
    one = Scripted(Outcome.FAIL)
    (result,) = settle(one.perform(WORK))
    assert result.label == "FAIL"
    assert not one.renewed


def test_not_every_failure_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that fails everywhere costs no second run of everything."""
    monkeypatch.setattr(lab, "MOST_CONFIRMED", 2)
    one = Scripted(*[Outcome.FAIL] * 8, confirm=True)
    assert [len(one.perform(WORK)) for _ in range(4)] == [2, 2, 1, 1]


def test_no_work_begins_after_the_deadline() -> None:
    """What had no chance any more says so."""
    one = Scripted(until=time.time() - 1)
    (result,) = one.perform(WORK)
    assert result.outcome is Outcome.NOT_RUN
    assert "the deadline" in result.reason
    assert Scripted(Outcome.PASS, until=time.time() + 60).perform(WORK)[0].outcome is Outcome.PASS


def test_no_attempt_begins_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed or was lost just before it is neither confirmed nor tried again, and stays what it was."""
    for outcome in (Outcome.FAIL, Outcome.LOST):
        one = Scripted(outcome, until=time.time() + 60, confirm=True)
        attempt = one._try

        def late(work: Work, *, final: bool, attempt: Any = attempt) -> tuple[Done, Sequence[Result]]:
            monkeypatch.setattr(time, "time", lambda: 1e12)
            return attempt(work, final=final)  # type: ignore[no-any-return]

        monkeypatch.setattr(one, "_try", late)
        assert [result.outcome for result in one.perform(WORK)] == [outcome]
        monkeypatch.undo()


def test_no_boot_is_tried_again_untold() -> None:
    """Every VM that did not come up is an attempt at booting; the one that did settles it."""
    one = Scripted(Outcome.PASS, Outcome.PASS)
    starts = (FalseStart("no SSH answer", "vm/a-1"),)
    one.done = Done(false_starts=starts, vm_dir="vm/a-2", judged=done(Outcome.PASS).judged)
    told = [result for _ in range(2) for result in one.perform(WORK) if result.address == BOOTS]
    assert [(result.outcome, result.attempt) for result in told] == [
        (Outcome.LOST, 1),
        (Outcome.PASS, 2),
        (Outcome.LOST, 3),
        (Outcome.PASS, 4),
    ]
    assert (told[0].reason, told[0].vm_dir, told[1].vm_dir) == ("no SSH answer", "vm/a-1", "vm/a-2")
    assert [settled.label for settled in settle(told)] == ["PASS"]


@pytest.mark.parametrize(
    ("script", "started", "told"),
    [
        ([], True, []),
        ([LostGuest("once")], True, ["once"]),
        ([LostGuest("once"), LostGuest("twice")], False, ["once"]),
        ([BootCrash("once", splat="Oops")], True, ["once"]),
        ([BootCrash("once", splat="Oops"), BootCrash("twice", splat="Oops")], False, ["once"]),
        ([KernelError("does not compile")], False, []),
    ],
)
def test_vm_that_does_not_come_up_is_tried_once_more(
    script: list[InfraError | KernelError], started: bool, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host may have been busy, and a kernel may die at one boot of many; one that does not compile had
    its chance."""
    jobvm = JobVM(Plan(run_id="r", run_dir="/", seed=1, cases=(), jobs=(JOB,)), JOB, "main")
    left = list(script)

    def boot() -> None:
        jobvm._newest = "vm/a"
        if left:
            raise left.pop(0)
        jobvm._booted = SimpleNamespace()  # type: ignore[assignment]

    monkeypatch.setattr(jobvm, "_boot", boot)
    if started:
        jobvm._ready("", fresh=False)
    else:
        with pytest.raises(type(script[-1])):
            jobvm._ready("", fresh=False)
    assert [start.reason for start in jobvm.with_unheard(Done()).false_starts] == told
    assert not left


class NeverUp:
    """A JobVM whose VMs do not come up."""

    final = True

    def __init__(self, error: InfraError | KernelError) -> None:
        self._error = error
        self._untold = [FalseStart("no SSH answer", "vm/a-1")]

    def probe(self, case: Case) -> Done:
        raise self._error

    def with_unheard(self, done: Done) -> Done:
        told, self._untold = tuple(self._untold), []
        return dataclasses.replace(done, false_starts=told)


def test_boots_that_all_failed_are_told() -> None:
    """Every VM that was tried is an attempt; that the kernel died is said once for the job."""
    one = Lab(Plan(run_id="r", run_dir="/", seed=1, cases=(), jobs=(JOB,)), "main")
    one._job, one._jobvm = JOB.name, NeverUp(BootCrash("it died", splat="Oops"))  # type: ignore[assignment]
    first, again = one.perform(WORK), one.perform(WORK)
    assert [(result.address == BOOTS, result.outcome) for result in first] == [
        (True, Outcome.LOST), (True, Outcome.CRASH), (False, Outcome.NOT_RUN),
    ]  # fmt: skip
    assert [result.outcome for result in again] == [Outcome.NOT_RUN]


def test_kernel_that_died_at_one_boot_of_two_is_no_good_kernel() -> None:
    """Its cases are tried, and the crash stays one."""
    one = Scripted(Outcome.PASS)
    one.done = Done(false_starts=(FalseStart("it died", "vm/a-1", "Oops"),), judged=done(Outcome.PASS).judged)
    crash, *rest = one.perform(WORK)
    assert (crash.address, crash.outcome, crash.splat, crash.rerun) == (
        BOOTS,
        Outcome.CRASH,
        "Oops",
        JOB.rerun,
    )
    assert [result.outcome for result in rest] == [Outcome.PASS, Outcome.PASS]
    assert {settled.label for settled in settle([crash, *rest])} == {"CRASH", "PASS"}


class Company:
    """A JobVM that notes who ran with whom."""

    def __init__(self, alongside: Outcome = Outcome.PASS) -> None:
        self.calls: list[list[str]] = []
        self._outcome = alongside

    def alongside(self, cases: Sequence[Case]) -> dict[str, Done]:
        self.calls.append([case.address for case in cases])
        return {case.address: done(self._outcome) for case in cases[:-1]}

    def with_unheard(self, done: Done) -> Done:
        return done

    def probe(self, case: Case) -> Done:
        self.calls.append([case.address])
        return done(Outcome.PASS)

    def renew(self) -> None:
        self.calls.append(["renew"])


def done(outcome: Outcome) -> Done:
    return Done(judged=(Judged(case=WHOLE_PROGRAM, outcome=outcome, reason="r"),))


MEETING = [
    work for work in work_of(JOB) if isinstance(work, ProbeWork) and work.case.alongside and not work.refusal
]
ADDRESSES = [work.case.address for work in MEETING]


def meeting(vm: Company, *, expected: Sequence[Work] = MEETING, **plan: Any) -> Lab:
    one = Lab(Plan(run_id="r", run_dir="/", seed=1, cases=(), jobs=(JOB,), confirm=True, **plan), "main")
    one._job, one._jobvm = JOB.name, vm  # type: ignore[assignment]
    one.expect(expected)
    return one


def test_cases_that_may_run_at_the_same_time_run_once() -> None:
    """All of them when the first is asked for; the one that had no answer then runs by itself."""
    vm = Company()
    one = meeting(vm, expected=[WORK, *MEETING])
    for work in MEETING:
        (result,) = one.perform(work)
        assert (result.outcome, str(result.address)) == (Outcome.PASS, work.address)
    assert vm.calls == [ADDRESSES, ADDRESSES[-1:]]


def test_what_ran_at_the_same_time_is_written_down_at_once(spooled: dict[str, list[str]]) -> None:
    meeting(Company()).perform(MEETING[0])
    assert spooled == {work.address: ["PASS"] for work in MEETING[:-1]}


def test_what_has_run_is_told_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of them may have been asked for just before it."""
    vm = Company()
    one = meeting(vm, until=time.time() + 60)
    one.perform(MEETING[0])
    monkeypatch.setattr(time, "time", lambda: 1e12)
    assert [one.perform(work)[0].outcome for work in MEETING[1:-1]] == [Outcome.PASS] * (len(MEETING) - 2)
    assert one.perform(MEETING[-1])[0].outcome is Outcome.NOT_RUN
    assert vm.calls == [ADDRESSES]


def test_what_fails_at_the_same_time_as_others_is_confirmed_by_itself() -> None:
    """And is flaky when it passes there."""
    vm = Company(Outcome.FAIL)
    results = meeting(vm).perform(MEETING[0])
    assert [result.outcome for result in results] == [Outcome.FAIL, Outcome.PASS]
    assert vm.calls == [ADDRESSES, ["renew"], ADDRESSES[:1]]
    assert [settled.label for settled in settle(results)] == ["FLAKY"]


@pytest.mark.parametrize(("expected", "isolation"), [(MEETING[:1], Isolation.VM), (MEETING, Isolation.CASE)])
def test_nothing_runs_beside_what_is_alone(expected: Sequence[Work], isolation: Isolation) -> None:
    """One case asked for, or a VM asked for each."""
    vm = Company()
    meeting(vm, expected=expected, isolation=isolation).perform(MEETING[0])
    assert vm.calls == [ADDRESSES[:1]]


def test_what_is_wrong_comes_with_its_console() -> None:
    """So that a report shows what the kernel said without the run's files; what passed is brief."""
    one = meeting(Company())
    said = Judged(case=WHOLE_PROGRAM, outcome=Outcome.TIMEOUT, reason="r", diagnostics=("its words",))
    bad = one._result(WORK, said, Done(console="[ 1.0] sysrq: Show Blocked State"))
    assert bad.log == "its words\n\nconsole:\n[ 1.0] sysrq: Show Blocked State"
    assert one._result(WORK, said, Done()).log == "its words"
    good = dataclasses.replace(said, outcome=Outcome.PASS)
    assert one._result(WORK, good, Done(console="x")).log == ""
