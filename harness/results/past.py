# SPDX-License-Identifier: GPL-2.0-only
"""What the history returns: earlier Runs, the results of a case in them, and the background of a Run."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.base.errors import ExitCode
from harness.results.compare import Comparison
from harness.results.model import Address, Result, RunState, Verdict


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PastRun:
    """One Run in the history."""

    directory: Path
    name: str
    started: datetime.datetime
    accel: str
    state: RunState
    verdict: Verdict
    """Compared with the Runs before it."""
    exit_code: ExitCode
    why: str
    accepted: str
    tree: str
    """Identity of its sources."""
    jobs: int
    counts: Mapping[str, int]
    """Label -> number of settled cases."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """The result of one case of one Job in one Run."""

    run: str
    started: datetime.datetime
    accel: str
    job: str
    series: str
    kernel: str
    case: Result
    fingerprint: str
    """The splat's fingerprint; empty without a splat."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """What reports compare a Run with."""

    comparison: Comparison | None = None
    """The comparison; None: the Run is not compared."""
    past: Mapping[tuple[str, Address], Sequence[Past]] = dataclasses.field(default_factory=dict)
    """Job and address -> earlier results, oldest first."""
    job_seconds: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    """Job -> its earlier durations in seconds on the same accelerator, oldest first."""
    notes: tuple[str, ...] = ()
    """Sentences about known issues that are out of date, or about a missing history."""
