# SPDX-License-Identifier: GPL-2.0-only
"""How many workers a run gets when nobody says: each has VMs of its own."""

from __future__ import annotations

from harness.admission import room_for
from harness.plan import Plan
from harness.suites.catalogue import selected, work_of

FEWEST_CASES = 20
"""Below that, starting workers takes longer than they save."""


def default_workers(plan: Plan) -> int:
    """Workers for *plan* on this host, by its processors and free memory; 0: none, run in this process."""
    work = [one for job in plan.jobs for one in work_of(job) if selected(one, plan.cases) and not one.refusal]
    groups = len({one.group for one in work})
    if len(work) < FEWEST_CASES or groups < 2:
        return 0
    wanted = min(room_for(max(job.memory_mib for job in plan.jobs)), groups)
    return wanted if wanted > 1 else 0
