# SPDX-License-Identifier: GPL-2.0-only
"""Starting and losing a VM, with a script in QEMU's place; the real thing is in tests/integration."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from fake_root import FakeRoot

from harness.deadline import Deadline
from harness.errors import InfraError, LostGuest
from harness.machine.accel import Accel
from harness.machine.machine import Machine
from harness.machine.qemu import Qemu
from harness.machine.topology import load_topology
from harness.machine.vm import State, read_ssh_port, start_vm

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
    return Machine(vmlinux=Path("/k"), topology=load_topology("edu"), accel=Accel.KVM, root=FakeRoot())


def test_read_ssh_port() -> None:
    """The port that the host chose."""
    assert read_ssh_port(USERNET) == 37215
    with pytest.raises(InfraError, match="forwards no port"):
        read_ssh_port("Hub -1 (ssh):\n")


def start_in_vain(directory: Path, body: str, seconds: float = 5) -> str:
    """What start_vm says about a QEMU that is this shell script."""
    with (
        pytest.raises(InfraError) as caught,
        start_vm(
            machine(), directory, nonce="1", qemu=qemu(directory, body), deadline=Deadline.after(seconds)
        ),
    ):
        pass
    return caught.value.message


def test_qemu_that_refuses(tmp_path: Path) -> None:
    """Its own words are the message, its warnings are not, and it is noticed at once."""
    limit = Deadline.after(3)
    words = (
        "echo 'qemu-system-x86_64: -device edu: no' >&2; echo 'qemu-system-x86_64: warning: hub' >&2; exit 1"
    )
    assert start_in_vain(tmp_path, words) == "QEMU did not start: -device edu: no"
    assert not limit.expired


def test_qemu_that_dies_without_a_word(tmp_path: Path) -> None:
    """Then its exit status has to do."""
    assert start_in_vain(tmp_path, "exit 3") == "QEMU did not start: exit status 3"


def test_qemu_that_hangs(tmp_path: Path) -> None:
    """A QEMU that never opens its socket is given up at the deadline, and stopped."""
    assert start_in_vain(tmp_path, "sleep 60", 0.3) == "QEMU did not open its QMP socket in time"


def test_the_command_can_be_pasted(tmp_path: Path) -> None:
    """qemu.cmd changes into the directory and runs what was run."""
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
end.wait({seconds})
server.close()
"""


def actor(directory: Path, console: str, seconds: float = 20) -> Qemu:
    """A QEMU that speaks QMP, shows *console* and ends when told, or after *seconds*."""
    made = qemu(directory, "")
    text = ACTOR.format(
        python=sys.executable,
        here=str(Path(__file__).parent),
        usernet=USERNET,
        console=console,
        seconds=seconds,
    )
    made.path.write_text(text, encoding="utf-8")
    return made


def test_life(tmp_path: Path) -> None:
    """It starts, tells its port, is booted when init.sh says so, and ends when told."""
    long = tmp_path / ("x" * 120)
    with start_vm(machine(), long, nonce="1", qemu=actor(tmp_path, "vfio-harness: ssh: dropbear\n")) as vm:
        vm.wait_booted(Deadline.after(5))
        assert (vm.state, vm.ssh.port, vm.ssh.user) == (State.RUNNING, 37215, "root")
        assert vm.ssh.host_key.startswith("ssh-ed25519 ")
        vm.check_alive()
    assert (vm.alive, vm.state) == (False, State.STOPPED)


@pytest.mark.parametrize(
    ("console", "seconds", "complaint"),
    [
        ("vfio-harness: init failed: no loopback\n", 20, "the guest's init gave up: no loopback"),
        ("[    1.000000] Linux version\n", 20, "did not boot in time; its last words: .*Linux version"),
        ("[    1.000000] Linux version\n", 0.3, "the guest powered off"),
        ("[    1.0] x\n[    1.000000] Kernel panic - not syncing: VFS: y\n", 0.3, "panicked: VFS: y"),
    ],
)
def test_guests_that_never_come_up(tmp_path: Path, console: str, seconds: float, complaint: str) -> None:
    """Each way of not booting has words of its own."""
    with (
        pytest.raises(LostGuest, match=complaint),
        start_vm(machine(), tmp_path / "vm", nonce="1", qemu=actor(tmp_path, console, seconds)) as vm,
    ):
        vm.wait_booted(Deadline.after(1))
