# SPDX-License-Identifier: GPL-2.0-only
"""The client's side of a run on a fleet: submits units, and records what workers say, until all is done."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Protocol

from harness.base.cause import Cause
from harness.base.errors import HarnessError, InfraError
from harness.base.outcome import Outcome
from harness.base.words import count_of, duration
from harness.fleet.link import Built, Event, FleetJob, Gone, Link, UnitEnded
from harness.fleet.messages import Account, Began, Said, Spent
from harness.fleet.offers import PATIENCE_SECONDS, Offers
from harness.lab.abilities import Abilities
from harness.lab.units import Unit

_MOST_FAILURES = 3
"""How often a unit may fail at the same piece of work for reasons of the harness."""

_MOST_KILLED = 5
"""How often Dask may give up a unit; each time some workers have died, by default four."""

_RANKS = 1000
"""The ranks of a run's jobs are spread over so many, so that no run comes before all of another one."""

_TELL_SECONDS = 30.0
_LOOK_SECONDS = 5.0
_WAIT_SECONDS = 0.5


class Recorder(Protocol):
    """Where results go."""

    def is_reported(self, key: str) -> bool:
        """Whether the work *key* has its results."""
        ...

    def keep(self, said: Said) -> None:
        """Record what *said* has, unless its work has its results."""
        ...

    def give_up(self, key: str, reason: str, cause: Cause, outcome: Outcome = Outcome.NOT_RUN) -> None:
        """Record that the work *key* has no result, and why; nothing if it has one."""
        ...

    def take_in(self, account: Account) -> None:
        """Keep the late results and the evidence of *account*."""
        ...


class FleetClient:
    """One run of units on a fleet."""

    def __init__(
        self,
        link: Link,
        recorder: Recorder,
        units: Iterable[Unit],
        jobs: Mapping[str, FleetJob],
        *,
        until: float | None,
        tell: Callable[[str], object],
        provided: Callable[[str, HarnessError | None], object],
        keep_up: Callable[[], object] = lambda: None,
        waits: bool = False,
        log: str = "",
    ) -> None:
        """*until* is in seconds since the epoch.

        *provided* is called with the digest of each kernel that the fleet has built, and with the error if it
        could not; *keep_up* every few seconds.  With *waits* the fleet's first workers may come much later.
        *log* is the directory of what the processes print that were started for the fleet.
        """
        self._link, self._recorder, self._jobs = link, recorder, jobs
        self._until, self._tell, self._provided, self._keep_up = until, tell, provided, keep_up
        self._waits, self._log = waits, log
        self._units = {f"{link.session}-{number}": unit for number, unit in enumerate(units)}
        """Name of a unit -> what was to be done of it at first."""
        self._open: set[str] = set()
        """The units that have not ended."""
        self._all = sum(len(unit.keys) for unit in self._units.values())
        self._failures: collections.Counter[str] = collections.Counter()
        self._killed: collections.Counter[str] = collections.Counter()
        """Unit -> how often Dask gave it up."""
        self.joined: dict[str, Abilities] = {}
        """Name of every worker that has worked -> what its host can do."""
        self.build_cpu_seconds = 0.0
        """CPU time of the kernels that the fleet has built."""
        self._names: dict[str, str] = {}
        """Address of a worker -> its name."""
        self._at: dict[str, str] = {}
        """Address of a worker -> the unit that it works on."""
        self._heard: dict[str, float] = {}
        """Name of a worker -> when it last began a unit or had a result."""
        self._offers = Offers(tell)
        self._late = False
        self._began = self._told = self._checked = time.monotonic()
        self._looked = 0.0

    def run(self) -> None:
        """Return when all work has results.  Raises InfraError when the scheduler stays away."""
        self._submit(self._units)
        while self._open:
            if self._link.is_lost():
                self._reconnect()
            self._handle(self._link.next_event(_WAIT_SECONDS))
            now = time.monotonic()
            if now - self._looked >= _LOOK_SECONDS:
                self._looked = now
                self._look()
            if now - self._told >= _TELL_SECONDS:
                self._told = now
                self._tell(self.progress())
        for account in self._link.retire(tuple(self._names)):
            self._recorder.take_in(account)

    def _submit(self, names: Collection[str], *, again: bool = False) -> None:
        """Submit what is left of the units *names*: job by job, of each job the longest first.

        One of which nothing is left has ended.
        """
        self._open.difference_update(names)
        left: collections.defaultdict[str, list[str]] = collections.defaultdict(list)
        for name in names:
            if any(self._left_of(name)):
                left[self._units[name].job].append(name)
        seconds = {job: sum(self._units[name].seconds for name in units) for job, units in left.items()}
        for rank, job in enumerate(sorted(left, key=seconds.__getitem__)):
            units = sorted(left[job], key=lambda name: -self._units[name].seconds)
            self._open.update(units)
            work = {name: tuple(self._left_of(name)) for name in units}
            self._link.submit(job, self._jobs[job], work, rank=_RANKS * rank // len(left), again=again)

    def _handle(self, event: Event | None) -> None:
        if isinstance(event, Said):
            self._hear(event)
        elif isinstance(event, Began):
            if event.worker not in self.joined:
                self._tell(f"fleet: worker {event.worker} ({event.abilities.summary})")
            self.joined[event.worker] = event.abilities
            self._names[event.address], self._heard[event.worker] = event.worker, time.monotonic()
            # Link.submit() has numbered it.
            if (unit := event.unit.rpartition("-")[0]) in self._units:
                self._at[event.address] = unit
        elif isinstance(event, UnitEnded):
            self._end(event.unit, event.result)
        elif isinstance(event, Spent):
            self.build_cpu_seconds += event.cpu_seconds
        elif isinstance(event, Built):
            self._provided(event.digest, event.error)
        elif isinstance(event, Gone):
            self._at.pop(event.address, None)
            if (name := self._names.pop(event.address, None)) is not None:
                self._tell(f"fleet: worker {name} {'left' if event.in_order else 'is gone'}")

    def _hear(self, said: Said) -> None:
        self._heard[said.worker] = time.monotonic()
        if not said.deaths:
            self._recorder.keep(said)
        elif said.final:
            reason = f"{len(said.deaths)} workers died while running it: {', '.join(said.deaths)}"
            self._tell(f"fleet: {said.key}: {reason}")
            self._recorder.give_up(said.key, reason, Cause.WORKER_DIED)
        else:
            self._tell(f"fleet: worker {said.deaths[-1]} died at {said.key}; {said.worker} goes on with it")

    def _end(self, name: str, result: Account | Exception) -> None:
        """Note how the task of the unit *name* ended, and submit what it left."""
        # Not by address: its worker may have begun another one, and an error has no address.
        self._at = {address: unit for address, unit in self._at.items() if unit != name}
        if isinstance(result, Account):
            self._recorder.take_in(result)
            if result.trouble:
                self._tell(f"fleet: worker {result.worker} cannot work: {result.trouble}")
            elif not self._late:
                self._blame_harness(name, f"{result.worker} returned its unit without a result")
        else:
            self._fail(name, result)
        if self._late:
            self._give_up(name, "the deadline had passed", Cause.DEADLINE)
        self._submit([name], again=True)

    def _fail(self, name: str, error: Exception) -> None:
        from distributed import KilledWorker

        job = self._units[name].job
        if isinstance(error, InfraError) and self._link.build_here(self._jobs[job]):
            self._tell(f"fleet: {error}; this host builds the kernel")
        elif isinstance(error, HarnessError):
            # Its kernel cannot be built, or is gone from the store.
            self._drop(job, str(error), error.cause or Cause.HOST)
        elif isinstance(error, KilledWorker):
            # Also raised for units that only waited on workers that died, for themselves or for their kernel.
            self._killed[name] += 1
            if self._killed[name] >= _MOST_KILLED:
                reason = f"Dask gave it up {_MOST_KILLED} times, because workers died"
                self._give_up(name, reason, Cause.NO_WORKER)
        elif not self._late:
            self._blame_harness(name, f"{type(error).__name__}: {error}")

    def _blame_harness(self, name: str, error: str) -> None:
        """Give up the next work of the unit *name*, if there is any, when that has failed too often."""
        key = next(self._left_of(name), "")
        if not key:
            return
        self._failures[key] += 1
        self._tell(f"fleet: the harness failed at {key}: {error}")
        if self._failures[key] >= _MOST_FAILURES:
            self._recorder.give_up(key, f"the harness failed: {error}", Cause.HARNESS, Outcome.LOST)

    def _left_of(self, name: str) -> Iterator[str]:
        """Yield the work of the unit *name* without results."""
        return (key for key in self._units[name].keys if not self._recorder.is_reported(key))

    def _give_up(self, name: str, reason: str, cause: Cause) -> None:
        for key in self._units[name].keys:
            self._recorder.give_up(key, reason, cause)

    def _drop(self, job: str, reason: str, cause: Cause) -> None:
        """Give up all units of *job* that have not ended."""
        names = [name for name in self._open if self._units[name].job == job]
        self._link.give_up(names)
        for name in names:
            self._give_up(name, reason, cause)
            self._open.discard(name)

    def _look(self) -> None:
        self._keep_up()
        if self._until is not None and time.time() > self._until:
            self._late = True
            # Units that wait return at once, those at work after the case that runs.  Workers may be new.
            self._link.abandon()
        if (workers := self._link.offers()) is None:
            return
        self._offers.look(workers)
        if self._offers.lack("", self._link.store):
            raise InfraError("this host's kernels and disks do not reach the fleet", hint=f"see {self._log}")
        if self._waits and len(workers) < 2:
            return
        if not self._at and time.monotonic() - max((self._checked, *self._heard.values())) > PATIENCE_SECONDS:
            self._link.check_fetches()
            self._checked = time.monotonic()
        for job in {self._units[name].job for name in self._open}:
            builder = self._link.builder(self._jobs[job])
            if builder and (reason := self._offers.lack(f"kernel of {job}", builder)):
                self._tell(f"fleet: {reason}; this host builds the kernel of {job}")
                self._link.build_here(self._jobs[job])
                names = [name for name in self._open if self._units[name].job == job]
                self._link.give_up(names)
                self._submit(names)
            if reason := self._offers.lack(job, self._jobs[job].needs):
                logs = f"; see {self._log}" if len(workers) < 2 else ""
                self._tell(f"fleet: {job} is given up: {reason}{logs}")
                self._drop(job, reason, Cause.NO_WORKER)

    def _reconnect(self) -> None:
        self._tell("fleet: the connection to the scheduler was lost; connecting again")
        self._link.reconnect()
        # Workers that are there still have something to say at the end, with or without another unit.
        self._at.clear()
        self._offers.forget()
        self._submit(tuple(self._open))

    def progress(self) -> str:
        """Return how far the run is, in one line."""
        done = sum(self._recorder.is_reported(key) for unit in self._units.values() for key in unit.keys)
        seconds = time.monotonic() - self._began
        where = collections.Counter(self._units[unit].job for unit in self._at.values())
        jobs = ", ".join(f"{job} on {count}" for job, count in where.most_common(3))
        more = f" and {len(where) - 3} more jobs" if len(where) > 3 else ""
        left = self._time_left(done, seconds)
        return (
            f"fleet: {done} of {self._all} cases and programs, {done / seconds:.1f} a second, "
            f"{left}; {count_of(len(self._at), 'worker')} at work: {jobs or 'none'}{more}"
        )

    def _time_left(self, done: int, seconds: float) -> str:
        """Return how long the rest takes, when *done* pieces took *seconds*, or what makes that unknown."""
        if not done or not self._at:
            return "time left unknown"
        left, late = (self._all - done) * seconds / done, (0.0, "")
        for address, name in self._at.items():
            unit, keys = self._units[name], tuple(self._left_of(name))
            took = time.monotonic() - self._heard[self._names[address]]
            # What is left of the unit may be one long piece, of which the rate says nothing.
            rest = unit.seconds * len(keys) / len(unit.keys) - took
            left = max(left, rest)
            if keys and rest < 0:
                late = max(late, (took, keys[0]))
        if late[0] > left:
            return f"time left unknown: {late[1]} has run for {duration(late[0])}, longer than expected"
        return f"about {duration(left)} left"
