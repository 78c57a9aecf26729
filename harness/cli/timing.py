# SPDX-License-Identifier: GPL-2.0-only
"""Where a run's wall time went: fetch, build, test."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from harness.paths import TIMING_FILE


def boot_seconds(run_dir: Path) -> tuple[float, ...]:
    """How long each VM of the run took from QEMU's start to the last proof, in seconds."""
    return tuple(
        float(json.loads(path.read_text(encoding="utf-8"))["to_proof"])
        for path in sorted(run_dir.glob(f"vm/*/{TIMING_FILE}"))
    )


def phase_line(phases: Mapping[str, float], run_dir: Path) -> str:
    """One line with the seconds of each phase, and how long the VMs took to be ready for their first case."""
    words = [f"{name} {seconds:.1f} s" for name, seconds in phases.items()]
    boots = boot_seconds(run_dir)
    if boots:
        least, most = f"{min(boots):.1f}", f"{max(boots):.1f}"
        span = least if least == most else f"{least} to {most}"
        words[-1] += f" ({len(boots)} VM{'s' if len(boots) > 1 else ''}, ready in {span} s)"
    return "time: " + ", ".join(words)
