# SPDX-License-Identifier: GPL-2.0-only
"""The plugin that makes any Dask worker one of ours.  Imported only where Dask's distributed is installed."""

from __future__ import annotations

import asyncio
from typing import Any

from distributed import WorkerPlugin

from harness.fleet import resources
from harness.fleet.tasks import crew


class Enlist(WorkerPlugin):
    """Proves the host, and then offers what it has as resources: without them a worker gets no unit.

    A worker of `vfio-harness worker` did so when it started.
    """

    name = "vfio-harness"

    async def setup(self, worker: Any) -> None:
        if crew.dask is None:
            crew.enlist(worker)
            offered = await asyncio.to_thread(lambda: resources.of_worker(crew.prove(), builds=True))
            await worker.set_resources(**offered)
