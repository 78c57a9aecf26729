# SPDX-License-Identifier: GPL-2.0-only
"""Read the memory dumps of a run's dead guests with drgn, when its tests are over."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from harness.base.cause import Cause
from harness.base.deadline import Deadline
from harness.base.errors import HarnessError
from harness.base.files import write_atomic
from harness.base.output import tell
from harness.base.words import count_of
from harness.kernel.debugfile import DebugInformation, provide_debug_information
from harness.kernel.lines import find_places
from harness.kernel.plan import KernelPlan
from harness.kernel.ready import ReadyKernel
from harness.machine.addresses import addresses_in, lines_with_places
from harness.machine.dump import FILE, read_dump_note
from harness.machine.interrogation import ANSWERS, interrogate, refuse_without_drgn
from harness.machine.vm import PANIC
from harness.results import Dump, Outcome, Result, Run, RunState
from harness.results.store import record_dumps
from harness.session.pipeline import PlannedRun

BUDGET_SECONDS = 600.0
"""Timeout for the debug information of all kernels of a run; one takes 45 CPU seconds."""

_ASK_SECONDS = 60.0
"""Timeout for one dump; drgn takes two seconds."""

_MOST_ASKED = 8
"""How many dumps of one run are read; a kernel that crashes in every case shows much the same in each."""

_NO_NOTE = (
    "QEMU ended before it could be dumped, because the kernel did not report its panic through pvpanic"
    " (CONFIG_PVPANIC_PCI), or the disk was full"
)


def question_dumps(planned: PlannedRun, run: Run) -> bool:
    """Record the memory dumps of the guests that died in *run*, and what drgn finds in them.

    Return whether there is anything new.  A run in which no guest died costs nothing.  An error is
    shown in the report and changes no result.
    """
    dead: dict[str, Result] = {}
    for one in _of_interest(run):
        if one.vm_dir and one.vm_dir not in run.dumps:
            dead.setdefault(one.vm_dir, one)
    found = {vm_dir: dump for vm_dir, one in dead.items() if (dump := find_dump(run, one)) is not None}
    if not found or run.state is RunState.OVERTAKEN:
        return False
    _read_dumps(planned, run, found, {vm_dir: dead[vm_dir].job for vm_dir in found})
    try:
        record_dumps(Path(run.directory), found)
    except HarnessError as error:
        tell(f"cannot record the memory dumps of dead guests: {error}")
        return False
    return True


def _read_dumps(planned: PlannedRun, run: Run, found: dict[str, Dump], jobs: Mapping[str, str]) -> None:
    """Read the dumps of *found*, in place, that have a file; *jobs* names the Job of each."""
    plans = {job.name: planned.kernels[wish.kernel].plan for wish, job in planned.jobs.items()}
    deadline, troubles = Deadline.after(BUDGET_SECONDS), dict[str, str]()
    there = [vm_dir for vm_dir, dump in found.items() if dump.file]
    if there:
        # Debug information takes a while the first time; nobody should wait for the verdict.
        so_far = f"{run.verdict.value.upper()} so far; " if run.verdict is not None else ""
        tell(f"{so_far}reading the memory of {count_of(len(there), 'dead guest')} with drgn")
    for number, vm_dir in enumerate(there):
        if run.state.is_cut_off:
            found[vm_dir] = _unread(found[vm_dir], "the run was interrupted")
        elif number >= _MOST_ASKED:
            found[vm_dir] = _unread(found[vm_dir], f"only {_MOST_ASKED} dumps of a run are read at its end")
        else:
            found[vm_dir] = read_dump(run, found[vm_dir], plans.get(jobs[vm_dir]), deadline, troubles)


def find_dump(run: Run, result: Result) -> Dump | None:
    """Return the dump of the guest of *result*, or why there is none; None if the guest did not die."""
    directory = Path(run.directory, result.vm_dir)
    note = read_dump_note(directory)
    if note is None:
        panicked = result.cause is Cause.PANICKED or PANIC in result.splat
        return Dump(reason=_NO_NOTE) if panicked else None
    if note.reason:
        return Dump(reason=note.reason)
    if not (directory / FILE).is_file():
        return Dump(reason=f"{directory / FILE} was removed, or stayed on the worker of a fleet")
    file = os.fspath(Path(result.vm_dir, FILE))
    return Dump(file=file, bytes=note.bytes, seconds=note.seconds)


def read_dump(
    run: Run,
    dump: Dump,
    plan: KernelPlan | ReadyKernel | None,
    deadline: Deadline,
    troubles: dict[str, str] | None = None,
) -> Dump:
    """Return *dump* with drgn's answers, which are also written beside it, or why there are none.

    *troubles* remembers, by key, why a kernel has no debug information, so that it is not made in vain again.
    """
    path, troubles = Path(run.directory, dump.file), {} if troubles is None else troubles
    try:
        refuse_without_drgn()
        if plan is None:
            return _unread(dump, "how its kernel was built is not known")
        if (symbol := plan.arch.coarse_dumps) and plan.config.get(symbol) != "y":
            return _unread(dump, f"QEMU dumps {plan.arch.name} guests in pages larger than the kernel's")
        if trouble := troubles.get(plan.key):
            return _unread(dump, trouble)
        information = _information(plan, deadline, troubles)
        answers = _with_lines(plan, interrogate(path, information, interrogation_limit()), deadline)
    except HarnessError as error:
        return _unread(dump, str(error))
    with contextlib.suppress(OSError):
        write_atomic(path.with_name(ANSWERS), answers)
    return dataclasses.replace(dump, answers=answers)


def _information(
    plan: KernelPlan | ReadyKernel, deadline: Deadline, troubles: dict[str, str]
) -> DebugInformation:
    try:
        return provide_debug_information(plan, deadline)
    except HarnessError as error:
        troubles[plan.key] = str(error)
        raise


def _with_lines(plan: KernelPlan | ReadyKernel, answers: str, deadline: Deadline) -> str:
    """Return *answers* with the lines of code without debug information, for which addresses stand there."""
    places = find_places(plan, addresses_in(answers), deadline)
    lines = (told for line in answers.splitlines() for told in lines_with_places(line, places))
    return "".join(f"{line}\n" for line in lines)


def interrogation_limit() -> Deadline:
    """Return the deadline of one dump that is read now."""
    return Deadline.after(_ASK_SECONDS)


def _of_interest(run: Run) -> Iterator[Result]:
    """Yield the results whose guest may have died, those that the report shows first.

    Not those whose vCPU QEMU lost: the memory of such a guest says nothing about the kernel.
    """
    for one in (*run.cases, *run.results):
        is_lost = one.outcome is Outcome.LOST and one.cause not in (Cause.STOOD_STILL, Cause.LOST_VCPU)
        if is_lost or one.outcome in (Outcome.CRASH, Outcome.TIMEOUT):
            yield one


def _unread(dump: Dump, reason: str) -> Dump:
    return dataclasses.replace(dump, reason=reason)
