# SPDX-License-Identifier: GPL-2.0-only
"""A Run on a terminal: failures, then changes, then one row per Job, the verdict last."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.base.words import duration
from harness.report import names, view
from harness.report.looks import LABELS, verdict_look
from harness.report.splats import essence_of
from harness.results import FLAKY, Address, Background, Result, Run, reach_verdict

_MEMORY_LINES = 8
"""How much of what drgn found is shown for one case."""

_TIME_WIDTH = len(" 59 min 59 s ")
# A line under the head and nothing else.
_HEAD = box.Box("    \n    \n \u2500\u2500 \n    \n    \n    \n    \n    \n")


def render(
    run: Run,
    background: Background = view.NOTHING,
    *,
    width: int = 100,
    color: bool = False,
    most: int = 50,
) -> str:
    """Render *run* as text of *width* columns, with at most *most* failures in full.

    Paths and commands are never broken, so that they can be copied; everything else is wrapped.
    """
    out = io.StringIO()
    console = make_console(out, width, color)
    emulated = run.info.inputs.accel == "tcg"
    console.print(Text(view.acceleration(run), style="bold yellow" if emulated else ""))
    if trees := view.trees(run):
        console.print(Text(f"tree: {trees}"), overflow="fold")
    news = view.newly(background.comparison)
    _print_failures(console, run, news, most)
    for group in view.not_carried_out(run)[:most]:
        _print_case(console, run, group[0], new=False)
        if len(group) > 1:
            console.print(Text(f"  and {len(group) - 1} more of this job for the same reason"))
    for case in view.flaky_cases(run)[:most]:
        _print_case(console, run, case, new=(case.job, case.address) in news)
    _print_stopped_jobs(console, run)
    _print_changes(console, run, background, most)
    _print_jobs(console, run)
    reached = reach_verdict(run, background.comparison)
    console.print()
    if retries := view.retries(run):
        console.print(Text(retries), overflow="fold")
    if spent := view.processor_time(run):
        console.print(Text(f"CPU time: {spent}"))
    if background.comparison is not None and background.comparison.loses and not run.accepted:
        accept = f"vfio-harness report {names.name(run.info.id)} --accept REASON"
        console.print(Text(f"to accept that tests are missing: {accept}"), overflow="fold")
    console.print(Text(view.totals(run)))
    console.print(
        Text.assemble(
            (reached.verdict.value.upper(), verdict_look(reached.verdict).style),
            ": ",
            names.name(reached.why),
        )
    )
    return out.getvalue()


def show(
    run: Run,
    stream: TextIO,
    background: Background = view.NOTHING,
    *,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Write *run* to *stream*: in its width, in colour on a terminal without NO_COLOR (no-color.org)."""
    write(lambda width, color: render(run, background, width=width, color=color), stream, environ=environ)


def write(
    text_for: Callable[[int, bool], str], stream: TextIO, *, environ: Mapping[str, str] = os.environ
) -> None:
    """Write what *text_for* returns for a width and whether to use colour to *stream*."""
    terminal = stream.isatty()
    given = environ.get("COLUMNS", "")
    fallback = max(40, int(given)) if re.fullmatch(r"\d{1,4}", given) and int(given) else 100
    width = shutil.get_terminal_size((fallback, 40)).columns if terminal else fallback
    color = terminal and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
    text = text_for(width, bool(color))
    encoding = stream.encoding or "utf-8"
    if not encoding.lower().startswith("utf"):
        text = text.replace("\u2500", "-")
    stream.write(text.encode(encoding, "replace").decode(encoding))


def _print_failures(console: Console, run: Run, news: frozenset[tuple[str, Address]], most: int) -> None:
    """Print one block per cause."""
    groups = view.failure_groups(run, news)
    for group in groups[:most]:
        _print_case(console, run, group[0], new=(group[0].job, group[0].address) in news)
        if more := view.same_cause(group):
            console.print(Text(f"  {more}"), overflow="fold")
    if left := sum(map(len, groups[most:])):
        console.print(Text(f"\n... and {left} more, in the other reports"))


def _print_case(console: Console, run: Run, case: Result, *, new: bool) -> None:
    console.print()
    tries = f" (attempt {case.attempt})" if case.attempt > 1 else ""
    console.print(
        Text.assemble(
            (case.label, LABELS[case.label].style),
            f" {names.name(str(case.address))} [{names.name(case.job)}]{tries}",
            (" new", "bold") if new else "",
        )
    )
    said = f"{case.outcome.value}: {view.reason(case)}" if case.label == FLAKY else view.reason(case)
    console.print(Text(f"  {said}"), overflow="fold")
    if declared := view.declaration(case):
        console.print(Text(f"  promise: {declared.promise}"), overflow="fold")
        console.print(Text(f"  cites: {declared.cites}"), overflow="fold")
        console.print(Text(f"  probe: {declared.where}"), soft_wrap=True)
    for line in essence_of(run, case):
        console.print(Text(f"  | {line}"), overflow="ellipsis", no_wrap=True)
    if memory := view.memory_of(run, case):
        console.print(Text(f"  memory: {memory.what}"), soft_wrap=True)
        for line in memory.summary[:_MEMORY_LINES]:
            console.print(Text(f"  | {line}"), overflow="ellipsis", no_wrap=True)
    path = view.log_path(run, case)
    if path:
        console.print(Text(f"  log: {path}"), soft_wrap=True)
    if case.rerun:
        console.print(Text(f"  rerun: {names.name(case.rerun)}"), soft_wrap=True)


def _print_stopped_jobs(console: Console, run: Run) -> None:
    for (applicable, problem), jobs in view.stopped_jobs(run).items():
        what, style = ("JOB FAILED", "magenta") if applicable else ("NOT APPLICABLE", "dim")
        console.print()
        console.print(Text.assemble((what, style), f" {', '.join(names.name(job.name) for job in jobs)}"))
        console.print(Text(f"  {names.name(problem)}"), overflow="fold")


def _print_changes(console: Console, run: Run, background: Background, most: int) -> None:
    comparison = background.comparison
    if comparison is not None and comparison.against:
        numbers = view.summary(run, comparison) or "nothing changed"
        console.print()
        console.print(Text(f"{view.against(comparison)}: {numbers}"))
        print_headings(console, view.changes(run, comparison), most)
    if alone := view.no_baseline(run, comparison):
        console.print()
        console.print(Text(alone), overflow="fold")
    for note in background.notes:
        console.print(Text(f"note: {names.name(note)}", style="yellow"))


def print_headings(
    console: Console, headings: Iterable[view.Heading], most: int, *, all_of: bool = False
) -> None:
    """Print the changes one by one; failures only with *all_of*, because the report of a Run has them."""
    for heading in headings:
        if not all_of and heading.kind in ("new_failures", "still_failing", "other"):
            continue
        console.print(Text(f"{heading.title}:", style="bold red" if heading.tone == "bad" else "bold"))
        for line in heading.lines[:most]:
            console.print(Text(f"  {line.address} [{line.job}]: {line.how}"), overflow="fold")
        if len(heading.lines) > most:
            console.print(Text(f"  ... and {len(heading.lines) - most} more"))


def make_console(out: TextIO, width: int, color: bool) -> Console:
    """Return a rich Console that does not look at its environment."""
    return Console(
        file=out,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        no_color=not color,
        highlight=False,
        emoji=False,
        legacy_windows=False,
    )


def _print_jobs(console: Console, run: Run) -> None:
    # A Job that does not apply has no figures and was listed above.
    jobs = tuple(job for job in view.by_job(run) if job.cases or job.job.applicable)
    if not jobs:
        return
    shown = [label for label in view.COLUMNS if any(job.counts.get(label) for job in jobs)]
    widest = max(len(names.name(job.job.name)) for job in jobs)
    wide = widest + sum(len(label) + 2 for label in shown) + _TIME_WIDTH <= console.width
    table = Table(box=_HEAD, pad_edge=False, padding=(0, 0, 0, 1), show_edge=False)
    table.add_column("job", overflow="fold")
    if wide:
        for label in shown:
            table.add_column(label, justify="right", style=LABELS[label].style, no_wrap=True)
    else:
        table.add_column("cases", overflow="fold")
    table.add_column("time", justify="right", no_wrap=True)
    for job in jobs:
        numbers = [str(job.counts.get(label) or "") for label in shown] if wide else [view.told(job.counts)]
        cells = (Text(cell) for cell in (names.name(job.job.name), *numbers))
        table.add_row(*cells, duration(job.seconds))
    console.print()
    console.print(table)
