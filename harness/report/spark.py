# SPDX-License-Identifier: GPL-2.0-only
"""Sparklines as SVG: durations over Runs, and outcomes over Runs."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

from harness.report.looks import LABELS

_HEIGHT, _STEP, _BAR = 20, 6, 4
_TOP = {"good": 13, "none": 17, "known": 13, "flaky": 6, "infra": 9, "bad": 0}


def durations(values: Sequence[float], label: str) -> Markup:
    """A line through *values*, oldest first, the last one marked; empty for fewer than two."""
    if len(values) < 2:
        return Markup()
    most = max(values) or 1.0
    step = 100 / (len(values) - 1)
    points = [
        (round(number * step, 1), round(_HEIGHT - 2 - (_HEIGHT - 4) * value / most, 1))
        for number, value in enumerate(values)
    ]
    line = " ".join(f"{x},{y}" for x, y in points)
    x, y = points[-1]
    return Markup(
        '<svg class="spark" viewBox="-2 0 104 {height}" width="104" height="{height}" role="img">'
        '<title>{label}</title><polyline points="{line}"/><circle cx="{x}" cy="{y}" r="2"/></svg>'
    ).format(height=_HEIGHT, label=label, line=line, x=x, y=y)


def outcomes(labels: Sequence[str], label: str) -> Markup:
    """A bar for each of *labels*, oldest first, in the colour of its tone: low for good, high for bad."""
    if not labels:
        return Markup()
    width = len(labels) * _STEP
    tones = [LABELS[one].tone for one in labels]
    bars = Markup("").join(
        Markup('<rect class="{tone}" x="{x}" y="{y}" width="{bar}" height="{height}"/>').format(
            tone=tone, x=number * _STEP, y=_TOP[tone], bar=_BAR, height=_HEIGHT - _TOP[tone]
        )
        for number, tone in enumerate(tones)
    )
    return Markup(
        '<svg class="spark" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
        "<title>{label}</title>{bars}</svg>"
    ).format(width=width, height=_HEIGHT, label=escape(label), bars=bars)
