# SPDX-License-Identifier: GPL-2.0-only
"""A root for machines in tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from harness.machine.rootparts import RootParts


@dataclasses.dataclass(frozen=True)
class FakeRoot:
    """See harness.machine.rootparts.Root."""

    name: str = "fake"
    frozen: bool = False
    given: RootParts = dataclasses.field(default_factory=RootParts)

    def parts(self, guest_dir: Path, modules_dir: Path | None, selftests_dir: Path | None) -> RootParts:
        return self.given

    def has(self, path: str) -> bool:
        return True

    def disks(self, guest_dir: Path) -> dict[str, str]:
        return {}
