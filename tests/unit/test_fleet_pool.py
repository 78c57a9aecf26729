# SPDX-License-Identifier: GPL-2.0-only
"""Functions are called on workers of a Dask cluster in this process, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from distributed import Client, LocalCluster, get_worker
from distributed.scheduler import KilledWorker

from harness.base.errors import BuildError, InfraError
from harness.fleet import pool as under_test
from harness.fleet import tasks
from harness.fleet.connection import Connection, FleetLost
from harness.fleet.messages import Answer
from harness.fleet.pool import Pool
from harness.fleet.resources import for_unit
from harness.fleet.tasks import Abandoned, Called
from harness.lab.artefacts import Artefact, BuildOrder

ANY = {"vm": 1.0}
SOURCE = Artefact("sources/git/abc")


class Calls:
    """Workers that have the source once it was sent to them."""

    has: ClassVar[set[str]] = set()
    tried: ClassVar[list[str]] = []
    begun: ClassVar[threading.Semaphore]
    may_end: ClassVar[threading.Event]

    @classmethod
    def call(
        cls,
        session: str,
        source: Artefact,
        function: Callable[..., Called],
        arguments: tuple[Any, ...],
        cargo: Sequence[str] = (),
        after: object = None,
    ) -> Answer:
        me = get_worker().address
        if cargo:
            cls.has.add(me)
        if me not in cls.has:
            return Answer(worker="w", address=me)

        state, key = get_worker().state, get_worker().get_current_task()

        def check() -> None:
            if key not in state.tasks or state.tasks[key].state != "executing":
                raise Abandoned

        value, _, trouble = function(check, Path("/runs"), source.path, *arguments)
        return Answer(worker=me, address=me, found=True, value=value, trouble=trouble)

    @staticmethod
    def provide(session: str, artefact: Artefact, order: BuildOrder | None) -> str:
        return f"cargo of {artefact.place}"

    @staticmethod
    def unfetched(session: str) -> str:
        return ""


@pytest.fixture(name="cluster", scope="module")
def _cluster() -> Iterator[LocalCluster]:
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=False,
        dashboard_address="127.0.0.1:0",
        resources={"vm": 1},
    ) as cluster:
        yield cluster


@pytest.fixture(name="made")
def _made() -> list[Client]:
    return []


@pytest.fixture(name="pool")
def _pool(cluster: LocalCluster, made: list[Client], monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    Calls.has.clear()
    monkeypatch.setattr(under_test, "_POLL_SECONDS", 0.2)

    def connect() -> Client:
        made.append(Client(cluster, set_as_default=False))
        return made[-1]

    with contextlib.closing(Connection(connect, "go on")) as connection:
        yield Pool(connection, "run", SOURCE, ANY, lambda _line: None, tasks=Calls, store=ANY)


def slowly(check: Callable[[], None], _directory: Path, source: Path, number: int) -> Called:
    for _ in range(max(10, number)):
        check()
        time.sleep(0.03)
    return f"{source.name} {number}", None, ""


def test_all_workers_are_called_and_get_the_source(pool: Pool) -> None:
    assert pool.wait() == 2
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda n: pool.call(slowly, n, name=f"n{n}")[0], range(6)))
    assert [answer.value for answer in answers] == [f"abc {number}" for number in range(6)]
    assert {answer.address for answer in answers} == Calls.has
    assert len(Calls.has) == 2


def test_a_call_goes_where_another_was_made(pool: Pool) -> None:
    pool.wait()
    first, future = pool.call(slowly, 0, name="a")
    near = [pool.call(slowly, n, name=f"b{n}", after=future)[0] for n in range(3)]
    assert {answer.address for answer in near} == {first.address}
    away, _ = pool.call(slowly, 1, name="c", avoid=first.address)
    assert away.address != first.address


def test_a_host_that_cannot_do_it_leaves_it_to_another(pool: Pool) -> None:
    """And if two cannot, that is the answer."""
    tried = Calls.tried
    tried.clear()

    def full(_check: object, _directory: Path, _source: Path, hosts: int) -> Called:
        tried = Calls.tried
        tried.append(get_worker().address)
        return len(tried), None, "no space left on device" if len(tried) <= hosts else ""

    pool.wait()
    answer, _ = pool.call(full, 1, name="a")
    assert (answer.value, answer.trouble, len(set(tried))) == (2, "", 2)
    tried.clear()
    answer, _ = pool.call(full, 9, name="b")
    assert (answer.value, answer.trouble, len(set(tried))) == (2, "no space left on device", 2)


def test_a_call_that_is_dropped_ends(pool: Pool) -> None:
    def long(check: Callable[[], None], _directory: Path, _source: Path) -> Called:
        while True:
            check()
            time.sleep(0.02)

    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(pool.call, long, name=name) for name in ("a", "b")]
        time.sleep(0.5)
        pool.drop("a")
        with pytest.raises(Abandoned):
            pool.call(long, name="a")
        with pytest.raises(Abandoned):
            running[0].result(10.0)
        assert not running[1].done()
        pool.close()
        with pytest.raises(Abandoned):
            running[1].result(10.0)
    with pytest.raises(Abandoned):
        pool.call(slowly, 1, name="c")


def _cut(client: Any) -> None:
    client.loop.add_callback(client.scheduler_comm.comm.abort)


def held(check: Callable[[], None], _directory: Path, source: Path, number: int) -> Called:
    calls = Calls
    calls.begun.release()
    while not calls.may_end.is_set():
        check()
        time.sleep(0.03)
    return f"{source.name} {number}", None, ""


def test_calls_survive_a_lost_connection(pool: Pool, made: list[Client]) -> None:
    """Dask cancels all tasks then; both threads wait for the one new connection."""
    Calls.begun, Calls.may_end = threading.Semaphore(0), threading.Event()
    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(pool.call, held, number, name=f"n{number}") for number in range(6)]
        for _ in range(2):
            assert Calls.begun.acquire(timeout=60.0)
        _cut(made[0])
        end = time.monotonic() + 60.0
        while len(made) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        Calls.may_end.set()
        answers = [call.result(60.0)[0] for call in running]
    assert [answer.value for answer in answers] == [f"abc {number}" for number in range(6)]
    assert len(made) == 2


def test_a_connection_that_was_lost_between_calls_is_made_anew(pool: Pool, made: list[Client]) -> None:
    """Dask itself has connected again, without a call that it cancelled."""
    pool.wait()
    _cut(made[0])
    end = time.monotonic() + 60.0
    while not pool._connection.is_lost() and time.monotonic() < end:
        time.sleep(0.01)
    assert pool.call(slowly, 1, name="a")[0].value == "abc 1"
    assert len(made) == 2


def test_errors_of_a_worker_come_through(pool: Pool) -> None:
    def raises(_check: object, _directory: Path, _source: Path, error: Exception) -> Called:
        raise error

    with pytest.raises(BuildError, match="it does not compile"):
        pool.call(raises, BuildError("it does not compile"), name="a")
    died = KilledWorker("task", SimpleNamespace(address="tcp://a:1"), 3)  # type: ignore[arg-type]
    with pytest.raises(InfraError, match="several workers died while they tested b"):
        pool.call(raises, died, name="b")


def test_finished_calls_are_not_done_again(cluster: LocalCluster, pool: Pool) -> None:
    """Nobody holds what they said, so that a worker that leaves takes nothing along."""
    pool.wait()
    for number in range(3):
        pool.call(slowly, number, name=f"n{number}")
    end = time.monotonic() + 10.0
    scheduler: Any = cluster.scheduler
    while (left := [key for key in scheduler.tasks if "call" in str(key)]) and time.monotonic() < end:
        time.sleep(0.05)
    assert left == []


def test_a_scheduler_that_stays_away_ends_all_calls_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each says so, and none of them is taken for the fault of a commit."""
    monkeypatch.setattr("harness.fleet.connection.RECONNECT_SECONDS", 1.0)
    monkeypatch.setattr("harness.fleet.connection.Connection.workers", lambda _self: None)
    clients: list[Client] = []

    def connect() -> Client:
        if clients:
            raise InfraError("no scheduler answers")
        clients.append(Client(own, set_as_default=False))
        return clients[0]

    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0", resources={"vm": 1}
    ) as own:
        pool = Pool(Connection(connect, "go on"), "run", SOURCE, ANY, print, tasks=Calls, store=ANY)

        def long(_check: object, _directory: Path, _source: Path) -> Called:
            time.sleep(1.0)
            return 0, None, ""

        with ThreadPoolExecutor(3) as threads:
            running = [threads.submit(pool.call, long, name=f"n{number}") for number in range(3)]
            time.sleep(0.5)
            own.close()
            for call in running:
                with pytest.raises(FleetLost, match="has not answered"):
                    call.result(30.0)


def test_a_fleet_that_cannot_do_it_says_what_is_missing(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "PATIENCE_SECONDS", 0.0)
    with contextlib.closing(Connection(lambda: Client(cluster, set_as_default=False), "go on")) as connection:
        needs = for_unit({"arm64": 1})
        pool = Pool(connection, "run", SOURCE, needs, lambda _line: None)
        with pytest.raises(FleetLost, match="the fleet can test nothing: all workers have no vfio-harness"):
            pool.wait()


def test_a_call_whose_source_cannot_be_fetched_ends(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(Calls, "unfetched", staticmethod(lambda _session: "worker b cannot fetch it"))
    with pytest.raises(FleetLost, match="worker b cannot fetch it"):
        pool.call(slowly, 100, name="a")


def test_what_a_worker_cannot_fetch_is_found(
    cluster: LocalCluster, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker is at an address that the other does not reach, as 127.0.0.1 of another host."""
    one, two = cluster.workers.values()
    reach = two.rpc.connect

    async def connect(address: str, *arguments: Any, **options: Any) -> Any:
        if address == one.address:
            raise OSError("connection refused")
        return await reach(address, *arguments, **options)

    monkeypatch.setattr(two.rpc, "connect", connect)
    monkeypatch.setattr(tasks.crew, "dask", two)
    client, connection = pool._connection.client, pool._connection
    key = f"provide-{SOURCE.place}-abc-1"
    there = client.submit(lambda: "cargo", key=key, workers=[one.address])
    needs = client.submit(lambda cargo: cargo, there, key="unit-abc", workers=[two.address])
    connection.check_fetches(tasks.unfetched, "abc")
    end = time.monotonic() + 60.0
    while not asyncio.run(tasks.unfetched("abc")) and time.monotonic() < end:
        time.sleep(0.1)
    with pytest.raises(FleetLost) as caught:
        connection.check_fetches(tasks.unfetched, "abc")
    assert caught.value.message == f"worker {tasks.crew.name} cannot fetch {SOURCE.place} from {one.address}"
    connection.check_fetches(tasks.unfetched, "other")
    needs.cancel()
