# SPDX-License-Identifier: GPL-2.0-only
"""Snapshots in real VMs: a restored machine equals the saved one, and a bad snapshot only costs time."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TOPOLOGIES

from harness.base import paths
from harness.base.cause import Cause
from harness.base.deadline import Deadline
from harness.base.errors import LostGuest
from harness.lab.boot import Booted, Recipe, ask_facts, boot
from harness.machine.keys import HOST_KEY
from harness.machine.snapshot import FACTS, RAM, STATE, Snapshot, snapshot_of
from harness.machine.topology import load_topology
from harness.plan import Job
from harness.remote import Guest

LIMIT = 60.0

REFUSED = {"nvme", "iommu-amd"}
"""Topologies with a device that QEMU cannot save (nvme and amd-iommu are unmigratable in QEMU 10.0)."""


@pytest.fixture
def recipe(edu_job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The smallest machine, without a snapshot so far; the other caches stay."""
    made = Recipe.of(edu_job)
    for name in paths.cache_dir().iterdir():
        (tmp_path / "cache" / name.name).parent.mkdir(exist_ok=True)
        if name.name != "snapshots":
            (tmp_path / "cache" / name.name).symlink_to(name)
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    return made


def place(recipe: Recipe) -> Snapshot:
    found = snapshot_of(recipe.machine, recipe.qemu, recipe.machine.parts())
    assert found is not None
    return found


@contextlib.contextmanager
def booted(recipe: Recipe, directory: Path) -> Iterator[tuple[Booted, bool]]:
    """Yield a VM, and whether it was restored; QEMU may lose a vCPU while one boots."""
    with contextlib.ExitStack() as stack:
        try:
            vm = stack.enter_context(boot(recipe, directory))
        except LostGuest as error:
            if error.cause not in (Cause.STOOD_STILL, Cause.LOST_VCPU):
                raise
            directory = directory.with_name(f"{directory.name}-again")
            vm = stack.enter_context(boot(recipe, directory))
        timing = json.loads((directory / paths.TIMING_FILE).read_text(encoding="utf-8"))
        yield vm, bool(timing["restored"])


def said(guest: Guest, *words: str) -> str:
    return guest.check(words, Deadline.after(LIMIT)).strip()


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_restored_machine_is_the_one_that_booted(recipe: Recipe, tmp_path: Path, name: str) -> None:
    """Devices, drivers, groups and nodes are the same; both VMs keep running independently."""
    machine = dataclasses.replace(recipe.machine, topology=load_topology(name, recipe.qemu))
    recipe = dataclasses.replace(recipe, machine=machine)
    with booted(recipe, tmp_path / "first") as (first, restored):
        assert not restored
        cold = ask_facts(first.guest, Deadline.after(LIMIT))
        assert cold.same_machine(ask_facts(first.guest, Deadline.after(LIMIT)))
        with booted(recipe, tmp_path / "second") as (second, restored):
            assert restored == (name not in REFUSED)
            assert ask_facts(second.guest, Deadline.after(LIMIT)).same_machine(cold)
            assert second.bdfs == first.bdfs
            said(second.guest, "touch", "/tmp/second")
            assert "second" not in said(first.guest, "ls", "/tmp")
            assert first.splats() == second.splats() == ()
    if name in REFUSED:
        assert "migrat" in (place(recipe).refusal() or "").lower()


def test_restored_machines_differ_where_they_must(recipe: Recipe, tmp_path: Path) -> None:
    """Each restored VM has its own nonce and random numbers, the current date, and no processes left over."""
    with booted(recipe, tmp_path / "1"):
        pass
    with booted(recipe, tmp_path / "2") as (one, _), booted(recipe, tmp_path / "3") as (other, restored):
        assert restored
        guests = (one.guest, other.guest)
        facts = [ask_facts(guest, Deadline.after(LIMIT)) for guest in guests]
        assert facts[0].nonce != facts[1].nonce
        random = [said(guest, "cat", "/proc/sys/kernel/random/uuid") for guest in guests]
        assert random[0] != random[1]
        assert all(abs(int(said(guest, "date", "+%s")) - time.time()) < 5 * LIMIT for guest in guests)
        # The server and our one connection.
        assert said(one.guest, "sh", "-c", "cat /proc/[0-9]*/comm | grep -c dropbear") == "2"


def break_state(snapshot: Snapshot) -> None:
    (snapshot.directory / STATE).write_bytes(b"rubbish")


def break_memory(snapshot: Snapshot) -> None:
    (snapshot.directory / RAM).write_bytes(b"")


def empty_host_key(snapshot: Snapshot) -> None:
    (snapshot.directory / HOST_KEY).write_bytes(b"")


def break_facts(snapshot: Snapshot) -> None:
    told = json.loads(snapshot.facts)
    told["devices"][0]["pci"] = "dead:beef"
    (snapshot.directory / FACTS).write_text(json.dumps(told), encoding="utf-8")


def lose_host_key(snapshot: Snapshot) -> None:
    (snapshot.directory / HOST_KEY).unlink()


@pytest.mark.parametrize("spoil", [break_state, break_memory, break_facts, lose_host_key, empty_host_key])
def test_bad_snapshot_is_made_anew(
    recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: object
) -> None:
    """With any bad snapshot the machine boots, one line says so, and the next boot is restored again."""
    with booted(recipe, tmp_path / "1"):
        pass
    assert callable(spoil)
    spoil(place(recipe))
    with booted(recipe, tmp_path / "2") as (_, restored):
        assert not restored
    assert sum("snapshot is bad" in record.getMessage() for record in caplog.records) == 1
    with booted(recipe, tmp_path / "3") as (_, restored):
        assert restored


def test_without_snapshots(recipe: Recipe, tmp_path: Path) -> None:
    """--no-snapshots neither restores nor saves."""
    plain = dataclasses.replace(recipe, snapshots=False)
    with booted(plain, tmp_path / "1"):
        pass
    assert not place(recipe).exists()
