# SPDX-License-Identifier: GPL-2.0-only
"""Link: a client's connection to Dask's scheduler, which decides where a task runs.

It runs where the resources are that it names, best where the kernel is, and elsewhere when that worker dies.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
import queue
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from harness.base.errors import HarnessError, InfraError
from harness.fleet import resources
from harness.fleet import tasks as our_tasks
from harness.fleet.connection import Connection
from harness.fleet.messages import Account, Began, Order, Said, Spent
from harness.lab.artefacts import Artefact, BuildOrder

UNIT = "vfio-unit"
"""What the keys of units begin with."""

_FIRST = 1_000_000
"""Dask's priority of builds and archives, above that of all units."""

_USABLE = ("pending", "finished")
"""The states of a Future whose result may be asked for."""

_WORKERS = "all"
"""The topic in which a scheduler says that workers come and go."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FleetJob:
    """What a fleet needs to know of a job."""

    plan: str
    """The plan's file with this job only, as its text."""
    needs: Mapping[str, float]
    """See harness.fleet.resources."""
    artefacts: tuple[Artefact, ...]
    order: BuildOrder | None = None
    """How its kernel, the first of the artefacts, is built, if the client's store does not have it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Gone:
    """A worker died, or left in order."""

    address: str
    in_order: bool


@dataclasses.dataclass(frozen=True, slots=True)
class UnitEnded:
    """The task of a unit ended."""

    unit: str
    result: Account | Exception


@dataclasses.dataclass(frozen=True, slots=True)
class Built:
    """A kernel was built in the fleet, or could not be."""

    digest: str
    error: HarnessError | None


Event = Said | Began | Spent | Gone | UnitEnded | Built


class Link:
    """The tasks of one client in a fleet, and what comes back.

    More than 15 methods, because all of them need the tasks of one connection.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        run: str,
        *,
        tasks: Any = our_tasks,
        store: Mapping[str, float] | None = None,
    ) -> None:
        """*connect* returns a new distributed.Client, or raises InfraError.

        *tasks* and *store* are for fleets that test nothing: what workers do in place of harness.fleet.tasks,
        and the resources of the process that gives away what this host has.
        """
        self._run, self._tasks = run, tasks
        self.store = dict(resources.from_store(run) if store is None else store)
        """What the process offers that gives away what this host has."""
        self.session = uuid.uuid4().hex[:8]
        """Order.session: one for each time that a part of the run is carried out."""
        self._events: queue.Queue[Event | Callable[[], Event | None]] = queue.Queue()
        self._units: dict[str, Any] = {}
        """Unit whose task has not ended -> its Future, which keeps it alive."""
        self._provisions: dict[str, Any] = {}
        """Artefact.place, or name of a job for its plan -> the Future."""
        self._here: set[str] = set()
        """Artefact.place of kernels that another host could not build."""
        self._count = 0
        self._connection = Connection(connect, f"vfio-harness matrix --resume {run}")
        self.is_lost = self._connection.is_lost
        self.close = self._connection.close
        self._listen()

    @property
    def _client(self) -> Any:
        return self._connection.client

    @property
    def dashboard(self) -> str:
        """The address of Dask's own page about the fleet; empty without one."""
        return str(self._client.dashboard_link or "")

    @property
    def address(self) -> str:
        """The address of the scheduler."""
        return self._connection.address

    def submit(
        self, name: str, job: FleetJob, units: Mapping[str, tuple[str, ...]], *, rank: int, again: bool
    ) -> None:
        """Have *units*, name -> keys of their work, of the job *name* carried out, in this order.

        Jobs of a higher *rank* go first, and before them what was begun *again*.
        """
        self._count += 1
        # Dask learns by the name before the digits how long a unit takes, and so whether moving it pays.
        keys = [f"{UNIT}-{number:05}-{unit}-{self._count}" for number, unit in enumerate(units)]
        orders = [
            # A new name for each time: lines of an earlier journal would be about other keys.
            Order(run=self._run, session=self.session, job=name, unit=f"{unit}-{self._count}", keys=work)
            for unit, work in units.items()
        ]
        if self.is_lost():
            # Whoever looks finds that, too, and submits all units again.
            return
        try:
            cargo = [
                self._provide(artefact, None if number else job.order)
                for number, artefact in enumerate(job.artefacts)
            ]
            futures = self._client.map(
                self._tasks.perform,
                orders,
                key=keys,
                plan=self._provide_plan(name, job.plan),
                cargo=cargo,
                resources=dict(job.needs),
                priority=rank + (_FIRST // 2 if again else 0),
                pure=False,
            )
        except Exception:
            # Dask raises errors of many classes when the connection is lost.
            if not self.is_lost():
                raise
            return
        for unit, future in zip(units, futures, strict=True):
            self._units[unit] = future
            future.add_done_callback(self._when_done(self._unit_ended, unit))

    def _provide_plan(self, name: str, text: str) -> Any:
        found = self._provisions.get(name)
        if found is None or found.status not in _USABLE:
            self._provisions[name] = self._client.submit(
                self._tasks.tell_plan,
                text,
                key=f"plan-{name}-{self.session}-{self._count}",
                resources=self.store,
                priority=_FIRST,
            )
        return self._provisions[name]

    def _provide(self, artefact: Artefact, order: BuildOrder | None) -> Any:
        """Return the Future of *artefact*; one for all jobs."""
        found = self._provisions.get(artefact.place)
        if found is not None and found.status in _USABLE:
            return found
        if artefact.is_there:
            order = None
        anywhere = order is not None and order.is_anywhere and artefact.place not in self._here
        needs = resources.for_order(order) if order is not None else {}
        if order is not None and not anywhere:
            order = order.at_home
        future = self._provisions[artefact.place] = self._client.submit(
            self._tasks.provide,
            self.session,
            artefact,
            order,
            *([self._provide(order.source, None)] if order is not None and order.source is not None else []),
            run=self._run,
            key=f"provide-{artefact.place}-{self.session}-{self._count}",
            resources=needs if anywhere else self.store,
            priority=_FIRST,
            pure=False,
        )
        if order is not None:
            future.add_done_callback(self._when_done(_built, order.digest))
        return future

    def build_here(self, job: FleetJob) -> bool:
        """Return whether this host builds the kernel of *job*, which no other one can build."""
        if job.order is None or not job.order.is_anywhere:
            return False
        place = job.artefacts[0].place
        if place in self._here:
            return bool(self._provisions[place].status != "error")
        self._here.add(place)
        if self._provisions[place].status == "pending":
            self._provisions.pop(place).cancel()
        return True

    def builder(self, job: FleetJob) -> Mapping[str, float]:
        """Return what a worker must have that builds the kernel of *job*; nothing if none is waited for."""
        place = job.artefacts[0].place if job.artefacts else ""
        found = self._provisions.get(place)
        waits = found is not None and found.status == "pending" and place not in self._here
        return resources.for_order(job.order) if waits and job.order and job.order.is_anywhere else {}

    # What comes back.

    def next_event(self, seconds: float) -> Event | None:
        """Return what happened next; None if nothing did for *seconds*."""
        with contextlib.suppress(queue.Empty):
            event = self._events.get(timeout=seconds)
            return event() if callable(event) else event
        return None

    def _when_done(self, make: Callable[[str, Any], Event | None], name: str) -> Callable[[Any], None]:
        """Return a callback that leaves it to next_event() to fetch a result, not to a thread of Dask's."""
        return lambda future: self._events.put(lambda: make(name, future))

    def _unit_ended(self, unit: str, future: Any) -> UnitEnded | None:
        if self._units.get(unit, self) is not future or future.cancelled() or self.is_lost():
            # Given up, or of a connection that was lost: reconnect() is followed by submitting it again.
            return None
        del self._units[unit]
        try:
            return UnitEnded(unit, future.result())
        except Exception as error:
            return UnitEnded(unit, error)

    def _listen(self) -> None:
        """Listen to the scheduler that the client is connected to now."""
        self._client.subscribe_topic(_WORKERS, self._hear_of_worker)
        self._client.subscribe_topic(self._tasks.topic(self._run), self._hear)

    def _hear(self, event: tuple[float, Any]) -> None:
        self._events.put(pickle.loads(event[1][0]))

    def _hear_of_worker(self, event: tuple[float, Any]) -> None:
        what = event[1]
        if isinstance(what, dict) and what.get("action") == "remove-worker":
            self._events.put(Gone(what["worker"], bool(what.get("expected"))))

    def offers(self) -> dict[str, Mapping[str, float]] | None:
        """Return the resources of each worker by its name; None if the scheduler does not answer now."""
        workers = self._connection.workers()
        return None if workers is None else {str(one["name"]): one["resources"] for one in workers.values()}

    def reconnect(self) -> None:
        """Connect again; raises InfraError after a while.  All units are to be submitted again."""
        self._connection.renew()
        self._units.clear()
        self._provisions.clear()
        self._count += 1
        self._listen()

    def check_fetches(self) -> None:
        """Raise FleetLost when a worker tries in vain to fetch what a unit needs."""
        self._connection.check_fetches(self._tasks.unfetched, self.session)

    # Its end.

    def give_up(self, units: Iterable[str]) -> None:
        """Take back *units*."""
        for unit in units:
            if (future := self._units.pop(unit, None)) is not None:
                future.cancel()

    def retire(self, addresses: Sequence[str]) -> list[Account]:
        """Stop the VMs of the workers at *addresses*; return what those still have to say."""
        with contextlib.suppress(Exception):
            there = self._connection.workers() or {}
            mine = [one for one in addresses if one in there]
            return list(
                self._client.run(self._tasks.retire, self.session, workers=mine, on_error="ignore").values()
            )
        return []

    def abandon(self) -> None:
        """Tell all workers to begin nothing more of this session."""
        with contextlib.suppress(Exception):
            self._client.run(self._tasks.abandon, self.session, on_error="ignore")


def _built(digest: str, future: Any) -> Built | None:
    if future.status == "error":
        error = future.exception()
        if isinstance(error, our_tasks.Abandoned):
            return None
        unexpected = InfraError(f"the build failed unexpectedly: {error!r}")
        return Built(digest, error if isinstance(error, HarnessError) else unexpected)
    return Built(digest, None) if future.status == "finished" else None
