# SPDX-License-Identifier: GPL-2.0-only
"""`python -m tools.fleet`: what a fleet of many workers would do.

Runs a real scheduler with that many real workers on this host, whose units sleep, faster than real ones: what
a unit costs the scheduler and the client, and how close the run ends to the bound max(total / workers,
longest unit), with and without deaths.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.lab.units import UNIT_SECONDS, Unit
from harness.results.store import load
from tools.fleet.sleeping import sleeping

_PIECES = 5
"""Pieces of work in a simulated unit."""

_CASE_SECONDS = (0.05, 0.1, 0.1, 0.2, 0.2, 0.3, 0.5, 1.0, 2.0, 6.0)
"""Without a run: tenths of the distribution of a nightly's cases under TCG, in seconds."""


def make_units(count: int, jobs: int, recorded: Sequence[float], seed: int) -> list[Unit]:
    """Return *count* units of *jobs* jobs; each is cases of *recorded* durations up to UNIT_SECONDS."""
    draw = random.Random(seed)
    units = []
    for number in range(count):
        seconds = 0.0
        while seconds < UNIT_SECONDS * draw.uniform(0.3, 1.0):
            seconds += draw.choice(recorded)
        job = f"job{number % jobs}"
        units.append(Unit(job, tuple(f"{job} {number}/{piece}" for piece in range(_PIECES)), seconds))
    return units


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m tools.fleet", description=__doc__)
    parser.add_argument("--workers", type=int, default=500)
    parser.add_argument("--units", type=int, default=20_000)
    parser.add_argument("--jobs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dying", type=float, default=0.05, help="share of the workers that die once")
    parser.add_argument("--faster", type=float, default=10.0, help="speed of units against real ones")
    parser.add_argument("--run", type=Path, help="take the durations of cases from this run")
    asked = parser.parse_args(argv)
    recorded: tuple[float, ...] = _CASE_SECONDS
    if asked.run is not None:
        recorded = tuple(case.duration for case in load(asked.run).cases if case.duration > 0)
    units = make_units(asked.units, asked.jobs, recorded, asked.seed)
    mean = statistics.mean(unit.seconds for unit in units)
    sys.stdout.write(f"units of {mean:.0f} s on average, from {len(recorded)} durations\n")
    sys.stdout.write(sleeping(units, asked.workers, asked.dying, asked.faster) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
