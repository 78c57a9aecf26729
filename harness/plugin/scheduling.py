# SPDX-License-Identifier: GPL-2.0-only
"""xdist's loadgroup scheduler, made to survive the death of a worker.

pytest-xdist 3.8.0 queues everything again that a dead worker had, finished groups included.  A worker that
gets such a group has nothing to do and waits for ever; so does a new worker that gets a single item, because
it begins an item only when it knows the next one or that there is none (pytest-xdist issues 1323, 1327 and
1378).  Remove this with the first release that has both fixed.
"""

from __future__ import annotations

import collections
import contextlib

import pytest
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler.loadgroup import LoadGroupScheduling  # type: ignore[import-untyped]
from xdist.workermanage import WorkerController  # type: ignore[import-untyped]

from harness.lab.retries import WORKERS_PER_ITEM


class JobScheduling(LoadGroupScheduling):  # type: ignore[misc]  # xdist is not typed
    """Distributes groups of work to workers in the order of collection."""

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        super().__init__(config, log)
        self._deaths: collections.Counter[str] = collections.Counter()

    def remove_node(self, node: WorkerController) -> str | None:
        """Queue again what *node* has not finished; return the item that it died in, if any."""
        groups = self.assigned_work[node]
        died_of = next((item for items in groups.values() for item, done in items.items() if not done), None)
        if died_of is not None:
            self._count_death(died_of, groups)
        self.assigned_work[node] = {name: items for name, items in groups.items() if not all(items.values())}
        super().remove_node(node)
        return died_of

    def _count_death(self, item: str, groups: dict[str, dict[str, bool]]) -> None:
        """Let another worker run *item* again, unless WORKERS_PER_ITEM died in it."""
        self._deaths[item] += 1
        if self._deaths[item] >= WORKERS_PER_ITEM:
            next(items for items in groups.values() if item in items)[item] = True

    def _reschedule(self, node: WorkerController) -> None:
        """Give *node* work until it can begin, or tell it that there is no more."""
        left = -1
        # One that has just died gets nothing; when xdist notices, its work is queued again.
        with contextlib.suppress(OSError):
            while not node.shutting_down and len(self.workqueue) != left:
                left = len(self.workqueue)
                super()._reschedule(node)
