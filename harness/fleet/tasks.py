# SPDX-License-Identifier: GPL-2.0-only
"""The tasks of a fleet, as Dask's workers run them: provide an archive, carry out a unit.

The Lab, and the VM that it keeps between units, lives in the worker's process, which runs one unit at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import os
import pickle
import re
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from harness.base.cause import Cause
from harness.base.errors import HarnessError, InfraError
from harness.base.outcome import Outcome
from harness.fleet import journal
from harness.fleet.cargo import Cargo, archives_dir, fleet_dir
from harness.fleet.evidence import Evidence, pack_directory
from harness.fleet.messages import Account, Answer, Began, Order, Said, Spent
from harness.lab.abilities import Abilities, own_abilities
from harness.lab.artefacts import Artefact, BuildOrder, archive_path, build_ordered, pack, unpack
from harness.lab.worker import Worker
from harness.results.model import Result

MOST_DEATHS = 3
"""How many workers may die at the same piece of work: then it is given up, and the kernel is not blamed."""

IDLE_SECONDS = 60.0
"""How long a VM waits for the next unit: a client that was killed stops no VM."""

_KEPT_SECONDS = 3 * 86400.0
"""How long the directories of VMs, and archives, stay on a worker's disk."""

_PRUNE_SECONDS = 3600.0

_TROUBLES = 2
"""After so many units in a row that its host could not carry out, a worker leaves the fleet."""

_MOST_FETCHES = 3
"""How often a worker may fail to fetch what it needs before that is no accident."""

_ANSWER_SECONDS = 60.0

T = TypeVar("T")

Called = tuple[Any, Path | None, str]
"""What a function returns that a client calls: a value, a directory whose files go to the client, and why
this host could not carry it out."""


def topic(run: str) -> str:
    """Return the name under which Dask's scheduler hands on what workers say of *run*."""
    return f"vfio-harness-{run}"


def runs_dir() -> Path:
    """Return where a worker keeps the directories of VMs."""
    return fleet_dir() / "runs"


class Abandoned(Exception):
    """Nobody waits any more for what a task makes."""


def _nothing() -> None:
    pass


class Crew:
    """The state of a worker's process; `crew` is the one of this process."""

    def __init__(self) -> None:
        # A VM ends with the thread that started it, so one thread starts them all.
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="lab")
        self.dask: Any = None
        """The distributed.Worker of this process."""
        self.abilities: Abilities | None = None
        self.worker: Worker | None = None
        self.begun: tuple[str, str, str] = ("", "", "")
        """Order.session, job and plan of `worker`."""
        self.run = ""
        """The run of `worker`."""
        self.evidence: Evidence | None = None
        self.abandoned: set[str] = set()
        """Order.session of which nothing more is begun."""
        self.leave_undone: Callable[[], None] = _nothing
        """Notes that this process ends in the middle of a unit, but did not die of it."""
        self.troubles = 0
        self.trouble = ""
        """Why this worker leaves the fleet."""
        self.last = time.monotonic()
        self.busy = False

    def prove(self) -> Abilities:
        """Return what this host can do."""
        self.abilities = own_abilities()
        return self.abilities

    def enlist(self, dask: Any) -> None:
        """Begin to work as *dask*, a distributed.Worker."""
        self.dask = dask
        threading.Thread(target=self._end_idle_vms, name="idle", daemon=True).start()

    @property
    def name(self) -> str:
        """The worker's name, as part of file names."""
        return re.sub(r"[^A-Za-z0-9_.]+", "_", str(self.dask.name))

    def in_lab(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call *function* in the thread that starts VMs."""

        def call() -> T:
            self.busy = True
            try:
                return function(*arguments)
            finally:
                self.busy, self.last = False, time.monotonic()

        return self.thread.submit(call).result()

    def ask(self, coroutine: Any) -> Any:
        """Return what *coroutine* returns in Dask's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.dask.loop.asyncio_loop).result(
            _ANSWER_SECONDS
        )

    def say(self, run: str, said: Said | Began | Spent, notes: str = "", line: journal.Line = ()) -> None:
        """Tell the client, and with the same message note *line* in the topic *notes*."""
        if isinstance(said, Said) and self.evidence is not None:
            for result in said.results:
                self.evidence.note(result)
        self.dask.log_event([topic(run), notes] if notes else topic(run), [pickle.dumps(said), *line])

    def close(self) -> None:
        """Stop the VM at once, and forget its job."""
        if self.worker is not None:
            self.worker.close()
        self.worker, self.begun = None, ("", "", "")

    def account(self, trouble: str = "", late: tuple[Result, ...] = ()) -> Account:
        """Return how a unit ended, with the files that are new."""
        packed, dropped = self.evidence.pack() if self.evidence is not None else (b"", 0)
        self._count(trouble)
        return Account(
            worker=self.name,
            address=self.dask.address,
            trouble=trouble,
            late=late,
            evidence=packed,
            dropped=dropped,
        )

    def answer(self, **fields: Any) -> Answer:
        """Return what a call came to."""
        self._count(fields.get("trouble", ""))
        return Answer(worker=self.name, address=self.dask.address, found=True, **fields)

    def _count(self, trouble: str) -> None:
        self.troubles = self.troubles + 1 if trouble else 0
        if self.troubles >= _TROUBLES:
            self._leave(trouble)

    def _leave(self, trouble: str) -> None:
        """Leave the fleet in order: others get the units that wait here."""
        self.trouble = trouble
        loop = self.dask.loop.asyncio_loop
        loop.call_soon_threadsafe(lambda: loop.create_task(self.dask.close_gracefully(reason=trouble)))

    def _end_idle_vms(self) -> None:
        pruned = -math.inf
        while True:
            if time.monotonic() - pruned > _PRUNE_SECONDS:
                pruned = time.monotonic()
                _prune()
            time.sleep(IDLE_SECONDS / 4)
            if self.worker is not None and not self.busy and time.monotonic() - self.last > IDLE_SECONDS:
                with contextlib.suppress(HarnessError, OSError):
                    self.in_lab(_say_and_end)


def _prune() -> None:
    """Remove the directories of VMs, and archives, that are too old."""
    for path in (*runs_dir().glob("*"), *archives_dir().glob("*")):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _KEPT_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


crew = Crew()


def provide(
    session: str,
    artefact: Artefact,
    order: BuildOrder | None,
    source: Cargo | None = None,
    run: str = "",
) -> Cargo:
    """Return *artefact* of this host's store as an archive; a kernel is built if the store has none.

    *source* is the one of *order*, if it travels; the client of *run* is told what the build cost.

    Raises KernelError and InfraError as a build does.
    """

    def check() -> None:
        if session in crew.abandoned:
            raise Abandoned

    if source is not None and source.trouble:
        raise InfraError(source.trouble, cause=Cause.HOST)
    try:
        if order is not None and (seconds := build_ordered(order, check).spent_cpu_seconds):
            crew.say(run, Spent(cpu_seconds=seconds))
        archives_dir().mkdir(parents=True, exist_ok=True)
        archive, _ = pack(artefact, archives_dir())
    except OSError as error:
        raise InfraError(f"{artefact.place} cannot be packed: {error}", cause=Cause.HOST) from error
    return Cargo(archive)


def call(
    session: str,
    source: Artefact,
    function: Callable[..., Called],
    arguments: tuple[Any, ...],
    cargo: Sequence[Cargo] = (),
    after: object = None,
) -> Answer:
    """Call *function* with what ends it early, a directory for it, the path of *source* and *arguments*.

    Without *source* in this host's store nothing is called.  *after* only says where Dask should have this
    done.  Raises Abandoned, and what *function* raises except InfraError.
    """
    import distributed

    key = distributed.get_worker().get_current_task()

    def check() -> None:
        task = crew.dask.state.tasks.get(key)
        if task is None or task.state != "executing":
            # The client dropped it, is gone, or has lost its scheduler and asks anew.
            raise Abandoned

    try:
        if cargo and not source.is_there:
            # It came before and was pruned, or could not be stored.
            unpack(cargo[0].archive, archive_path(archives_dir(), cargo[0].archive.digest))
        if not source.is_there:
            return Answer(worker=crew.name, address=crew.dask.address)
        with source.held():
            return crew.in_lab(_call, check, runs_dir() / session, source.path, function, arguments)
    except (OSError, InfraError) as error:
        return crew.answer(trouble=f"{crew.name}: {error}")


def _call(
    check: Callable[[], None],
    directory: Path,
    source: Path,
    function: Callable[..., Called],
    arguments: tuple[Any, ...],
) -> Answer:
    if crew.worker is not None:
        _say_and_end()
    value, made, trouble = function(check, directory, source, *arguments)
    packed, dropped = pack_directory(made) if made is not None else (b"", 0)
    if not dropped:
        shutil.rmtree(directory, ignore_errors=True)
    return crew.answer(
        trouble=trouble, value=value, name=made.name if made else "", packed=packed, dropped=dropped
    )


def tell_plan(text: str) -> str:
    """Return *text*, the file of a plan with one job: as a result it goes once to each worker."""
    return text


def perform(order: Order, plan: str, cargo: Sequence[Cargo]) -> Account:
    """Carry out *order*: results go to the client as they are made."""
    return crew.in_lab(_perform, order, plan, cargo)


def _perform(order: Order, plan: str, cargo: Sequence[Cargo]) -> Account:
    assert crew.abilities is not None
    began = Began(worker=crew.name, address=crew.dask.address, unit=order.unit, abilities=crew.abilities)
    crew.say(order.run, began)
    trouble = next((one.trouble for one in cargo if one.trouble), "")
    try:
        trouble = trouble or _carry_out(order, plan)
    except (OSError, HarnessError) as error:
        # A full disk, most often.
        trouble = str(error) or repr(error)
    if trouble:
        crew.close()
    return crew.account(trouble)


def _carry_out(order: Order, plan: str) -> str:
    """Do what is left of *order*; return why the rest cannot be done on this host."""
    notes = f"{topic(order.run)} {order.unit}"

    def note(index: int, what: str) -> None:
        crew.dask.log_event(notes, [b"", index, what, crew.name])

    first, died = journal.where(line[1:] for _, line in crew.ask(crew.dask.scheduler.events(topic=notes)))
    if first == len(order.keys):
        return ""
    worker = _open(order, plan)
    if died:
        crew.say(order.run, Said(worker=crew.name, key=order.keys[first], deaths=died, final=False))
    note(first, journal.BEGAN)
    for index, key in enumerate(order.keys[first:], first):
        crew.leave_undone = functools.partial(note, index, journal.LEFT)
        if order.session in crew.abandoned:
            crew.leave_undone()
            return ""
        said = Said(worker=crew.name, key=key, deaths=died)
        if index > first or len(died) < MOST_DEATHS:
            results = tuple(worker.perform_named(key))
            if trouble := _host_trouble(results):
                crew.leave_undone()
                return trouble
            said = Said(worker=crew.name, key=key, results=results)
        # The next piece begins now.
        crew.say(order.run, said, notes, (index + 1, journal.BEGAN, crew.name))
    crew.leave_undone = _nothing
    return ""


def _open(order: Order, plan: str) -> Worker:
    """Return the Worker for the job of *order*, with its VM if the last order was of the same job."""
    directory = runs_dir() / order.run
    path = directory / f"{order.job}.{crew.name}.plan.json"
    directory.mkdir(parents=True, exist_ok=True)
    os.utime(directory)  # Its own time is that of its first units, and other workers of this cache prune it.
    if crew.worker is not None:
        if crew.begun == (order.session, order.job, plan):
            return crew.worker
        _say_and_end()
    path.write_text(plan, encoding="utf-8")

    def tell(key: str, results: Sequence[Result]) -> None:
        crew.say(order.run, Said(worker=crew.name, key=key, results=tuple(results), final=False))

    if crew.evidence is None or crew.evidence.directory != directory:
        crew.evidence = Evidence(directory, crew.name)
    crew.worker = Worker.of_file(path, crew.name, tell)
    crew.run, crew.begun = order.run, (order.session, order.job, plan)
    return crew.worker


def _end_job() -> tuple[Result, ...]:
    """Stop the VM; return what its kernel still printed."""
    late = crew.worker.retire(crew.begun[1]) if crew.worker is not None else ()
    crew.close()
    return late


def _say_and_end() -> None:
    """Stop the VM, and tell the client what its kernel still printed."""
    run = crew.run
    crew.say(run, Said(worker=crew.name, results=_end_job()))


def _host_trouble(results: Sequence[Result]) -> str:
    """Return why this host boots no VM; empty if *results* do not say so."""
    untried = [one for one in results if one.outcome is Outcome.NOT_RUN and one.cause is Cause.HOST]
    return untried[-1].reason if untried and len(untried) == len(results) else ""


async def unfetched(session: str) -> str:
    """Return what of *session* this worker tries in vain to fetch, and from where; nothing if all came.

    Dask itself tries for ever.
    """
    state = crew.dask.state
    waiting = {
        key
        for key, task in state.tasks.items()
        if session in str(key) and task.state in ("fetch", "flight", "missing")
    }
    failed = [entry for entry in state.story(*waiting) if entry[0] == "gather-dep-failed"] if waiting else []
    if len(failed) < _MOST_FETCHES:
        return ""
    _, address, keys, *_ = failed[-1]
    what = str(min(waiting & set(keys))).removeprefix("provide-").partition(f"-{session}")[0]
    return f"worker {crew.name} cannot fetch {what} from {address}"


async def retire(session: str) -> Account:
    """Stop the VM of *session*; return what its kernel still printed, and what its directory has."""
    if crew.begun[0] != session:
        # Another run may be using this worker: nobody waits for that here, in Dask's loop.
        return Account()
    return await asyncio.wrap_future(crew.thread.submit(lambda: crew.account(late=_end_job())))


def abandon(session: str) -> None:
    """Begin nothing more of *session*; its VM waits for retire(), or is idle.  Called while a unit runs."""
    crew.abandoned.add(session)
