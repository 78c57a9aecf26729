# SPDX-License-Identifier: GPL-2.0-only
"""One attempt at a piece of work: whose fault its early end is, and which lines of the console are kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from lab_fakes import Guest

from harness.base.cause import Cause
from harness.base.deadline import Deadline
from harness.base.errors import LostGuest
from harness.base.outcome import Outcome
from harness.lab import counters
from harness.lab.boot import Booted
from harness.lab.carry_out import _excerpt, _lost, _reset_since, _timed_out
from harness.machine.vm import VM, Ending
from harness.results import WHOLE_PROGRAM
from harness.suites.model import CaseResult

SERVICE: Any = SimpleNamespace(service=lambda: Deadline.after(1.0))


@pytest.mark.parametrize(
    ("answers", "last_chance", "outcome", "cause"),
    [
        (True, False, Outcome.TIMEOUT, Cause.TIMED_OUT),
        (True, True, Outcome.TIMEOUT, Cause.TIMED_OUT),
        (False, False, Outcome.LOST, Cause.NO_ANSWER),
        (False, True, Outcome.TIMEOUT, Cause.TIMED_OUT),
    ],
)
def test_guest_that_stands_still_is_blamed_on_the_second_time(
    answers: bool, last_chance: bool, outcome: Outcome, cause: Cause
) -> None:
    """Once may be the emulator's doing and is tried again; twice at the same work is the kernel's."""
    booted: Any = SimpleNamespace(guest=Guest([], answers))
    result = _timed_out(SERVICE, booted, last_chance)
    assert (result.outcome, result.cause) == (outcome, cause)


def booted_that(ending: object) -> Any:
    return SimpleNamespace(vm=SimpleNamespace(wait=lambda deadline: None, ending=ending))


@pytest.mark.parametrize(
    ("cause", "last_chance", "outcome"),
    [
        (Cause.NO_ANSWER, False, Outcome.LOST),
        (Cause.NO_ANSWER, True, Outcome.LOST),
        (Cause.LOST_VCPU, True, Outcome.LOST),
        (Cause.STOOD_STILL, False, Outcome.LOST),
        (Cause.STOOD_STILL, True, Outcome.TIMEOUT),
    ],
)
def test_vcpu_that_stands_still_is_blamed_on_the_second_time(
    cause: Cause, last_chance: bool, outcome: Outcome
) -> None:
    """A guest that is gone is never blamed on the kernel, one that stands still in two VMs is."""
    result = _lost(booted_that(None), LostGuest("said", cause=cause), last_chance)
    assert (result.outcome, result.cause, result.reason) == (outcome, cause, "said")


def test_ending_of_the_vm_explains_a_loss() -> None:
    ending = SimpleNamespace(cause=Cause.QEMU_DIED, text="QEMU died: x")
    result = _lost(booted_that(ending), LostGuest("said", cause=Cause.NO_ANSWER), False)
    assert (result.cause, result.reason) == (Cause.QEMU_DIED, "QEMU died: x")


def vm_that_said(*lines: str) -> VM:
    return cast(VM, SimpleNamespace(console=SimpleNamespace(tail=lambda most: lines[-most:])))


def test_excerpt_of_the_console_begins_with_the_work() -> None:
    """Earlier output belongs to other work; of too much output the end counts."""
    begin = "[ 1.0][ T1] vfio-harness: begin m/c"
    assert _excerpt(vm_that_said("before", begin, "after"), "m/c") == f"{begin}\nafter"
    assert _excerpt(vm_that_said("no", "word"), "m/c") == "no\nword"
    long = _excerpt(vm_that_said(begin, *map(str, range(99))), "m/c").splitlines()
    assert (len(long), long[-1]) == (60, "98")


ONE: Any = SimpleNamespace(case="c")
PROGRAM: Any = SimpleNamespace(case=None)


@pytest.mark.parametrize(
    ("cause", "outcome", "expected"),
    [
        (Cause.GUEST_RESET, Outcome.PASS, Outcome.LOST),
        (Cause.GUEST_OFF, Outcome.XFAIL, Outcome.LOST),
        (Cause.PANICKED, Outcome.SKIP, Outcome.LOST),
        (Cause.GUEST_RESET, Outcome.FAIL, Outcome.FAIL),
        (Cause.QEMU_DIED, Outcome.PASS, Outcome.PASS),
    ],
)
def test_a_kernel_that_resets_itself_after_the_verdict_does_not_pass(
    cause: Cause, outcome: Outcome, expected: Outcome
) -> None:
    """A reset without a word while the devices are restored is no pass; QEMU's death is not the kernel's."""
    booted = booted_that_ended(cause)
    (result,) = _reset_since(booted, ONE, (CaseResult(case="c", outcome=outcome, reason="r"),))
    assert result.outcome is expected
    assert expected is not Outcome.LOST or result.reason.endswith(f"after the verdict {outcome.value}")


def booted_that_ended(cause: Cause, *splats: object) -> Booted:
    vm = booted_that(Ending(cause, "the guest ended")).vm
    vm.console = SimpleNamespace(splats=lambda: splats)
    return Booted(vm, cast(Any, None), {})


def test_a_program_keeps_its_points_when_its_guest_reset_itself_after_the_verdict() -> None:
    points = tuple(CaseResult(case=name, outcome=Outcome.PASS) for name in "ab")
    kept = _reset_since(booted_that_ended(Cause.GUEST_RESET), PROGRAM, points)
    assert kept[:2] == points
    assert [(one.case, one.outcome) for one in kept[2:]] == [(WHOLE_PROGRAM, Outcome.LOST)]


def test_a_panic_on_the_console_is_not_silent() -> None:
    """It is a splat, which is a CRASH already."""
    panic, warning = SimpleNamespace(fatal=True), SimpleNamespace(fatal=False)
    assert booted_that_ended(Cause.PANICKED, panic).silent_ending is None
    assert booted_that_ended(Cause.PANICKED, warning).silent_ending is not None


@pytest.mark.parametrize(("directory", "sent"), [("vm", "abc"), ("gone", "YWJj")])
def test_counters_that_cannot_be_kept_end_no_case(tmp_path: Path, directory: str, sent: str) -> None:
    (tmp_path / "vm").mkdir()
    booted: Any = SimpleNamespace(directory=tmp_path / directory)
    counters.keep(booted, cast(Any, SimpleNamespace(address="own/mine")), sent)
    assert not list(tmp_path.glob("*/*/*"))
