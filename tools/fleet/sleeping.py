# SPDX-License-Identifier: GPL-2.0-only
"""Many real Dask workers on this host whose units sleep: what a unit costs the scheduler and the client.

`python -m tools.fleet.sleeping ADDRESS NUMBER COUNT` runs COUNT of them in one process.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import pickle
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from harness.base import itself, process
from harness.base.cause import Cause
from harness.base.deadline import Deadline
from harness.base.errors import InfraError
from harness.base.outcome import Outcome
from harness.fleet.address import listening
from harness.fleet.client import FleetClient
from harness.fleet.cluster import connect, require_distributed
from harness.fleet.journal import BEGAN
from harness.fleet.link import FleetJob, Link
from harness.fleet.messages import Account, Order, Said
from harness.fleet.tasks import topic
from harness.lab.units import Unit

_PER_PROCESS = 25
_START_SECONDS = 300.0
_IDLE_SECONDS = 10.0
_RESOURCE = "sleeper"
_ELSEWHERE = {
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "30s",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "5s",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__GIL__ENABLED": "False",
}
"""What a worker spends on watching itself (each 10 and 20 ms) would be spent on another host."""


class Book:
    """Counts how often each piece of work was recorded."""

    def __init__(self) -> None:
        self.kept: collections.Counter[str] = collections.Counter()

    def is_reported(self, key: str) -> bool:
        return key in self.kept

    def keep(self, said: Said) -> None:
        if not self.is_reported(said.key):
            self.kept[said.key] += 1

    def give_up(self, key: str, reason: str, cause: Cause, outcome: Outcome = Outcome.NOT_RUN) -> None:
        raise AssertionError(f"{key} was given up: {reason}")

    def take_in(self, account: Account) -> None:
        pass


class Tasks:
    """What workers do, in place of harness.fleet.tasks."""

    topic = staticmethod(topic)

    @staticmethod
    def tell_plan(text: str) -> str:
        return text

    @staticmethod
    def perform(order: Order, plan: str, cargo: Sequence[Any]) -> Account:
        """Sleep as long as the plan of *order* says, and report each piece of work."""
        from distributed import get_worker

        worker, seconds = get_worker(), json.loads(plan)
        run = topic(order.run)
        for index, key in enumerate(order.keys, 1):
            time.sleep(seconds[key.partition("/")[0]])
            said = pickle.dumps(Said(worker=str(worker.name), key=key))
            worker.log_event([run, f"{run} {order.unit}"], [said, index, BEGAN, str(worker.name)])
        return Account(worker=str(worker.name), address=worker.address)

    @staticmethod
    def unfetched(session: str) -> str:
        """Return nothing: plans are all that travels."""
        return ""

    @staticmethod
    def retire(session: str) -> Account:
        """Return at once: there is no VM."""
        return Account()


def sleeping(units: Sequence[Unit], workers: int, dying: float, faster: float) -> str:
    """Return one line about a run of *units*, *faster* than real ones, on *workers* workers."""
    require_distributed()
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        file = place / "scheduler.json"
        argv = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--scheduler-file", str(file)]
        argv += ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
        scheduler = stack.enter_context(process.spawn(argv, env=itself.env()))
        address = _address(file)
        counts = [min(_PER_PROCESS, workers - first) for first in range(0, workers, _PER_PROCESS)]
        crews = [
            stack.enter_context(
                process.spawn(
                    [sys.executable, "-m", "tools.fleet.sleeping", address, str(number), str(count)],
                    env={**itself.env(), **_ELSEWHERE},
                )
            )
            for number, count in enumerate(counts)
        ]
        with contextlib.closing(connect(address, None)) as waiting:
            # Their start is not measured.
            waiting.wait_for_workers(workers, timeout=_START_SECONDS)
            idle_before = scheduler.cpu_seconds or 0.0
            time.sleep(_IDLE_SECONDS)
            idle = ((scheduler.cpu_seconds or 0.0) - idle_before) / _IDLE_SECONDS
        doomed = crews[: round(len(crews) * dying)]
        total = sum(unit.seconds for unit in units) / faster
        bound = max(total / workers, max(unit.seconds for unit in units) / faster)
        book = Book()
        before, began, own = scheduler.cpu_seconds or 0.0, time.monotonic(), time.process_time()
        link = Link(lambda: connect(address, None), "sleeping", tasks=Tasks, store={_RESOURCE: 0})
        stack.callback(link.close)
        client = _client(link, book, units, faster)
        for crew in doomed:
            stack.enter_context(_killed_after(crew, bound / 2))
        client.run()
        took = time.monotonic() - began
        spent = (scheduler.cpu_seconds or 0.0) - before
        used = time.process_time() - own
        assert book.kept == dict.fromkeys((key for unit in units for key in unit.keys), 1)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return (
        f"{workers} workers, {len(units)} units, {len(doomed) * _PER_PROCESS} die: {took:.0f} s, "
        f"{took / bound:.2f} of the bound; a unit costs {1000 * spent / len(units):.1f} ms of CPU of the "
        f"scheduler and {1000 * used / len(units):.1f} ms of the client's; client {memory} MiB; "
        f"the scheduler without work: {1000 * idle / workers:.1f} ms of CPU for a worker and second, "
        f"{1000 * idle * took / len(units):.1f} of the ms above"
    )


def _client(link: Link, book: Book, units: Sequence[Unit], faster: float) -> FleetClient:
    # The seconds of a unit's pieces, for each unit of the job.
    plans: collections.defaultdict[str, dict[str, float]] = collections.defaultdict(dict)
    for unit in units:
        plans[unit.job][unit.keys[0].partition("/")[0]] = unit.seconds / len(unit.keys) / faster
    return FleetClient(
        link,
        book,
        units,
        {
            name: FleetJob(plan=json.dumps(plan), needs={_RESOURCE: 1}, artefacts=())
            for name, plan in plans.items()
        },
        until=None,
        tell=lambda line: None,
        provided=lambda digest, error: None,
    )


def _address(file: Path) -> str:
    limit = Deadline.after(_START_SECONDS)
    while not limit.expired:
        with contextlib.suppress(OSError, ValueError):
            return str(json.loads(file.read_text(encoding="utf-8"))["address"])
        time.sleep(0.1)
    raise InfraError("the scheduler did not start")


@contextlib.contextmanager
def _killed_after(crew: process.Process, seconds: float) -> Iterator[None]:
    timer = threading.Timer(seconds, crew.signal, [signal.SIGKILL])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


async def _sleepers(address: str, number: int, count: int) -> None:
    import distributed

    made = [
        distributed.Worker(
            address,
            name=f"sleeper-{number}-{one}",
            nthreads=1,
            executor=ThreadPoolExecutor(1),
            memory_limit=0,
            dashboard=False,
            local_directory=tempfile.gettempdir(),
            resources={_RESOURCE: 1},
            **listening(address),
        )
        for one in range(count)
    ]
    await asyncio.gather(*made)
    await made[0].finished()


if __name__ == "__main__":
    require_distributed()
    asyncio.run(_sleepers(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
