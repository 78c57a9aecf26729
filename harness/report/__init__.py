# SPDX-License-Identifier: GPL-2.0-only
"""Reports: pure functions from a Run to text, and the one that writes them to files."""

from __future__ import annotations

from harness.report.console import show
from harness.report.files import FORMATS, write

__all__ = ["FORMATS", "show", "write"]
