# SPDX-License-Identifier: GPL-2.0-only
"""A run shows one thing of its commit: the cases that are hunted count, and the host's trouble never does."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
from report_sample import RUN, SPLAT, result

from harness import boot
from harness.bisect import looking
from harness.bisect.looking import observe
from harness.bisect.model import Sight
from harness.errors import ExitCode
from harness.machine import vm
from harness.machine.splat import Splat
from harness.plugin import lab
from harness.remote import guest
from harness.results import VANISHED, JobRecord, Outcome, Result, Run

CASE = "probes/get_pa/refusals_come_in_order"
BOOTS, QUIET = "kernel/console/boots", "kernel/console/is_quiet_between_cases"


def run(*results: Result, job: JobRecord | None = None) -> Run:
    return dataclasses.replace(RUN, jobs=(job or JobRecord(name="j"),), results=results)


@pytest.mark.parametrize(
    ("outcome", "sight"),
    [
        (Outcome.PASS, Sight.PASSES),
        (Outcome.XPASS, Sight.PASSES),
        (Outcome.FAIL, Sight.FAILS),
        (Outcome.XFAIL, Sight.FAILS),
        (Outcome.ERROR, Sight.FAILS),
        (Outcome.TIMEOUT, Sight.FAILS),
        (Outcome.CRASH, Sight.FAILS),
        (Outcome.SKIP, Sight.MISSING),
        (Outcome.LOST, Sight.NO_CHANCE),
        (Outcome.NOT_RUN, Sight.NO_CHANCE),
    ],
)
def test_outcomes(outcome: Outcome, sight: Sight) -> None:
    """What is known to fail fails all the same; a skip is not there; a loss says nothing."""
    seen = observe(run(result(CASE, outcome)))
    assert seen.sight is sight
    assert seen.cases == {CASE: sight}
    assert CASE in seen.why


def test_only_the_hunted_count() -> None:
    """A failure elsewhere is somebody else's."""
    seen = run(result(CASE, Outcome.PASS), result("probes/x/y", Outcome.FAIL))
    assert observe(seen, hunted=[CASE]).sight is Sight.PASSES
    assert observe(seen).sight is Sight.FAILS


def test_selftests_that_do_not_compile_show_nothing() -> None:
    """Unless it is that which is hunted: the failure that is may be there, or not."""
    compiles = "kselftest:vfio/build/compiles"
    broken = run(result(compiles, Outcome.ERROR))
    assert observe(broken).sight is Sight.MISSING
    assert observe(run(result(compiles, Outcome.XFAIL), result(CASE, Outcome.PASS))).sight is Sight.PASSES
    assert observe(broken, hunted=[compiles]).sight is Sight.FAILS


def test_a_lost_guest_outweighs_a_pass() -> None:
    """What did not get its chance might have failed."""
    seen = run(result(CASE, Outcome.PASS), result("probes/x/y", Outcome.LOST))
    assert observe(seen).sight is Sight.NO_CHANCE


def test_program_that_dies_fails_its_points() -> None:
    """A selftest that ends early fails the points it did not report, unless its guest was lost."""
    program = "kselftest:vfio/vfio_pci_device_test@edu0"
    point = f"{program}/a.b"
    died = run(
        result(f"{program}/(program)", Outcome.ERROR, reason="no result at all"),
        result(point, Outcome.NOT_RUN, reason="not reached: (program) was ERROR"),
    )
    assert observe(died, hunted=[point]).sight is Sight.FAILS
    lost = run(
        result(f"{program}/(program)", Outcome.LOST),
        result(point, Outcome.NOT_RUN, reason="not reached: (program) was LOST"),
    )
    assert observe(lost, hunted=[point]).sight is Sight.NO_CHANCE


@pytest.mark.parametrize("outcome", [Outcome.ERROR, Outcome.NOT_RUN])
def test_a_point_that_vanished_fails(outcome: Outcome) -> None:
    """What its program passes over in silence can be hunted, in the runs of an older harness as well."""
    point = "kselftest:vfio/vfio_pci_device_test@edu0/a.b"
    reason = f"{VANISHED}: the manifest lists this case and the program did not report it"
    assert observe(run(result(point, outcome, reason=reason)), hunted=[point]).sight is Sight.FAILS


def crash(address: str, splat: Splat | None = None) -> Result:
    said = f"{lab._where(splat)}{splat.title}" if splat else "Kernel panic"
    return result(address, Outcome.CRASH, reason=f"the kernel said outside any case: {said}", splat=SPLAT)


def a_splat(after: str) -> Splat:
    title = "WARNING: at x"
    return Splat(
        kind="warn", title=title, lines=(title,), offset=0, fatal=False, case=None, after=after or None
    )


def test_failures_of_one_kind() -> None:
    """Numbers may differ, words may not; a splat is known by its trace; an expected failure by nothing."""

    def kind(outcome: Outcome, reason: str, splat: str = "") -> str:
        return observe(run(result(CASE, outcome, reason=reason, splat=splat))).failure

    assert kind(Outcome.FAIL, "want 3, got 0x17") == kind(Outcome.FAIL, "want 4, got 0x18")
    assert kind(Outcome.FAIL, "want ENOENT") != kind(Outcome.FAIL, "want EIO")
    assert kind(Outcome.CRASH, "pid 49", SPLAT) == kind(Outcome.CRASH, "said so", SPLAT)
    assert kind(Outcome.XFAIL, "documented") == kind(Outcome.PASS, "") == ""


def test_death_at_boot_is_its_own_answer() -> None:
    """A kernel that dies before its guest answers is not a failure of the case."""
    seen = run(crash(BOOTS), result(CASE, Outcome.NOT_RUN, reason="the kernel died while booting"))
    assert observe(seen, hunted=[CASE]).sight is Sight.DIES
    assert observe(seen, boot=True).sight is Sight.DIES


@pytest.mark.parametrize("outcome", [Outcome.LOST, Outcome.PASS])
def test_boot_that_was_tried_again_is_no_death(outcome: Outcome) -> None:
    """Only a crash is one; and that a kernel boots says nothing about a case that is not there."""
    told = result(BOOTS, outcome, reason="the guest did not boot in time")
    assert observe(run(told, result(CASE, Outcome.PASS)), boot=True).sight is Sight.PASSES
    assert observe(run(told, result(CASE, Outcome.FAIL)), hunted=[CASE]).sight is Sight.FAILS
    assert observe(run(told, result(CASE, Outcome.SKIP)), hunted=[CASE]).sight is Sight.MISSING


def test_complaint_while_booting_counts_for_the_boot_only() -> None:
    """A warning before the guest answers is bad when the boot is hunted, and no business of a case."""
    seen = run(result(CASE, Outcome.PASS), crash(QUIET, a_splat("")))
    assert observe(seen, boot=True).sight is Sight.DIES
    assert observe(seen, hunted=[CASE]).sight is Sight.PASSES


def test_complaint_after_the_case_is_the_cases() -> None:
    """Nothing else ran: what the kernel says late is about what was hunted."""
    seen = run(result(CASE, Outcome.PASS), crash(QUIET, a_splat("get_pa/x")))
    assert observe(seen, hunted=[CASE]).sight is Sight.FAILS
    assert observe(seen, boot=True).sight is Sight.PASSES


@pytest.mark.parametrize(
    ("reason", "silent"),
    [
        ("the guest did not boot in time; its last words: vfio: init; the console's last word: x", True),
        ("no SSH answer from the guest in time (last: nothing); the console is empty", True),
        ("the guest reset itself; the console's last word: x (the console: y)", True),
        ("QEMU died: out of memory; the console is empty", False),
        ("no SSH answer from the guest in time (last: nothing) (QEMU died: killed)", False),
        ("port 1 is answered by another machine", False),
        ("the deadline, 06:30, had passed", False),
    ],
)
def test_silence_of_a_guest(reason: str, silent: bool) -> None:
    """A VM that ran and had no guest is told from one that did not run; it is no verdict by itself."""
    seen = observe(run(result(CASE, Outcome.NOT_RUN, reason=reason)), boot=True)
    assert (seen.sight, seen.silent) == (Sight.NO_CHANCE, silent)


def test_silence_is_known_by_its_words() -> None:
    """They are those of the modules that say them."""
    sources = inspect.getsource(vm) + inspect.getsource(guest) + inspect.getsource(boot)
    words = looking._SILENCE.pattern.partition(")(?!")[0].strip("(").split("|")
    assert len(words) > 1
    assert [said for said in words if said not in sources] == []


def test_failing_case_means_nothing_to_the_boot() -> None:
    """With the boot hunted, whatever ran has booted."""
    assert observe(run(result(CASE, Outcome.FAIL)), boot=True).sight is Sight.PASSES
    assert observe(run(result(CASE, Outcome.NOT_RUN)), boot=True).sight is Sight.NO_CHANCE


@pytest.mark.parametrize(("applicable", "sight"), [(True, Sight.UNBUILDABLE), (False, Sight.MISSING)])
def test_no_kernel(applicable: bool, sight: Sight) -> None:
    """A job without a kernel says why."""
    job = JobRecord(name="j", problem="because", problem_code=ExitCode.KERNEL, applicable=applicable)
    seen = observe(run(job=job))
    assert (seen.sight, seen.why) == (sight, "because")
