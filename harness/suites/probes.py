# SPDX-License-Identifier: GPL-2.0-only
"""Our own suite: the cases under guest/probes, run one by one by the agent in the guest."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from guest.case import BadCase, Case, discover, discover_own
from harness.base import paths
from harness.base.cause import Cause
from harness.base.errors import UsageError
from harness.ktap import KtapReport
from harness.plan import Job
from harness.results import Address, Outcome
from harness.suites.judging import judge_point
from harness.suites.model import AgentCase, CaseResult, DeclaredCase, Suite, Work, refusal

SUITE = "probes"


@functools.cache
def probe_cases() -> tuple[Case, ...]:
    """Return every probe case, in the order of its file and line.

    The probe modules can be imported on any Linux without side effects, so that every worker collects the
    same cases.
    """
    return discover()


_own: dict[str, tuple[Case, ...]] = {}
"""Digest of the user's own probes in the store -> their cases, which importing them declares."""


def own_cases(digest: str) -> tuple[Case, ...]:
    """Return the cases of the user's own probes with *digest* in the store.

    From then on they are among the declared cases.  Raises BadCase, and what importing the modules raises.
    """
    if digest not in _own:
        _own[digest] = discover_own(os.fspath(paths.programs_entry(digest)))
    return _own[digest]


def import_own(digest: str, path: Path) -> None:
    """Import the user's own probes with *digest* in the store, which the user has in *path*.

    Raises UsageError, with that path, for a declaration that is wrong.
    """
    try:
        cases = own_cases(digest)
    except BadCase as error:
        told = str(error).replace(os.fspath(paths.programs_entry(digest)), os.fspath(path))
        raise UsageError(f"--probes: {told}") from error
    except Exception as error:
        raise UsageError(f"--probes {path}: {type(error).__name__}: {error}") from error
    if not cases:
        raise UsageError(f"--probes {path}: it has no case", hint="a case is a function with @case")


class ProbeSuite(Suite):
    """The cases under guest/probes."""

    name = SUITE
    rank = 0

    @property
    def summary(self) -> str:
        return f"{len(probe_cases())} cases of our own"

    def work(self, job: Job) -> Iterator[Work]:
        features = frozenset(job.features)
        for case in (*probe_cases(), *(own_cases(job.own.probes) if job.own.probes else ())):
            yield Work(
                job=job.name,
                suite=SUITE,
                program=case.module,
                case=case.name,
                refusal=refusal(case.needs, features),
                path=_resolved(case.path),
                line=case.lineno,
                timeout=case.timeout,
                fresh=case.fresh,
                destructive=case.destructive,
                features=features,
            )

    def how(self, work: Work, bdfs: Mapping[str, str]) -> AgentCase:
        return AgentCase(work.name)

    def judge(
        self, work: Work, report: KtapReport, status: int | None = None, cut: Outcome | None = None
    ) -> tuple[CaseResult, ...]:
        case = next((case for case in report.cases if case.name == work.name), None)
        if case is None:
            reason, cause = "the agent gave no result", Cause.NO_ANSWER
            return (CaseResult(case=work.name, outcome=Outcome.LOST, reason=reason, cause=cause),)
        return (judge_point(work.name, case, cut),)

    def declared(self) -> tuple[DeclaredCase, ...]:
        own = (case for cases in _own.values() for case in cases)
        return (*_declared(), *(_declare(case, Path(case.path).name) for case in own))

    def work_address(self, address: Address) -> str:
        return str(address)


@functools.cache
def _declared() -> tuple[DeclaredCase, ...]:
    project = paths.guest_dir().resolve().parent
    return tuple(
        _declare(case, os.fspath(_resolved(case.path).relative_to(project))) for case in probe_cases()
    )


def _declare(case: Case, file: str) -> DeclaredCase:
    return DeclaredCase(
        address=f"{SUITE}/{case.address}",
        promise=case.promise,
        needs=case.needs,
        cites=case.cites,
        where=f"{file}:{case.lineno}",
    )


@functools.cache
def _resolved(path: str) -> Path:
    """Resolve *path* once for a file, not for each of its cases."""
    return Path(path).resolve()


def suites() -> tuple[Suite, ...]:
    """Return the one suite of this module."""
    return (ProbeSuite(),)
