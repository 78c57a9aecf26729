# SPDX-License-Identifier: GPL-2.0-only
"""Small pictures in a line of text, as SVG: how long something took over Runs, and what it came to."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

_HEIGHT, _STEP, _BAR = 20, 6, 4


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
    """A bar for each of *labels*, oldest first, in the colour of its kind: low for good, high for bad."""
    if not labels:
        return Markup()
    width = len(labels) * _STEP
    bars = Markup("").join(
        Markup('<rect class="{kind}" x="{x}" y="{y}" width="{bar}" height="{height}"/>').format(
            kind=kind(one), x=number * _STEP, y=_TOP[kind(one)], bar=_BAR, height=_HEIGHT - _TOP[kind(one)]
        )
        for number, one in enumerate(labels)
    )
    return Markup(
        '<svg class="spark" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
        "<title>{label}</title>{bars}</svg>"
    ).format(width=width, height=_HEIGHT, label=escape(label), bars=bars)


_KINDS = {
    "PASS": "good",
    "SKIP": "none",
    "XFAIL": "known",
    "FLAKY": "flaky",
    "LOST": "infra",
    "NOT_RUN": "infra",
}

_TOP = {"good": 13, "none": 17, "known": 13, "flaky": 6, "infra": 9, "bad": 0}


def kind(label: str) -> str:
    """The colour of a label: good, none, known, flaky, infra or bad."""
    return _KINDS.get(label, "bad")
