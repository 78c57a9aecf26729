# SPDX-License-Identifier: GPL-2.0-only
"""xdist's loadgroup, able to lose a worker.

pytest-xdist 3.8.0 puts everything that a dead worker ever did back on its queue.  Whoever is handed such a
finished group gets nothing to do, and waits for ever; so does a new worker that is handed a single item, for
a worker begins an item when it knows the next one, or that there is none (pytest-xdist issues 1323, 1327 and
1378).  May go with the first release that has mended both.
"""

from __future__ import annotations

import collections
import contextlib

import pytest
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler.loadgroup import LoadGroupScheduling  # type: ignore[import-untyped]
from xdist.workermanage import WorkerController  # type: ignore[import-untyped]

from harness.retries import WORKERS_PER_ITEM


class JobScheduling(LoadGroupScheduling):  # type: ignore[misc]  # xdist is not typed
    """Groups of work to workers, in the order of collection."""

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        super().__init__(config, log)
        self._deaths: collections.Counter[str] = collections.Counter()

    def remove_node(self, node: WorkerController) -> str | None:
        """Take back what *node* has not finished; return the item that it died of, if it did."""
        groups = self.assigned_work[node]
        died_of = next((item for items in groups.values() for item, done in items.items() if not done), None)
        if died_of is not None:
            self._count_death(died_of, groups)
        self.assigned_work[node] = {name: items for name, items in groups.items() if not all(items.values())}
        super().remove_node(node)
        return died_of

    def _count_death(self, item: str, groups: dict[str, dict[str, bool]]) -> None:
        """Let *item* be run again by another worker, but not for ever."""
        self._deaths[item] += 1
        if self._deaths[item] >= WORKERS_PER_ITEM:
            next(items for items in groups.values() if item in items)[item] = True

    def _reschedule(self, node: WorkerController) -> None:
        """Give *node* work until it can begin, or the word that there is no more."""
        left = -1
        # One that has just died cannot be told; when its death is, what it was given is taken back.
        with contextlib.suppress(OSError):
            while not node.shutting_down and len(self.workqueue) != left:
                left = len(self.workqueue)
                super()._reschedule(node)
