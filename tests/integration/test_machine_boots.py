# SPDX-License-Identifier: GPL-2.0-only
"""Real VMs: every shipped topology boots and is what it says, and every way for a VM to end is noticed.

VFIO_HARNESS_TEST_VMLINUX names a vmlinux to use in place of a build of the default variant.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import paths, process
from harness.boot import ask_facts
from harness.deadline import Deadline
from harness.errors import StoodStill
from harness.machine.accel import Accel, choose_accel
from harness.machine.found import bdfs, mismatches
from harness.machine.machine import Machine
from harness.machine.qemu import Qemu, find_qemu
from harness.machine.roots import DEFAULT_ROOT, find_root
from harness.machine.topology import load_topology, shipped_topologies
from harness.machine.vm import VM, State, start_vm
from harness.remote import Endpoint, Guest

BOOT_SECONDS = 30


@pytest.fixture(scope="session")
def vmlinux(request: pytest.FixtureRequest) -> Path:
    """A kernel to boot."""
    given = os.environ.get("VFIO_HARNESS_TEST_VMLINUX")
    return Path(given) if given else Path(request.getfixturevalue("group_cdev").vmlinux)


@pytest.fixture(scope="session")
def qemu() -> Qemu:
    return find_qemu()


@pytest.fixture(scope="session")
def this_accel(qemu: Qemu, vmlinux: Path) -> Accel:
    return choose_accel("auto", qemu, vmlinux).accel


@pytest.fixture
def make(vmlinux: Path, qemu: Qemu, this_accel: Accel) -> Maker:
    return Maker(vmlinux, qemu, this_accel)


class Maker:
    """Makes machines on this host."""

    def __init__(self, vmlinux: Path, qemu: Qemu, accel: Accel) -> None:
        self.vmlinux, self.qemu, self.accel = vmlinux, qemu, accel

    def limit(self) -> Deadline:
        return Deadline.after(BOOT_SECONDS * self.accel.timeout_factor)

    def machine(self, name: str) -> Machine:
        topology = load_topology(name, self.qemu)
        return Machine(
            vmlinux=self.vmlinux,
            topology=topology,
            accel=self.accel,
            root=find_root(DEFAULT_ROOT),
            cpus=2,
            memory_mib=1024,
        )

    @contextlib.contextmanager
    def boot(self, name: str, directory: Path) -> Iterator[tuple[VM, Guest]]:
        with start_vm(self.machine(name), directory, nonce="c0ffee", qemu=self.qemu) as vm:
            limit = self.limit()
            vm.wait_booted(limit)
            ssh = vm.ssh
            endpoint = Endpoint(
                host=ssh.address,
                port=ssh.port,
                user=ssh.user,
                client_key=ssh.client_key,
                host_key=ssh.host_key,
            )
            with Guest.connect(endpoint, limit, lambda: vm.alive, vm.check_processors) as guest:
                vm.wait_agent(limit)
                yield vm, guest


@pytest.mark.parametrize("name", shipped_topologies())
def test_topology_is_what_it_says(name: str, make: Maker, tmp_path: Path) -> None:
    """Each shipped topology boots quietly, shows its devices where they belong, and stops when told."""
    with make.boot(name, tmp_path) as (vm, guest):
        topology = vm.machine.topology
        found = ask_facts(guest, make.limit())
        assert mismatches(topology, found) == ()
        assert set(bdfs(topology, found)) == {device.id for device in topology.endpoints if device.plugged}
        assert found.nonce == "c0ffee"
        # Programs must be able to write to the console: it takes the port's interrupt (amd-iommu loses it).
        guest.check(("sh", "-c", "echo userland speaks > /dev/console"), make.limit())
        assert vm.console.wait_for("userland speaks", Deadline.after(10))
        assert vm.console.splats() == ()
    assert (vm.state, vm.alive) == (State.STOPPED, False)


def test_panic_is_noticed(make: Maker, tmp_path: Path) -> None:
    """A panic ends QEMU at once, and belongs to the case that ran."""
    with make.boot("edu", tmp_path) as (vm, guest):
        guest.check(("sh", "-c", "echo 'vfio-harness: begin a/b' > /dev/kmsg"), make.limit())
        vm.sysrq("c")
        assert vm.wait(Deadline.after(20)) is State.PANICKED
        assert vm.ending == "the guest's kernel panicked: sysrq triggered crash"
        (splat,) = vm.console.splats()
        assert (splat.kind, splat.case) == ("panic", "a/b")


def test_processor_that_sleeps_for_good_is_noticed(make: Maker, tmp_path: Path) -> None:
    """From outside, one that the guest has taken off line looks like one that QEMU forgot."""
    with make.boot("edu", tmp_path) as (vm, guest):
        vm.watch_processors()
        vm.check_processors()
        guest.check(("sh", "-c", "echo 0 > /sys/devices/system/cpu/cpu1/online"), make.limit())
        with pytest.raises(StoodStill, match="does not run processor 1"):
            guest.run("sleep 100", Deadline.after(60))
        bundle = vm.diagnose()
        assert bundle is not None
        assert "futex" in bundle.read_text(encoding="utf-8").partition("== threads of QEMU")[2]


def test_killed_qemu_is_no_panic(make: Maker, tmp_path: Path) -> None:
    """A QEMU that somebody killed says nothing about the kernel."""
    with start_vm(make.machine("edu"), tmp_path, nonce="1", qemu=make.qemu) as vm:
        os.kill(vm.pid, signal.SIGKILL)
        assert vm.wait(Deadline.after(10)) is State.DIED


def test_power_off_is_told_apart(make: Maker, tmp_path: Path) -> None:
    """A guest that turns itself off has neither panicked nor died."""
    with make.boot("edu", tmp_path) as (vm, _):
        vm.sysrq("o")
        assert vm.wait(Deadline.after(20)) is State.POWERED_OFF
        assert vm.ending == "the guest powered off"


def test_diagnosis_of_a_paused_vm(make: Maker, tmp_path: Path) -> None:
    """A VM that does not answer is asked all the same, within the budget."""
    with make.boot("edu", tmp_path) as (vm, _):
        vm.pause()
        limit = Deadline.after(15)
        bundle = vm.diagnose()
        assert bundle is not None
        assert not limit.expired
        text = bundle.read_text(encoding="utf-8")
        assert '"paused"' in text
        assert "RIP=" in text


HOTPLUG = """
import json, os, sys, time
sys.path.insert(0, "/run/vfio-harness")
from guest.hostlink import HostLink
def there():
    return sorted(name for name in os.listdir("/sys/bus/pci/devices") if not name.startswith("0000:00"))
def until(count):
    end = time.monotonic() + 30
    while len(there()) != count and time.monotonic() < end:
        time.sleep(0.05)
    seen.append(len(there()))
seen, link = [], HostLink()
until(2)
link.plug("edu1"); until(3)
link.unplug("igb0"); until(2)
link.plug("igb0"); until(3)
link.link("igb0", up=False)
link.unplug("edu1"); until(2)
print(json.dumps(seen))
"""


def test_hotplug_through_the_port(make: Maker, tmp_path: Path) -> None:
    """A case plugs and unplugs through the host-action port, and the host knows what is not as at boot."""
    with make.boot("hotplug", tmp_path) as (vm, guest):
        answer = guest.check(("python3", "-c", HOTPLUG), make.limit())
        assert json.loads(answer) == [2, 3, 2, 3, 2]
        assert vm.hostlink.actions.altered == {"igb0"}


PARENT = """
import sys, time
from pathlib import Path
from harness.machine.accel import Accel
from harness.machine.machine import Machine
from harness.machine.roots import DEFAULT_ROOT, find_root
from harness.machine.topology import load_topology
from harness.machine.vm import start_vm
vmlinux, directory, accel = sys.argv[1:]
machine = Machine(
    vmlinux=Path(vmlinux), topology=load_topology("edu"), accel=Accel(accel), root=find_root("image")
)
with start_vm(machine, Path(directory), nonce="1") as vm:
    print(vm.pid, flush=True)
    time.sleep(600)
"""


def test_no_qemu_outlives_a_killed_harness(make: Maker, tmp_path: Path) -> None:
    """kill -9 of the harness leaves no QEMU behind."""
    argv = [sys.executable, "-c", PARENT, str(make.vmlinux), str(tmp_path), make.accel.value]
    environment = {"PYTHONPATH": str(paths.guest_dir().parent)}
    with process.spawn(argv, env=environment, stdout=subprocess.PIPE) as parent:
        pid = int(parent.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        os.kill(parent.pid, signal.SIGKILL)
        assert _gone(pid, Deadline.after(10))


def _gone(pid: int, deadline: Deadline) -> bool:
    while not deadline.expired:
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False
