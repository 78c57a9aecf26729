# SPDX-License-Identifier: GPL-2.0-only
"""How many workers a run gets when nobody says: each has VMs of its own."""

from __future__ import annotations

from harness.admission import room_for
from harness.plan import Plan
from harness.suites.catalogue import to_do

FEWEST_CASES = 20
"""Below that, starting workers takes longer than they save."""


def default_workers(plan: Plan) -> int:
    """Workers for what is left of *plan*, by this host's processors and memory; 0: run in this process."""
    work = [one for one in to_do(plan) if not one.refusal]
    groups = len({one.group for one in work})
    if len(work) < FEWEST_CASES or groups < 2:
        return 0
    jobs = [plan.job(name) for name in {one.job for one in work}]
    room = room_for(max(job.memory_mib for job in jobs), max(job.cpus for job in jobs))
    wanted = min(room, groups)
    return wanted if wanted > 1 else 0
