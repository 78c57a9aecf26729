# SPDX-License-Identifier: GPL-2.0-only
"""What the workers of a fleet offer, and what has been missing for too long."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from harness.fleet import resources
from harness.fleet.version import own_version

PATIENCE_SECONDS = 120.0
"""How long to wait for a worker that can do a job; those that lost their scheduler need up to 60 s."""


class Offers:
    """The resources of all workers at the last look."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        self.workers: Mapping[str, Mapping[str, float]] = {}
        """Name of a worker -> its resources."""
        self._tell = tell
        self._foreign: set[str] = set()
        self._missing: dict[str, float] = {}
        """What cannot be done -> since when."""

    def look(self, workers: Mapping[str, Mapping[str, float]]) -> None:
        """Take in the resources of *workers*, by name; say once of each which cannot work for its version."""
        self.workers = workers
        for name, offered in workers.items():
            version = resources.foreign_version(offered)
            if version and name not in self._foreign:
                self._foreign.add(name)
                it = f"it has vfio-harness {version}, this is {own_version()}"
                self._tell(f"fleet: worker {name} gets no work: {it}")

    def lack(self, name: str, needs: Mapping[str, float]) -> str:
        """Return what no worker has had of *needs* for a while, in words; *name* is what needs it."""
        offers = self.workers.values()
        if any(resources.is_met(needs, one) for one in offers):
            self._missing.pop(name, None)
        elif time.monotonic() - self._missing.setdefault(name, time.monotonic()) >= PATIENCE_SECONDS:
            return resources.lack(needs, offers)
        return ""

    def forget(self) -> None:
        """Begin to wait anew: the scheduler was away."""
        self.workers = {}
        self._missing.clear()
