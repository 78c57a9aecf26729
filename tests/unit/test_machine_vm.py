# SPDX-License-Identifier: GPL-2.0-only
"""Start and lose a VM, with a script in place of QEMU; tests/integration boots real ones."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path

import pytest
from fake_root import FakeRoot

from harness.base.cause import Cause
from harness.base.deadline import Deadline
from harness.base.errors import InfraError, LostGuest
from harness.base.process import Process
from harness.kernel.arch import Arch
from harness.machine import vm as under_test
from harness.machine.accel import Accel
from harness.machine.machine import Machine
from harness.machine.pulse import Lost, Pulse
from harness.machine.qemu import Qemu
from harness.machine.qmp import Qmp
from harness.machine.snapshot import STATE
from harness.machine.topology import load_topology
from harness.machine.vm import read_ssh_port, start_vm

USERNET = """Hub -1 (ssh):
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
  TCP[HOST_FORWARD]  13       127.0.0.1 37215       10.0.2.15    22     0     0
"""


def qemu(directory: Path, body: str) -> Qemu:
    path = directory / "qemu"
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return Qemu(path=path, version=(10, 0, 0), devices=frozenset(), identity="fake")


def machine() -> Machine:
    return Machine(image=Path("/k"), topology=load_topology("edu"), accel=Accel.KVM, root=FakeRoot())


def test_read_ssh_port() -> None:
    """The host port is read from QEMU's output."""
    assert read_ssh_port(USERNET) == 37215
    with pytest.raises(InfraError, match="forwards no port"):
        read_ssh_port("Hub -1 (ssh):\n")


def start_in_vain(directory: Path, body: str, seconds: float = 5) -> str:
    """Return the error of start_vm() for a QEMU that is this shell script."""
    with (
        pytest.raises(InfraError) as caught,
        start_vm(
            machine(), directory, nonce="1", qemu=qemu(directory, body), deadline=Deadline.after(seconds)
        ),
    ):
        pass
    return caught.value.message


def test_qemu_that_refuses(tmp_path: Path) -> None:
    """The message has QEMU's error, not its warnings, and comes at once."""
    limit = Deadline.after(3)
    words = (
        "echo 'qemu-system-x86_64: -device edu: no' >&2; echo 'qemu-system-x86_64: warning: hub' >&2; exit 1"
    )
    assert start_in_vain(tmp_path, words) == "QEMU did not start: -device edu: no"
    assert not limit.expired


def test_qemu_that_dies_without_a_word(tmp_path: Path) -> None:
    """Without an error message the exit status is reported."""
    assert start_in_vain(tmp_path, "exit 3") == "QEMU did not start: exit status 3"


def test_qemu_that_hangs(tmp_path: Path) -> None:
    """A QEMU that never opens its socket is stopped at the deadline."""
    assert start_in_vain(tmp_path, "sleep 60", 0.3) == "QEMU did not open its QMP socket in time"


def test_the_command_can_be_pasted(tmp_path: Path) -> None:
    """qemu.cmd changes into the directory and runs the same command."""
    directory = tmp_path / "a b"
    directory.mkdir()
    start_in_vain(directory, "exit 3")
    words = shlex.split((directory / "qemu.cmd").read_text(encoding="utf-8"))
    assert words[:4] == ["cd", str(directory), "&&", str(directory / "qemu")]
    assert "name=opt/vfio-harness/nonce,string=1" in words


ACTOR = """#!{python}
import pathlib, socket, sys, threading
sys.path.insert(0, {here!r})
from machine_fake_qmp import FakeQmp

end = threading.Event()

def answers(name, arguments):
    if name == "quit":
        end.set()
    return {{"return": {usernet!r} if name == "human-monitor-command" else {{}}}}

port = socket.socket(socket.AF_UNIX)
port.bind("hostlink.sock")
port.listen(1)
pathlib.Path("console.log").write_text({console!r})
server = FakeQmp(pathlib.Path("qmp.sock"), answers)
while not end.wait(0.05) and not pathlib.Path("end").exists():
    pass
server.close()
"""


def actor(directory: Path, console: str) -> Qemu:
    """A QEMU that speaks QMP, shows *console* and ends when told, or when a file `end` appears beside it."""
    made = qemu(directory, "")
    text = ACTOR.format(
        python=sys.executable,
        here=str(Path(__file__).parent),
        usernet=USERNET,
        console=console,
    )
    made.path.write_text(text, encoding="utf-8")
    return made


def test_life(tmp_path: Path) -> None:
    """A VM starts, reports its port, counts as booted when init.sh says so, and stops on request."""
    long = tmp_path / ("x" * 120)
    console = "[    0.100000][    T1] Run /init as init process\nvfio-harness: ssh: dropbear\n"
    with start_vm(machine(), long, nonce="1", qemu=actor(tmp_path, console)) as vm:
        vm.wait_booted(Deadline.after(5))
        assert (vm.alive, vm.ssh.port, vm.ssh.user) == (True, 37215, "root")
        assert vm.ssh.host_key.startswith("ssh-ed25519 ")
        assert vm.wait(Deadline.after(0)) is None
    assert vm.ending is not None
    assert (vm.alive, vm.ending.cause) == (False, Cause.STOPPED)


@pytest.mark.parametrize(
    ("console", "ends", "cause", "complaint"),
    [
        (
            "vfio-harness: init failed: no loopback\n",
            *(False, Cause.INIT_FAILED, "the guest's init gave up: no loopback"),
        ),
        (
            "[    1.000000] Linux version\n",
            *(False, Cause.NO_BOOT, "did not boot in time; last console line: .*Linux version"),
        ),
        ("vfio-harness: ssh: dropbear\n", False, Cause.UNHEARD, "its kernel is silent"),
        ("[    1.000000] Linux version\n", True, Cause.GUEST_OFF, "the guest powered off"),
        (
            "[    1.0] x\n[    1.000000] Kernel panic - not syncing: VFS: y\n",
            *(True, Cause.PANICKED, "panicked: VFS: y"),
        ),
    ],
)
def test_guests_that_never_come_up(
    tmp_path: Path, console: str, ends: bool, cause: Cause, complaint: str
) -> None:
    """Each way of not booting has a cause and a message of its own."""
    with start_vm(machine(), tmp_path / "vm", nonce="1", qemu=actor(tmp_path, console)) as vm:
        if ends:
            (tmp_path / "vm" / "end").touch()
        with pytest.raises(LostGuest, match=complaint) as caught:
            vm.wait_booted(Deadline.after(60 if ends else 1))
    assert caught.value.cause is cause


@pytest.mark.parametrize(
    ("console", "after", "cause"),
    [
        ("[    0.3][    T1] smp: Brought up 1 node, 2 CPUs\n", 0.0, Cause.STOOD_STILL),
        # An early boot takes its time.
        ("[    0.3][    T1] smp: Brought up 1 node, 2 CPUs\n", 60.0, Cause.NO_BOOT),
        # A vCPU that the kernel does not run looks like a lost one.
        ("[    0.3][    T1] smp: Brought up 1 node, 1 CPU\n", 0.0, Cause.NO_BOOT),
        ("[    0.3][    T1] Linux version\n", 0.0, Cause.NO_BOOT),
    ],
)
def test_vcpu_that_is_lost_during_the_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: str, after: float, cause: Cause
) -> None:
    """The kernel would tell a stall of RCU two minutes later, and count as crashed."""
    lost = Pulse({}, 1, lambda cpu: frozenset())
    monkeypatch.setattr(lost, "lost", lambda: Lost(Cause.STOOD_STILL, "QEMU no longer runs vCPU 1"))
    monkeypatch.setattr(under_test, "Pulse", lambda *_: lost)
    monkeypatch.setattr(under_test, "STILL_SECONDS", after)
    two = dataclasses.replace(machine(), cpus=2)
    with start_vm(two, tmp_path / "vm", nonce="1", qemu=actor(tmp_path, console)) as vm:
        monkeypatch.setattr(vm.qmp, "execute", lambda *_, **options: [])
        vm.watch_vcpus(booting=True)
        with pytest.raises(LostGuest) as caught:
            vm.wait_booted(Deadline.after(2))
    assert caught.value.cause is cause


def test_a_guest_that_got_no_cpu_has_more_time_to_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the host gives QEMU no CPU the timeout does not run, up to a limit."""
    with start_vm(machine(), tmp_path / "vm", nonce="1", qemu=actor(tmp_path, "x\n")) as vm:
        starved = [0.0]
        monkeypatch.setattr(under_test, "starvation", lambda pid: lambda: starved[0] if pid == vm.pid else -1)
        limit = vm.patient(Deadline.after(10))
        starved[0] += 20
        assert 29 < limit.remaining <= 30
        starved[0] += 1000
        assert 49 < limit.remaining <= 10 + 10 * under_test.MOST_EXCUSED


@pytest.mark.parametrize(("accel", "seconds"), [(Accel.KVM, 20), (Accel.TCG, 80)])
def test_saving_has_more_time_under_emulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accel: Accel, seconds: float
) -> None:
    """As everything else that a guest or its QEMU does."""
    given = []

    def migrate(qmp: Qmp, command: str, deadline: Deadline) -> None:
        given.append(deadline.remaining)
        (tmp_path / "vm" / STATE).touch()

    monkeypatch.setattr(under_test, "_migrate", migrate)
    monkeypatch.setattr(under_test, "starvation", lambda pid: lambda: 0.0)
    made = dataclasses.replace(machine(), accel=accel)
    vm_dir, target = tmp_path / "vm", tmp_path / "saved"
    target.mkdir()
    with start_vm(made, vm_dir, nonce="1", qemu=actor(tmp_path, "x\n"), savable=True) as vm:
        vm.save(target)
    assert seconds - 10 < given[0] <= seconds


@pytest.mark.parametrize(("accel", "seconds"), [(Accel.KVM, 30), (Accel.TCG, 120)])
def test_starting_has_more_time_under_emulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accel: Accel, seconds: float
) -> None:
    """Whatever the boot as a whole has left."""
    given = []
    connect = under_test._connect_qmp

    def connect_qmp(child: Process, directory: Path, path: Path, arch: Arch, deadline: Deadline) -> Qmp:
        given.append(deadline.remaining)
        return connect(child, directory, path, arch, deadline)

    monkeypatch.setattr(under_test, "_connect_qmp", connect_qmp)
    monkeypatch.setattr(under_test, "starvation", lambda pid: lambda: 0.0)
    made = dataclasses.replace(machine(), accel=accel)
    limit = Deadline.after(1000)
    with start_vm(made, tmp_path / "vm", nonce="1", qemu=actor(tmp_path, "x\n"), deadline=limit):
        pass
    assert seconds - 10 < given[0] <= seconds
