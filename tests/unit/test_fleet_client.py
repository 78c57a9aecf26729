# SPDX-License-Identifier: GPL-2.0-only
"""The client on a Dask cluster in this process: all work is recorded once, and what cannot run says why."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import dask
import pytest
from distributed import Client, KilledWorker, LocalCluster, get_worker

from harness.base.cause import Cause
from harness.base.errors import BuildError, HarnessError, InfraError
from harness.base.outcome import Outcome
from harness.fleet import client as under_test
from harness.fleet import offers
from harness.fleet import tasks as our_tasks
from harness.fleet.client import FleetClient
from harness.fleet.connection import FleetLost
from harness.fleet.link import Event, FleetJob, Gone, Link, UnitEnded
from harness.fleet.messages import Account, Began, Order, Said
from harness.fleet.resources import for_build
from harness.fleet.tasks import topic
from harness.kernel.arch import host_arch
from harness.lab.abilities import Abilities
from harness.lab.artefacts import Archive, Artefact, BuildOrder
from harness.lab.units import Unit

HOST = Abilities(host="here", memory_mib=4096, emulators={})
ANY = {"vm": 1.0}


class Book:
    """A Recorder that counts."""

    def __init__(self) -> None:
        self.kept: collections.Counter[str] = collections.Counter()
        self.given_up: dict[str, tuple[str, Cause, Outcome]] = {}
        self.accounts: list[Account] = []

    def is_reported(self, key: str) -> bool:
        return key in self.kept or key in self.given_up

    def keep(self, said: Said) -> None:
        if said.key and said.final and not self.is_reported(said.key):
            self.kept[said.key] += 1

    def give_up(self, key: str, reason: str, cause: Cause, outcome: Outcome = Outcome.NOT_RUN) -> None:
        if not self.is_reported(key):
            self.given_up[key] = (reason, cause, outcome)

    def take_in(self, account: Account) -> None:
        self.accounts.append(account)


def say(order: Order, what: Said | Began) -> None:
    get_worker().log_event(topic(order.run), [pickle.dumps(what)])


class Good:
    """Workers that report all work of each unit."""

    topic = staticmethod(topic)
    plans: ClassVar[list[str]] = []

    @staticmethod
    def tell_plan(text: str) -> str:
        return text

    @staticmethod
    def provide(session: str, artefact: Artefact, order: BuildOrder | None, run: str) -> str:
        return f"cargo of {artefact.place}"

    @classmethod
    def perform(cls, order: Order, plan: str, cargo: Sequence[str]) -> Account:
        cls.plans.append(plan)
        worker = get_worker()
        say(order, Began(worker=str(worker.name), address=worker.address, unit=order.unit, abilities=HOST))
        return cls.do(order, cargo)

    @classmethod
    def do(cls, order: Order, cargo: Sequence[str]) -> Account:
        for key in order.keys:
            say(order, Said(worker="w", key=key))
        return Account(worker="w", address=get_worker().address)

    @staticmethod
    def unfetched(session: str) -> str:
        return ""

    @staticmethod
    def retire(session: str) -> Account:
        return Account(worker="retired")

    @staticmethod
    def abandon(session: str) -> None:
        pass


ABANDONED: set[str] = set()
SEEN: collections.Counter[str] = collections.Counter()


class Slow(Good):
    """Workers that can be told to begin nothing more."""

    @classmethod
    def do(cls, order: Order, cargo: Sequence[str]) -> Account:
        if order.session in ABANDONED:
            return Account(worker="w", address=get_worker().address)
        time.sleep(0.2)
        return super().do(order, cargo)

    @staticmethod
    def abandon(session: str) -> None:
        ABANDONED.add(session)


class Troubled(Good):
    """Workers whose disk is full after the first work of each unit."""

    @classmethod
    def do(cls, order: Order, cargo: Sequence[str]) -> Account:
        SEEN[order.unit] += 1
        if SEEN[order.unit] > 1:
            return super().do(order, cargo)
        say(order, Said(worker="w", key=order.keys[0]))
        return Account(worker="w", address=get_worker().address, trouble="no space left on device")


class FullBuilder(Good):
    """Workers of which the first that builds a kernel has no room for it."""

    @staticmethod
    def provide(session: str, artefact: Artefact, order: BuildOrder | None, run: str) -> str:
        SEEN[artefact.place] += 1
        if SEEN[artefact.place] == 1:
            raise InfraError("no space left on device")
        return "cargo"


def order_of(digest: str, tree: str = "debian:7.3", built_with: str = "gcc 12") -> BuildOrder:
    return BuildOrder(
        digest=digest,
        tree=tree,
        variant="cdev",
        addons=(),
        fragments=(),
        toolchain="gcc",
        arch=host_arch().name,
        built_with=built_with,
    )


def units(jobs: int = 2, each: int = 4) -> list[Unit]:
    return [
        Unit(f"job{job}", tuple(f"job{job} {unit}/{case}" for case in range(3)), 3.0)
        for job in range(jobs)
        for unit in range(each)
    ]


class Night:
    """A run of *work* by *tasks*."""

    def __init__(self, connect: Callable[[], Client], tasks: Any, work: Sequence[Unit] = ()) -> None:
        self.book = Book()
        self.told: list[str] = []
        self.provided: dict[str, HarnessError | None] = {}
        self.build_cpu_seconds = 0.0
        self.work = list(work) or units()
        self.jobs = {
            unit.job: FleetJob(plan=f"plan of {unit.job}", needs=ANY, artefacts=()) for unit in self.work
        }
        self.until: float | None = None
        self._connect, self._tasks = connect, tasks

    def run(self) -> Book:
        link = Link(self._connect, "run", tasks=self._tasks, store=ANY)
        client = FleetClient(
            link,
            self.book,
            self.work,
            self.jobs,
            until=self.until,
            tell=self.told.append,
            provided=lambda digest, error: self.provided.update({digest: error}),
        )
        with contextlib.closing(link):
            client.run()
        self.build_cpu_seconds = client.build_cpu_seconds
        return self.book

    def is_whole(self) -> bool:
        """Whether every piece of work has its results, once."""
        return self.book.kept == dict.fromkeys((key for unit in self.work for key in unit.keys), 1)


@pytest.fixture(name="cluster", scope="module")
def _cluster() -> Iterator[LocalCluster]:
    # A busy host may take longer to connect than the 30 s that Dask allows.
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "300s"}),
        LocalCluster(
            n_workers=3,
            threads_per_worker=1,
            processes=False,
            dashboard_address="127.0.0.1:0",
            resources={"vm": 1, "vfio-harness 0.0.9": 1, **for_build("gcc 12")},
        ) as cluster,
    ):
        yield cluster


@pytest.fixture(name="connect")
def _connect(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Client]:
    monkeypatch.setattr(under_test, "_LOOK_SECONDS", 0.1)
    return lambda: Client(cluster, set_as_default=False)


def test_all_work_is_recorded_once(connect: Callable[[], Client]) -> None:
    Good.plans.clear()
    night = Night(connect, Good)
    night.run()
    assert night.is_whole()
    assert set(Good.plans) == {"plan of job0", "plan of job1"}
    # Each worker that worked was asked what its kernel still printed.
    assert night.book.accounts[-1].worker == "retired"
    assert any("0.0.9" in line for line in night.told)


def test_work_that_a_unit_left_is_done_by_another(connect: Callable[[], Client]) -> None:
    SEEN.clear()
    night = Night(connect, Troubled)
    night.run()
    assert night.is_whole()
    assert "fleet: worker w cannot work: no space left on device" in night.told


def test_a_unit_that_dask_gave_up_does_not_blame_its_work() -> None:
    """Workers that died may have had another unit, while this one waited for them."""
    work = units(jobs=1, each=1)
    died = KilledWorker("task", SimpleNamespace(address="tcp://a:1"), 3)  # type: ignore[arg-type]
    link: Any = SimpleNamespace(
        session="s",
        submit=lambda *_, **__: None,
        is_lost=lambda: False,
        next_event=lambda _seconds: UnitEnded("s-0", died),
        offers=lambda: None,
        retire=lambda _addresses: [],
    )
    book = Book()
    jobs = {"job0": FleetJob(plan="", needs=ANY, artefacts=())}
    FleetClient(link, book, work, jobs, until=None, tell=lambda _line: None, provided=print).run()
    assert {cause for _, cause, _ in book.given_up.values()} == {Cause.NO_WORKER}
    assert set(book.given_up) == set(work[0].keys)


def test_work_that_killed_three_workers_is_given_up(connect: Callable[[], Client]) -> None:
    class Deadly(Good):
        @classmethod
        def do(cls, order: Order, cargo: Sequence[str]) -> Account:
            if order.keys[1] == "job0 1/1":
                say(order, Said(worker="w", key=order.keys[1], deaths=("a",), final=False))
                say(order, Said(worker="w", key=order.keys[1], deaths=("a", "b", "c")))
            return super().do(order, cargo)

    night = Night(connect, Deadly)
    book = night.run()
    assert book.given_up == {
        "job0 1/1": ("3 workers died while running it: a, b, c", Cause.WORKER_DIED, Outcome.NOT_RUN)
    }
    assert len(book.kept) == 23
    assert "fleet: worker a died at job0 1/1; w goes on with it" in night.told


@pytest.mark.parametrize("raises", [True, False])
def test_a_fault_of_the_harness_is_not_the_kernels(connect: Callable[[], Client], raises: bool) -> None:
    class Broken(Good):
        @classmethod
        def do(cls, order: Order, cargo: Sequence[str]) -> Account:
            if order.job == "job1" and raises:
                raise ValueError("surprise")
            if order.job == "job1":
                return Account(worker="w", address=get_worker().address)
            return super().do(order, cargo)

    night = Night(connect, Broken, units(each=1))
    book = night.run()
    assert len(book.kept) == 3
    assert {(cause, outcome) for _, cause, outcome in book.given_up.values()} == {
        (Cause.HARNESS, Outcome.LOST)
    }
    assert len(book.given_up) == 3


def test_a_kernel_that_does_not_compile_is_said_once(connect: Callable[[], Client]) -> None:
    class NoKernel(Good):
        @staticmethod
        def provide(session: str, artefact: Artefact, order: BuildOrder | None, run: str) -> str:
            raise BuildError("it does not compile")

    night = Night(connect, NoKernel)
    order = order_of("d1", tree="/home/me/linux")
    artefact = Artefact("kernels/d1")
    night.jobs["job0"] = FleetJob(plan="plan", needs=ANY, artefacts=(artefact,), order=order)
    book = night.run()
    assert set(book.kept) == {key for unit in night.work if unit.job == "job1" for key in unit.keys}
    assert {reason for reason, *_ in book.given_up.values()} == {"it does not compile"}
    assert str(night.provided["d1"]) == "it does not compile"


def test_job_that_no_worker_can_run(connect: Callable[[], Client], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offers, "PATIENCE_SECONDS", 0.2)
    night = Night(connect, Good)
    night.jobs["job1"] = FleetJob(plan="plan", needs={"arm64": 1}, artefacts=())
    book = night.run()
    assert len(book.kept) == 12
    assert {cause for _, cause, _ in book.given_up.values()} == {Cause.NO_WORKER}


def test_nothing_is_begun_after_the_deadline(connect: Callable[[], Client]) -> None:
    ABANDONED.clear()
    night = Night(connect, Slow, units(jobs=1, each=150))
    night.until = time.time() + 2.0
    book = night.run()
    assert book.kept
    assert {cause for _, cause, _ in book.given_up.values()} == {Cause.DEADLINE}
    assert len(book.kept) + len(book.given_up) == 450


def _cut(client: Any) -> None:
    client.loop.add_callback(client.scheduler_comm.comm.abort)


def test_a_connection_that_is_lost_costs_nothing(
    cluster: LocalCluster, connect: Callable[[], Client]
) -> None:
    """Dask's client cancels all tasks then, and connects again without our topics."""
    ABANDONED.clear()
    made: list[Client] = []

    def connect_and_note() -> Client:
        made.append(connect())
        return made[-1]

    night = Night(connect_and_note, Slow, units(jobs=1, each=12))
    cut = threading.Timer(0.5, lambda: _cut(made[0]))
    cut.start()
    night.run()
    cut.join()
    assert len(made) == 2
    assert night.is_whole()
    assert not [line for line in night.told if "failed" in line]


def test_a_kernel_that_another_host_cannot_build_is_built_here(connect: Callable[[], Client]) -> None:
    SEEN.clear()
    night = Night(connect, FullBuilder)
    order = order_of("d2")
    artefacts = (Artefact("kernels/d2"),)
    night.jobs["job0"] = FleetJob(plan="plan", needs=ANY, artefacts=artefacts, order=order)
    night.run()
    assert night.is_whole()
    assert "fleet: no space left on device; this host builds the kernel" in night.told


def test_a_kernel_for_which_no_host_has_the_compiler_is_built_here(
    connect: Callable[[], Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its units would wait for ever."""
    monkeypatch.setattr(offers, "PATIENCE_SECONDS", 0.2)
    night = Night(connect, Good)
    order = order_of("d3", built_with="gcc 99")
    artefacts = (Artefact("kernels/d3"),)
    night.jobs["job0"] = FleetJob(plan="plan", needs=ANY, artefacts=artefacts, order=order)
    night.run()
    assert night.is_whole()
    (told,) = (line for line in night.told if line.endswith("this host builds the kernel of job0"))
    assert "compiler gcc 99" in told or "all workers have vfio-harness" in told


@pytest.mark.parametrize("seconds", [70.0, 0.0])
def test_a_run_is_charged_once_for_what_a_worker_built(
    seconds: float, connect: Callable[[], Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel of two jobs costs once, and nothing where the worker's cache has it."""

    class Builder(Good):
        @staticmethod
        def provide(session: str, artefact: Artefact, order: BuildOrder | None, run: str) -> str:
            our_tasks.crew.dask = get_worker()
            return our_tasks.provide(session, artefact, order, run=run).archive.place

    def build(order: BuildOrder, check: Callable[[], None]) -> SimpleNamespace:
        return SimpleNamespace(spent_cpu_seconds=seconds)

    def pack(artefact: Artefact, directory: Path) -> tuple[Archive, Path]:
        return Archive(artefact.place, "digest", 1), directory

    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path))
    monkeypatch.setattr(our_tasks.crew, "dask", None)
    monkeypatch.setattr(our_tasks, "build_ordered", build)
    monkeypatch.setattr(our_tasks, "pack", pack)
    night = Night(connect, Builder)
    job = FleetJob(plan="plan", needs=ANY, artefacts=(Artefact("kernels/d4"),), order=order_of("d4"))
    night.jobs = dict.fromkeys(night.jobs, job)
    night.run()
    assert night.is_whole()
    assert night.build_cpu_seconds == seconds


def test_time_left_is_not_told_from_the_rate_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """199 cases take 100 s; then one program runs, which lately took 60 s or has no history."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(under_test, "time", SimpleNamespace(monotonic=lambda: clock.now))
    work = [
        Unit("job0", tuple(f"job0 p/{n}" for n in range(199)), 90.0),
        Unit("job1", ("job1 kunit/k",), 60.0),
    ]
    link: Any = SimpleNamespace(session="s")
    client = FleetClient(link, Book(), work, {}, until=None, tell=print, provided=print)

    def after(seconds: float, *events: Event) -> str:
        clock.now += seconds
        for event in events:
            client._handle(event)
        return client.progress().partition("a second, ")[2]

    begun = [Began(worker=f"w{n}", address=f"a{n}", unit=f"s-{n}-1", abilities=HOST) for n in (0, 1)]
    assert after(10.0) == "time left unknown; 0 workers at work: none"
    said = [Said(worker="w0", key=key) for key in work[0].keys]
    assert after(40.0, begun[0], *said[:100]).startswith("about 50 s left; 1 worker at work: job0 on 1")
    after(50.0, *said[100:], UnitEnded("s-0", Account(worker="w0", address="a0")))
    assert after(0.0, begun[1]) == "about 1 min 00 s left; 1 worker at work: job1 on 1"
    assert after(20.0) == "about 40 s left; 1 worker at work: job1 on 1"
    assert after(280.0) == (
        "time left unknown: job1 kunit/k has run for 5 min 00 s, longer than expected; "
        "1 worker at work: job1 on 1"
    )
    # The worker is gone, and another one begins it again.
    after(0.0, Gone("a1", in_order=False))
    assert after(0.0, dataclasses.replace(begun[1], worker="w2", address="a2")).startswith("about 1 min 00 s")


def test_a_unit_whose_end_was_lost_is_not_waited_for() -> None:
    """The connection is lost after the last result of a unit, and before the news that it ended."""
    work = units(jobs=1, each=1)
    lost, rounds, asked = [False], [0], list[str]()
    begun = Began(worker="w", address="tcp://w", unit="s-0-1", abilities=HOST)
    events: list[Event] = [begun, *(Said(worker="w", key=key) for key in work[0].keys)]

    def next_event(_seconds: float) -> Event | None:
        rounds[0] += 1
        assert rounds[0] < 10, "it waits for ever"
        lost[0] = rounds[0] == len(events)
        return events[rounds[0] - 1] if rounds[0] <= len(events) else None

    def retire(addresses: Sequence[str]) -> list[Account]:
        asked.extend(addresses)
        return []

    link: Any = SimpleNamespace(
        session="s",
        submit=lambda *_, **__: None,
        is_lost=lambda: lost[0],
        reconnect=lambda: lost.__setitem__(0, False),
        next_event=next_event,
        offers=lambda: None,
        retire=retire,
    )
    book = Book()
    jobs = {"job0": FleetJob(plan="", needs=ANY, artefacts=())}
    FleetClient(link, book, work, jobs, until=None, tell=lambda _line: None, provided=print).run()
    assert set(book.kept) == set(work[0].keys)
    # Its worker begins no other unit, and still has what its kernel printed last.
    assert asked == ["tcp://w"]


def test_a_worker_that_cannot_fetch_its_archives_ends_the_run(
    connect: Callable[[], Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask would try for ever."""

    class CutOff(Good):
        @staticmethod
        def provide(session: str, artefact: Artefact, order: BuildOrder | None, run: str) -> str:
            time.sleep(3.0)
            return "cargo"

        @staticmethod
        def unfetched(session: str) -> str:
            return "worker b cannot fetch kernels/d5 from tls://127.0.0.1:1"

    monkeypatch.setattr(under_test, "PATIENCE_SECONDS", 0.3)
    night = Night(connect, CutOff)
    job = FleetJob(plan="plan", needs=ANY, artefacts=(Artefact("kernels/d5"),))
    night.jobs = dict.fromkeys(night.jobs, job)
    with pytest.raises(FleetLost, match="worker b cannot fetch kernels/d5"):
        night.run()
