# SPDX-License-Identifier: GPL-2.0-only
"""The user's own programs, which --program names; docs/own-tests.md is written for their authors."""

from __future__ import annotations

import json
import shlex
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
from harness.suites.judging import death, judge_program
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
        return judge_program(report, status, cut)

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
        reason = (death(status) or f"exit status {status}") + (f": {said}" if said else "")
    # It may bail out, or say `not ok` without a number.
    said_more = [problem.text for problem in report.spoiled if problem.kind is not ProblemKind.NO_OUTPUT]
    if said_more and not outcome.is_bad:
        outcome, reason = Outcome.ERROR, f"exit status {status}, but it printed {said_more[0]}"
    return CaseResult(case=EXIT, outcome=outcome, reason=reason, diagnostics=report.loose)


def suites() -> tuple[Suite, ...]:
    """Return the one suite of this module."""
    return (OwnSuite(),)
