# SPDX-License-Identifier: GPL-2.0-only
"""Programs that ran out of time while this host gave QEMU no CPU, whoever set the time limit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lab_fakes import Guest

from harness.base import host
from harness.base.cause import Cause
from harness.base.deadline import Deadline
from harness.base.errors import LostGuest
from harness.base.outcome import Outcome
from harness.lab import carry_out as under_test
from harness.lab import starved
from harness.machine.culprit import waits_for_emulator
from harness.machine.splatpolicy import policy
from harness.suites.judging import judge_program
from harness.suites.model import CaseResult, Script

# As tools/testing/selftests/kselftest_harness.h prints it: the second point is killed at its own time limit,
# and the third finds the device busy.
PRINTED = """TAP version 13
1..4
ok 1 one
# two: Test terminated by timeout
not ok 2 two
# open(/dev/vfio/1) failed: Device or resource busy
not ok 3 three
ok 4 four
""".splitlines()


class Clock:
    """A clock that shows 30 s more for each line, and how much of it QEMU had no CPU, and was not idle."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, share: float, busy: float = 0.5) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(starved, "starvation", lambda pid: lambda: self.now * share)
        monkeypatch.setattr(
            starved,
            "processor_use",
            lambda pid: lambda: (self.now * max(0.0, busy - share), self.now * share),
        )

    def lines(self, lines: list[str]) -> Iterator[str]:
        for line in lines:
            self.now += 30 if line.startswith(("ok", "not ok")) else 0
            yield line


def run(clock: Clock, monkeypatch: pytest.MonkeyPatch, lines: list[str], end: Exception | None = None) -> Any:
    """Run a program that prints *lines* and then ends with *end*; return name: outcome of its results."""

    def printed(deadline: Deadline) -> Iterator[str]:
        yield from clock.lines(lines)
        if end is not None:
            clock.now += 300
            raise end

    stream = SimpleNamespace(lines=printed, status=lambda deadline: 1)
    guest = SimpleNamespace(stream=lambda argv, deadline: stream, check=Guest([]).check)
    vm = SimpleNamespace(
        pid=1,
        patient=lambda deadline: deadline,
        machine=SimpleNamespace(selftests_dir=None),
        wait=lambda deadline: None,
        ending=None,
    )
    booted = SimpleNamespace(vm=vm, guest=guest, bdfs={}, diagnose=lambda: None, dump=lambda: None)
    suite = SimpleNamespace(
        how=lambda work, bdfs: Script("true"),
        judge=lambda work, report, status=None, cut=None: judge_program(report, status, cut),
    )
    monkeypatch.setattr(under_test, "suite_named", lambda name: suite)
    monkeypatch.setattr(under_test, "_known", lambda *arguments: None)
    work: Any = SimpleNamespace(case=None, suite="x", timeout=100.0)
    job = SimpleNamespace(features=())
    current: Any = SimpleNamespace(factor=1.0, job=job, service=lambda: Deadline.after(1.0))
    watch = starved.Stopwatch(1, 100.0)
    results, spoilt = under_test._run(current, booted, work, [], False, watch)  # type: ignore[arg-type]
    assert spoilt is (Outcome.LOST in {result.outcome for result in results} or end is not None)
    return {result.case: result for result in results}


def outcomes(results: dict[str, CaseResult]) -> str:
    return " ".join(result.outcome.value for result in results.values())


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.66, "PASS LOST LOST PASS"),
        (0.45, "PASS TIMEOUT FAIL PASS"),  # a guest that hangs waits so much beside load 23
        (0.0, "PASS TIMEOUT FAIL PASS"),
    ],
)
def test_programs_own_time_limit(share: float, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows a point that was killed without a CPU is no evidence; with one, all of it is."""
    results = run(Clock(monkeypatch, share), monkeypatch, PRINTED)
    assert outcomes(results) == expected
    if share > 0.5:
        assert results["two"].cause is results["three"].cause is Cause.HOST
        assert results["two"].reason == "timed out; this host had no CPU for QEMU for 20 of 30 s"
        assert "resource busy; after two, which ran out of time" in results["three"].reason


@pytest.mark.parametrize(
    ("share", "busy", "expected"),
    [
        (0.45, 1.0, "PASS LOST LOST PASS"),
        (0.45, 0.8, "PASS TIMEOUT FAIL PASS"),
        (0.2, 1.0, "PASS TIMEOUT FAIL PASS"),
    ],
)
def test_guest_that_was_never_idle_did_not_hang(
    share: float, busy: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To map 1 GiB takes an emulated guest 20 s; the program's own limit of 30 s knows of no load."""
    results = run(Clock(monkeypatch, share, busy), monkeypatch, PRINTED)
    assert outcomes(results) == expected
    if "LOST" in expected:
        assert results["two"].reason.endswith("had a CPU for QEMU for 16 of 30 s, in which it was never idle")


@pytest.mark.parametrize(
    ("share", "said", "expected"),
    [
        (0.66, "# late: the case had waited in vain", "LOST"),
        (0.45, "# late: the case had waited in vain", "FAIL"),
        (0.66, "# why: want 1, got 2", "FAIL"),
    ],
)
def test_probe_that_waited_in_vain(
    share: float, said: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt that did not come in time is lost only if QEMU had a CPU to deliver it."""
    lines = ["KTAP version 1", "1..1", said, "not ok 1 one"]
    assert outcomes(run(Clock(monkeypatch, share), monkeypatch, lines)) == expected


def test_an_earlier_failure_is_not_excused(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = [line.replace("ok 1 one", "not ok 1 one") for line in PRINTED]
    assert outcomes(run(Clock(monkeypatch, 0.9), monkeypatch, failed)) == "FAIL LOST LOST PASS"


@pytest.mark.parametrize(
    ("share", "end", "expected"),
    [
        (0.9, TimeoutError(), "PASS LOST LOST"),
        (0.1, TimeoutError(), "PASS ERROR TIMEOUT"),
        (0.1, LostGuest("gone", cause=Cause.NO_ANSWER), "PASS LOST LOST"),
    ],
)
def test_point_that_was_running_shares_the_fate_of_its_program(
    share: float, end: Exception, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A point that is an ERROR beside a lost program would be bad for good, whatever the retry shows."""
    lines = [*PRINTED[:3], "#  RUN           two ..."]
    assert outcomes(run(Clock(monkeypatch, share), monkeypatch, lines, end)) == expected


def test_point_of_a_program_whose_guest_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulator may have lost an interrupt."""
    monkeypatch.setattr(Guest, "check", lambda *arguments: (_ for _ in ()).throw(LostGuest("no answer")))
    lines = [*PRINTED[:3], "#  RUN           two ..."]
    assert outcomes(run(Clock(monkeypatch, 0.0), monkeypatch, lines, TimeoutError())) == "PASS LOST LOST"


def test_threads_wait_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may have waited longer before; a new one counts too."""
    told = {"1": [60.0, 61.0], "2": [5.0, 30.0], "3": [2.0]}
    shown = iter(["12", "123", ""])
    monkeypatch.setattr(Path, "iterdir", lambda _: map(Path, next(shown)))
    monkeypatch.setattr(host, "_schedstat", lambda task: (0.0, told[task.name].pop(0)))
    monkeypatch.setattr(host._OwnPulse, "missed", lambda _: 0.0)
    since = host.starvation(1)
    assert (since(), since()) == (25.0, 0.0)


@pytest.mark.parametrize(
    ("share", "stalled", "expected"), [(0.9, True, "LOST"), (0.9, False, "CRASH"), (0.4, True, "CRASH")]
)
def test_stall_of_a_guest_without_a_cpu(
    share: float, stalled: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lockup detector goes by the clock, too."""
    clock = Clock(monkeypatch, share)
    watch = starved.Stopwatch(1, 100.0)
    clock.now = 300.0
    crash = CaseResult(case="x", outcome=Outcome.CRASH, reason="the kernel said: soft lockup")
    (result,) = watch.excuse([crash], stalled=stalled)
    assert result.outcome.value == expected


def test_guest_that_waits_for_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hung task behind a vCPU that QEMU left waiting is no fault of the kernel; an oops there is."""
    console = """[  503.446208][    C1] NMI backtrace for cpu 1
[  503.447493][    C1] RIP: 0010:virtqueue_get_buf_ctx+0x17/0x4d0
[  503.454097][    C1] Call Trace:
[  503.455415][    C1]  __viommu_sync_req+0x66/0xe0
[  503.455546][    C1]  viommu_send_req_sync+0x60/0x80"""
    waits = waits_for_emulator(console)
    assert (waits, waits_for_emulator(console.replace("viommu", "other"))) == ("__viommu_sync_req", "")
    clock = Clock(monkeypatch, 0.1)
    watch = starved.Stopwatch(1, 100.0)
    clock.now = 300.0
    crash = CaseResult(case="x", outcome=Outcome.CRASH, reason="the kernel said: hung task")
    (hung,) = watch.excuse([crash], stalled=True, waits=waits)
    (oops,) = watch.excuse([crash], waits=waits)
    assert (hung.outcome, hung.cause, oops.outcome) == (Outcome.LOST, Cause.HOST, Outcome.CRASH)


def test_stalls_are_kinds_of_splats() -> None:
    assert set(starved.STALLS) <= {rule.kind for rule in policy().deny}
