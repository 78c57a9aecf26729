# SPDX-License-Identifier: GPL-2.0-only
"""Run one piece of work in the current VM and judge it.

The outcome of a case is decided from three sources: what it printed (KTAP), what the kernel printed meanwhile
(the console), and whether the guest is still there.  The console counts most.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from guest import kmsg
from guest.agent import REFUSED
from harness.base.cause import Cause
from harness.base.deadline import Deadline
from harness.base.errors import LostGuest
from harness.base.outcome import Outcome
from harness.ktap import KtapParser, KtapReport, parse
from harness.lab import counters
from harness.lab.attempt import Attempt, text_of
from harness.lab.boot import Booted
from harness.lab.current import CurrentVM
from harness.lab.starved import STALLS, Stopwatch
from harness.machine.culprit import waits_for_emulator
from harness.machine.vm import VM
from harness.results.model import WHOLE_PROGRAM
from harness.suites.judging import judge_known, judge_splat, missing
from harness.suites.known import KnownIssue, known_issue
from harness.suites.model import SELFTESTS, SETUP_FAILED, AgentCase, CaseResult, Script, Work
from harness.suites.registry import suite_named

_KEPT_LINES = 60
"""How many lines of output and of the console an Attempt contains; all lines are in files."""

_HUNG = "did not end before its timeout"


def carry_out(vm: CurrentVM, work: Work, *, last_chance: bool) -> Attempt:
    """Make one attempt at *work*; a VM that cannot be used further is stopped.

    Work that ran out of time while this host gave QEMU no CPU is LOST.
    A guest that hangs is LOST, because the emulator may have lost an interrupt; on the *last_chance*, when
    another VM hung too, it is a TIMEOUT of the kernel.  Raises HarnessError when no VM comes up.
    """
    booted, vm_dir = vm.ready(work), vm.vm_dir
    began, since = time.monotonic(), booted.vm.console.size
    raw: list[str] = []
    watch = Stopwatch(booted.vm.pid, work.timeout * vm.factor)
    results, spoilt = _run(vm, booted, work, raw, last_chance, watch)
    seconds = time.monotonic() - began
    splats = booted.splats(work.name)
    own = [splat for splat in splats if splat.case == work.name]
    vm.hear(splat for splat in splats if splat.case != work.name)
    if own:
        results = judge_splat(work, results, own[0].title, _known(vm, work, WHOLE_PROGRAM))
        stalled = all(splat.kind in STALLS for splat in own)
        waits = waits_for_emulator(booted.vm.console.text(since))
        results = watch.excuse(results, stalled=stalled, waits=waits)
        if any(splat.kind in STALLS for splat in own):
            booted.dump()
    elif not spoilt:
        if not booted.hears(work.name, since):
            results, spoilt = _unheard(work, results), True
        elif not booted.vm.alive:
            results, spoilt = _reset_since(booted, work, results), True
    suite = suite_named(work.suite)
    results += missing(suite.requirement(work, vm.job, results), results)
    _keep(booted.directory, work, raw)
    bad = any(result.outcome.is_bad for result in results)
    console = _excerpt(booted.vm, work.name) if bad else ""
    if splats or work.destructive or spoilt or booted.vm.hostlink.actions.altered:
        vm.close()
    return Attempt(
        work=work,
        results=results,
        seconds=seconds,
        printed="\n".join(raw[-_KEPT_LINES:]),
        console=console,
        splat=text_of(own),
        vm_dir=vm_dir,
        **vm.untold(),
    )


def _run(
    vm: CurrentVM, booted: Booted, work: Work, raw: list[str], last_chance: bool, watch: Stopwatch
) -> tuple[tuple[CaseResult, ...], bool]:
    """Run *work*, appending every line it prints to *raw*, and excuse what *watch* excuses.

    Returns its results as printed, and whether the VM cannot be used further.
    """
    suite, spoilt, status = suite_named(work.suite), "", None
    try:
        how = suite.how(work, booted.bdfs)
        if isinstance(how, AgentCase):
            agent = vm.agent()
            report, spoilt = agent.run(how.name, work.timeout * vm.factor, vm.settings.seed, raw)
            if refused := report.notes(REFUSED):
                reason = f"its agent refused: {refused[0]}; did the harness change during the run?"
                return (_whole(Outcome.NOT_RUN, reason, Cause.HARNESS),), True
            counters.keep(booted, work, agent.counters)
        else:
            with counters.counted(vm, booted, work):
                report, status = _run_script(vm, booted, how, work, raw, watch)
            spoilt = next(iter(report.notes("dirty")), "")
    except _SetupFailed as error:
        return (_whole(Outcome.ERROR, f"the guest could not be prepared: {error}"),), True
    except TimeoutError:
        (whole,) = watch.excuse([_timed_out(vm, booted, last_chance)])
    except LostGuest as error:
        whole = _lost(booted, error, last_chance)
    else:
        results = watch.excuse(_with_known(vm, work, suite.judge(work, report, status)))
        lost = any(result.outcome is Outcome.LOST for result in results)
        hung = work.case is not None and any(r.outcome is Outcome.TIMEOUT for r in results)
        if hung or lost:
            booted.dump()
        if (hung or lost) and not spoilt:
            booted.diagnose()
        return _reset_since(booted, work, results) if spoilt else results, hung or lost or bool(spoilt)
    booted.diagnose()
    # A single case has one result, that of the whole; a program keeps the points that it finished, and the
    # point that was running is lost with the whole.
    cut = Outcome.LOST if whole.outcome is Outcome.LOST else Outcome.ERROR
    points = () if work.case is not None else _with_known(vm, work, suite.judge(work, parse(raw), cut=cut))
    return (*watch.excuse(points), whole), True


class _SetupFailed(Exception):
    """The guest could not be prepared for a Script; the message says why."""


def _run_script(
    vm: CurrentVM, booted: Booted, script: Script, work: Work, raw: list[str], watch: Stopwatch
) -> tuple[KtapReport, int]:
    """Run *script*; return its parsed output and exit status, and measure its test points with *watch*.

    Raises TimeoutError at the timeout of *work*, LostGuest when the guest is lost, _SetupFailed.
    """
    guest, selftests = booted.guest, booted.vm.machine.selftests_dir
    files = dict(script.files)
    if script.needs_selftests and selftests is not None:
        files[SELFTESTS] = selftests
    if files:
        booted.bring(files, vm.service())
    deadline = booted.vm.patient(Deadline.after(work.timeout * vm.factor))
    stream = guest.stream(["bash", "-c", script.text], deadline)
    parser = KtapParser()
    for line in stream.lines(deadline):
        raw.append(line)
        ended = len(parser.cases)
        parser.feed(line)
        for case in parser.cases[ended:]:
            watch.lap(case.name)
    status = stream.status(deadline)
    if status == SETUP_FAILED:
        raise _SetupFailed(raw[-1] if raw else "the selftests are not in the guest")
    return parser.finish(), status


def _timed_out(vm: CurrentVM, booted: Booted, last_chance: bool) -> CaseResult:
    """Return the result of work that did not end: LOST if the guest does not answer either."""
    if not last_chance:
        try:
            booted.guest.check("true", vm.service())
        except LostGuest:
            return _whole(Outcome.LOST, f"{_HUNG}, and the guest does not answer", Cause.NO_ANSWER)
    return _whole(Outcome.TIMEOUT, _HUNG, Cause.TIMED_OUT)


def _lost(booted: Booted, error: LostGuest, last_chance: bool) -> CaseResult:
    """Return the result of work whose guest was lost; how the VM ended explains more than the connection."""
    booted.vm.wait(Deadline.after(1.0))
    ending = booted.vm.ending
    reason, cause = (error.message, error.cause) if ending is None else (ending.text, ending.cause)
    if error.cause in (Cause.STOOD_STILL, Cause.LOST_VCPU):
        cause = error.cause
    still = last_chance and cause is Cause.STOOD_STILL
    return _whole(Outcome.TIMEOUT if still else Outcome.LOST, reason, cause)


def _reset_since(booted: Booted, work: Work, results: tuple[CaseResult, ...]) -> tuple[CaseResult, ...]:
    """Return *results*; good ones are LOST if the guest ended itself silently after the verdict."""
    booted.vm.wait(Deadline.after(1.0))
    ending = booted.silent_ending
    if ending is None or any(result.outcome.is_bad for result in results):
        return results
    verdict = Outcome.worst(result.outcome for result in results).value
    lost = _whole(Outcome.LOST, f"{ending.text} after the verdict {verdict}", ending.cause)
    return (*_points(work, results), lost)


def _unheard(work: Work, results: Sequence[CaseResult]) -> tuple[CaseResult, ...]:
    """Return the results of *work* during which the kernel fell silent: a splat would not have been seen."""
    reason = "the kernel's last message did not reach the console, so a splat would have been missed"
    return (*_points(work, results), _whole(Outcome.LOST, reason, Cause.UNHEARD))


def _points(work: Work, results: Sequence[CaseResult]) -> tuple[CaseResult, ...]:
    """Return those of *results* that are test points; a single case has none."""
    return tuple(point for point in results if work.case is None and point.case != WHOLE_PROGRAM)


def _with_known(vm: CurrentVM, work: Work, results: Sequence[CaseResult]) -> tuple[CaseResult, ...]:
    return tuple(judge_known(result, _known(vm, work, result.case)) for result in results)


def _known(vm: CurrentVM, work: Work, case: str) -> KnownIssue | None:
    address, release = str(work.address_of(case)), vm.job.kernel.version
    return known_issue(vm.settings.issues, address, release=release, job=vm.job.name)


def _whole(outcome: Outcome, reason: str, cause: Cause | None = None) -> CaseResult:
    return CaseResult(case=WHOLE_PROGRAM, outcome=outcome, reason=reason, cause=cause)


def _excerpt(vm: VM, name: str) -> str:
    """Return the end of the console; at most from where the kernel was told that work *name* begins."""
    lines = vm.console.tail(_KEPT_LINES)
    begun = [number for number, line in enumerate(lines) if line.endswith(f"{kmsg.BEGIN} {name}")]
    return "\n".join(lines[begun[-1] :] if begun else lines)


def _keep(directory: Path, work: Work, raw: Sequence[str]) -> None:
    """Write everything that *work* printed to a file beside the console."""
    log = directory / "cases" / f"{work.name.replace('/', '.')}.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text("\n".join(raw) + "\n", encoding="utf-8")
