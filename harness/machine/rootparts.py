# SPDX-License-Identifier: GPL-2.0-only
"""Root: where a guest's user space comes from, and what that adds to the QEMU command line.

Every root ends up with the directory `guest` at GUEST_DIR, an agent that waits (guest/resident.py) and an SSH
server; the rest of the harness does not know which root a VM has.  harness.machine.roots finds one by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

GUEST_RUN = "/run/vfio-harness"
"""The harness's own files in every guest; as working directory it makes the package `guest` importable."""

GUEST_DIR = f"{GUEST_RUN}/guest"
GUEST_KERNEL_DIR = f"{GUEST_RUN}/kernel"
"""What belongs to the running kernel: its selftests and, on the `image` root, its modules."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RootRef:
    """A root as a Job names it."""

    name: str
    disks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Kind of disk -> digest in the store.  Without them the host that boots makes its own."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RootParts:
    """What a root adds to a machine."""

    options: tuple[str, ...] = ()
    """QEMU options for the host's side of shares and disks."""
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

    def disks(self, guest_dir: Path) -> Mapping[str, str]:
        """Return the digest of each disk that this host makes for every kernel; none on the live host.

        Raises InfraError when the host lacks something.
        """
        ...

    def has(self, path: str) -> bool:
        """Whether guests have the file *path* of this host.  Raises InfraError as disks() does."""
        ...

    def parts(self, guest_dir: Path, modules_dir: Path | None, selftests_dir: Path | None) -> RootParts:
        """What to add so that the guest has the package in *guest_dir*, and modprobe finds *modules_dir*.

        *modules_dir* is a `lib/modules/<release>` directory.  *selftests_dir* is shown below
        GUEST_KERNEL_DIR, or has to be pushed there once the guest answers.
        Raises InfraError when the host lacks something.
        """
        ...
