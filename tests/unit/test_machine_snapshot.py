# SPDX-License-Identifier: GPL-2.0-only
"""Where snapshots are kept, which machines have one, what decides it; real ones are in tests/integration."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
from fake_root import FakeRoot

from harness.base.locks import locked
from harness.machine.accel import Accel
from harness.machine.machine import Machine, Memory
from harness.machine.qemu import Qemu
from harness.machine.rootparts import RootParts
from harness.machine.snapshot import FACTS, STATE, Snapshot, copy_sparse, snapshot_of, unsaved_devices
from harness.machine.topology import load_topology

QEMU = Qemu(path=Path("/usr/bin/qemu"), version=(10, 0, 2), devices=frozenset(), identity="x")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    vmlinux = tmp_path / "vmlinux"
    vmlinux.write_bytes(b"kernel")
    return Machine(
        image=vmlinux, topology=load_topology("edu-igb"), accel=Accel.TCG, root=FakeRoot(frozen=True)
    )


@pytest.fixture
def snapshot(machine: Machine) -> Snapshot:
    found = snapshot_of(machine, QEMU, RootParts())
    assert found is not None
    return found


def make(snapshot: Snapshot) -> None:
    """Fill a snapshot's place."""
    with snapshot.making() as target:
        assert target is not None
        (target / STATE).write_bytes(b"state")
        (target / FACTS).write_text("{}", encoding="utf-8")


def make_half(snapshot: Snapshot) -> None:
    """Fail in the middle of it."""
    with snapshot.making() as target:
        assert target is not None
        (target / STATE).write_bytes(b"half")
        (target / STATE / "deeper").touch()


def test_everything_that_decides_a_snapshot_names_it(machine: Machine, snapshot: Snapshot) -> None:
    """The same machine finds it again; another kernel, QEMU, processor count or root does not."""
    assert snapshot_of(machine, QEMU, RootParts()) == snapshot
    others = [
        snapshot_of(dataclasses.replace(machine, cpus=2), QEMU, RootParts()),
        snapshot_of(dataclasses.replace(machine, memory_mib=2048), QEMU, RootParts()),
        snapshot_of(dataclasses.replace(machine, topology=load_topology("edu")), QEMU, RootParts()),
        snapshot_of(machine, dataclasses.replace(QEMU, identity="y"), RootParts()),
        snapshot_of(machine, QEMU, RootParts(kernel_args=("root=/dev/vdb",))),
    ]
    machine.image.write_bytes(b"another kernel")
    others.append(snapshot_of(machine, QEMU, RootParts()))
    assert len({snapshot, *others}) == len(others) + 1
    assert None not in others


@pytest.mark.parametrize(
    "change",
    [{"gdb": True}, {"root": FakeRoot(frozen=False)}],
    ids=["a debugger has fixed addresses to set", "the live host root changes"],
)
def test_machines_that_are_not_saved(machine: Machine, change: dict[str, object]) -> None:
    assert snapshot_of(dataclasses.replace(machine, **change), QEMU, RootParts()) is None  # type: ignore[arg-type]


def test_a_qemu_that_cannot_migrate_to_a_file(machine: Machine) -> None:
    assert snapshot_of(machine, dataclasses.replace(QEMU, version=(7, 2, 0)), RootParts()) is None


def test_devices_without_state_are_let_go() -> None:
    """edu has none; igb has; what is not plugged in at boot is nobody's business."""
    assert unsaved_devices(load_topology("edu-igb")) == ("edu0",)
    assert unsaved_devices(load_topology("hotplug")) == ("edu0",)
    assert unsaved_devices(load_topology("igb")) == ()


def test_a_snapshot_is_whole_or_not_there(snapshot: Snapshot) -> None:
    """A block that fails leaves nothing; one that ends well leaves everything, for good until dropped."""
    with pytest.raises(NotADirectoryError):
        make_half(snapshot)
    assert not snapshot.exists()
    assert list(snapshot.directory.parent.iterdir()) == []
    make(snapshot)
    assert snapshot.exists()
    assert snapshot.facts == "{}"
    with snapshot.making() as again:
        assert again is None
    with snapshot.in_use() as there:
        assert there
    snapshot.drop()
    assert not snapshot.exists()
    with snapshot.in_use() as there:
        assert not there


def test_only_one_saves(snapshot: Snapshot) -> None:
    """Whoever comes second goes on without a snapshot, and does not wait."""
    with locked(snapshot.directory.name, "never waits"), snapshot.making() as target:
        assert target is None


def test_a_refusal_is_remembered(snapshot: Snapshot) -> None:
    """A machine that QEMU does not save is not tried again at every boot."""
    assert snapshot.refusal() is None
    snapshot.refuse("State blocked by non-migratable device")
    assert snapshot.refusal() == "State blocked by non-migratable device"
    assert not snapshot.exists()


def test_only_the_last_used_are_kept(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one takes the place of the one that was unused for longest, unless a VM starts from that."""
    place = snapshot.directory.parent
    others = [Snapshot(place / name) for name in ("oldest", "older", "old")]
    for age, other in enumerate(others):
        make(other)
        os.utime(other.directory, (age, age))
    monkeypatch.setattr("harness.machine.snapshot.MOST", 2)
    with others[0].in_use():
        make(snapshot)
    assert [other.exists() for other in (*others, snapshot)] == [True, False, True, True]


def test_memory_is_copied_with_its_holes(tmp_path: Path) -> None:
    """A gibibyte of guest memory that was never touched takes no room."""
    handle = os.memfd_create("test")
    try:
        os.ftruncate(handle, 256 << 20)
        os.pwrite(handle, b"begin", 0)
        os.pwrite(handle, b"x" * 100_000, 77 << 20)
        copy_sparse(handle, tmp_path / "ram")
    finally:
        os.close(handle)
    copied = (tmp_path / "ram").read_bytes()
    assert len(copied) == 256 << 20
    assert copied[:5] == b"begin"
    assert copied[77 << 20 :][:100_001] == b"x" * 100_000 + b"\0"
    assert (tmp_path / "ram").stat().st_blocks * 512 < 1 << 20


def test_where_memory_comes_from(machine: Machine) -> None:
    """To be saved it is shared; saved, it is copied on write and QEMU waits for the rest."""
    before = machine.argv(QEMU, RootParts(), "1", Memory(path="/proc/self/fd/9", saved=False))
    after = machine.argv(QEMU, RootParts(), "1", Memory(path="ram", saved=True))
    assert "memory-backend-file,id=memory,size=1024M,mem-path=/proc/self/fd/9,share=on" in before
    assert "-incoming" not in before
    assert "memory-backend-file,id=memory,size=1024M,mem-path=ram,share=off" in after
    assert after[after.index("-incoming") + 1] == "defer"
    for argv in (before, after):
        assert "memory-backend=memory" in argv[argv.index("-machine") + 1]


def test_a_bad_snapshot_that_cannot_be_removed(snapshot: Snapshot, cache: Path) -> None:
    """The machine boots all the same: a cache that cannot be written to costs time only."""
    make(snapshot)
    shutil.rmtree(cache / "locks")
    (cache / "locks").touch()
    snapshot.drop()
    assert snapshot.exists()
