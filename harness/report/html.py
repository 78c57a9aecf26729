# SPDX-License-Identifier: GPL-2.0-only
"""A Run as one HTML page: no network, no second file, and readable without its script.

A column is a cell in templates/report.html.j2 and, where it needs a value, one name in render().
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from pathlib import Path

import jinja2
from markupsafe import Markup

from harness.base.words import count_of, duration
from harness.report import names, spark, view
from harness.report.looks import LABELS, verdict_look
from harness.report.splats import essence_of
from harness.results import FLAKY, Background, Outcome, Result, Run, reach_verdict
from harness.results.decoded import decoded_splat, places_of

_LOG_MOST = 30_000
"""How many characters of log are shown for one case; the run directory has the whole log."""

_OPEN_MOST = 3
"""How many failures are shown unfolded; more would hide the list."""

_SHOWN_MOST = 12
"""How many failures are listed; the rest are folded together, so that the matrix stays near the top."""

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters.update(
    name=names.name, count_of=count_of, duration=duration, tone=lambda label: LABELS[label].tone
)


def render(run: Run, background: Background = view.NOTHING) -> str:
    """Render *run* as an HTML document."""
    reached = reach_verdict(run, background.comparison)
    jobs = view.by_job(run)
    counts = view.count(run.cases)
    numbers = {job.job.name: number for number, job in enumerate(jobs)}
    comparison = background.comparison
    news, attempts = view.newly(comparison), view.attempts(run)
    lost: collections.Counter[str] = collections.Counter()
    if comparison is not None and not run.accepted:
        lost.update(change.job for change in comparison.lost)
        lost.update(job.job for job in comparison.lost_jobs)
    return _ENVIRONMENT.get_template("report.html.j2").render(
        run=run,
        reached=reached,
        verdict_tone=verdict_look(reached.verdict).tone,
        acceleration=view.acceleration(run),
        emulated=run.info.inputs.accel == "tcg",
        facts=view.facts(run),
        jobs=jobs,
        numbers=numbers,
        grids=view.grids(jobs),
        cell=lambda job: _cell(job, lost),
        columns=[label for label in view.COLUMNS if counts.get(label)],
        counts=counts,
        bad=view.failures(run),
        groups=view.failure_groups(run, news),
        declaration=view.declaration,
        trees=view.trees(run),
        took=view.took(run),
        no_baseline=view.no_baseline(run, comparison),
        flaky=view.flaky_cases(run),
        not_carried_out=view.not_carried_out(run),
        stopped=view.stopped_jobs(run),
        open_most=_OPEN_MOST,
        shown_most=_SHOWN_MOST,
        headings=view.changes(run, comparison),
        against=view.against(comparison),
        compared=comparison is not None and bool(comparison.against),
        retries=view.retries(run),
        notes=background.notes,
        job_spark=lambda job: _job_spark(background, job),
        is_new=lambda case: (case.job, case.address) in news,
        attempts=lambda case: attempts.get((case.job, case.address), ()),
        history=lambda case: _history(background, case),
        row_history=lambda case: _row_history(background, case),
        durations=lambda case: _durations(run, background, case),
        recent=lambda case: view.recent(background.past.get((case.job, case.address), ())),
        told_counts=lambda job: view.told(job.counts),
        reason=view.reason,
        log_path=lambda case: view.log_path(run, case),
        memory_of=lambda case: view.memory_of(run, case),
        excerpt=lambda raw: names.excerpt(raw, _LOG_MOST),
        essence=lambda case: essence_of(run, case) if places_of(run, case) else (),
        splat=lambda case: decoded_splat(run, case),
    )


def _history(background: Background, case: Result) -> Markup:
    past = background.past.get((case.job, case.address), ())
    labels = [*(one.case.label for one in past), case.label]
    return spark.outcomes(labels, view.recent(past)) if past else Markup()


def _row_history(background: Background, case: Result) -> Markup:
    """Return the history of a case for the long table; empty if its label never changed."""
    labels = {one.case.label for one in background.past.get((case.job, case.address), ())}
    return Markup() if labels <= {case.label} else _history(background, case)


def _durations(run: Run, background: Background, case: Result) -> Markup:
    past = background.past.get((case.job, case.address), ())
    seconds = [one.case.duration for one in past if one.accel == run.info.inputs.accel]
    return spark.durations([*seconds, case.duration], f"duration, now {duration(case.duration)}")


def _job_spark(background: Background, job: view.JobView) -> Markup:
    seconds = background.job_seconds.get(job.job.name, ())
    return spark.durations([*seconds, job.seconds], f"duration, now {duration(job.seconds)}")


def _cell(job: view.JobView | None, lost: Mapping[str, int]) -> tuple[str, str]:
    """The tone and the text of a cell of the heat map; *lost* is lost coverage by Job."""
    if job is None:
        return "empty", ""
    if not job.job.applicable and lost.get(job.job.name):
        return "bad", "↓ n/a"
    if job.job.problem:
        return ("none", "n/a") if not job.job.applicable else ("infra", "no kernel")
    counts = job.counts
    failures = sum(case.is_failure for case in job.cases)
    if failures:
        return "bad", f"✕ {failures}"
    if lost.get(job.job.name):
        return "bad", f"↓ {lost[job.job.name]}"
    if infra := sum(case.is_bad for case in job.cases):
        return "infra", f"? {infra}"
    if counts.get(FLAKY):
        return "flaky", f"≈ {counts[FLAKY]}"
    passes = counts.get(Outcome.PASS.value, 0)
    return ("good", f"✓ {passes}") if passes else ("none", "nothing passed" if job.cases else "not run")
