# SPDX-License-Identifier: GPL-2.0-only
"""A Run as Markdown, for the summary of a CI step: short, worst first, details folded."""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.report import names, view
from harness.report.looks import verdict_look
from harness.report.splats import essence_of
from harness.results import FLAKY, Background, Outcome, Result, Run, reach_verdict
from harness.results.decoded import decoded_splat

_LOG_MOST = 3_000
"""How many characters of splat or log are shown for one case: GitHub cuts a step's summary at 1 MiB."""

_MOST = 50
"""How many cases are listed one by one; the other reports have all."""


def render(run: Run, background: Background = view.NOTHING) -> str:
    """*run* as GitHub-flavoured Markdown."""
    reached = reach_verdict(run, background.comparison)
    parts = [
        f"## {verdict_look(reached.verdict).sign} {reached.verdict.value.upper()}: {_text(reached.why)}",
        "  \n".join(filter(None, (view.totals(run), _text(view.acceleration(run)), _tree(run)))),
        _changes(run, background),
        _matrix(run),
        _cases("Failures", run, background, view.failure_groups(run, view.newly(background.comparison))),
        _not_carried_out(run),
        _cases("Flaky", run, background, [[case] for case in view.flaky_cases(run)]),
        *(_text(told) for told in (view.no_baseline(run, background.comparison), view.retries(run)) if told),
        *(f"> {_text(note)}" for note in background.notes),
        _folded("This run", "\n".join(f"- {key}: {_code(value)}" for key, value in view.facts(run))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _tree(run: Run) -> str:
    return f"tree: {_text(view.trees(run))}" if view.trees(run) else ""


def _text(raw: str) -> str:
    """*raw* as plain text, without markup, links or mentions."""
    return re.sub(r"([\\`*_\[\]<>|~&])", r"\\\1", names.name(raw)).replace("\\<", "&lt;")


def _code(raw: str) -> str:
    """*raw* as a code span, with a longer fence than any in it."""
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
    """A table per line, variant by topology; other Jobs are listed below."""
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


def _not_carried_out(run: Run) -> str:
    lines = [
        f"- **{case.outcome.value}** {_code(str(case.address))}"
        + (f" and {len(others)} more" if others else "")
        + f" {_text(case.job)}: {_text(view.reason(case))}"
        for case, *others in view.not_carried_out(run)
    ]
    return "\n".join(["### Could not be run", "", *lines[:_MOST]]) if lines else ""


def _cases(title: str, run: Run, background: Background, groups: Sequence[Sequence[Result]]) -> str:
    news = view.newly(background.comparison)
    parts = []
    for group in groups[:_MOST]:
        case = group[0]
        new = " **new**" if (case.job, case.address) in news else ""
        parts.append(f"- **{case.label}** {_code(str(case.address))} {_text(case.job)}{new}  \n"
                     f"  {_text(view.reason(case))}")  # fmt: skip
        if more := view.same_cause(group):
            parts[-1] += f"  \n  {_text(more)}"
        if declared := view.declaration(case):
            parts[-1] += f"  \n  {_text(declared.promise)} ({_code(declared.cites)}; {_code(declared.where)})"
        if case.rerun:
            parts[-1] += f"  \n  rerun: {_code(case.rerun)}"
        shown = [_block("\n".join(essence))] if (essence := essence_of(run, case)) else []
        if memory := view.memory_of(run, case):
            parts[-1] += f"  \n  memory: {_code(memory.what)}"
            shown += [_folded("the dead kernel", _block("\n".join(memory.summary)))] if memory.summary else []
        if text := decoded_splat(run, case) or case.log:
            shown.append(_folded("kernel splat" if case.splat else "output", _block(text)))
        for block in shown:
            parts[-1] += "\n\n" + "\n".join(f"  {line}" for line in block.splitlines())
    if left := sum(map(len, groups[_MOST:])):
        parts.append(f"- ... and {left} more, in the other reports")
    return "\n".join([f"### {title}", "", *parts]) if parts else ""
