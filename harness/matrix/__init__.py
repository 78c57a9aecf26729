# SPDX-License-Identifier: GPL-2.0-only
"""Matrices: named sets of jobs, their shards, and the CI files that run them."""

from __future__ import annotations

from harness.matrix.definition import SHIPPED, Entry, Matrix, load_matrix, matrix_names, with_coverage

__all__ = ["SHIPPED", "Entry", "Matrix", "load_matrix", "matrix_names", "with_coverage"]
