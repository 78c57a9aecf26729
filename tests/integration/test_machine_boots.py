# SPDX-License-Identifier: GPL-2.0-only
"""Real VMs: every shipped topology boots with its devices, and every way for a VM to end is detected.

VFIO_HARNESS_TEST_VMLINUX names a vmlinux to use instead of building the default variant.
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
from conftest import TOPOLOGIES

from harness.base import paths, process
from harness.base.cause import Cause
from harness.base.deadline import Deadline
from harness.base.errors import LostGuest
from harness.kernel.arch import host_arch
from harness.lab.boot import ask_facts
from harness.machine.accel import Accel, choose_accel
from harness.machine.diagnose import sysrq
from harness.machine.found import bdfs, mismatches
from harness.machine.machine import Machine
from harness.machine.qemu import Qemu, find_qemu
from harness.machine.roots import DEFAULT_ROOT, find_root
from harness.machine.topology import load_topology
from harness.machine.vm import VM, Ending, start_vm
from harness.remote import Guest

BOOT_SECONDS = 30


@pytest.fixture(scope="session")
def vmlinux(request: pytest.FixtureRequest) -> Path:
    """The kernel to boot."""
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
            image=self.vmlinux,
            topology=topology,
            accel=self.accel,
            root=find_root(DEFAULT_ROOT, host_arch()),
            cpus=2,
            memory_mib=1024,
        )

    @contextlib.contextmanager
    def boot(self, name: str, directory: Path) -> Iterator[tuple[VM, Guest]]:
        with start_vm(self.machine(name), directory, nonce="c0ffee", qemu=self.qemu) as vm:
            limit = self.limit()
            vm.wait_booted(limit)
            with Guest.connect(vm.ssh, limit, lambda: vm.alive, vm.check_vcpus) as guest:
                vm.wait_agent(limit)
                yield vm, guest


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_topology_is_what_it_says(name: str, make: Maker, tmp_path: Path) -> None:
    """Each shipped topology boots without complaints, has its devices in their slots, and stops on
    request."""
    with make.boot(name, tmp_path) as (vm, guest):
        topology = vm.machine.topology
        found = ask_facts(guest, make.limit())
        assert mismatches(topology, found) == ()
        assert set(bdfs(topology, found)) == {device.id for device in topology.endpoints if device.plugged}
        assert found.nonce == "c0ffee"
        # Programs must be able to write to the console; that needs the port's interrupt (amd-iommu loses it).
        guest.check(("sh", "-c", "echo userland speaks > /dev/console"), make.limit())
        assert vm.console.wait_for("userland speaks", Deadline.after(10))
        assert vm.console.splats() == ()
    assert vm.ending is not None
    assert (vm.ending.cause, vm.alive) == (Cause.STOPPED, False)


def test_panic_is_noticed(make: Maker, tmp_path: Path) -> None:
    """A panic ends QEMU at once and is attributed to the running case."""
    with make.boot("edu", tmp_path) as (vm, guest):
        guest.check(("sh", "-c", "echo 'vfio-harness: begin a/b' > /dev/kmsg"), make.limit())
        sysrq(vm.qmp, vm.keyboard, "c")
        assert vm.wait(Deadline.after(20)) == Ending(
            Cause.PANICKED, "the guest's kernel panicked: sysrq triggered crash, in sysrq_handle_crash"
        )
        # A guest whose clock runs wrong, because the host was busy while it booted, may have warned before.
        (splat,) = (splat for splat in vm.console.splats() if splat.kind == "panic")
        assert splat.case == "a/b"
        assert any("Call Trace:" in line for line in splat.lines), "no text is lost while SysRq is pressed"


def test_processor_that_sleeps_for_good_is_noticed(make: Maker, tmp_path: Path) -> None:
    """A vCPU that the guest has taken offline is reported, since from outside it looks like one that QEMU
    lost."""
    with make.boot("edu", tmp_path) as (vm, guest):
        vm.watch_vcpus()
        vm.check_vcpus()
        guest.check(("sh", "-c", "echo 0 > /sys/devices/system/cpu/cpu1/online"), make.limit())
        with pytest.raises(LostGuest, match="no longer runs vCPU 1") as lost:
            guest.run("sleep 100", Deadline.after(60))
        assert lost.value.cause is Cause.STOOD_STILL
        bundle = vm.diagnose()
        assert bundle is not None
        assert "futex" in bundle.read_text(encoding="utf-8").partition("== threads of QEMU")[2]


def test_killed_qemu_is_no_panic(make: Maker, tmp_path: Path) -> None:
    """A killed QEMU is not reported as a kernel panic."""
    with start_vm(make.machine("edu"), tmp_path, nonce="1", qemu=make.qemu) as vm:
        os.kill(vm.pid, signal.SIGKILL)
        ending = vm.wait(Deadline.after(10))
        assert ending is not None
        assert ending.cause is Cause.QEMU_DIED


def test_power_off_is_told_apart(make: Maker, tmp_path: Path) -> None:
    """A guest that powers itself off is reported as such, neither as a panic nor as a dead QEMU."""
    with make.boot("edu", tmp_path) as (vm, _):
        sysrq(vm.qmp, vm.keyboard, "o")
        assert vm.wait(Deadline.after(20)) == Ending(Cause.GUEST_OFF, "the guest powered off")


def test_diagnosis_of_a_paused_vm(make: Maker, tmp_path: Path) -> None:
    """A VM that does not answer is diagnosed within the time limit."""
    with make.boot("edu", tmp_path) as (vm, _):
        vm.qmp.execute("stop")
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
    """A case plugs and unplugs through the host-action port, and the host knows what differs from boot."""
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
from harness.kernel.arch import host_arch
vmlinux, directory, accel = sys.argv[1:]
root = find_root("image", host_arch())
machine = Machine(image=Path(vmlinux), topology=load_topology("edu"), accel=Accel(accel), root=root)
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
