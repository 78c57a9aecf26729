# SPDX-License-Identifier: GPL-2.0-only
"""The roots there are, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from harness.base.errors import UsageError, nearest
from harness.kernel.arch import Arch
from harness.machine.image import ImageRoot
from harness.machine.rootparts import Root
from harness.machine.virtme import VirtmeRoot

DEFAULT_ROOT = "image"
ROOT_NAMES = ("image", "virtme")


def find_root(name: str, arch: Arch, disks: Mapping[str, str] = MappingProxyType({})) -> Root:
    """Return the root called *name* for guests of *arch*, on the disks of these digests.

    Raises UsageError for an unknown name, with the nearest one, and for a root that *arch* cannot have here.
    """
    if name not in ROOT_NAMES:
        raise UsageError(f"there is no root {name!r}", hint=nearest(name, ROOT_NAMES))
    if name == DEFAULT_ROOT:
        return ImageRoot(arch, disks)
    if not arch.is_host:
        raise UsageError(
            f"--root {name} runs this host's own programs, which guests of {arch.name} cannot",
            hint=f"use --root {DEFAULT_ROOT}",
        )
    return VirtmeRoot()
