# SPDX-License-Identifier: GPL-2.0-only
"""A Run as Markdown, for the summary of a CI step: short, worst first, details folded away."""

from __future__ import annotations

import re
from collections.abc import Iterable

from harness.report import names, view
from harness.results import FLAKY, Background, Outcome, Result, Run, Verdict
from harness.words import count_of, duration

_LOG_MOST = 3_000
"""Characters of splat or log for one case: GitHub cuts a step's summary at 1 MiB."""

_MOST = 50
"""Cases told one by one; the other reports have all."""

_SIGNS = {Verdict.GOOD: "✅", Verdict.BAD: "❌", Verdict.UNTESTABLE: "⚠️", Verdict.OUR_FAULT: "🛠️"}


def render(run: Run, background: Background = view.NOTHING) -> str:
    """*run* as GitHub-flavoured Markdown."""
    judged = view.judge(run, background)
    counts = view.count(run.cases)
    took = f" in {duration(run.seconds)}" if run.seconds else ""
    totals = f"{count_of(sum(counts.values()), 'case')}{took}: {view.told(counts) or 'none'}"
    parts = [
        f"## {_SIGNS[judged.verdict]} {judged.verdict.value.upper()}: {_text(judged.why)}",
        f"{totals}  \n{_text(view.acceleration(run))}",
        _changes(run, background),
        _matrix(run),
        _cases("Failures", run, background, view.failures(run)),
        _chanceless(run),
        _cases("Flaky", run, background, view.flaky_cases(run)),
        *(_text(told) for told in (view.retries(run),) if told),
        *(f"> {_text(note)}" for note in background.notes),
        _folded("This run", "\n".join(f"- {key}: {_code(value)}" for key, value in view.facts(run))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _text(raw: str) -> str:
    """*raw* as plain text: whatever a guest prints is no markup, no link and no mention."""
    return re.sub(r"([\\`*_\[\]<>|~&])", r"\\\1", names.name(raw)).replace("\\<", "&lt;")


def _code(raw: str) -> str:
    """*raw* as a code span; a longer fence than any in it."""
    clean = names.name(raw)
    fence = "`" * (max((len(run) for run in re.findall("`+", clean)), default=0) + 1)
    pad = " " if "`" in clean else ""
    return f"{fence}{pad}{clean}{pad}{fence}".replace("|", "\\|")


def _block(raw: str) -> str:
    clean = names.excerpt(raw, _LOG_MOST).strip("\n")
    fence = "`" * max(3, max((len(run) for run in re.findall("`+", clean)), default=0) + 1)
    return f"{fence}text\n{clean}\n{fence}"


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>" if body else ""


def _changes(run: Run, background: Background) -> str:
    comparison = background.comparison
    if comparison is None or not comparison.against:
        return ""
    headings = view.changes(run, comparison)
    rows = [f"**{_text(view.against(comparison))}**: {view.summary(run, comparison) or 'nothing changed'}"]
    for heading in headings:
        lines = [f"- {_code(line.address)} {_text(line.job)}: {_text(line.how)}" for line in heading.lines]
        if len(lines) > _MOST:
            lines[_MOST:] = [f"- ... and {len(lines) - _MOST} more"]
        rows.append(_folded(heading.counted, "\n".join(lines)))
    return "\n\n".join(rows)


def _matrix(run: Run) -> str:
    """A table per line, variant by topology; Jobs that have no place in one are listed below."""
    jobs = view.by_job(run)
    parts = []
    placed: set[str] = set()
    for grid in view.grids(jobs):
        head = [_text(grid.line or "variant"), *map(_text, grid.topologies)]
        rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for variant in grid.variants:
            cells = [grid.cells.get((variant, topology)) for topology in grid.topologies]
            placed.update(cell.job.name for cell in cells if cell is not None)
            rows.append("| " + " | ".join([_text(variant), *map(_cell, cells)]) + " |")
        parts.append("\n".join(rows))
    others = [job for job in jobs if job.job.name not in placed]
    parts += ["\n".join(f"- {_text(job.job.name)}: {_cell(job)}" for job in others)] if others else []
    return "\n\n".join(parts)


def _cell(job: view.JobView | None) -> str:
    if job is None:
        return ""
    if job.job.problem:
        return "not applicable" if not job.job.applicable else f"🛠️ {_text(job.job.problem)}"
    sign = "❌" if any(case.is_failure for case in job.cases) else ""
    sign = sign or ("🛠️" if any(case.is_bad for case in job.cases) else "")
    sign = sign or ("🎲" if job.counts.get(FLAKY) else "✅" if job.counts.get(Outcome.PASS.value) else "·")
    return f"{sign} {view.told(job.counts)}"


def _chanceless(run: Run) -> str:
    lines = [
        f"- **{group.outcome.value}** {_code(str(group.cases[0].address))}"
        + (f" and {len(group.cases) - 1} more" if len(group.cases) > 1 else "")
        + f" {_text(group.job)}: {_text(group.reason)}"
        for group in view.chanceless(run)
    ]
    return "\n".join(["### Had no chance", "", *lines[:_MOST]]) if lines else ""


def _cases(title: str, run: Run, background: Background, cases: Iterable[Result]) -> str:
    news = view.newly(background.comparison)
    found = list(cases)
    parts = []
    for case in found[:_MOST]:
        new = " **new**" if (case.job, case.address) in news else ""
        parts.append(f"- **{case.label}** {_code(str(case.address))} {_text(case.job)}{new}  \n"
                     f"  {_text(view.reason(case))}")  # fmt: skip
        if case.rerun:
            parts[-1] += f"  \n  rerun: {_code(case.rerun)}"
        evidence = case.splat or case.log
        if evidence:
            block = _folded("kernel splat" if case.splat else "output", _block(evidence))
            parts[-1] += "\n\n" + "\n".join(f"  {line}" for line in block.splitlines())
    if len(found) > _MOST:
        parts.append(f"- ... and {len(found) - _MOST} more, in the other reports")
    return "\n".join([f"### {title}", "", *parts]) if parts else ""
