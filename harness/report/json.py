# SPDX-License-Identifier: GPL-2.0-only
"""A Run as JSON for other programs: keys are only added, and the schema number grows when one changes."""

from __future__ import annotations

import json
from typing import Any

from harness.report import view
from harness.results import Outcome, Run, codec, judgement

SCHEMA = 1
"""Bumped when a key changes its meaning or goes away; a new key does not bump it."""


def render(run: Run) -> str:
    """*run* as a JSON document; the same Run always renders to the same bytes."""
    return json.dumps(to_plain(run), indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n"


def to_plain(run: Run) -> dict[str, Any]:
    """*run* as plain values: the settled cases in `cases`, every attempt in `attempts`."""
    judged = judgement(run)
    counts = view.count(run.cases)
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
        "counts": {outcome.value: counts.get(outcome, 0) for outcome in Outcome},
        "jobs": [codec.job_to_plain(job) for job in run.jobs],
        "cases": [codec.result_to_plain(case) for case in run.cases],
        "attempts": [codec.result_to_plain(result) for result in run.results],
    }
