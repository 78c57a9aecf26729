# SPDX-License-Identifier: GPL-2.0-only
"""What every report says of a Run, in one place: order, counts, and the sentences they share."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from harness.report import names
from harness.results import JobRecord, Outcome, Result, Run

COLUMNS = tuple(reversed(Outcome))
"""The order outcomes are shown in: worst first."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A Job with its settled cases."""

    job: JobRecord
    cases: tuple[Result, ...]

    @property
    def counts(self) -> Mapping[Outcome, int]:
        return count(self.cases)

    @property
    def worst(self) -> Outcome:
        return Outcome.worst(case.outcome for case in self.cases)

    @property
    def seconds(self) -> float:
        return sum(case.duration for case in self.cases)


def count(cases: Iterable[Result]) -> Mapping[Outcome, int]:
    """How many cases came to each Outcome."""
    return collections.Counter(case.outcome for case in cases)


def told(counts: Mapping[Outcome, int]) -> str:
    """The *counts* in words, worst first: `1 CRASH, 7 PASS`."""
    return ", ".join(f"{counts[outcome]} {outcome.value}" for outcome in COLUMNS if counts.get(outcome))


def by_job(run: Run) -> tuple[JobView, ...]:
    """Every Job in plan order; results of a Job nobody announced get one of that name."""
    cases: dict[str, list[Result]] = {job.name: [] for job in run.jobs}
    for case in run.cases:
        cases.setdefault(case.job, []).append(case)
    records = {job.name: job for job in run.jobs}
    return tuple(
        JobView(job=records.get(job, JobRecord(name=job)), cases=tuple(found)) for job, found in cases.items()
    )


def bad_cases(run: Run) -> tuple[Result, ...]:
    """What needs a human, worst first, in plan order among equals."""
    bad = [case for case in run.cases if case.outcome.is_bad]
    return tuple(sorted(bad, key=lambda case: -case.outcome.severity))


def acceleration(run: Run) -> str:
    """The first line of every report: whether the figures below are those of emulation."""
    inputs = run.info.inputs
    match inputs.accel:
        case "tcg":
            stretched = f", timeouts x {inputs.timeout_factor:g}" if inputs.timeout_factor != 1.0 else ""
            return f"TCG: emulated without hardware acceleration{stretched}; durations say little"
        case "":
            return "accelerator not recorded"
        case _:
            return f"accelerated by {names.name(inputs.accel).upper()}"


def facts(run: Run) -> tuple[tuple[str, str], ...]:
    """The identity of the Run as name and value, without those that are unknown."""
    info, inputs = run.info, run.info.inputs
    kernels = ", ".join(f"{variant} {digest}" for variant, digest in sorted(inputs.kernels.items()))
    rows = (
        ("run", info.id),
        ("started", info.started.isoformat(timespec="seconds")),
        ("harness", info.harness_version),
        ("tree", inputs.tree),
        ("kernels", kernels),
        ("QEMU", inputs.qemu),
        ("accelerator", inputs.accel),
        ("topologies", ", ".join(inputs.topologies)),
        ("root", inputs.root),
        ("seed", "" if inputs.seed is None else str(inputs.seed)),
        *sorted(inputs.extra.items()),
        ("command", " ".join(info.command)),
    )
    return tuple((names.name(key), names.name(value)) for key, value in rows if value)


def log_path(run: Run, case: Result) -> str:
    """Where the case's VM left its logs, from the run directory on; empty without a VM."""
    if not case.vm_dir:
        return ""
    return names.name(str(PurePosixPath(run.directory, case.vm_dir)))


def reason(case: Result) -> str:
    """The case's reason, or what its outcome means when it gave none."""
    return names.name(case.reason) if case.reason else case.outcome.meaning


def duration(seconds: float) -> str:
    """Seconds for humans: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
