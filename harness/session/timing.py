# SPDX-License-Identifier: GPL-2.0-only
"""Where a run's time went: its wall time by fetch, build and test, its processor time by what took it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import InfraError
from harness.paths import TIMING_FILE
from harness.results import RunStore, load
from harness.words import count_of

_LONG_WAIT_SECONDS = 1.0
"""How long VMs may have waited for room in all before it is told: nobody wonders about less."""


def phase_line(phases: Mapping[str, float], run_dir: Path) -> str:
    """One line with the seconds of each phase, and how long the VMs took to be ready for their first case."""
    words = [f"{name} {seconds:.1f} s" for name, seconds in phases.items()]
    timings = _timings(run_dir)
    if timings:
        boots = [timing["to_proof"] for timing in timings]
        least, most = f"{min(boots):.1f}", f"{max(boots):.1f}"
        span = least if least == most else f"{least} to {most}"
        words[-1] += f" ({count_of(len(boots), 'VM')}, ready in {span} s{_wait(timings)})"
    return "time: " + ", ".join(words)


def _wait(timings: Sequence[Mapping[str, Any]]) -> str:
    """What to say of VMs that waited until the host had room for them."""
    waited = sum(float(timing.get("waited", 0.0)) for timing in timings)
    return f", after {waited:.0f} s of waiting for room on this host" if waited > _LONG_WAIT_SECONDS else ""


def account(run_dir: Path, build: float) -> None:
    """Record in the run what processor time it cost: *build* seconds more for builds, and what QEMU took.

    A VM that was lost takes its account with it.
    """
    before = load(run_dir).spent
    spent = _spent(run_dir, before.get("builds", 0.0) + build)
    # A report matters more than its figures: a full disk does not keep it from being shown.
    with contextlib.suppress(InfraError):
        if spent != before:
            with RunStore.open(run_dir) as store:
                store.account(spent)


def _spent(run_dir: Path, build: float) -> dict[str, float]:
    """Processor seconds by what took them; empty when there is nothing to tell."""
    timings = [timing for timing in _timings(run_dir) if timing.get("cpu") is not None]
    if not build and not timings:
        return {}
    boots = sum(float(timing["cpu_to_proof"] or 0) for timing in timings)
    total = sum(float(timing["cpu"]) for timing in timings)
    return {"builds": build, "boots": boots, "cases": total - boots}


def _timings(run_dir: Path) -> list[dict[str, Any]]:
    """What each VM of the run has left about its time."""
    found = (_read(path) for path in sorted(run_dir.glob(f"vm/*/{TIMING_FILE}")))
    return [timing for timing in found if timing is not None]


def _read(path: Path) -> dict[str, Any] | None:
    """One VM's account; None when a kill or a full disk left none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        timing = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(timing, dict) and "to_proof" in timing:
            return timing
    return None
