# SPDX-License-Identifier: GPL-2.0-only
"""A Run as JSON for other programs.

A document has these keys; keys are in snake_case, except names used as keys (of a label, a Job, a variant).

- schema, generator
- run: id, started, harness_version, command, inputs (see harness.results.model.Inputs)
- state, finished, directory
- verdict (good, bad, untestable, infrastructure), why, exit_code
- counts: label -> number of settled cases
- jobs: the fields of JobRecord, and duration in seconds
- cases: the settled cases, as the fields of Result, with address, suite, program and case
- attempts: every attempt, as cases
- accepted, processor_seconds (use -> seconds), notes
- dumps: the vm_dir of results -> the fields of harness.results.model.Dump
- tests_seconds: wall time of the tests without builds before them; null when not recorded
- comparison: null, or against (Job -> Run), alone, without_baseline (Jobs that no earlier Run has), worse,
  and changes: kind -> list of address, job, how, where a kind is new_failures, still_failing, lost_jobs,
  vanished, new_skips, newly_flaky, slower, fixed or other
"""

from __future__ import annotations

import dataclasses
from typing import Any

from harness.base.values import dumps
from harness.report import view
from harness.results import Background, Comparison, Run, codec, reach_verdict

SCHEMA = 2
"""Raised when a key changes its meaning or goes away; a new key does not change it.

2: the kinds of change are in snake_case, `our fault` is `infrastructure`.
"""


def render(run: Run, background: Background = view.NOTHING) -> str:
    """Render *run* as a JSON document; the same Run always renders to the same bytes."""
    return dumps(to_plain(run, background))


def to_plain(run: Run, background: Background = view.NOTHING) -> dict[str, Any]:
    """Return *run* as plain values."""
    reached = reach_verdict(run, background.comparison)
    counts = view.count(run.cases)
    seconds = {job.job.name: job.seconds for job in view.by_job(run)}
    info = codec.info_to_plain(run.info)
    info["inputs"]["extra"] = {key.replace(" ", "_"): value for key, value in run.info.inputs.extra.items()}
    return {
        "schema": SCHEMA,
        "generator": "vfio-harness",
        "run": info,
        "state": run.state.value,
        "finished": codec.time_to_text(run.finished) if run.finished else None,
        "directory": run.directory,
        "verdict": reached.verdict.value,
        "why": reached.why,
        "exit_code": int(reached.exit_code),
        "counts": {label: counts.get(label, 0) for label in view.COLUMNS},
        "jobs": [{**codec.job_to_plain(job), "duration": seconds[job.name]} for job in run.jobs],
        "cases": [codec.result_to_plain(case) for case in run.cases],
        "attempts": [codec.result_to_plain(result) for result in run.results],
        "accepted": run.accepted,
        "processor_seconds": dict(run.spent),
        "tests_seconds": run.tested or None,
        "comparison": comparison_to_plain(run, background.comparison),
        "dumps": {vm_dir: dataclasses.asdict(dump) for vm_dir, dump in run.dumps.items()},
        "notes": list(background.notes),
    }


def comparison_to_plain(run: Run, comparison: Comparison | None) -> dict[str, Any] | None:
    """Return what changed by kind, and the Run that each Job was compared with."""
    if comparison is None:
        return None
    tested = dict.fromkeys(case.job for case in run.cases)
    without_baseline = [job for job in tested if job not in comparison.against]
    return {
        "against": dict(comparison.against),
        "alone": list(comparison.alone),
        "without_baseline": without_baseline,
        "worse": comparison.is_worse,
        "changes": {
            heading.kind: [dataclasses.asdict(line) for line in heading.lines]
            for heading in view.changes(run, comparison)
        },
    }
