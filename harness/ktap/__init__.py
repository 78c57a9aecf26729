# SPDX-License-Identifier: GPL-2.0-only
"""KTAP and TAP, from text lines to frozen values.  Pure: no files, no processes, no clock."""

from __future__ import annotations

from harness.ktap.explain import explain, why, why_program
from harness.ktap.model import Directive, KtapCase, KtapReport, PlanLine, Problem, ProblemKind
from harness.ktap.parser import KtapParser, parse

__all__ = [
    "Directive",
    "KtapCase",
    "KtapParser",
    "KtapReport",
    "PlanLine",
    "Problem",
    "ProblemKind",
    "explain",
    "parse",
    "why",
    "why_program",
]
