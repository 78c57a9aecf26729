# SPDX-License-Identifier: GPL-2.0-only
"""`python -m harness.lab PLAN DIRECTORY`: carry out the jobs of a saved plan on this host.

Says on stderr which accelerator this host has, and prints every Result as one line of JSON.  It needs the
plan, the store with the digests that the plan names (VFIO_HARNESS_CACHE) and a QEMU (VFIO_HARNESS_QEMU, or
the one in PATH); it writes to DIRECTORY.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.base.errors import ExitCode, HarnessError, UsageError, nearest
from harness.base.output import complain, emit, tell
from harness.lab import execute
from harness.lab.accel import choices
from harness.lab.records import records
from harness.lab.settings import Settings
from harness.plan import Job, load_plan
from harness.results.codec import result_to_plain
from harness.suites.catalogue import to_do


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out a plan; the exit code says whether that was possible, not what the results are."""
    parser = argparse.ArgumentParser(prog="python -m harness.lab", description="Carry out a saved plan.")
    parser.add_argument("plan", type=Path, help="the plan.json of a run")
    parser.add_argument("directory", type=Path, help="where consoles and logs are written")
    parser.add_argument("--job", metavar="NAME", help="carry out this job only")
    arguments = parser.parse_args(argv)
    try:
        _carry_out(arguments.plan, arguments.directory, arguments.job)
    except HarnessError as error:
        complain(error.message, error.hint)
        return error.exit_code
    return ExitCode.GOOD


def _carry_out(path: Path, directory: Path, only: str | None) -> None:
    plan = load_plan(path)
    names = [job.name for job in plan.jobs]
    if only is not None and only not in names:
        raise UsageError(f"{path} has no job {only!r}", hint=nearest(only, names))
    work = to_do(plan)
    jobs = [job for job in plan.jobs if only in (None, job.name)]
    _announce(jobs)
    for job in jobs:
        mine = [one for one in work if one.job == job.name]
        for attempt in execute(job, mine, directory.absolute(), settings=Settings.of(plan)):
            for result in records(attempt, job.name, plan.reruns.get(job.name, "")):
                emit(json.dumps(result_to_plain(result)))


def _announce(jobs: Sequence[Job]) -> None:
    """Print the accelerators that *jobs* get; where this host has none, their results say so."""
    for choice in choices(jobs):
        tell(f"accelerator: {choice.reason}")


if __name__ == "__main__":
    sys.exit(main())
