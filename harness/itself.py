# SPDX-License-Identifier: GPL-2.0-only
"""How the harness starts itself: one more `vfio-harness` in a process of its own, from the same files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

LONGEST_RUN_SECONDS = 7 * 24 * 3600.0
"""When a run is given up: every part of one has a limit of its own, so this is for what has none."""

_PACKAGE = Path(__file__).resolve().parent


def argv(words: Iterable[str]) -> list[str]:
    """The command line of `vfio-harness WORDS`, whatever is called harness in the current directory."""
    return [sys.executable, "-P", "-m", _PACKAGE.name, *words]


def env() -> dict[str, str]:
    """What its environment needs to find the files that we were started from, installed or not."""
    found = [os.fspath(_PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, found))}
