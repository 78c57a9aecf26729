# SPDX-License-Identifier: GPL-2.0-only
"""Collection: the work of every job in the plan as pytest items under the file each comes from.

Node ids read `guest/probes/get_pa.py::unmapped[7.3.4-group-cdev-edu-igb]` and
`harness/suites/kselftest-vfio.yaml::vfio_pci_device_test@edu0[...]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import pytest

from harness.plugin.items import ProbeItem, ProgramItem
from harness.suites.catalogue import ProbeWork, Work


class WorkFile(pytest.File):
    """One file of probes or one kselftest-*.yaml, and the items of the plan that are declared in it."""

    work: tuple[Work, ...] = ()

    @classmethod
    def of(cls, parent: pytest.Collector, path: Path, work: Sequence[Work]) -> Self:
        node: Self = cls.from_parent(parent, path=path)
        node.work = tuple(work)
        return node

    def collect(self) -> Iterator[ProbeItem | ProgramItem]:
        for work in self.work:
            if isinstance(work, ProbeWork):
                yield ProbeItem.of(self, work)
            else:
                yield ProgramItem.of(self, work)
