# SPDX-License-Identifier: GPL-2.0-only
"""Root: where a guest's user space comes from, and what that adds to the QEMU command line.

Every root ends up running `guest/init.sh` as root and shows the directory `guest` at GUEST_DIR; the rest of
the harness does not know which root a VM has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from harness.errors import UsageError, nearest

GUEST_PYTHONPATH = "/run/vfio-harness"
"""Where `python3 -m guest.agent` finds its package in every guest."""

GUEST_DIR = f"{GUEST_PYTHONPATH}/guest"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RootParts:
    """What a root adds to a machine."""

    options: tuple[str, ...] = ()
    """Whole words for QEMU: the host's end of shares and disks."""
    devices: tuple[str, ...] = ()
    """`-device` values without bus and address; the machine gives each its slot."""
    kernel_args: tuple[str, ...] = ()
    """Words for the kernel command line; they come last, so `init=` may end them."""


class Root(Protocol):
    """One way to give a guest its user space."""

    @property
    def name(self) -> str: ...

    def parts(self, guest_dir: Path, modules_dir: Path | None) -> RootParts:
        """What to add so that the guest runs *guest_dir*/init.sh and modprobe finds *modules_dir*.

        *modules_dir* is a `lib/modules/<release>` directory.
        Raises InfraError when the host lacks something.
        """
        ...


def _virtme() -> Root:
    from harness.machine.virtme import VirtmeRoot

    return VirtmeRoot()


_ROOTS: dict[str, Callable[[], Root]] = {"virtme": _virtme}


def find_root(name: str) -> Root:
    """The root called *name*; UsageError names the nearest one."""
    if name not in _ROOTS:
        raise UsageError(f"there is no root {name!r}", hint=nearest(name, _ROOTS))
    return _ROOTS[name]()
