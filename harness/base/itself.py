# SPDX-License-Identifier: GPL-2.0-only
"""Start another `vfio-harness` process from the same files."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from harness.base import process
from harness.base.environment import environment

LONGEST_RUN_SECONDS = 7 * 24 * 3600.0
"""The timeout of a whole run; every part of one has a limit of its own."""

_END_SECONDS = 60.0
"""Time for an interrupted run to stop its VMs and to write its report."""

_PACKAGE = Path(__file__).resolve().parents[1]


def leave_optimized_mode() -> None:
    """Start this process again if Python leaves out asserts and docstrings, which hold the promises of cases.

    PYTHONOPTIMIZE is a setting for other programs of the caller.
    """
    if sys.flags.optimize:
        os.environ.pop("PYTHONOPTIMIZE", None)
        words = [word for word in sys.orig_argv[1:] if word.strip("O") != "-"]
        os.execv(sys.executable, [sys.executable, *words])


def argv(words: Iterable[str]) -> list[str]:
    """Return the command line of `vfio-harness WORDS`; a `harness` in the current directory is not used."""
    return [sys.executable, "-P", "-m", _PACKAGE.name, *words]


def env() -> dict[str, str]:
    """Return its environment: the caller's terminal and locale, and the path of our own files."""
    found = [os.fspath(_PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
    locale = next((os.environ[name] for name in ("LC_ALL", "LC_CTYPE", "LANG") if os.environ.get(name)), "C")
    return environment({"PYTHONPATH": os.pathsep.join(filter(None, found)), "LC_ALL": locale}, terminal=True)


@contextlib.contextmanager
def started(words: Iterable[str]) -> Iterator[process.Process]:
    """Run `vfio-harness WORDS` on our own stdout and stderr; see process.spawn()."""
    with process.spawn(
        argv(words), env=env(), stdout=None, stderr=None, whole_group=True, stop_seconds=_END_SECONDS
    ) as child:
        yield child
