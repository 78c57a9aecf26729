# SPDX-License-Identifier: GPL-2.0-only
"""A Run as one HTML page that needs nothing else: no network, no second file, and no script to be read."""

from __future__ import annotations

from pathlib import Path

import jinja2

from harness.report import names, view
from harness.results import Run, judgement

_LOG_MOST = 30_000
"""Characters of log shown for one case; the whole is a file in the run directory."""

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters.update(name=names.name, text=names.text, duration=view.duration)


def render(run: Run) -> str:
    """*run* as an HTML document."""
    jobs = view.by_job(run)
    counts = view.count(run.cases)
    return _ENVIRONMENT.get_template("report.html.j2").render(
        run=run,
        judged=judgement(run),
        acceleration=view.acceleration(run),
        emulated=run.info.inputs.accel == "tcg",
        facts=view.facts(run),
        jobs=jobs,
        columns=[outcome for outcome in view.COLUMNS if counts.get(outcome)],
        counts=counts,
        bad=view.bad_cases(run),
        reason=view.reason,
        log_path=lambda case: view.log_path(run, case),
        excerpt=lambda raw: names.excerpt(raw, _LOG_MOST),
    )
