# SPDX-License-Identifier: GPL-2.0-only
"""Where a run's wall time went: fetch, build, boot, cases."""

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
    """One line with the seconds of each phase; with several workers boots overlap cases."""
    boots = boot_seconds(run_dir)
    spent = dict(phases)
    test = spent.pop("test", 0.0)
    words = [f"{name} {seconds:.1f} s" for name, seconds in spent.items()]
    words.append(f"boot {sum(boots):.1f} s ({len(boots)} VMs)")
    words.append(f"cases {max(0.0, test - sum(boots)):.1f} s")
    return "time: " + ", ".join(words)
