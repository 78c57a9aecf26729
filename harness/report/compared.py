# SPDX-License-Identifier: GPL-2.0-only
"""Two Runs compared, and the history of one case: as text and as plain values for JSON."""

from __future__ import annotations

import io
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from rich.text import Text

from harness.base.words import count_of
from harness.report import console, names, view
from harness.report.json import comparison_to_plain
from harness.report.looks import SYMBOLS
from harness.results import Comparison, Past, Run, RunState, codec

_MOST = 100
"""How many changes of one kind are listed one by one."""

_EVENTS = 5
"""How many of the last Runs in which a case did not pass are listed one by one."""


def render(before: Run, after: Run, comparison: Comparison, *, width: int = 100, color: bool = False) -> str:
    """Render what changed from *before* to *after*, the conclusion last."""
    out = io.StringIO()
    terminal = console.make_console(out, width, color)
    for name, run in (("before", before), ("after", after)):
        tree = names.name(run.info.inputs.tree) if run.info.inputs.tree else "unknown tree"
        state = "" if run.state is RunState.FINISHED else f" ({run.state.value}, not finished)"
        counts = view.told(view.count(run.cases)) or "nothing"
        terminal.print(Text(f"{name:6} {names.name(run.info.id)}{state}: {counts}"))
        terminal.print(Text(f"       {tree}", style="dim"), overflow="fold")
    headings = view.changes(after, comparison)
    console.print_headings(terminal, headings, _MOST, all_of=True)
    if comparison.alone:
        only = ", ".join(names.name(job) for job in comparison.alone)
        terminal.print(Text(f"in one of them only: {only}"), overflow="fold")
    terminal.print(
        Text("WORSE", style="bold red") if comparison.is_worse else Text("NOT WORSE", style="bold green"),
        Text(f": {conclusion(after, comparison)}"),
        sep="",
    )
    return out.getvalue()


def conclusion(after: Run, comparison: Comparison) -> str:
    """The changes in one sentence."""
    if not comparison.against:
        return "the runs have no job in common"
    return view.summary(after, comparison) or "nothing changed"


def to_plain(before: Run, after: Run, comparison: Comparison) -> dict[str, Any]:
    """Return the same as plain values for JSON."""
    plain = comparison_to_plain(after, comparison) or {}
    return {
        **plain,
        "before": before.info.id,
        "after": after.info.id,
        "why": conclusion(after, comparison),
    }


def by_series(past: Iterable[Past]) -> dict[str, list[Past]]:
    """Group the *past* of one case by series of Jobs."""
    found: dict[str, list[Past]] = {}
    for one in past:
        found.setdefault(one.series, []).append(one)
    return found


def render_history(address: str, past: Sequence[Past], *, detailed: bool) -> str:
    """Render the outcomes of a case: a line per series, oldest run first; *detailed* adds events."""
    lines = [names.name(address)]
    for series, found in by_series(past).items():
        symbols = "".join(SYMBOLS[one.case.label] for one in found)
        runs = count_of(len(found), "run")
        lines.append(
            f"  {names.name(series)}: {symbols}  ({runs}: {view.told(view.count(one.case for one in found))})"
        )
        more = (*_durations(found), *((*_fingerprints(found), *_events(found)) if detailed else ()))
        lines += [f"    {line}" for line in more]
    return "\n".join(lines)


def legend() -> str:
    """The symbols and their labels."""
    return "  ".join(f"{symbol} {label}" for label, symbol in SYMBOLS.items())


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The median of *values* and the median deviation from it."""
    median = statistics.median(values)
    return median, statistics.median(abs(one - median) for one in values)


def _seconds(found: Iterable[Past]) -> dict[str, list[float]]:
    """Durations of the runs that passed, by accelerator."""
    seconds: dict[str, list[float]] = {}
    for one in found:
        if one.case.outcome.is_expected:
            seconds.setdefault(one.accel, []).append(one.case.duration)
    return seconds


def _durations(found: Iterable[Past]) -> list[str]:
    told = []
    for accel, values in _seconds(found).items():
        median, deviation = spread(values)
        told.append(
            f"{accel or 'unknown accelerator'}: median {median:.2f} s, deviation {deviation:.2f} s, "
            f"{min(values):.2f} to {max(values):.2f} s"
        )
    return told


def _fingerprints(found: Iterable[Past]) -> list[str]:
    prints: dict[str, list[Past]] = {}
    for one in found:
        if one.fingerprint:
            prints.setdefault(one.fingerprint, []).append(one)
    return [
        f"splat {name}: {len(ones)} x, last in {ones[-1].run}: {names.name(ones[-1].case.reason)}"
        for name, ones in prints.items()
    ]


def _events(found: Sequence[Past]) -> list[str]:
    events = [one for one in found if not one.case.outcome.is_expected]
    return [
        f"{one.run} {names.name(one.kernel) if one.kernel else names.name(one.job)}: {one.case.label}: "
        f"{view.reason(one.case)}"
        for one in events[-_EVENTS:]
    ]


def history_to_plain(address: str, past: Sequence[Past]) -> dict[str, Any]:
    """Return the same as plain values for JSON."""
    series = {}
    for name, found in by_series(past).items():
        seconds = {accel: spread(values) for accel, values in _seconds(found).items()}
        series[name] = {
            "runs": [
                {
                    "run": one.run,
                    "started": codec.time_to_text(one.started),
                    "job": one.job,
                    "kernel": one.kernel,
                    "accelerator": one.accel,
                    "outcome": one.case.outcome.value,
                    "label": one.case.label,
                    "duration": one.case.duration,
                    "reason": one.case.reason,
                    "fingerprint": one.fingerprint,
                }
                for one in found
            ],
            "durations": {
                accel: {"median": median, "deviation": deviation}
                for accel, (median, deviation) in seconds.items()
            },
        }
    return {"address": address, "series": series}
