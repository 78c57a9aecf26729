# SPDX-License-Identifier: GPL-2.0-only
"""Our own suite: the cases under guest/probes and the metadata each declares about itself."""

from __future__ import annotations

import functools

from guest.case import Case, discover

SUITE = "probes"


@functools.cache
def probe_cases() -> tuple[Case, ...]:
    """Every probe case, in the order of its file and line.

    The probes are importable without side effects on any Linux, which is what makes collection the same in
    every worker.
    """
    return discover()
