# SPDX-License-Identifier: GPL-2.0-only
"""A root of a machine that is what its test says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from harness.machine.roots import RootParts


@dataclasses.dataclass(frozen=True)
class FakeRoot:
    """See harness.machine.roots.Root."""

    name: str = "fake"
    frozen: bool = False
    given: RootParts = dataclasses.field(default_factory=RootParts)

    def parts(self, guest_dir: Path, modules_dir: Path | None, selftests_dir: Path | None) -> RootParts:
        return self.given

    def identity(self, guest_dir: Path) -> str:
        return ""
