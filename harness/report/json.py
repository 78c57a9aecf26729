# SPDX-License-Identifier: GPL-2.0-only
"""A Run as JSON for other programs: keys are only added, and the schema number grows when one changes."""

from __future__ import annotations

import json
from typing import Any

from harness.report import view
from harness.results import Background, Comparison, Run, codec

SCHEMA = 1
"""Bumped when a key changes its meaning or goes away; a new key does not bump it."""


def render(run: Run, background: Background = view.NOTHING) -> str:
    """*run* as a JSON document; the same Run always renders to the same bytes."""
    return dumps(to_plain(run, background))


def dumps(plain: Any) -> str:
    """*plain* as every JSON document of ours is written."""
    return json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n"


def to_plain(run: Run, background: Background = view.NOTHING) -> dict[str, Any]:
    """*run* as plain values: the settled cases in `cases`, every attempt in `attempts`."""
    judged = view.judge(run, background)
    counts = view.count(run.cases)
    seconds = {job.job.name: job.seconds for job in view.by_job(run)}
    return {
        "schema": SCHEMA,
        "generator": "vfio-harness",
        "run": codec.info_to_plain(run.info),
        "state": run.state.value,
        "finished": codec.time_to_text(run.finished) if run.finished else None,
        "directory": run.directory,
        "verdict": judged.verdict.value,
        "why": judged.why,
        "exit_code": int(judged.exit_code),
        "counts": {label: counts.get(label, 0) for label in view.COLUMNS},
        "jobs": [{**codec.job_to_plain(job), "duration": seconds[job.name]} for job in run.jobs],
        "cases": [codec.result_to_plain(case) for case in run.cases],
        "attempts": [codec.result_to_plain(result) for result in run.results],
        "accepted": run.accepted,
        "processor_seconds": dict(run.spent),
        "comparison": comparison_to_plain(run, background.comparison),
        "notes": list(background.notes),
    }


def comparison_to_plain(run: Run, comparison: Comparison | None) -> dict[str, Any] | None:
    """What changed, by kind, with the Runs that the Jobs were held against."""
    if comparison is None:
        return None
    return {
        "against": dict(comparison.against),
        "alone": list(comparison.alone),
        "worse": comparison.is_worse,
        "changes": {
            heading.title: [
                {"address": line.address, "job": line.job, "how": line.how} for line in heading.lines
            ]
            for heading in view.changes(run, comparison)
        },
    }
