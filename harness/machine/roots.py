# SPDX-License-Identifier: GPL-2.0-only
"""The roots there are, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from harness.base.errors import UsageError, nearest
from harness.machine.image import ImageRoot
from harness.machine.rootparts import Root
from harness.machine.virtme import VirtmeRoot

DEFAULT_ROOT = "image"
ROOT_NAMES = ("image", "virtme")


def find_root(name: str, disks: Mapping[str, str] = MappingProxyType({})) -> Root:
    """Return the root called *name*, on the disks of these digests; UsageError names the nearest one."""
    if name not in ROOT_NAMES:
        raise UsageError(f"there is no root {name!r}", hint=nearest(name, ROOT_NAMES))
    return VirtmeRoot() if name == "virtme" else ImageRoot(disks)
