# SPDX-License-Identifier: GPL-2.0-only
"""KTAP and TAP, from text lines to frozen values.  Pure: no files, no processes, no clock."""

from __future__ import annotations

from harness.ktap.explain import explain, why, why_program
from harness.ktap.model import (
    BailedOut,
    Began,
    Directive,
    DocumentEnded,
    Event,
    Finished,
    KtapCase,
    KtapReport,
    Plan,
    Planned,
    Problem,
    ProblemKind,
    Status,
)
from harness.ktap.parser import KtapParser, parse

__all__ = [
    "BailedOut",
    "Began",
    "Directive",
    "DocumentEnded",
    "Event",
    "Finished",
    "KtapCase",
    "KtapParser",
    "KtapReport",
    "Plan",
    "Planned",
    "Problem",
    "ProblemKind",
    "Status",
    "explain",
    "parse",
    "why",
    "why_program",
]
