# SPDX-License-Identifier: GPL-2.0-only
"""Measure what the harness costs, compared with the alternatives."""

from tools.bench.measures import Bench, Compared, Figure, compare, in_turn

__all__ = ["Bench", "Compared", "Figure", "compare", "in_turn"]
