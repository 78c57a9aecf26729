# SPDX-License-Identifier: GPL-2.0-only
"""What the history tells: earlier Runs, what a case came to in them, and what a Run is seen against."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.errors import ExitCode
from harness.results.compare import (
    Comparison,
)
from harness.results.model import Address, Inputs, Result, State, Verdict


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PastRun:
    """One Run as the history keeps it."""

    directory: Path
    name: str
    started: datetime.datetime
    seconds: float
    accel: str
    state: State
    verdict: Verdict
    """With its history taken into account."""
    exit_code: ExitCode
    why: str
    accepted: str
    inputs: Inputs
    jobs: int
    counts: Mapping[str, int]
    """Label -> how many settled cases."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What one case of one Job came to in one Run."""

    run: str
    started: datetime.datetime
    accel: str
    job: str
    series: str
    kernel: str
    case: Result
    fingerprint: str
    """Of the splat; empty where there was none."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """What a Run is seen against in reports."""

    comparison: Comparison | None = None
    """None: nothing to compare with could be had."""
    past: Mapping[tuple[str, Address], Sequence[Past]] = dataclasses.field(default_factory=dict)
    """Job and address -> what it came to before, oldest first."""
    job_seconds: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    """Job -> its seconds before, on the same accelerator, oldest first."""
    notes: tuple[str, ...] = ()
    """Sentences about the expectations themselves: known issues that are out of date."""
