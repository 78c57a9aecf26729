# SPDX-License-Identifier: GPL-2.0-only
"""A Run as one HTML page that needs nothing else: no network, no second file, and no script to be read."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from harness.report import names, spark, view
from harness.results import FLAKY, Address, Background, Outcome, Result, Run
from harness.words import count_of, duration

_LOG_MOST = 30_000
"""Characters of log shown for one case; the whole is a file in the run directory."""

_OPEN_MOST = 3
"""Up to so many failures are shown unfolded; of more one wants to see the list first."""

_SHOWN_MOST = 12
"""Failures beyond that are folded away together, so that the matrix stays near."""

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters.update(
    name=names.name, text=names.text, count_of=count_of, duration=duration, kind=spark.kind
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _CaseView:
    """A case that is told in full."""

    case: Result
    number: int
    new: bool
    attempts: Sequence[Result]
    """Every attempt, where there was more than one."""
    history: Markup
    durations: Markup
    recent: str


def render(run: Run, background: Background = view.NOTHING) -> str:
    """*run* as an HTML document."""
    jobs = view.by_job(run)
    counts = view.count(run.cases)
    bad, flaky = view.failures(run), view.flaky_cases(run)
    numbers = {job.job.name: number for number, job in enumerate(jobs)}
    comparison = background.comparison
    lost: collections.Counter[str] = collections.Counter()
    if comparison is not None and not run.accepted:
        lost.update(change.job for change in comparison.lost)
        lost.update(job.job for job in comparison.lost_jobs)
    return _ENVIRONMENT.get_template("report.html.j2").render(
        run=run,
        judged=view.judge(run, background),
        acceleration=view.acceleration(run),
        emulated=run.info.inputs.accel == "tcg",
        facts=view.facts(run),
        jobs=jobs,
        numbers=numbers,
        grids=view.grids(jobs),
        cell=lambda job: _cell(job, lost),
        columns=[label for label in view.COLUMNS if counts.get(label)],
        counts=counts,
        bad=_told(run, background, bad, 0),
        flaky=_told(run, background, flaky, len(bad)),
        chanceless=view.chanceless(run),
        stopped=view.stopped_jobs(run),
        open_most=_OPEN_MOST,
        shown_most=_SHOWN_MOST,
        headings=view.changes(run, comparison),
        against=view.against(comparison),
        compared=comparison is not None and bool(comparison.against),
        retries=view.retries(run),
        notes=background.notes,
        job_spark=lambda job: _job_spark(background, job),
        row_history=lambda case: _row_history(background, case),
        tone=_tone,
        told_counts=lambda job: view.told(job.counts),
        reason=view.reason,
        log_path=lambda case: view.log_path(run, case),
        excerpt=lambda raw: names.excerpt(raw, _LOG_MOST),
    )


def _tone(heading: view.Heading) -> str:
    """The colour of a kind of change."""
    if heading.bad:
        return "bad"
    return {"fixed": "good", "newly flaky": "flaky", "slower than before": "flaky"}.get(
        heading.title, "known"
    )


def _told(run: Run, background: Background, cases: Iterable[Result], first: int) -> tuple[_CaseView, ...]:
    news, attempts = view.newly(background.comparison), view.attempts(run)
    found = []
    for number, case in enumerate(cases, start=first):
        key = (case.job, case.address)
        found.append(
            _CaseView(
                case=case,
                number=number,
                new=key in news,
                attempts=attempts.get(key, ()),
                history=_history(background, key, case.label),
                durations=_durations(run, background, case),
                recent=view.recent(background.past.get(key, ())),
            )
        )
    return tuple(found)


def _history(background: Background, key: tuple[str, Address], label: str) -> Markup:
    past = background.past.get(key, ())
    return spark.outcomes([*(one.case.label for one in past), label], view.recent(past)) if past else Markup()


def _row_history(background: Background, case: Result) -> Markup:
    """The history of a case in the long table: only where it was ever something else."""
    key = (case.job, case.address)
    dull = {one.case.label for one in background.past.get(key, ())} <= {case.label}
    return Markup() if dull else _history(background, key, case.label)


def _durations(run: Run, background: Background, case: Result) -> Markup:
    past = background.past.get((case.job, case.address), ())
    seconds = [one.case.duration for one in past if one.accel == run.info.inputs.accel]
    return spark.durations([*seconds, case.duration], f"duration, now {duration(case.duration)}")


def _job_spark(background: Background, job: view.JobView) -> Markup:
    seconds = background.job_seconds.get(job.job.name, ())
    return spark.durations([*seconds, job.seconds], f"duration, now {duration(job.seconds)}")


def _cell(job: view.JobView | None, lost: Mapping[str, int]) -> tuple[str, str]:
    """A cell of the heat map: the kind that colours it, and what stands in it; *lost* is coverage by Job."""
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
    chances = sum(case.is_bad for case in job.cases)
    if chances:
        return "infra", f"? {chances}"
    if counts.get(FLAKY):
        return "flaky", f"≈ {counts[FLAKY]}"
    passes = counts.get(Outcome.PASS.value, 0)
    return ("good", f"✓ {passes}") if passes else ("none", "nothing passed" if job.cases else "not run")
