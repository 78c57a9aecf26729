# SPDX-License-Identifier: GPL-2.0-only
"""What is left of a plan after a run, or a part of one: for who resumes it, and for a second chance."""

from __future__ import annotations

from harness.plan import Job, Plan
from harness.results import Run
from harness.suites.probes import SUITE as PROBES


def jobs_with_a_chance(plan: Plan, run: Run) -> tuple[Job, ...]:
    """The jobs whose kernel was built and boots."""
    hopeless = {job.name for job in run.jobs if job.problem}
    hopeless |= {case.job for case in run.cases if case.address.case == "boots" and case.outcome.is_failure}
    return tuple(job for job in plan.jobs if job.name not in hopeless)


def done_in(run: Run) -> tuple[str, ...]:
    """What of its plan *run* has finished, as Plan.done names it: what had its chance."""
    done: dict[str, bool] = {}
    for case in run.cases:
        probe = case.address.suite == PROBES
        name = f"{case.job} {case.address if probe else case.address.program_path}"
        done[name] = done.get(name, True) and not case.outcome.is_infra
    return tuple(name for name, is_done in done.items() if is_done)
