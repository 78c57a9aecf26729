# SPDX-License-Identifier: GPL-2.0-only
"""What the harness costs, beside what one would use otherwise."""

from harness.bench.measures import Bench, Compared, Figure, compare, in_turn

__all__ = ["Bench", "Compared", "Figure", "compare", "in_turn"]
