# SPDX-License-Identifier: GPL-2.0-only
"""What a Job will run: every probe case and selftest program, with the reason for each that does not apply.

Collection in every xdist worker and the controller's list of what must have a result both come from here.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from guest.needs import unmet
from harness.errors import UsageError, nearest
from harness.machine.topology import load_topology
from harness.plan import Job, Plan
from harness.suites.model import Program
from harness.suites.probes import SUITE as PROBES
from harness.suites.probes import probe_cases
from harness.suites.upstream import Target, shipped_suites

if TYPE_CHECKING:
    from guest.case import Case


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProbeWork:
    """One probe case in one job."""

    job: str
    case: Case
    refusal: str | None
    """Why it does not apply here; None when it does."""

    @property
    def address(self) -> str:
        return f"{PROBES}/{self.case.module}/{self.case.name}"

    @property
    def title(self) -> str:
        return f"{self.case.name}[{self.job}]"

    @property
    def group(self) -> str:
        """Work of one group runs in one worker, in order; what needs an unused VM makes do with one boot, and
        what may run at the same time meets in one VM."""
        usual = "alongside" if self.case.alongside else self.case.module
        return f"{self.job}/{('fresh', usual, 'destructive')[self.case.turn]}"

    @property
    def turn(self) -> int:
        """When it runs among all the work of its job."""
        return self.case.turn


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProgramWork:
    """One selftest program, aimed at its devices, in one job; its cases are known when it has run."""

    job: str
    program: Program
    refusal: str | None

    @property
    def address(self) -> str:
        return f"{self.program.suite}/{self.program.title}"

    @property
    def title(self) -> str:
        return f"{self.program.title}[{self.job}]"

    @property
    def group(self) -> str:
        return f"{self.job}/{self.program.title}"

    @property
    def turn(self) -> int:
        return 1


Work = ProbeWork | ProgramWork


def suite_names() -> tuple[str, ...]:
    """Every suite there is: `probes` and the kselftest ones."""
    return (PROBES, *shipped_suites())


def check_suites(names: Sequence[str]) -> None:
    """Refuse a suite that does not exist."""
    for name in names:
        if name not in suite_names():
            raise UsageError(f"there is no suite {name!r}", hint=nearest(name, suite_names()))


def _targets(job: Job) -> tuple[Target, ...]:
    topology = load_topology(job.topology)
    return tuple(
        Target(id=device.id, driver=device.driver, translated=topology.behind_viommu(device))
        for device in topology.endpoints
        if device.plugged
    )


def _programs(job: Job, suite: str) -> tuple[Program, ...]:
    """What *job* has of *suite*: nothing where the tree's own tests did not compile."""
    return tuple(shipped_suites()[suite].programs(job.kernel.programs, _targets(job)))


def features_for(program: Program, job: Job) -> frozenset[str]:
    """The job's features as they hold for the devices *program* is aimed at (a machine may be mixed)."""
    features = frozenset(job.features)
    if not program.targets:
        return features
    return features | {"viommu"} if program.translated else features - {"viommu"}


def _refusal(needs: Sequence[str], features: frozenset[str]) -> str | None:
    missing = unmet(needs, features)
    return f"not applicable here: needs {', '.join(missing)}" if missing else None


def work_of(job: Job) -> tuple[Work, ...]:
    """All the work of *job*, in order.

    Cases that want a fresh VM come first, so that one boot serves the first; those that damage the kernel
    come after everything else.
    """
    features = frozenset(job.features)
    work: list[Work] = []
    if PROBES in job.suites:
        work += [ProbeWork(job=job.name, case=c, refusal=_refusal(c.needs, features)) for c in probe_cases()]
    work += [
        ProgramWork(job=job.name, program=p, refusal=_refusal(p.needs, features_for(p, job)))
        for suite in job.suites
        if suite != PROBES
        for p in _programs(job, suite)
    ]
    return tuple(sorted(work, key=lambda one: one.turn))


def selected(work: Work, patterns: Sequence[str]) -> bool:
    """Whether *work* is asked for: no patterns, or one that matches its address or the cases below it."""
    return not patterns or any(
        fnmatch.fnmatchcase(work.address, p) or p.startswith(f"{work.address}/") for p in patterns
    )


def key_of(work: Work) -> str:
    """What tells *work* from all other work of its plan."""
    return f"{work.job} {work.address}"


def to_do(plan: Plan) -> tuple[Work, ...]:
    """What of *plan* is asked for and not done, in the order in which it is best begun.

    Job by job, so that each VM's cases follow one another; in a job what took longest goes first.
    """
    done = frozenset(plan.done)
    asked = [
        work
        for job in plan.jobs
        for work in work_of(job)
        if selected(work, plan.cases) and key_of(work) not in done
    ]
    place = {job.name: number for number, job in enumerate(plan.jobs)}
    return tuple(
        sorted(asked, key=lambda work: (place[work.job], work.turn, -plan.seconds.get(work.group, 0.0)))
    )


def source_of(work: Work) -> Path:
    """The file a piece of work is declared in."""
    if isinstance(work, ProbeWork):
        return _resolved(work.case.path)
    return _resolved(__file__).parent / f"{work.program.suite.replace(':', '-')}.yaml"


@functools.cache
def _resolved(path: str) -> Path:
    """Once for a file, not for each of its cases."""
    return Path(path).resolve()


def work_by_source(plan: Plan) -> dict[Path, list[Work]]:
    """What of *plan* is to do, grouped by the file it is declared in."""
    grouped: dict[Path, list[Work]] = {}
    for work in to_do(plan):
        grouped.setdefault(source_of(work), []).append(work)
    return grouped


def check_patterns(patterns: Sequence[str], suites: Sequence[str]) -> None:
    """Refuse, before anything is built, a case pattern that none of *suites* can ever match."""
    for pattern in patterns:
        suite, _, rest = pattern.partition("/")
        if suite == PROBES and PROBES in suites:
            addresses = {f"{PROBES}/{case.address}" for case in probe_cases()}
            if not any(fnmatch.fnmatchcase(address, pattern) for address in addresses):
                raise UsageError(f"no case matches {pattern!r}", hint=_nearest_address(pattern, addresses))
        elif not rest or not any(fnmatch.fnmatchcase(name, suite) for name in suites):
            raise UsageError(
                f"no case matches {pattern!r}", hint=f"here addresses begin with {'/ or '.join(suites)}/"
            )


def check_cases(plan: Plan) -> None:
    """Refuse a case pattern that matches nothing in *plan*, naming the nearest address.

    That a suite did not compile is a result, not a mistake of whoever asks for its cases.
    """
    everything = [work for job in plan.jobs for work in work_of(job)]
    upstream = [(job, suite) for job in plan.jobs for suite in job.suites if suite != PROBES]
    broken = [suite for job, suite in upstream if not _programs(job, suite)]
    for pattern in plan.cases:
        head = pattern.partition("/")[0]
        if not any(selected(work, (pattern,)) for work in everything) and not fnmatch.filter(broken, head):
            addresses = {work.address for work in everything}
            raise UsageError(f"no case matches {pattern!r}", hint=_nearest_address(pattern, addresses))


def _nearest_address(pattern: str, addresses: set[str]) -> str:
    programs = {f"{address.rpartition('/')[0]}/*" for address in addresses if address.count("/") == 2}
    hint = nearest(pattern, addresses | programs)
    return hint if hint.startswith("did") else "see: vfio-harness list cases"
