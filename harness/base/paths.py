# SPDX-License-Identifier: GPL-2.0-only
"""Paths of shipped files, of the cache and of the runs."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from harness.base.errors import UsageError

TIMING_FILE = "timing.json"
"""The file in a VM's directory that says how long the VM took to boot."""

COUNTERS = "counters"
"""The directory beside it of the coverage counters of its cases; see guest.gcov."""

_PACKAGE = Path(__file__).resolve().parents[1]


def package_dir() -> Path:
    """Return the directory of the package harness."""
    return _PACKAGE


def kconfigs_dir() -> Path:
    """Return the directory of the kconfig fragments: beside the package, or inside it in a wheel."""
    beside = _PACKAGE.parent / "kconfigs"
    return beside if beside.is_dir() else _PACKAGE / "share" / "kconfigs"


def guest_dir() -> Path:
    """Return the package that runs inside the guest."""
    return _PACKAGE.parent / "guest"


def cache_dir() -> Path:
    """Return the directory of sources, kernels and facts about this host; VFIO_HARNESS_CACHE moves it."""
    return _moved("VFIO_HARNESS_CACHE") or Path(platformdirs.user_cache_dir("vfio-harness"))


def programs_entry(digest: str) -> Path:
    """Return the directory in the cache of the user's own program or probes *digest*, there or not."""
    return cache_dir() / "programs" / digest


def runs_dir() -> Path:
    """Return the directory of all runs: VFIO_HARNESS_RUNS, or `runs` in the current directory."""
    return _moved("VFIO_HARNESS_RUNS") or Path("runs").absolute()


def _moved(variable: str) -> Path | None:
    """Return the directory that *variable* names, None when it is empty.

    A tilde is expanded as in a shell, because unit files and CI settings do not expand it.
    """
    value = os.environ.get(variable, "").strip()
    if not value:
        return None
    return expanded(value, f"{variable}=").absolute()


def expanded(path: Path | str, said: str = "") -> Path:
    """Return *path* with `~` and `~USER` expanded.

    Raises UsageError, which begins with *said*, if there is no such home directory.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        message = f"{said}{path}: there is no such home directory"
        raise UsageError(message, hint="give the full path") from error
