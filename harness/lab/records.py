# SPDX-License-Identifier: GPL-2.0-only
"""Turn Attempts into the Results that a run records.  Pure."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Sequence

from harness.base.cause import Cause
from harness.base.outcome import Outcome
from harness.lab.attempt import Attempt, text_of
from harness.machine.splat import Splat
from harness.results.model import BOOTS, QUIET, Result
from harness.suites.model import CaseResult

_UNSEEN = (Cause.NOT_REACHED, Cause.VANISHED)


def records(attempt: Attempt, job: str, rerun: str = "") -> tuple[Result, ...]:
    """Return the Results of *attempt* at work of *job*, those about the kernel included.

    *rerun* is the command that runs the job again.
    """
    found = [*(_boot(one, job, rerun) for one in attempt.boots), *_cases(attempt, rerun)]
    if attempt.strays:
        stray = _stray(attempt.strays, job, rerun)
        found.append(
            dataclasses.replace(
                stray, vm_dir=attempt.vm_dir, attempt=attempt.number, confirms=attempt.confirms
            )
        )
    return tuple(found)


def _cases(attempt: Attempt, rerun: str) -> Iterator[Result]:
    if attempt.work is None:
        return
    again = f"{rerun} --case {shlex.quote(attempt.work.address)}" if rerun else ""
    seen = sum(result.cause not in _UNSEEN for result in attempt.results)
    for result in attempt.results:
        unseen = result.cause in _UNSEEN
        yield Result(
            address=attempt.work.address_of(result.case),
            job=attempt.work.job,
            outcome=result.outcome,
            reason=result.reason,
            cause=result.cause,
            stopped_by=result.stopped_by,
            duration=0.0 if unseen else attempt.seconds / seen,
            attempt=attempt.number,
            confirms=attempt.confirms,
            log=_log(result, attempt) if result.outcome.is_bad and not unseen else "",
            splat=attempt.splat if result.outcome is Outcome.CRASH else "",
            vm_dir=attempt.vm_dir,
            rerun=again,
        )


def _log(result: CaseResult, attempt: Attempt) -> str:
    said = "\n".join(result.diagnostics) or attempt.printed
    return f"{said}\n\nconsole:\n{attempt.console}" if attempt.console else said


def _boot(attempt: Attempt, job: str, rerun: str) -> Result:
    """Return the Result of one boot, or of a guest that ended silently: no retry is hidden."""
    (result,) = attempt.results
    return Result(
        address=dataclasses.replace(BOOTS, case=result.case),
        job=job,
        outcome=result.outcome,
        reason=result.reason,
        cause=result.cause,
        attempt=attempt.number,
        splat=attempt.splat,
        vm_dir=attempt.vm_dir,
        rerun=rerun if result.outcome is Outcome.CRASH else "",
    )


def _stray(strays: Sequence[Splat], job: str, rerun: str) -> Result:
    first = strays[0]
    # One of a case that comes after its results is no splat of the boot.
    after = first.case or first.after
    where = f"after {after}" if after else "while booting"
    return Result(
        address=QUIET,
        job=job,
        outcome=Outcome.CRASH,
        reason=f"the kernel said outside any case: {where}: {first.title}",
        cause=None if after else Cause.BOOT_CRASH,
        splat=text_of(strays),
        rerun=rerun,
    )
