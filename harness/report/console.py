# SPDX-License-Identifier: GPL-2.0-only
"""A Run on a terminal: failures first, then one row per Job, the verdict last where the eye ends up."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Mapping
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.report import names, view
from harness.results import Outcome, Result, Run, Verdict, judgement

_STYLES = {
    Outcome.PASS: "green",
    Outcome.SKIP: "yellow",
    Outcome.XFAIL: "yellow",
    Outcome.NOT_RUN: "magenta",
    Outcome.LOST: "magenta",
    Outcome.XPASS: "red",
    Outcome.ERROR: "red",
    Outcome.FAIL: "red",
    Outcome.TIMEOUT: "red",
    Outcome.CRASH: "bold red",
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


def render(run: Run, *, width: int = 100, color: bool = False, most: int = 50) -> str:
    """*run* as text of *width* columns, with at most *most* failures told in full.

    Paths and commands are never broken, so that they can be copied; all else keeps within the width.
    """
    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        no_color=not color,
        highlight=False,
        emoji=False,
        legacy_windows=False,
    )
    console.print(Text(view.acceleration(run), style="bold yellow" if _emulated(run) else ""))
    bad = view.bad_cases(run)
    for case in bad[:most]:
        _print_failure(console, run, case)
    if len(bad) > most:
        console.print(Text(f"\n... and {len(bad) - most} more, in the other reports"))
    _print_stopped_jobs(console, run)
    _print_jobs(console, run)
    judged = judgement(run)
    console.print()
    console.print(Text(_totals(run)))
    console.print(
        Text.assemble(
            (judged.verdict.value.upper(), _VERDICT_STYLES[judged.verdict]), ": ", names.name(judged.why)
        )
    )
    return out.getvalue()


def show(run: Run, stream: TextIO, *, environ: Mapping[str, str] = os.environ) -> None:
    """Write *run* to *stream*, as wide as it is, in colour when it is a terminal and NO_COLOR is not set.

    See no-color.org: any value but the empty one forbids colour.
    """
    terminal = stream.isatty()
    given = environ.get("COLUMNS", "")
    fallback = max(40, int(given)) if given.isdecimal() else 100
    width = shutil.get_terminal_size((fallback, 40)).columns if terminal else fallback
    color = terminal and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
    text = render(run, width=width, color=color)
    encoding = stream.encoding or "utf-8"
    if not encoding.lower().startswith("utf"):
        text = text.replace("\u2500", "-")
    stream.write(text.encode(encoding, "replace").decode(encoding))


def _emulated(run: Run) -> bool:
    return run.info.inputs.accel == "tcg"


def _print_failure(console: Console, run: Run, case: Result) -> None:
    console.print()
    tries = f" (attempt {case.attempt})" if case.attempt > 1 else ""
    console.print(
        Text.assemble(
            (case.outcome.value, _STYLES[case.outcome]),
            f" {names.name(str(case.address))} [{names.name(case.job)}]{tries}",
        )
    )
    console.print(Text(f"  {view.reason(case)}"), overflow="fold")
    splat = [line.strip() for line in names.text(case.splat).splitlines() if line.strip()]
    for line in splat[:_SPLAT_LINES]:
        console.print(Text(f"  | {line}"), overflow="ellipsis", no_wrap=True)
    path = view.log_path(run, case)
    if path:
        console.print(Text(f"  log: {path}"), soft_wrap=True)
    if case.rerun:
        console.print(Text(f"  rerun: {names.name(case.rerun)}"), soft_wrap=True)


def _print_stopped_jobs(console: Console, run: Run) -> None:
    for job in run.jobs:
        if job.problem:
            what, style = ("JOB FAILED", "magenta") if job.applicable else ("NOT APPLICABLE", "dim")
            console.print()
            console.print(Text.assemble((what, style), f" {names.name(job.name)}"))
            console.print(Text(f"  {names.name(job.problem)}"), overflow="fold")


def _print_jobs(console: Console, run: Run) -> None:
    jobs = view.by_job(run)
    if not jobs:
        return
    shown = [outcome for outcome in view.COLUMNS if any(job.counts.get(outcome) for job in jobs)]
    widest = max(len(names.name(job.job.name)) for job in jobs)
    wide = widest + sum(len(outcome.value) + 2 for outcome in shown) + _TIME_WIDTH <= console.width
    table = Table(box=_HEAD, pad_edge=False, padding=(0, 0, 0, 1), show_edge=False)
    table.add_column("job", overflow="fold")
    if wide:
        for outcome in shown:
            table.add_column(outcome.value, justify="right", style=_STYLES[outcome], no_wrap=True)
    else:
        table.add_column("cases", overflow="fold")
    table.add_column("time", justify="right", no_wrap=True)
    for job in jobs:
        numbers = (
            [str(job.counts.get(outcome) or "") for outcome in shown] if wide else [view.told(job.counts)]
        )
        cells = (Text(cell) for cell in (names.name(job.job.name), *numbers))
        table.add_row(*cells, view.duration(job.job.duration or job.seconds))
    console.print()
    console.print(table)


def _totals(run: Run) -> str:
    counts = view.count(run.cases)
    total = sum(counts.values())
    took = f" in {view.duration(run.seconds)}" if run.seconds else ""
    return f"{total} {'case' if total == 1 else 'cases'}{took}" + (f": {view.told(counts)}" if total else "")
