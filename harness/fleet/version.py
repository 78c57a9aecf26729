# SPDX-License-Identifier: GPL-2.0-only
"""Which harness this is: equal versions on two hosts judge alike."""

from __future__ import annotations

import functools
import hashlib

import harness
from harness.base import paths

_KINDS = (".py", ".yaml", ".c", ".sh", ".config")
"""Of the harness itself, of what runs in guests, and of Kconfig fragments."""


@functools.cache
def own_version() -> str:
    """Return the version and a digest of the harness's files: two checkouts of one version may differ."""
    digest = hashlib.sha256()
    for top in (paths.package_dir(), paths.guest_dir(), paths.kconfigs_dir()):
        for path in sorted(top.rglob("*")):
            if path.suffix in _KINDS and path.is_file():
                digest.update(f"{top.name}/{path.relative_to(top)}\0".encode())
                digest.update(path.read_bytes())
    return f"{harness.__version__}+{digest.hexdigest()[:8]}"
