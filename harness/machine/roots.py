# SPDX-License-Identifier: GPL-2.0-only
"""Root: where a guest's user space comes from, and what that adds to the QEMU command line.

Every root ends up with the directory `guest` at GUEST_DIR, an agent that waits (guest/resident.py) and an SSH
server; the rest of the harness does not know which root a VM has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from harness.errors import UsageError, nearest

GUEST_RUN = "/run/vfio-harness"
"""Everything of the harness's own in every guest; the working directory that finds the package `guest`."""

GUEST_DIR = f"{GUEST_RUN}/guest"
GUEST_KERNEL_DIR = f"{GUEST_RUN}/kernel"
"""What belongs to the kernel that runs: its selftests and, on the `image` root, its modules."""

DEFAULT_ROOT = "image"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RootParts:
    """What a root adds to a machine."""

    options: tuple[str, ...] = ()
    """Whole words for QEMU: the host's end of shares and disks."""
    devices: tuple[str, ...] = ()
    """`-device` values without bus and address; the machine gives each its slot."""
    kernel_args: tuple[str, ...] = ()
    """Words for the kernel command line; they come last, so `init=` and its arguments may end them."""
    files: tuple[Path, ...] = ()
    """Images in the cache that must stay as long as the VM runs."""


class Root(Protocol):
    """One way to give a guest its user space."""

    @property
    def name(self) -> str: ...

    @property
    def frozen(self) -> bool:
        """Whether nothing outside the VM can change what the guest sees: only then can a VM be saved."""
        ...

    def identity(self, guest_dir: Path) -> str:
        """What tells its user space from another one's of the same name; empty where that is the live host.

        Raises InfraError when the host lacks something.
        """
        ...

    def parts(self, guest_dir: Path, modules_dir: Path | None, selftests_dir: Path | None) -> RootParts:
        """What to add so that the guest has the package in *guest_dir*, and modprobe finds *modules_dir*.

        *modules_dir* is a `lib/modules/<release>` directory.  *selftests_dir* is shown below
        GUEST_KERNEL_DIR, or has to be pushed there once the guest answers.
        Raises InfraError when the host lacks something.
        """
        ...


def _image() -> Root:
    from harness.machine.image import ImageRoot

    return ImageRoot()


def _virtme() -> Root:
    from harness.machine.virtme import VirtmeRoot

    return VirtmeRoot()


_ROOTS: dict[str, Callable[[], Root]] = {"image": _image, "virtme": _virtme}
ROOT_NAMES = tuple(_ROOTS)


def find_root(name: str) -> Root:
    """The root called *name*; UsageError names the nearest one."""
    if name not in _ROOTS:
        raise UsageError(f"there is no root {name!r}", hint=nearest(name, _ROOTS))
    return _ROOTS[name]()
