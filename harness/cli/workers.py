# SPDX-License-Identifier: GPL-2.0-only
"""How many workers a run gets when nobody says: each has VMs of its own."""

from __future__ import annotations

import os

from harness.host import available_mib
from harness.plan import Plan
from harness.suites.catalogue import selected, work_of

PER_PROCESSOR = 2
"""Workers for each of the host's processors: cases wait about as long as they compute (a reset, a transfer of
edu).  On 2 processors a run of 72 s with 1 worker took 57 with 2, 49 with 3 and 42 with 4.
"""

MOST = 16

FEWEST_CASES = 20
"""Below that, starting workers takes longer than they save."""


def default_workers(plan: Plan) -> int:
    """Workers for *plan* on this host, by its processors and free memory; 0: none, run in this process."""
    work = [one for job in plan.jobs for one in work_of(job) if selected(one, plan.cases) and not one.refusal]
    groups = len({one.group for one in work})
    if len(work) < FEWEST_CASES or groups < 2:
        return 0
    room = available_mib() // max(job.memory_mib for job in plan.jobs)
    wanted = min(PER_PROCESSOR * len(os.sched_getaffinity(0)), groups, room, MOST)
    return wanted if wanted > 1 else 0
