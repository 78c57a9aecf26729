# SPDX-License-Identifier: GPL-2.0-only
"""A run in the light of the others: finds runs, and gathers what one is judged and reported against."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from harness import paths
from harness.errors import ExitCode, HarnessError, UsageError, nearest
from harness.results import (
    Address,
    Background,
    History,
    Outcome,
    Run,
    consult,
    exit_code,
    is_complete,
    list_runs,
    load,
)

T = TypeVar("T")


def find_run(run: str | None) -> Run:
    """The run called *run*: its directory, its id, or the newest that can be read when nothing is said.

    Raises UsageError when there is none or it is from a newer harness, InfraError when it is damaged.
    """
    root = paths.runs_dir()
    if run is not None and (Path(run).is_dir() or "/" in run):
        return load(Path(run))
    found = list_runs(root)
    known = {summary.directory.name: summary.directory for summary in found}
    if run is None:
        # The newest comes first.
        newest = next((summary.directory for summary in found if summary.info is not None), None)
        if newest is None:
            raise UsageError(f"there are no runs in {root}", hint="vfio-harness run makes one")
        return load(newest)
    if run not in known:
        raise UsageError(f"there is no run {run!r} in {root}", hint=nearest(run, known))
    return load(known[run])


def ask(question: Callable[[History], T]) -> T:
    """Ask the history of all runs; it is brought up to date first."""
    return consult(paths.runs_dir(), question, exists=exists)


def check_history(compare: bool = True, known_issues: Path | None = None) -> None:
    """Refuse known issues that cannot be read, and a history that is wanted and cannot be used, early."""
    from harness.suites.known import load_issues, shipped_issues

    shipped_issues()
    if known_issues is not None:
        load_issues(known_issues)
    if compare:
        ask(lambda history: None)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A Run and its Background; *trouble* is why earlier runs could not be taken into account, if so."""

    run: Run
    background: Background
    trouble: HarnessError | None = None

    @property
    def exit_code(self) -> ExitCode:
        """What the command that made the Run exits with: without its history it is not known to be good."""
        code = exit_code(self.run, self.background.comparison)
        return ExitCode.INFRA if self.trouble is not None and code is ExitCode.GOOD else code


def see(run: Run, *, compare: bool = True) -> Seen:
    """Gather what *run* is to be seen against; trouble with that costs no results.

    Without *compare*, and where it was made to be, it is judged by itself.
    """
    notes = _about_known_issues(run)
    if not (compare and run.info.inputs.compare):
        return Seen(run=run, background=Background(notes=notes))
    try:
        background = ask(lambda history: history.background(run))
    except HarnessError as error:
        notes = (f"earlier runs are not taken into account: {error}", *notes)
        return Seen(run=run, background=Background(notes=notes), trouble=error)
    return Seen(run=run, background=dataclasses.replace(background, notes=notes))


def exists(address: Address) -> bool:
    """Whether the harness still has the case at *address*; what upstream's suites have is theirs to say.

    That one of those does not compile is a case only for as long as it does not.
    """
    from harness.suites.probes import SUITE, probe_cases
    from harness.suites.upstream import COMPILES

    if address.suite != SUITE and str(address).endswith(f"/{COMPILES}"):
        return False
    return address.suite != SUITE or any(str(address) == f"{SUITE}/{case.address}" for case in probe_cases())


def _about_known_issues(run: Run) -> tuple[str, ...]:
    from harness.suites.known import OWN_FILE, issues_of, load_issues, matching_nothing, outdated
    from harness.suites.probes import SUITE, probe_cases

    releases = {job.name: job.kernel.partition(" ")[0] for job in run.jobs}
    tried = [(str(case.address), releases.get(case.job, ""), case.job) for case in run.cases]
    passed = [one for one, case in zip(tried, run.cases, strict=True) if case.outcome is Outcome.XPASS]
    cases = [f"{SUITE}/{case.address}" for case in probe_cases()]
    own = Path(run.directory, OWN_FILE)
    try:
        notes = outdated(issues_of(Path(run.directory)), cases, passed, datetime.date.today())
        if own.is_file() and is_complete(run) and not run.info.inputs.cases:
            notes += matching_nothing(load_issues(own), tried)
    except UsageError as error:
        return (f"the known issues cannot be read: {error}",)
    return notes
