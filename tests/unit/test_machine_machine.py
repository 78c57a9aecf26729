# SPDX-License-Identifier: GPL-2.0-only
"""The QEMU command line of a Machine, word for word."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shlex
from pathlib import Path

import pytest
from fake_root import FakeRoot

from harness.base.errors import UsageError
from harness.kernel.arch import ARCHES
from harness.machine.accel import Accel
from harness.machine.machine import Machine, machine_features
from harness.machine.qemu import Qemu
from harness.machine.rootparts import RootParts
from harness.machine.topology import load_topology

GOLDEN = Path(__file__).resolve().parent.parent / "golden"

QEMU = Qemu(
    path=Path("/usr/bin/qemu"), version=(10, 0, 2), devices=frozenset(), identity="x", has_firmware=True
)

PARTS = RootParts(
    options=("-fsdev", "local,id=root,path=/"),
    devices=("virtio-9p-pci,fsdev=root,mount_tag=/dev/root",),
    kernel_args=("ro", "virtme.exec=`eA==`", "init=/init"),
)


def machine(topology: str, accel: Accel = Accel.TCG, **more: object) -> Machine:
    made = Machine(
        image=Path("/k/vmlinux"), topology=load_topology(topology), accel=accel, root=FakeRoot(given=PARTS)
    )
    return dataclasses.replace(made, **more)  # type: ignore[arg-type]


def lines(argv: tuple[str, ...]) -> str:
    """One option with its value per line, as a shell would want them."""
    return shlex.join(argv).replace(" -", "\n-") + "\n"


@pytest.mark.parametrize("name", ["edu-igb", "iommu-intel", "mixed", "hotplug", "nvme"])
def test_argv(name: str) -> None:
    """The command line equals the golden file; HARNESS_UPDATE_GOLDEN=1 rewrites it for review."""
    golden = GOLDEN / f"argv-{name}.txt"
    got = lines(machine(name).argv(QEMU, PARTS, "c0ffee"))
    if os.environ.get("HARNESS_UPDATE_GOLDEN"):
        golden.write_text(got, encoding="utf-8")
    assert got == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["edu-igb", "iommu-smmuv3", "mixed-smmuv3"])
def test_argv_of_another_architecture(name: str) -> None:
    """As test_argv(), of a machine that this host would emulate."""
    arch = ARCHES["arm64"]
    made = Machine(
        arch=arch,
        image=Path("/k/Image"),
        topology=load_topology(name, arch=arch),
        accel=Accel.TCG,
        root=FakeRoot(given=PARTS),
    )
    golden = GOLDEN / f"argv-{arch.name}-{name}.txt"
    got = lines(made.argv(dataclasses.replace(QEMU, arch=arch), PARTS, "c0ffee"))
    if os.environ.get("HARNESS_UPDATE_GOLDEN"):
        golden.write_text(got, encoding="utf-8")
    assert got == golden.read_text(encoding="utf-8")


def test_the_iommu_comes_before_every_device() -> None:
    """The IOMMU is the first device: devices before it would bypass it."""
    argv = machine("iommu-intel").argv(QEMU, PARTS, "c0ffee")
    devices = [value for option, value in itertools.pairwise(argv) if option == "-device"]
    assert devices[0].startswith("intel-iommu,")


def test_slots_of_pcie0_are_used_once() -> None:
    """No two devices share a slot."""
    argv = machine("edu-igb").argv(QEMU, PARTS, "c0ffee")
    slots = [word.split("addr=")[1].split(",")[0] for word in argv if "bus=pcie.0" in word]
    numbers = [int(slot.split(".")[0], 16) for slot in slots]
    assert len(set(numbers)) == len(numbers) == 6


def test_kvm_and_gdb() -> None:
    """gdb gets a socket and fixed addresses; KVM the host's CPU model, no arguments for slow hosts."""
    made = machine("edu", Accel.KVM, gdb=True, cpus=2, memory_mib=4096)
    made = dataclasses.replace(made, topology=dataclasses.replace(made.topology, kernel_args=("a=b c",)))
    text = shlex.join(made.argv(QEMU, PARTS, "c0ffee"))
    assert "-accel kvm -cpu host -smp 2 -m 4096M" in text
    assert "unix:gdb.sock" in text
    words = made.command_line(PARTS)
    assert "nokaslr" in words
    assert "no_timer_check" not in words
    assert '"a=b c" printk.time=1' in words
    found = machine_features(made.topology, made.arch, cpus=made.cpus, memory_mib=made.memory_mib)
    assert found == {"edu", "intx", "smp", "mem-4g", *made.arch.features}


@pytest.mark.parametrize(
    "given",
    [
        ("quiet",),
        ("printk.time=0", "loglevel=1", "printk.ignore_loglevel=0"),
        ("console=tty0", "console=null", "console=ttyS0,115200n8r", "printk.devkmsg=off"),
        ("sysctl.kernel.printk=1", "a\t--"),
    ],
)
def test_kernel_is_heard_whatever_a_topology_says(given: tuple[str, ...]) -> None:
    """The last word of each kind makes printk audible and stamps it; only what the root wants comes after."""
    made = machine("edu")
    made = dataclasses.replace(made, topology=dataclasses.replace(made.topology, kernel_args=given))
    words = shlex.split(made.command_line(PARTS))
    assert words[-3:] == list(PARTS.kernel_args)
    own = words[-8:-3]
    assert words[1 : len(words) - 8][-len(given) :] == list(given)
    assert own == [
        "printk.time=1",
        "printk.devkmsg=on",
        "loglevel=7",
        "printk.ignore_loglevel=1",
        f"console={made.arch.console}",
    ]
    assert words[0] == own[-1]


def test_too_little_memory() -> None:
    """A machine without enough memory or vCPUs is refused when it is made."""
    with pytest.raises(UsageError, match="needs 512 MiB, not 256"):
        machine("hotplug", memory_mib=256)
    with pytest.raises(UsageError, match="needs at least one vCPU"):
        machine("edu", cpus=0)


def test_too_many_shares() -> None:
    """A root that needs more slots than are reserved for it is refused."""
    crowd = RootParts(devices=("virtio-9p-pci",) * 5)
    with pytest.raises(UsageError, match="needs 5 slots, but only 3 are free"):
        machine("edu").argv(QEMU, crowd, "c0ffee")
