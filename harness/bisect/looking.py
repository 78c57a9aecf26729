# SPDX-License-Identifier: GPL-2.0-only
"""From a Run to what it showed of its commit.  Pure.

Expectations are undone: what is known to fail on a release counts as failing, for it is what the case itself
says that changes from one commit to another, and a documented defect can be hunted like any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from harness.bisect.model import Observation, Sight
from harness.results import BOOTS, KERNEL_SUITE, VANISHED, WHOLE_PROGRAM, Outcome, Result, Run
from harness.results.fingerprint import fingerprint
from harness.suites.upstream import COMPILES

_NUMBER = re.compile(r"\b0x[0-9a-f]+\b|\d+")
_WHILE_BOOTING = re.compile(r"the kernel said outside any case: while booting: ")

_SILENCE = re.compile(
    r"(the guest did not boot in time|no SSH answer from the guest in time|the guest did not answer in time"
    r"|the agent in the guest did not come up|the guest reset itself|the guest powered off)(?!.*QEMU died)"
)
"""What is said of a VM that ran and whose guest never came up (harness.boot, harness.machine.vm)."""

_SIGHTS = {
    Outcome.SKIP: Sight.MISSING,
    Outcome.PASS: Sight.PASSES,
    Outcome.XPASS: Sight.PASSES,
    Outcome.NOT_RUN: Sight.NO_CHANCE,
    Outcome.LOST: Sight.NO_CHANCE,
    Outcome.XFAIL: Sight.FAILS,
    Outcome.ERROR: Sight.FAILS,
    Outcome.FAIL: Sight.FAILS,
    Outcome.TIMEOUT: Sight.FAILS,
    Outcome.CRASH: Sight.FAILS,
}


def observe(run: Run, *, hunted: Sequence[str] = (), boot: bool = False, seconds: float = 0.0) -> Observation:
    """What *run* showed; by the cases *hunted*, or by all of its cases when there are none.

    With *boot* it is the boot alone that counts.
    """
    results = run.cases
    stopped = next((job for job in run.jobs if job.problem), None)
    if stopped is not None:
        sight = Sight.UNBUILDABLE if stopped.applicable else Sight.MISSING
        return Observation(sight=sight, why=stopped.problem, run_dir=run.directory, seconds=seconds)
    sight, why, told = _judge_boot(results) if boot else _judge_cases(results, hunted)
    failure = _kind_of(told) if told is not None and sight in (Sight.FAILS, Sight.DIES) else ""
    cases = {str(r.address): _sight_of(r) for r in results if r.address.suite != KERNEL_SUITE}
    return Observation(
        sight=sight,
        why=why,
        failure=failure,
        cases=cases,
        run_dir=run.directory,
        silent=sight is Sight.NO_CHANCE and told is not None and _is_silence(told),
        seconds=seconds,
    )


def _kind_of(result: Result) -> str:
    """What kind of failure *result* is; the reason of an expected one is another's, so that tells nothing."""
    if result.outcome is Outcome.XFAIL:
        return ""
    said = fingerprint(result.splat) or _NUMBER.sub("N", result.reason)
    return f"{result.outcome.value} {said}"


def _sight_of(result: Result) -> Sight:
    # A case that its own program did not report, or did not reach, failed by its silence.
    reason = result.reason
    if result.outcome is Outcome.NOT_RUN and reason.startswith((VANISHED, "not reached: ")):
        return Sight.NO_CHANCE if reason.endswith(Outcome.LOST.value) else Sight.FAILS
    return _SIGHTS[result.outcome]


_Judged = tuple[Sight, str, Result | None]
"""With the result that decided."""


def _judge_boot(results: Iterable[Result]) -> _Judged:
    died = next((r for r in results if _is_death(r) or _is_boot_splat(r)), None)
    if died is not None:
        return Sight.DIES, died.reason, died
    ran = [r for r in results if r.address.suite != KERNEL_SUITE and not r.outcome.is_infra]
    if any(r.outcome is not Outcome.SKIP for r in ran):
        return Sight.PASSES, "the kernel boots", None
    lost = next((r for r in results if r.outcome.is_infra), None)
    return Sight.NO_CHANCE, lost.reason if lost else "nothing was booted", lost


def _judge_cases(results: Sequence[Result], hunted: Sequence[str]) -> _Judged:
    died = next((r for r in results if _is_death(r)), None)
    if died is not None:
        return Sight.DIES, died.reason, died
    asked = [r for r in results if _is_asked(r, hunted)]
    for sight in (Sight.FAILS, Sight.NO_CHANCE, Sight.PASSES, Sight.MISSING):
        first = next((r for r in asked if _sight_of(r) is sight), None)
        if first is not None:
            return sight, _line(first), first
    return Sight.MISSING, "none of the cases is there", None


def _is_asked(result: Result, hunted: Sequence[str]) -> bool:
    """Whether *result* is one of *hunted*, speaks for a whole program of theirs, or is a late complaint."""
    if result.address.suite == KERNEL_SUITE:
        return result.outcome is Outcome.CRASH and not _is_boot_splat(result)
    if str(result.address) in hunted:
        return True
    if f"{result.address.program}/{result.address.case}" == COMPILES:
        # A commit whose selftests do not compile has not shown what is hunted.
        return False
    if not hunted:
        return True
    whole = result.address.case == WHOLE_PROGRAM and result.outcome is not Outcome.SKIP
    return whole and any(case.startswith(f"{result.address.program_path}/") for case in hunted)


def _is_silence(result: Result) -> bool:
    return result.outcome is Outcome.NOT_RUN and bool(_SILENCE.match(result.reason))


def _is_death(result: Result) -> bool:
    # Whether a boot had to be tried again is told under the same name, as a loss and a pass.
    crashed = result.outcome is Outcome.CRASH
    return crashed and result.address == BOOTS


def _is_boot_splat(result: Result) -> bool:
    return result.address.suite == KERNEL_SUITE and bool(_WHILE_BOOTING.match(result.reason))


def _line(result: Result) -> str:
    if result.outcome is Outcome.PASS:
        return f"{result.address} passes"
    return f"{result.address} {result.outcome.value}" + (f": {result.reason}" if result.reason else "")
