# SPDX-License-Identifier: GPL-2.0-only
"""Where a run's wall time went: fetch, build, test."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.paths import TIMING_FILE
from harness.words import count_of


def phase_line(phases: Mapping[str, float], run_dir: Path) -> str:
    """One line with the seconds of each phase, and how long the VMs took to be ready for their first case."""
    words = [f"{name} {seconds:.1f} s" for name, seconds in phases.items()]
    boots = [timing["to_proof"] for timing in _timings(run_dir)]
    if boots:
        least, most = f"{min(boots):.1f}", f"{max(boots):.1f}"
        span = least if least == most else f"{least} to {most}"
        words[-1] += f" ({count_of(len(boots), 'VM')}, ready in {span} s)"
    return "time: " + ", ".join(words)


def processor_line(run_dir: Path, build: float) -> str | None:
    """One line with the processor time that builds and QEMU took; None when there was neither.

    *build* is the builds'.  A VM that was lost takes its account with it.
    """
    timings = [timing for timing in _timings(run_dir) if timing.get("cpu") is not None]
    boots = sum(float(timing["cpu_to_proof"] or 0) for timing in timings)
    cases = sum(float(timing["cpu"]) for timing in timings) - boots
    if not build and not timings:
        return None
    return f"processor time: builds {build:.0f} s, boots {boots:.0f} s, cases {cases:.0f} s"


def _timings(run_dir: Path) -> list[dict[str, Any]]:
    """What each VM of the run has left about its time."""
    paths = sorted(run_dir.glob(f"vm/*/{TIMING_FILE}"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]
