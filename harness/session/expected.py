# SPDX-License-Identifier: GPL-2.0-only
"""How long work will take, going by earlier runs: what a plan is ordered by and tells."""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Mapping

from harness.errors import HarnessError
from harness.plan import Job
from harness.results import History, JobRecord
from harness.session.background import ask
from harness.suites.catalogue import work_of


def expected_seconds(jobs: Mapping[str, tuple[Job, JobRecord]]) -> dict[str, float]:
    """Group of work -> seconds: the medians of its cases in their last runs, added up.

    *jobs* are those of a plan by name, each with what the results will say of it.  That nothing can be had
    from the history is no reason not to run.
    """
    try:
        return ask(lambda history: _expected(history, jobs))
    except HarnessError:
        return {}


def job_seconds(job: Job, seconds: Mapping[str, float]) -> float:
    """How long *job* takes, going by *seconds* of its groups of work.

    One of which nothing is known may take longest of all, and is not to be what every deadline cuts off.
    """
    known = [value for group, value in seconds.items() if group.startswith(f"{job.name}/")]
    return sum(known) if known else math.inf


def _expected(history: History, jobs: Mapping[str, tuple[Job, JobRecord]]) -> dict[str, float]:
    seconds: collections.defaultdict[str, float] = collections.defaultdict(float)
    for job, record in jobs.values():
        groups = {work.address: work.group for work in work_of(job)}
        for address, past in history.case_seconds(record.series, job.accel).items():
            # A probe is known by its own address, a case of a selftest by its program's.
            group = groups.get(str(address)) or groups.get(address.program_path)
            if group is not None:
                seconds[group] += statistics.median(past)
    return dict(seconds)
