# SPDX-License-Identifier: GPL-2.0-only
"""What is saved and what is not, with a VM and a guest that do as told; the real thing: tests/integration."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fake_root import FakeRoot

from guest import kmsg
from harness.base.cause import Cause
from harness.base.deadline import Deadline
from harness.base.errors import BootCrash, InfraError, LostGuest
from harness.lab import boot as under_test
from harness.lab.boot import Booted, Recipe, boot
from harness.machine.accel import Accel
from harness.machine.console import Console
from harness.machine.machine import CONSOLE_LOG, Machine
from harness.machine.qemu import Qemu
from harness.machine.qmp import QmpError, QmpRefused
from harness.machine.rootparts import RootParts
from harness.machine.snapshot import BOOT_LOG, RAM, STATE, Snapshot, snapshot_of
from harness.machine.topology import load_topology
from harness.machine.vm import VM
from harness.remote import Guest

QEMU = Qemu(path=Path("/usr/bin/qemu"), version=(10, 0, 2), devices=frozenset(), identity="x")
BUILD_ID = "ab" * 20
NOTES = bytes.fromhex("040000001400000003000000474e5500" + BUILD_ID)
EDU: dict[str, object] = {
    "bdf": "0000:00:05.0", "root": "0000:00", "path": ["05.0"], "pci": "1234:11e8",
    "driver": None, "iommu_group": None, "noiommu": False, "vfio_dev": [],
}  # fmt: skip


@dataclasses.dataclass
class World:
    """What happens, and what is to happen."""

    removed: str = "removed"
    trouble: Exception | None = None
    splats: tuple[str, ...] = ()
    after: Sequence[dict[str, object]] = (EDU,)
    console: str = ""
    restores: bool = True
    silent: bool = False
    saves: int = 0
    uptime: float = 0.5


class FakeVM:
    """A VM whose console and saving are told by the World."""

    def __init__(self, world: World, machine: Machine, directory: Path, nonce: str) -> None:
        self.world, self.machine, self.directory, self.nonce = world, machine, directory, nonce
        self.alive, self.ending = True, None
        self.cpu_seconds = 1.5
        self.console = self
        self.path = directory / CONSOLE_LOG
        directory.mkdir(parents=True, exist_ok=True)
        self.path.write_text(world.console, encoding="utf-8")

    ssh = type("Ssh", (), dict.fromkeys(("address", "port", "user", "client_key", "host_key"), "x"))

    pid = 1

    def patient(self, deadline: Deadline) -> Deadline:
        return deadline

    def check_vcpus(self) -> None: ...

    def watch_vcpus(self, *, booting: bool = False) -> None: ...

    def splats(self) -> tuple[str, ...]:
        return self.world.splats

    def wait_for(self, text: str, deadline: object) -> bool:
        return True

    def hears(self, text: str, deadline: object) -> bool:
        return text == f"{kmsg.PROOF} {self.nonce}" and not self.world.silent

    def wait_booted(self, deadline: object) -> None: ...

    wait_agent = diagnose = wait = wait_booted

    def save(self, target: Path) -> None:
        self.world.saves += 1
        if self.world.trouble is not None:
            raise self.world.trouble
        for name in (STATE, RAM, BOOT_LOG, "host_key"):
            (target / name).write_text("x", encoding="utf-8")


class FakeGuest:
    """A guest that answers guest.resident's words."""

    def __init__(self, world: World, vm: FakeVM) -> None:
        self.world, self.vm = world, vm

    def answer(self, words: Sequence[str]) -> str:
        if words[0] == "remove":
            return self.world.removed
        devices = self.world.after if words[0] == "rescan" else (EDU,)
        facts = {"nonce": self.vm.nonce, "notes": NOTES.hex(), "devices": devices, "vfio_nodes": ["vfio"]}
        return json.dumps({"uptime": self.world.uptime, **facts})

    def close(self) -> None: ...

    def __enter__(self) -> FakeGuest:
        return self

    def __exit__(self, *error: object) -> None: ...


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    made = World()
    vms: list[FakeVM] = []

    @contextlib.contextmanager
    def start_vm(
        machine: Machine, directory: Path, *, nonce: str, restore: object, **rest: object
    ) -> Iterator[FakeVM]:
        vms.append(FakeVM(made, machine, directory, nonce))
        if restore is not None and not made.restores:
            raise InfraError("QEMU did not start")
        yield vms[-1]

    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(under_test, "start_vm", start_vm)
    monkeypatch.setattr(Guest, "connect", lambda *_: FakeGuest(made, vms[-1]))
    monkeypatch.setattr(under_test, "ask", lambda guest, words, limit: guest.answer(words))
    return made


@pytest.fixture
def recipe(tmp_path: Path, world: World) -> Recipe:
    vmlinux = tmp_path / "vmlinux"
    vmlinux.touch()
    machine = Machine(
        image=vmlinux, topology=load_topology("edu"), accel=Accel.KVM, root=FakeRoot(frozen=True)
    )
    return Recipe(machine=machine, qemu=QEMU, build_id=BUILD_ID)


def place(recipe: Recipe) -> Snapshot:
    found = snapshot_of(recipe.machine, QEMU, RootParts())
    assert found is not None
    return found


def test_kernel_that_cannot_be_heard_is_refused(recipe: Recipe, world: World, tmp_path: Path) -> None:
    """Without the proof that a message gets to the console with a time stamp, no case runs."""
    world.silent = True
    with pytest.raises(InfraError, match="do not reach the console") as caught, boot(recipe, tmp_path / "vm"):
        pass
    assert caught.value.cause is Cause.UNHEARD
    assert world.saves == 0


def test_a_quiet_machine_is_saved_once(recipe: Recipe, world: World, tmp_path: Path) -> None:
    for _ in range(3):
        with boot(recipe, tmp_path / "vm") as booted:
            assert booted.bdfs == {"edu0": "0000:00:05.0"}
    assert world.saves == 1
    assert place(recipe).exists()


def test_a_kernel_that_complains_at_boot_is_not_saved(recipe: Recipe, world: World, tmp_path: Path) -> None:
    """Its complaint would be heard in the first run only."""
    world.splats = ("WARNING",)
    with boot(recipe, tmp_path / "vm"):
        pass
    assert not place(recipe).exists()
    assert world.saves == 0


@pytest.mark.parametrize(
    ("trouble", "refused"),
    [
        (QmpRefused("migrate", "State blocked by non-migratable device"), True),
        (QmpError("QMP: no answer in time"), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_what_cannot_be_saved_is_used_all_the_same(
    recipe: Recipe, world: World, tmp_path: Path, trouble: Exception, refused: bool
) -> None:
    """Only QEMU's own no is remembered; a full disk or a busy host may be better next time."""
    world.trouble = trouble
    with boot(recipe, tmp_path / "vm") as booted:
        assert booted.bdfs
    assert not place(recipe).exists()
    assert (place(recipe).refusal() is not None) is refused
    world.trouble = None
    with boot(recipe, tmp_path / "vm"):
        pass
    assert place(recipe).exists() is not refused


def test_a_device_that_stays_is_not_saved(recipe: Recipe, world: World, tmp_path: Path) -> None:
    """QEMU would save it without its state, and say nothing."""
    world.removed = "Traceback\nStuckWrite: writing '1' is stuck"
    with boot(recipe, tmp_path / "vm"):
        pass
    assert world.saves == 0
    assert not place(recipe).exists()


def test_a_device_that_does_not_come_back(recipe: Recipe, world: World, tmp_path: Path) -> None:
    """The machine that goes on after saving is proven again."""
    world.after = ()
    with pytest.raises(InfraError, match="reports a different machine"), boot(recipe, tmp_path / "vm"):
        pass


def test_a_bad_snapshot_goes(recipe: Recipe, world: World, tmp_path: Path) -> None:
    with boot(recipe, tmp_path / "vm"):
        pass
    world.restores = False
    with boot(recipe, tmp_path / "vm") as booted:
        assert booted.bdfs
    assert world.saves == 2


def test_a_kernel_that_dies_when_restored_is_no_bad_snapshot(
    recipe: Recipe, world: World, tmp_path: Path
) -> None:
    """By its own account it died: that is a result."""
    with boot(recipe, tmp_path / "vm"):
        pass
    world.restores = False
    world.console = "[    9.123456][    T1] Kernel panic - not syncing: sysrq triggered crash\n"
    with pytest.raises(BootCrash, match="sysrq triggered crash"), boot(recipe, tmp_path / "vm"):
        pass


def test_a_guest_whose_clock_races_is_neither_used_nor_saved(
    recipe: Recipe, world: World, tmp_path: Path
) -> None:
    """Its kernel took its processor for a slower one: everything in it would be late."""
    world.uptime = 90.0
    wrong = pytest.raises(InfraError, match=r"clock is wrong: 90 s since it began, 0 s")
    with wrong, boot(recipe, tmp_path / "vm"):
        pass
    assert world.saves == 0


def test_whoever_waits_for_a_first_boot_restores(
    recipe: Recipe, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process saves the machine while this one waits for its turn to boot it."""

    @contextlib.contextmanager
    def others_turn(snapshot: Snapshot, limit: Deadline) -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(Snapshot, "first_boot", lambda *_: contextlib.nullcontext())
            with boot(recipe, tmp_path / "other"):
                pass
        yield

    monkeypatch.setattr(Snapshot, "first_boot", others_turn)
    with boot(recipe, tmp_path / "vm"):
        pass
    assert world.saves == 1
    assert json.loads((tmp_path / "vm" / "timing.json").read_text())["restored"]


@pytest.mark.parametrize(("stamp", "error"), [("6211.697577", LostGuest), ("    0.697577", BootCrash)])
def test_a_kernel_that_died_with_a_wrong_clock_is_not_blamed(
    tmp_path: Path, stamp: str, error: type[Exception]
) -> None:
    """Timers that fire far too early make it warn and die; what the host did is not the kernel's."""
    log = tmp_path / "console.log"
    log.write_text(f"[{stamp}][    T1] Kernel panic - not syncing: no clock\n[unstamped\n", encoding="utf-8")
    console = Console(log)
    console.finish()
    vm: Any = SimpleNamespace(console=console)
    told = under_test._never_up(vm, LostGuest("gone"), 20.0, 30.0)
    assert type(told) is error
    assert ("the guest's clock is wrong: 6212 s since it began, 30 s" in told.message) is (error is LostGuest)


@pytest.mark.parametrize(("starved", "cause"), [(100.0, Cause.HOST), (5.0, Cause.NO_BOOT)])
def test_a_guest_that_got_no_cpu_is_not_blamed(
    recipe: Recipe,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    starved: float,
    cause: Cause,
) -> None:
    """That it did not come up is the host's doing, with the figure."""

    def wait_booted(vm: FakeVM, deadline: object) -> None:
        raise LostGuest("the guest did not boot in time", cause=Cause.NO_BOOT)

    monkeypatch.setattr(under_test, "starvation", lambda pid: lambda: starved)
    monkeypatch.setattr(FakeVM, "wait_booted", wait_booted)
    monkeypatch.setattr(FakeVM, "diagnose", lambda _: None)
    monkeypatch.setattr(FakeVM, "tail", lambda _: (), raising=False)
    with pytest.raises(LostGuest) as caught, boot(recipe, tmp_path / "vm"):
        pass
    assert caught.value.cause is cause
    assert ("no CPU for QEMU for 100 s" in caught.value.message) is (starved == 100)


@pytest.mark.parametrize("restored", [False, True])
def test_every_wait_for_a_guest_is_patient(
    recipe: Recipe, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restored: bool
) -> None:
    """Booted or restored: the deadline of a guest is that of its VM, which moves while it gets no CPU."""
    if restored:
        with boot(recipe, tmp_path / "first"):
            pass
    moved = Deadline.after(1234)
    limits: list[Deadline] = []
    monkeypatch.setattr(FakeVM, "patient", lambda vm, deadline: moved)
    ask = under_test.ask

    def asking(guest: Guest, words: Sequence[str], limit: Deadline) -> str:
        limits.append(limit)
        return ask(guest, words, limit)

    monkeypatch.setattr(under_test, "ask", asking)
    with boot(recipe, tmp_path / "vm"):
        pass
    assert limits
    assert all(limit is moved for limit in limits)


@pytest.mark.parametrize("written", ["------------[ cut here ]------------\n", "WARNING: driv"])
def test_a_splat_counts_that_began_while_the_console_was_read(tmp_path: Path, written: str) -> None:
    """The kernel may be at its first lines when the splats so far are taken; each is returned once."""
    text = (
        "[    1.000001][    T2] vfio-harness: end a/b\n"
        "[    1.000002][    T3] ------------[ cut here ]------------\n"
        "[    1.000003][    T3] WARNING: drivers/vfio/a.c:1 at f+0x1/0x2, CPU#1: kworker/1\n"
        "[    1.000004][    T3] ---[ end trace 0000000000000000 ]---\n"
    )
    console = Console(tmp_path / "console.log")
    booted = Booted(cast(VM, SimpleNamespace(console=console, alive=False)), cast(Guest, None), {})
    console.path.write_text(text[: text.index(written) + len(written)], encoding="utf-8")
    assert booted.splats() == ()
    console.path.write_text(text, encoding="utf-8")
    assert [splat.after for splat in booted.splats()] == ["a/b"]
    assert booted.splats() == ()


def test_the_wrong_kernel_is_refused(recipe: Recipe, world: World, tmp_path: Path) -> None:
    other = dataclasses.replace(recipe, build_id="cd" * 20)
    with pytest.raises(InfraError, match="is not the one built"), boot(other, tmp_path / "vm"):
        pass
    assert not issubclass(InfraError, LostGuest)
