# SPDX-License-Identifier: GPL-2.0-only
"""How far a unit is, who may run it, and how an archive travels."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from plan_jobs import job

from harness.base.errors import InfraError
from harness.base.outcome import Outcome
from harness.fleet import cargo, journal, resources, tasks
from harness.fleet.cargo import Cargo
from harness.fleet.messages import Order
from harness.fleet.version import own_version
from harness.lab.abilities import Abilities, Emulator, resources_of
from harness.lab.artefacts import Artefact, archive_path, pack
from harness.results.model import QUIET, Result

B, L = journal.BEGAN, journal.LEFT


@pytest.mark.parametrize(
    ("lines", "index", "died"),
    [
        ((), 0, ()),
        (((0, B, "a"),), 0, ("a",)),
        (((0, B, "a"), (1, B, "a")), 1, ("a",)),
        (((0, B, "a"), (1, B, "a"), (1, B, "b"), (1, B, "c")), 1, ("a", "b", "c")),
        # It gave the case back: its host is at fault.
        (((0, B, "a"), (0, L, "a"), (0, B, "b")), 0, ("b",)),
        (((0, B, "a"), (1, B, "a"), (1, L, "a")), 1, ()),
        # A late line of a worker that was thought dead changes nothing.
        (((0, B, "a"), (1, B, "b"), (0, B, "a")), 1, ("b",)),
    ],
)
def test_journal(lines: tuple[journal.Line, ...], index: int, died: tuple[str, ...]) -> None:
    assert journal.where(lines) == (index, died)


def abilities(accel: str = "tcg", devices: tuple[str, ...] = ("edu", "igb")) -> Abilities:
    emulator = Emulator(version="10.0.2", devices=devices, accel=accel, reason="")
    return Abilities(host="here", memory_mib=4096, emulators={"x86_64": emulator})


@pytest.mark.parametrize(
    ("changes", "lacks"),
    [
        ({}, ""),
        ({"arch": "arm64"}, "no worker has arm64"),
        ({"accel": "kvm"}, "no worker has kvm x86_64"),
        ({"memory_mib": 8192}, "no worker has 8192 MiB of memory"),
    ],
)
def test_who_may_run_a_job(changes: dict[str, Any], lacks: str) -> None:
    offer, needed = (
        resources.of_worker(abilities(), builds=False),
        resources.for_unit(resources_of(dataclasses.replace(job(), **changes))),
    )
    assert resources.is_met(needed, offer) == (not lacks)
    if lacks:
        assert resources.lack(needed, [offer]) == lacks


def test_a_device_that_qemu_lacks_is_named() -> None:
    offer = resources.of_worker(abilities(devices=("edu",)), builds=False)
    needed = resources.for_unit(resources_of(job())) | {"x86_64 device igb": 1}
    assert resources.lack(needed, [offer]) == "no worker has x86_64 device igb"


def test_other_versions_and_empty_fleets_are_named() -> None:
    needed = resources.for_unit(resources_of(job()))
    store = resources.of_store("run")
    assert resources.lack(needed, [store]) == "the fleet has no worker"
    old = {"vfio-harness 0.0.9": 1.0}
    assert resources.foreign_version(old) == "0.0.9"
    assert (
        resources.lack(needed, [old, store])
        == f"all workers have vfio-harness 0.0.9, this is {own_version()}"
    )
    assert resources.foreign_version(resources.of_worker(abilities(), builds=False)) == ""


@pytest.fixture(name="caches")
def _caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The cache of a worker that has a program's entry, in use, and that of one that has none."""
    one, two = tmp_path / "one", tmp_path / "two"
    (one / "programs" / "d1").mkdir(parents=True)
    (one / "programs" / "d1" / "test").write_text(os.urandom(1000).hex())
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(one))
    return one, two


def _packed() -> Cargo:
    cargo.archives_dir().mkdir(parents=True)
    archive, _ = pack(Artefact("programs/d1"), cargo.archives_dir())
    return Cargo(archive)


def test_cargo_travels(caches: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = caches
    there = _packed()
    sent: list[pickle.PickleBuffer] = []
    data = pickle.dumps(there, protocol=5, buffer_callback=sent.append)
    # The archive itself is handed on as it lies in the file.
    assert len(data) < there.archive.size
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(two))
    arrived = pickle.loads(data, buffers=sent)
    assert (arrived.archive, arrived.trouble) == (there.archive, "")
    entry = Path("programs", "d1", "test")
    assert (two / entry).read_text() == (one / entry).read_text()
    # It can go on from there.
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(two))
    assert pickle.loads(pickle.dumps(arrived, protocol=5)).trouble == ""
    assert there.__sizeof__() == there.archive.size


def _age(path: Path) -> None:
    then = time.time() - 4 * 86400.0
    os.utime(path, (then, then))


def test_an_archive_that_was_removed_is_packed_again(
    caches: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that joins a run after three days gets it, also from one that got it itself."""
    _, two = caches
    there = _packed()
    data = pickle.dumps(there, protocol=5)
    for number in range(2):
        path = archive_path(cargo.archives_dir(), there.archive.digest)
        _age(path)
        tasks._prune()
        assert not path.exists()
        data = pickle.dumps(there, protocol=5)
        monkeypatch.setenv("VFIO_HARNESS_CACHE", str(two.with_name(f"two{number}")))
        there = pickle.loads(data)
        assert there.trouble == ""


def test_the_directory_of_a_run_stays_while_it_has_units(
    caches: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run lasts for more than three days, or is resumed then."""
    monkeypatch.setattr(tasks, "Worker", SimpleNamespace(of_file=lambda *_: SimpleNamespace()))
    monkeypatch.setattr(tasks, "crew", tasks.Crew())
    tasks.crew.dask = SimpleNamespace(name="w")
    order = Order(session="s", run="r", unit="s-0-1", job="job", keys=("a",))
    # The second unit has the VM of the first.
    for _ in range(2):
        for run in ("r", "old"):
            (tasks.runs_dir() / run / "vm").mkdir(parents=True, exist_ok=True)
            _age(tasks.runs_dir() / run)
        tasks._open(order, "{}")
        tasks._prune()
        assert [path.name for path in tasks.runs_dir().iterdir()] == ["r"]


def test_a_disk_arrives_at_two_workers_of_one_cache(
    caches: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each finds it there in the end, whoever stored it."""
    one, two = caches
    disk = Path("images", "programs-d1.erofs")
    (one / disk).parent.mkdir()
    (one / disk).write_bytes(b"a disk")
    archive, packed = pack(Artefact(str(disk)), one)
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(two))
    data = packed.read_bytes()
    replace = Path.replace

    def slowly(path: Path, target: Path) -> Path:
        time.sleep(0.3)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", slowly)
    with ThreadPoolExecutor(2) as threads:
        arrived = list(threads.map(lambda _: cargo._arrive(archive, data), range(2)))
    assert [one.trouble for one in arrived] == ["", ""]
    assert (two / disk).read_bytes() == b"a disk"
    # It is not the first to be pruned, and nothing is left beside it.
    assert time.time() - (two / disk).stat().st_mtime < 60.0
    assert list((two / disk).parent.iterdir()) == [two / disk]


def test_damaged_cargo_is_refused(caches: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _, two = caches
    there = _packed()
    path = archive_path(cargo.archives_dir(), there.archive.digest)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    data = pickle.dumps(there, protocol=5)
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(two))
    arrived = pickle.loads(data)
    assert "arrived damaged" in arrived.trouble
    assert not (two / "programs" / "d1").exists()


def test_full_disk_is_trouble_of_the_host(caches: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    data = pickle.dumps(_packed(), protocol=5)

    def full(*_arguments: object) -> None:
        raise InfraError("cannot write: No space left on device")

    monkeypatch.setattr(cargo, "unpack", full)
    assert "No space left on device" in pickle.loads(data).trouble


def test_what_a_kernel_printed_last_is_told_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A splat after the last case counts, whether the deadline or the work ended the run."""
    splat = Result(address=QUIET, job="job", outcome=Outcome.CRASH)
    closed: list[bool] = []
    vm = SimpleNamespace(retire=lambda _job: (splat,), close=lambda: closed.append(True))
    monkeypatch.setattr(tasks.crew, "dask", SimpleNamespace(name="w", address="tcp://127.0.0.1:1"))
    monkeypatch.setattr(tasks.crew, "abandoned", set())
    monkeypatch.setattr(tasks.crew, "worker", vm)
    monkeypatch.setattr(tasks.crew, "begun", ("session", "job", "plan"))
    tasks.abandon("session")
    tasks.crew.in_lab(lambda: None)
    assert asyncio.run(tasks.retire("session")).late == (splat,)
    assert closed == [True]
