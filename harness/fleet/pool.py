# SPDX-License-Identifier: GPL-2.0-only
"""Pool: functions that a client calls on workers of a fleet, one at a time on each."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from typing import Any

from harness.base.cause import Cause
from harness.base.errors import HarnessError, InfraError
from harness.fleet import resources
from harness.fleet import tasks as our_tasks
from harness.fleet.connection import Connection, FleetLost
from harness.fleet.messages import Answer
from harness.fleet.offers import PATIENCE_SECONDS
from harness.lab.artefacts import Artefact

_POLL_SECONDS = 5.0
_FIRST_POLL_SECONDS = 1.0

_FIRST = 1_000_000
"""Dask's priority of the source, above that of calls."""

_TRIES = 2
"""On how many workers a call is tried whose hosts cannot carry it out."""


class Pool:
    """Calls functions that need *source*; from several threads at once."""

    def __init__(
        self,
        connection: Connection,
        run: str,
        source: Artefact,
        needs: Mapping[str, float],
        tell: Callable[[str], object],
        *,
        keep_up: Callable[[], object] = lambda: None,
        waits: bool = False,
        log: str = "",
        tasks: Any = our_tasks,
        store: Mapping[str, float] | None = None,
    ) -> None:
        """*run* names the process that gives *source* away; *needs* is what a call needs of a worker.

        *keep_up* is called every few seconds.  With *waits* the first worker may come much later.  *log* is
        the directory of what the processes print that were started for the fleet; *tasks* and *store* are
        those of Link.
        """
        self._connection, self._source, self._tell, self._tasks = connection, source, tell, tasks
        self._needs, self._keep_up, self._waits, self._log = dict(needs), keep_up, waits, log
        self._store = dict(resources.from_store(run) if store is None else store)
        self._session = uuid.uuid4().hex[:8]
        self._lock = threading.RLock()
        self._cargo: Any = None
        """The Future of the source, from the first time that a worker does not have it."""
        self._running: dict[str, Any] = {}
        """Name of a call -> its Future."""
        self._dropped: set[str] = set()
        self._closed = False
        self._seen: set[str] = set()
        self._able: frozenset[str] = frozenset()
        """The addresses of the workers that could be called at the last look."""
        self._looked = self._met = self._checked = time.monotonic()
        self._count = 0

    def wait(self) -> int:
        """Return the number of workers that can be called, once there are some; FleetLost if none comes."""
        while not self._look():
            time.sleep(_FIRST_POLL_SECONDS)
        return len(self._able)

    @property
    def width(self) -> int:
        """How many workers could be called a moment ago."""
        self._watch()
        return len(self._able)

    def call(
        self,
        function: Callable[..., our_tasks.Called],
        *arguments: Any,
        name: str,
        after: Any = None,
        avoid: str = "",
    ) -> tuple[Answer, Any]:
        """Call *function* on a worker; return what it said, and a Future of that.

        Best on the worker that carried out *after*, such a Future, which is done again if that died; never on
        the one at the address *avoid*, if there is another.  Where the host is the trouble, it is tried on a
        second one.

        Raises what *function* raises, FleetLost, InfraError when workers died of it, Abandoned after drop().
        """
        at, tries = "", 0
        while True:
            answer, future = self._try(name, function, arguments, after, at, avoid)
            if answer is None:
                after, at, avoid = None, "", ""
            elif not answer.found:
                at = answer.address
                if at not in self._able:
                    self._look()
            elif not answer.trouble or (tries := tries + 1) == _TRIES or len(self._able) < _TRIES:
                return answer, future
            else:
                self._tell(f"fleet: worker {answer.worker} cannot work: {answer.trouble}; trying another one")
                after, at, avoid = None, "", answer.address

    def _try(
        self,
        name: str,
        function: Callable[..., our_tasks.Called],
        arguments: tuple[Any, ...],
        after: Any,
        at: str,
        avoid: str,
    ) -> tuple[Answer | None, Any]:
        """Return what a call said, and its Future; None if it is to be repeated.

        The worker *at* gets the source with it.
        """
        with self._lock:
            # Dask connects again by itself, too, but gives up for good at a scheduler that is not ready.
            self._was_lost(self._connection.client)
            client, able = self._connection.client, self._able
        # A worker that is named must be there: else Dask forgets about resources, too.
        where = able & {at} or (able - {avoid} if avoid in able else frozenset())
        try:
            future = self._submit(client, name, function, arguments, after, where, cargo=at in where)
            return self._result(future, where), future
        except (our_tasks.Abandoned, FleetLost):
            raise
        except Exception as error:
            if self._is_dropped(name):
                raise our_tasks.Abandoned from error
            if self._was_lost(client):
                return None, None
            if type(error).__name__ == "KilledWorker":
                died = f"several workers died while they tested {name}"
                raise InfraError(died, cause=Cause.WORKER_DIED) from error
            if isinstance(error, HarnessError):
                raise
            raise InfraError(f"the fleet failed unexpectedly: {error!r}") from error
        finally:
            with self._lock:
                self._running.pop(name, None)

    def _submit(
        self,
        client: Any,
        name: str,
        function: Callable[..., our_tasks.Called],
        arguments: tuple[Any, ...],
        after: Any,
        where: Collection[str],
        *,
        cargo: bool,
    ) -> Any:
        """Hand a call to *client*, for one of the workers *where* if there are any."""
        with self._lock:
            if name in self._dropped or self._closed:
                raise our_tasks.Abandoned
            self._count += 1
            self._running[name] = future = client.submit(
                self._tasks.call,
                f"{self._session}-{name}",
                self._source,
                function,
                arguments,
                [self._provide(client)] if cargo else [],
                after,
                key=f"vfio-call-{self._session}-{name}-{self._count}",
                resources=self._needs,
                workers=sorted(where) or None,
                pure=False,
            )
            return future

    def _provide(self, client: Any) -> Any:
        if self._cargo is None or self._cargo.status not in ("pending", "finished"):
            self._cargo = client.submit(
                self._tasks.provide,
                self._session,
                self._source,
                None,
                key=f"source-{self._session}-{self._count}",
                resources=self._store,
                priority=_FIRST,
                pure=False,
            )
        return self._cargo

    def _result(self, future: Any, where: Collection[str]) -> Answer | None:
        """Wait for *future*, and look after the fleet meanwhile; None if all of *where* are gone."""
        done = threading.Event()
        future.add_done_callback(lambda _future: done.set())
        # When the connection is lost, Dask does not call back.
        while not done.wait(_POLL_SECONDS) and not future.done():
            self._watch()
            if where and not self._able.intersection(where):
                future.cancel()
                return None
        answer: Answer = future.result()
        return answer

    def _watch(self) -> None:
        """Look at the fleet if that was some seconds ago; FleetLost if nobody has been able for a while."""
        with self._lock:
            if time.monotonic() - self._looked >= _POLL_SECONDS and not self._closed:
                self._look()

    def _look(self) -> Collection[str]:
        """Return the addresses of the workers that can be called now."""
        with self._lock:
            self._looked = time.monotonic()
            self._keep_up()
            if (workers := self._connection.workers()) is None:
                return self._able
            able = {at: one for at, one in workers.items() if resources.is_met(self._needs, one["resources"])}
            for name in {str(one["name"]) for one in able.values()} - self._seen:
                self._seen.add(name)
                self._tell(f"fleet: worker {name}")
            self._able = frozenset(able)
            if self._looked - self._checked >= PATIENCE_SECONDS:
                self._connection.check_fetches(self._tasks.unfetched, self._session)
                self._checked = self._looked
            if able or (self._waits and not self._seen):
                self._met = self._looked
            elif self._looked - self._met >= PATIENCE_SECONDS:
                lack = resources.lack(self._needs, [one["resources"] for one in workers.values()])
                raise FleetLost(f"the fleet can test nothing: {lack}", hint=f"see {self._log}")
            return self._able

    def _was_lost(self, client: Any) -> bool:
        """Whether the connection of *client* was lost: it is replaced, and its calls are to be repeated."""
        with self._lock:
            if self._connection.is_lost() and not self._closed:
                self._connection.renew()
                self._cargo = None
                self._met = time.monotonic()
            return self._connection.client is not client

    def _is_dropped(self, name: str) -> bool:
        with self._lock:
            return name in self._dropped or self._closed

    def drop(self, name: str) -> None:
        """End the call *name* at once, and refuse it from now on: nobody waits for it any more."""
        with self._lock:
            self._dropped.add(name)
            self._cancel([name])

    def close(self) -> None:
        """End all calls, and refuse others."""
        with self._lock:
            self._closed = True
            self._cancel(list(self._running))

    def _cancel(self, names: Collection[str]) -> None:
        # The worker sees that its task was cancelled, see harness.fleet.tasks.call().
        for name in names:
            if (future := self._running.get(name)) is not None:
                future.cancel()
