# SPDX-License-Identifier: GPL-2.0-only
"""Runs become the status of a commit: only the bisected cases count, and the host's failures never do."""

from __future__ import annotations

import dataclasses

import pytest
from report_sample import RUN, SPLAT, result

from harness.base.cause import Cause
from harness.base.errors import ExitCode
from harness.bisect.state import (
    BisectRequest,
    BisectState,
    CommitRun,
    End,
    GitVerdict,
    Rules,
    Status,
    Step,
)
from harness.bisect.verdict import cases_that_differ, decide, outcome_status, read_run, usual_failures
from harness.results import JobRecord, Outcome, Result, Run

CASE = "probes/get_pa/refusals_come_in_order"
BOOTS, QUIET = "kernel/console/boots", "kernel/console/is_quiet_between_cases"

P, F, M, R = Status.PASSES, Status.FAILS, Status.MISSING, Status.INVALID
D, U, N = Status.NO_BOOT, Status.NO_BUILD, Status.UNTESTED


def run(*results: Result, job: JobRecord | None = None) -> Run:
    return dataclasses.replace(RUN, jobs=(job or JobRecord(name="j"),), results=results)


OUTCOMES = {
    Outcome.PASS: P,
    Outcome.XPASS: P,
    Outcome.FAIL: F,
    Outcome.XFAIL: F,
    Outcome.ERROR: F,
    Outcome.TIMEOUT: F,
    Outcome.CRASH: F,
    Outcome.SKIP: M,
    Outcome.LOST: N,
    Outcome.NOT_RUN: N,
}


@pytest.mark.parametrize("outcome", Outcome)
def test_outcomes(outcome: Outcome) -> None:
    """Every outcome has a status: a known issue fails, a skip does not apply, a lost guest shows nothing."""
    shown = read_run(run(result(CASE, outcome)))
    assert shown.status is outcome_status(outcome) is OUTCOMES[outcome]
    assert shown.cases == {CASE: shown.status}
    assert CASE in shown.why


@pytest.mark.parametrize(("again", "status"), [(Outcome.PASS, P), (Outcome.FAIL, F)])
def test_failure_that_does_not_repeat_passes(again: Outcome, status: Status) -> None:
    """With --confirm, as mutate has it."""
    confirming = dataclasses.replace(result(CASE, again), confirms=True)
    read = read_run(run(result(CASE, Outcome.FAIL, reason="3 != 4"), confirming))
    assert (read.status, read.cases) == (status, {CASE: status})
    assert read.flaky == (f"{CASE} FLAKY: 3 != 4" if status is P else "")
    assert bool(read.bad) is (status is F)


def test_only_the_given_cases_count() -> None:
    """A failure of another case does not count."""
    made = run(result(CASE, Outcome.PASS), result("probes/x/y", Outcome.FAIL))
    assert read_run(made, cases=[CASE]).status is P
    assert read_run(made).status is F


def test_run_on_several_topologies_names_them() -> None:
    """A case that passes on one and fails on another keeps both; a failure decides."""
    jobs = (JobRecord(name="7.3-a", topology="edu"), JobRecord(name="7.3-b", topology="mixed"))
    results = (result(CASE, Outcome.PASS, job="7.3-a"), result(CASE, Outcome.FAIL, job="7.3-b"))
    read = read_run(dataclasses.replace(RUN, jobs=jobs, results=results), cases=[CASE])
    assert read.cases == {f"edu {CASE}": P, f"mixed {CASE}": F}
    assert read.status is F
    assert read.why.startswith(f"mixed: {CASE} FAIL")


def test_selftests_that_do_not_compile_show_nothing() -> None:
    """A build failure of the selftests counts only when it is bisected itself."""
    compiles = "kselftest:vfio/build/compiles"
    broken = run(result(compiles, Outcome.ERROR))
    assert read_run(broken).status is M
    assert read_run(run(result(compiles, Outcome.XFAIL), result(CASE, Outcome.PASS))).status is P
    assert read_run(broken, cases=[compiles]).status is F


def test_a_lost_guest_outweighs_a_pass() -> None:
    """A run with a lost case shows nothing: that case might have failed."""
    made = run(result(CASE, Outcome.PASS), result("probes/x/y", Outcome.LOST))
    assert read_run(made).status is N


def test_program_that_ends_early_fails_its_points() -> None:
    """A selftest that ends early fails the test points it did not report, unless its guest was lost."""
    program = "kselftest:vfio/vfio_pci_device_test@edu0"
    point = f"{program}/a.b"
    died = run(
        result(f"{program}/(program)", Outcome.ERROR, reason="no result at all"),
        result(point, Outcome.NOT_RUN, cause=Cause.NOT_REACHED, stopped_by=Outcome.ERROR),
    )
    assert read_run(died, cases=[point]).status is F
    lost = run(
        result(f"{program}/(program)", Outcome.LOST),
        result(point, Outcome.NOT_RUN, cause=Cause.NOT_REACHED, stopped_by=Outcome.LOST),
    )
    assert read_run(lost, cases=[point]).status is N


@pytest.mark.parametrize("outcome", [Outcome.ERROR, Outcome.NOT_RUN])
def test_a_point_that_vanished_fails(outcome: Outcome) -> None:
    """A test point that its program does not report fails."""
    point = "kselftest:vfio/vfio_pci_device_test@edu0/a.b"
    vanished = result(point, outcome, cause=Cause.VANISHED)
    assert read_run(run(vanished), cases=[point]).status is F


@pytest.mark.parametrize("case", ["(program)", "a.b"])
@pytest.mark.parametrize("outcome", [Outcome.ERROR, Outcome.FAIL, Outcome.XPASS, Outcome.XFAIL])
def test_pieces_of_work_that_fail(case: str, outcome: Outcome) -> None:
    """A program fails as a whole, a probe alone; a documented failure of a point ends no run."""
    program = "kselftest:vfio/vfio_pci_device_test@edu0"
    read = read_run(run(result(f"{program}/x.y", Outcome.PASS), result(f"{program}/{case}", outcome)))
    assert read.bad == (() if (case, outcome) == ("a.b", Outcome.XFAIL) else (program,))
    assert read_run(run(result(CASE, Outcome.FAIL), result("probes/x/y", Outcome.PASS))).bad == (CASE,)


def test_what_the_kernel_says_outside_of_cases() -> None:
    """Whatever else fails; not while booting, which counts for no case."""
    failed = result(CASE, Outcome.FAIL)
    assert "Kernel panic" in read_run(run(failed, crash(QUIET))).outside
    assert read_run(run(failed, crash(QUIET, Cause.BOOT_CRASH))).outside == ""


def test_failures_of_one_kind() -> None:
    """Two failures are of one kind when only numbers differ; a splat goes by its trace, XFAIL by nothing."""

    def kind(outcome: Outcome, reason: str, splat: str = "") -> str:
        return read_run(run(result(CASE, outcome, reason=reason, splat=splat))).failure

    assert kind(Outcome.FAIL, "want 3, got 0x17") == kind(Outcome.FAIL, "want 4, got 0x18")
    assert kind(Outcome.FAIL, "want ENOENT") != kind(Outcome.FAIL, "want EIO")
    assert kind(Outcome.CRASH, "pid 49", SPLAT) == kind(Outcome.CRASH, "said so", SPLAT)
    assert kind(Outcome.XFAIL, "documented") == kind(Outcome.PASS, "") == ""


def crash(address: str, cause: Cause | None = None) -> Result:
    return result(address, Outcome.CRASH, reason="Kernel panic", splat=SPLAT, cause=cause)


def test_crash_while_booting_is_no_failure_of_the_case() -> None:
    """A kernel that crashes before its guest is up does not boot."""
    made = run(crash(BOOTS, Cause.BOOT_CRASH), result(CASE, Outcome.NOT_RUN, cause=Cause.BOOT_CRASH))
    assert read_run(made, cases=[CASE]).status is D
    assert read_run(made, boot=True).status is D


@pytest.mark.parametrize("outcome", [Outcome.LOST, Outcome.PASS])
def test_boot_that_was_tried_again_is_no_crash(outcome: Outcome) -> None:
    """A boot that came up later counts as one, and shows nothing about a case that does not apply."""
    boot = result(BOOTS, outcome, reason="the guest did not boot in time", cause=Cause.NO_BOOT)
    assert read_run(run(boot, result(CASE, Outcome.PASS)), boot=True).status is P
    assert read_run(run(boot, result(CASE, Outcome.FAIL)), cases=[CASE]).status is F
    assert read_run(run(boot, result(CASE, Outcome.SKIP)), cases=[CASE]).status is M


def test_splat_while_booting_counts_for_the_boot_only() -> None:
    """A warning before the guest is up is bad with boot, and does not count for a case."""
    made = run(result(CASE, Outcome.PASS), crash(QUIET, Cause.BOOT_CRASH))
    assert read_run(made, boot=True).status is D
    assert read_run(made, cases=[CASE]).status is P


def test_splat_after_the_case_is_the_cases() -> None:
    """A warning after the case counts for it: nothing else ran."""
    made = run(result(CASE, Outcome.PASS), crash(QUIET))
    assert read_run(made, cases=[CASE]).status is F
    assert read_run(made, boot=True).status is P


@pytest.mark.parametrize(
    ("cause", "silent"),
    [
        (Cause.NO_BOOT, True),
        (Cause.NO_SSH, True),
        (Cause.NO_AGENT, True),
        (Cause.TIMED_OUT, True),
        (Cause.PANICKED, True),
        (Cause.GUEST_RESET, True),
        (Cause.GUEST_OFF, True),
        (Cause.QEMU_DIED, False),
        (Cause.WRONG_GUEST, False),
        (Cause.DEADLINE, False),
        (None, False),
    ],
)
def test_silent_guest(cause: Cause | None, silent: bool) -> None:
    """A VM that ran without a guest is known by the cause; it decides nothing by itself."""
    boot = result(BOOTS, Outcome.LOST, cause=cause)
    shown = read_run(run(boot, result(CASE, Outcome.NOT_RUN, cause=cause)), boot=True)
    assert (shown.status, shown.silent) == (N, silent)
    lost = read_run(run(result(CASE, Outcome.LOST, cause=cause)), boot=True)
    assert (lost.status, lost.silent) == (N, False)


def test_failing_case_says_nothing_about_the_boot() -> None:
    """With boot, a kernel on which a case ran boots."""
    assert read_run(run(result(CASE, Outcome.FAIL)), boot=True).status is P
    assert read_run(run(result(CASE, Outcome.NOT_RUN)), boot=True).status is N


@pytest.mark.parametrize(
    ("code", "applicable", "status"),
    [(ExitCode.KERNEL, True, U), (ExitCode.KERNEL, False, M), (ExitCode.INFRA, True, N)],
)
def test_no_kernel(code: ExitCode, applicable: bool, status: Status) -> None:
    """A job without a kernel has its problem as the reason, and the host's problem shows nothing."""
    job = JobRecord(name="j", problem="because", problem_code=code, applicable=applicable)
    shown = read_run(run(job=job))
    assert (shown.status, shown.why) == (status, "because")


def step(*statuses: Status) -> Step:
    runs = tuple(CommitRun(status=status, why=status.value) for status in statuses)
    return Step(commit="c", subject="s", runs=runs)


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        ((), None),
        ((P,), P),
        ((F,), None),
        ((F, F), F),
        ((F, P), None),
        ((F, P, F), F),
        ((F, P, P), P),
        ((U,), U),
        ((M,), M),
        ((R,), R),
        ((D,), D),
        ((N,), None),
        ((N, P), P),
        ((N, F), None),
        ((N, F, F), F),
        ((F, N), None),
        ((F, N, N), N),
        ((N, N), N),
    ],
    ids=lambda value: "-".join(s.name for s in value) if isinstance(value, tuple) else str(value),
)
def test_decision(statuses: tuple[Status, ...], status: Status | None) -> None:
    """A failure needs a second VM, two that disagree a third; an untested run is never a failure."""
    decided = decide(step(*statuses), Rules())
    assert (decided.status if decided else None) is status


def test_disagreement_is_flaky() -> None:
    """The majority decides, and the reason has the numbers."""
    decided = decide(step(F, P, F), Rules())
    assert decided is not None
    assert decided.flaky
    assert "2 of 3 VMs failed" in decided.why


@pytest.mark.parametrize(
    ("kinds", "status"),
    [
        ("s", None),
        ("ss", None),
        ("sss", F),
        ("su", None),
        ("suu", F),
        ("sp", None),
        ("ssp", P),
        ("spp", P),
        ("uu", F),
        ("usp", N),
    ],
)
def test_another_failure_is_no_proof(kinds: str, status: Status | None) -> None:
    """A (s)trange failure, unlike the (u)sual one, counts only when no VM passes."""
    failures = {"s": "strange", "u": "usual"}
    runs = tuple(CommitRun(status=P if k == "p" else F, why=k, failure=failures.get(k, "")) for k in kinds)
    decided = decide(Step(commit="c", subject="s", runs=runs), Rules(), usual={"usual"})
    assert (decided.status if decided else None) is status


def state_at(failing: CommitRun, cases: tuple[str, ...], *, find_fix: bool = False) -> BisectState:
    shown = Step(commit="c", subject="s", status=F, runs=(failing,))
    ends = {"old_end" if find_fix else "new_end": shown}
    end = End(name="v1", commit="c")
    request = BisectRequest(repository="r", root="r", old=end, new=end)
    return BisectState(id="b", request=request, rules=Rules(find_fix=find_fix), cases=cases, **ends)  # type: ignore[arg-type]


@pytest.mark.parametrize("find_fix", [False, True])
def test_only_failures_of_the_chosen_cases_are_usual(find_fix: bool) -> None:
    """What failed at both ends says nothing about the cases of the steps, however early it failed."""
    before = result("probes/a/broken", Outcome.FAIL, reason="old")
    known = result("probes/a/known", Outcome.XFAIL, reason="listed")
    mine = result(CASE, Outcome.FAIL, reason="new")
    whole = result("probes/get_pa/(program)", Outcome.ERROR, reason="died")
    end = read_run(run(before, known, mine, whole, crash(QUIET)))
    assert end.failure == "FAIL old"
    usual = usual_failures(state_at(end, (CASE,), find_fix=find_fix))
    assert usual == {end.failures[name] for name in (CASE, "probes/get_pa/(program)", QUIET)}
    assert "FAIL new" in usual
    assert not usual_failures(state_at(read_run(run(before, known)), ("probes/a/known",)))
    assert usual_failures(state_at(end, ())) == {*end.failures.values()} - {""}


def test_a_failing_boot_is_usual() -> None:
    """It has no case; neither has a state of an older harness."""
    end = read_run(run(crash(BOOTS, Cause.BOOT_CRASH)), boot=True)
    assert usual_failures(state_at(end, ())) == {end.failure}


def test_draw_decides_nothing() -> None:
    """An even number of VMs can end in a draw: then the commit is skipped."""
    decided = decide(step(F, P), Rules(repeat=2))
    assert decided is not None
    assert (decided.status, decided.flaky) == (N, True)
    assert decide(step(F, P, F, P), Rules(repeat=5)) is None


def test_wary_needs_two_passes() -> None:
    """After VMs disagreed, one pass is not enough."""
    assert decide(step(P), Rules(), wary=True) is None
    assert decide(step(P, P), Rules(), wary=True) is not None


@pytest.mark.parametrize(
    ("rules", "status", "verdict"),
    [
        (Rules(), P, GitVerdict.OLD),
        (Rules(), F, GitVerdict.NEW),
        (Rules(), M, GitVerdict.SKIP),
        (Rules(), D, GitVerdict.SKIP),
        (Rules(), U, GitVerdict.SKIP),
        (Rules(), N, GitVerdict.SKIP),
        (Rules(boot=True), D, GitVerdict.NEW),
        (Rules(missing_fails=True), M, GitVerdict.NEW),
        (Rules(missing_fails=True), R, GitVerdict.SKIP),
        (Rules(find_fix=True), P, GitVerdict.NEW),
        (Rules(find_fix=True), F, GitVerdict.OLD),
        (Rules(find_fix=True), M, GitVerdict.SKIP),
        (Rules(find_fix=True, missing_fails=True), M, GitVerdict.OLD),
        (Rules(find_fix=True, boot=True), D, GitVerdict.OLD),
    ],
)
def test_verdict(rules: Rules, status: Status, verdict: GitVerdict) -> None:
    """Only the bisected failure is bad; commits that do not build, boot or apply are skipped."""
    assert rules.verdict(status) is verdict


def test_no_boot_is_confirmed_only_with_boot() -> None:
    """A kernel that does not boot is skipped after one run, except with boot."""
    assert decide(step(D), Rules(boot=True)) is None
    assert decide(step(D, D), Rules(boot=True)) is not None


def commit_run(status: Status, **cases: Status) -> CommitRun:
    return CommitRun(status=status, why="", cases=cases)


def test_cases_that_differ() -> None:
    """A case is bisected that passes at the passing end and fails at the other."""
    good, bad = commit_run(F, a=P, b=P, c=F), commit_run(F, a=P, b=F, c=F)
    assert cases_that_differ(good, bad) == ("b",)


def test_cases_that_differ_when_one_end_lacks_them() -> None:
    """When the variant or the cases do not apply at one end, all that pass at the other are bisected."""
    assert cases_that_differ(commit_run(P, a=P, b=F), commit_run(M)) == ("a",)
    assert cases_that_differ(commit_run(P, a=P), commit_run(M, a=M)) == ("a",)
    assert cases_that_differ(commit_run(P, a=P), commit_run(P, a=P)) == ()
