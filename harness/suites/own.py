# SPDX-License-Identifier: GPL-2.0-only
"""The user's own programs, which --program names; docs/own-tests.md is written for their authors."""

from __future__ import annotations

import dataclasses
import json
import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from guest.needs import UnknownFeature, check_names
from harness.base import paths
from harness.base.errors import UsageError
from harness.base.outcome import Outcome
from harness.ktap import KtapReport, ProblemKind, explain
from harness.machine.rootparts import GUEST_RUN
from harness.plan import Job, OwnProgram
from harness.results import WHOLE_PROGRAM
from harness.suites.judging import judge_program
from harness.suites.model import SETUP_FAILED, CaseResult, Requirement, Script, Suite, Work, refusal

SUITE = "own"

EXIT = "exit"
"""The case of a program that prints no KTAP: its exit status decides."""

_GUEST_OWN = f"{GUEST_RUN}/own"

DEFAULT_NEEDS = ("noiommu|viommu",)
"""Without no-IOMMU mode and without an IOMMU no device binds to vfio-pci."""

_BY_STATUS = {0: Outcome.PASS, 1: Outcome.FAIL, 2: Outcome.XFAIL, 3: Outcome.XPASS, 4: Outcome.SKIP}
"""KSFT_PASS to KSFT_SKIP of tools/testing/selftests/kselftest.h."""


def check_needs(names: Sequence[str]) -> None:
    """Refuse a feature in the value of --needs that does not exist."""
    try:
        check_names(names)
    except UnknownFeature as error:
        raise UsageError(f"--needs: {error}", hint="guest/needs.py has all features") from error


class OwnSuite(Suite):
    """One program for each --program."""

    name = SUITE

    @property
    def summary(self) -> str:
        return "your own programs: --program PATH"

    def work(self, job: Job) -> Iterator[Work]:
        features = frozenset(job.features)
        for program in job.own.programs:
            yield Work(
                job=job.name,
                suite=SUITE,
                program=program.name,
                refusal=program.problem or refusal(program.needs or DEFAULT_NEEDS, features),
                path=Path(__file__).resolve(),
                timeout=program.seconds,
                features=features,
                payload=(program, tuple(device.id for device in job.topology.endpoints if device.plugged)),
            )

    def how(self, work: Work, bdfs: Mapping[str, str]) -> Script:
        """Run it by guest/program.py, in a directory of its own that is read-only."""
        program, devices = work.payload
        return script(program, {name: bdfs[name] for name in devices}, work.features)

    def judge(
        self, work: Work, report: KtapReport, status: int | None = None, cut: Outcome | None = None
    ) -> tuple[CaseResult, ...]:
        printed_none = any(problem.kind is ProblemKind.NO_OUTPUT for problem in report.problems)
        if cut is None and printed_none:
            return (_by_status(report, status or 0),)
        results = judge_program(report, status, cut)
        died = _death(status or 0)
        if not died or cut is not None:
            return results
        return tuple(
            dataclasses.replace(result, reason=f"{died}; {result.reason}")
            if result.case == WHOLE_PROGRAM
            else result
            for result in results
        )

    def requirement(self, work: Work, job: Job, results: Sequence[CaseResult]) -> Requirement:
        """Require one pass if all points are skipped: only the whole program may skip itself."""
        points = [one for one in results if one.case not in (WHOLE_PROGRAM, EXIT)]
        skipped = points and all(point.outcome is Outcome.SKIP for point in points)
        return Requirement(fewest=1 if skipped else 0)


def script(program: OwnProgram, bdfs: Mapping[str, str], features: frozenset[str]) -> Script:
    """Return the script that runs *program* with the devices at *bdfs*."""
    place = f"{_GUEST_OWN}/{program.name}"
    argv = ["python3", program.main] if program.main.endswith(".py") else [f"./{program.main}"]
    asked = {
        "name": program.name,
        "directory": place,
        "argv": [*argv, *program.arguments],
        "devices": dict(bdfs),
        "features": sorted(features),
        "not_started": SETUP_FAILED,
    }
    fixed = f"mount --bind {place} {place} && mount -o remount,bind,ro {place}"
    text = "\n".join(
        (
            f"grep -q ' {place} ' /proc/mounts || {{ {fixed}; }} || exit {SETUP_FAILED}",
            f"cd {GUEST_RUN} && exec python3 -m guest.program {shlex.quote(json.dumps(asked))} 2>&1",
        )
    )
    return Script(text, files={place: paths.programs_entry(program.digest)})


def _by_status(report: KtapReport, status: int) -> CaseResult:
    """Return the result of a program without KTAP, by its exit status."""
    outcome = _BY_STATUS.get(status, Outcome.FAIL)
    reason = ""
    if outcome is not Outcome.PASS:
        said = explain(report.loose)
        reason = (_death(status) or f"exit status {status}") + (f": {said}" if said else "")
    return CaseResult(case=EXIT, outcome=outcome, reason=reason, diagnostics=report.loose)


def _death(status: int) -> str:
    """Return which signal killed a program with the exit *status* of a shell; empty if none did."""
    try:
        return f"the program was killed by {signal.Signals(status - 128).name}"
    except ValueError:
        return ""


def suites() -> tuple[Suite, ...]:
    """Return the one suite of this module."""
    return (OwnSuite(),)
