# SPDX-License-Identifier: GPL-2.0-only
"""The processes of this host."""

from __future__ import annotations

import contextlib
from pathlib import Path


def find_processes(*words: str) -> list[int]:
    """Return the processes whose command line has all of *words*."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found += [int(path.parent.name)] if all(word in line for word in words) else []
    return found
