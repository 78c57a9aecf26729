# SPDX-License-Identifier: GPL-2.0-only
"""Where things are: what ships with the harness, what it caches, what a run leaves behind."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

TIMING_FILE = "timing.json"
"""What a VM leaves in its directory about how long it took to come up."""

_PACKAGE = Path(__file__).resolve().parent


def kconfigs_dir() -> Path:
    """The kconfig fragments and variants.yaml: beside the package in a checkout, inside it in a wheel."""
    beside = _PACKAGE.parent / "kconfigs"
    return beside if beside.is_dir() else _PACKAGE / "share" / "kconfigs"


def guest_dir() -> Path:
    """The package that runs inside the guest."""
    return _PACKAGE.parent / "guest"


def cache_dir() -> Path:
    """Sources, kernels and remembered facts about this host; VFIO_HARNESS_CACHE moves it."""
    override = os.environ.get("VFIO_HARNESS_CACHE")
    return Path(override).absolute() if override else Path(platformdirs.user_cache_dir("vfio-harness"))


def runs_dir() -> Path:
    """One directory per run; VFIO_HARNESS_RUNS moves it (default: `runs` in the current directory)."""
    return Path(os.environ.get("VFIO_HARNESS_RUNS") or "runs").absolute()
