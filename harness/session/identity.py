# SPDX-License-Identifier: GPL-2.0-only
"""What a run was made with, beside what it was asked for: the harness, the host, its compiler, the root."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable
from pathlib import Path

import harness
from harness import paths
from harness.errors import HarnessError
from harness.kernel import gittree
from harness.machine.roots import find_root


def identity(root: str, compilers: Iterable[str]) -> dict[str, str]:
    """Name -> value of what is known, for Inputs.extra.

    *compilers* are what the compilers of the run's kernels say of themselves.  That something cannot be
    learned is no reason not to run.
    """
    found = {
        "host": socket.gethostname(),
        "compiler": "; ".join(dict.fromkeys(compilers)),
        "harness commit": harness_commit(Path(harness.__file__).resolve().parent.parent),
        "root image": _root_image(root),
    }
    return {name: value for name, value in found.items() if value}


def harness_commit(directory: Path) -> str:
    """The commit that *directory* is the top of a checkout of, and whether it was changed; else empty."""
    if not (directory / ".git").exists():
        return ""
    with contextlib.suppress(HarnessError, OSError):
        commit = gittree.resolve(directory, "HEAD").commit
        return f"{commit} with local changes" if gittree.has_changes(directory) else commit
    return ""


def _root_image(root: str) -> str:
    with contextlib.suppress(HarnessError, OSError):
        return find_root(root).identity(paths.guest_dir())
    return ""
