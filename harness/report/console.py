# SPDX-License-Identifier: GPL-2.0-only
"""A Run on a terminal: failures first, then what changed, then one row per Job, the verdict last."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.report import names, view
from harness.results import FLAKY, Background, Outcome, Result, Run, Verdict
from harness.words import count_of, duration

_STYLES = {
    Outcome.PASS.value: "green",
    Outcome.SKIP.value: "yellow",
    Outcome.XFAIL.value: "yellow",
    FLAKY: "bold yellow",
    Outcome.NOT_RUN.value: "magenta",
    Outcome.LOST.value: "magenta",
    Outcome.XPASS.value: "red",
    Outcome.ERROR.value: "red",
    Outcome.FAIL.value: "red",
    Outcome.TIMEOUT.value: "red",
    Outcome.CRASH.value: "bold red",
}
_VERDICT_STYLES = {
    Verdict.GOOD: "bold green",
    Verdict.BAD: "bold red",
    Verdict.UNTESTABLE: "bold yellow",
    Verdict.OUR_FAULT: "bold magenta",
}
_SPLAT_LINES = 3
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
    """*run* as text of *width* columns, with at most *most* failures told in full.

    Paths and commands are never broken, so that they can be copied; all else keeps within the width.
    """
    out = io.StringIO()
    console = make_console(out, width, color)
    console.print(Text(view.acceleration(run), style="bold yellow" if _emulated(run) else ""))
    bad = view.failures(run)
    news = view.newly(background.comparison)
    for case in bad[:most]:
        _print_case(console, run, case, new=(case.job, case.address) in news)
    if len(bad) > most:
        console.print(Text(f"\n... and {len(bad) - most} more, in the other reports"))
    for group in view.chanceless(run)[:most]:
        _print_case(console, run, group.cases[0], new=False)
        if len(group.cases) > 1:
            console.print(Text(f"  and {len(group.cases) - 1} more of this job for the same reason"))
    for case in view.flaky_cases(run)[:most]:
        _print_case(console, run, case, new=(case.job, case.address) in news)
    _print_stopped_jobs(console, run)
    _print_changes(console, run, background, most)
    _print_jobs(console, run)
    judged = view.judge(run, background)
    console.print()
    if retries := view.retries(run):
        console.print(Text(retries), overflow="fold")
    if spent := view.processor_time(run):
        console.print(Text(f"processor time: {spent}"))
    if background.comparison is not None and background.comparison.loses and not run.accepted:
        accept = f"vfio-harness report {names.name(run.info.id)} --accept REASON"
        console.print(Text(f"if what is gone or skipped is meant to be: {accept}"), overflow="fold")
    console.print(Text(_totals(run)))
    console.print(
        Text.assemble(
            (judged.verdict.value.upper(), _VERDICT_STYLES[judged.verdict]), ": ", names.name(judged.why)
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
    """Write *run* to *stream*, as wide as it is, in colour when it is a terminal and NO_COLOR is not set.

    See no-color.org: any value but the empty one forbids colour.
    """
    write(lambda width, color: render(run, background, width=width, color=color), stream, environ=environ)


def write(
    text_for: Callable[[int, bool], str], stream: TextIO, *, environ: Mapping[str, str] = os.environ
) -> None:
    """Write what *text_for* makes of a width, and whether there is colour, to *stream*."""
    terminal = stream.isatty()
    given = environ.get("COLUMNS", "")
    fallback = max(40, int(given)) if given.isdecimal() else 100
    width = shutil.get_terminal_size((fallback, 40)).columns if terminal else fallback
    color = terminal and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
    text = text_for(width, bool(color))
    encoding = stream.encoding or "utf-8"
    if not encoding.lower().startswith("utf"):
        text = text.replace("\u2500", "-")
    stream.write(text.encode(encoding, "replace").decode(encoding))


def _emulated(run: Run) -> bool:
    return run.info.inputs.accel == "tcg"


def _print_case(console: Console, run: Run, case: Result, *, new: bool) -> None:
    console.print()
    tries = f" (attempt {case.attempt})" if case.attempt > 1 else ""
    console.print(
        Text.assemble(
            (case.label, _STYLES[case.label]),
            f" {names.name(str(case.address))} [{names.name(case.job)}]{tries}",
            (" new", "bold") if new else "",
        )
    )
    said = f"{case.outcome.value}: {view.reason(case)}" if case.label == FLAKY else view.reason(case)
    console.print(Text(f"  {said}"), overflow="fold")
    splat = [line.strip() for line in names.text(case.splat).splitlines() if line.strip()]
    for line in splat[:_SPLAT_LINES]:
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
    for note in background.notes:
        console.print(Text(f"note: {names.name(note)}", style="yellow"))


def print_headings(
    console: Console, headings: Iterable[view.Heading], most: int, *, all_of: bool = False
) -> None:
    """The changes one by one; failures only if *all_of* them are wanted, for a Run's report tells them."""
    for heading in headings:
        if not all_of and heading.title in ("new failures", "still failing", "other changes"):
            continue
        console.print(Text(f"{heading.title}:", style="bold red" if heading.bad else "bold"))
        for line in heading.lines[:most]:
            console.print(Text(f"  {line.address} [{line.job}]: {line.how}"), overflow="fold")
        if len(heading.lines) > most:
            console.print(Text(f"  ... and {len(heading.lines) - most} more"))


def make_console(out: TextIO, width: int, color: bool) -> Console:
    """A rich Console that only does what it is told."""
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
    # One that does not apply has no figures, and was told above.
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
            table.add_column(label, justify="right", style=_STYLES[label], no_wrap=True)
    else:
        table.add_column("cases", overflow="fold")
    table.add_column("time", justify="right", no_wrap=True)
    for job in jobs:
        numbers = [str(job.counts.get(label) or "") for label in shown] if wide else [view.told(job.counts)]
        cells = (Text(cell) for cell in (names.name(job.job.name), *numbers))
        table.add_row(*cells, duration(job.seconds))
    console.print()
    console.print(table)


def _totals(run: Run) -> str:
    counts = view.count(run.cases)
    total = sum(counts.values())
    took = f" in {duration(run.seconds)}" if run.seconds else ""
    return f"{count_of(total, 'case')}{took}" + (f": {view.told(counts)}" if total else "")
