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

from harness.errors import UsageError
from harness.machine.accel import Accel
from harness.machine.machine import Machine
from harness.machine.qemu import Qemu
from harness.machine.roots import RootParts
from harness.machine.topology import load_topology

GOLDEN = Path(__file__).resolve().parent.parent / "golden"

QEMU = Qemu(path=Path("/usr/bin/qemu"), version=(10, 0, 2), devices=frozenset(), identity="x", has_qboot=True)

PARTS = RootParts(
    options=("-fsdev", "local,id=root,path=/"),
    devices=("virtio-9p-pci,fsdev=root,mount_tag=/dev/root",),
    kernel_args=("ro", "virtme.exec=`eA==`", "init=/init"),
)


def machine(topology: str, accel: Accel = Accel.TCG, **more: object) -> Machine:
    made = Machine(
        vmlinux=Path("/k/vmlinux"), topology=load_topology(topology), accel=accel, root=FakeRoot(given=PARTS)
    )
    return dataclasses.replace(made, **more)  # type: ignore[arg-type]


def lines(argv: tuple[str, ...]) -> str:
    """One option with its value per line, as a shell would want them."""
    return shlex.join(argv).replace(" -", "\n-") + "\n"


@pytest.mark.parametrize("name", ["edu-igb", "iommu-intel", "mixed", "hotplug", "nvme"])
def test_argv(name: str) -> None:
    """The words are pinned; HARNESS_UPDATE_GOLDEN=1 writes them anew for review."""
    golden = GOLDEN / f"argv-{name}.txt"
    got = lines(machine(name).argv(QEMU, PARTS, "c0ffee"))
    if os.environ.get("HARNESS_UPDATE_GOLDEN"):
        golden.write_text(got, encoding="utf-8")
    assert got == golden.read_text(encoding="utf-8")


def test_the_iommu_comes_before_every_device() -> None:
    """What precedes its IOMMU on the command line would bypass it."""
    argv = machine("iommu-intel").argv(QEMU, PARTS, "c0ffee")
    devices = [value for option, value in itertools.pairwise(argv) if option == "-device"]
    assert devices[0].startswith("intel-iommu,")


def test_slots_of_pcie0_are_used_once() -> None:
    """The harness's own devices never meet a topology's."""
    argv = machine("edu-igb").argv(QEMU, PARTS, "c0ffee")
    slots = [word.split("addr=")[1].split(",")[0] for word in argv if "bus=pcie.0" in word]
    numbers = [int(slot.split(".")[0], 16) for slot in slots]
    assert len(set(numbers)) == len(numbers) == 6


def test_kvm_and_gdb() -> None:
    """gdb gets a socket and fixed addresses; KVM the host's processor and no excuses for slowness."""
    made = machine("edu", Accel.KVM, gdb=True, cpus=2, memory_mib=4096)
    made = dataclasses.replace(made, topology=dataclasses.replace(made.topology, kernel_args=("a=b c",)))
    text = shlex.join(made.argv(QEMU, PARTS, "c0ffee"))
    assert "-accel kvm -cpu host -smp 2 -m 4096M" in text
    assert "unix:gdb.sock" in text
    words = made.command_line(PARTS)
    assert "nokaslr" in words
    assert "no_timer_check" not in words
    assert words.endswith('"a=b c" ro virtme.exec=`eA==` init=/init')
    assert made.features == {"edu", "intx", "smp", "mem-4g"}


def test_too_little_memory() -> None:
    """A machine that cannot carry its topology is refused when it is described."""
    with pytest.raises(UsageError, match="needs 512 MiB, not 256"):
        machine("hotplug", memory_mib=256)
    with pytest.raises(UsageError, match="needs a processor"):
        machine("edu", cpus=0)


def test_too_many_shares() -> None:
    """A root cannot take more slots than are kept for it."""
    crowd = RootParts(devices=("virtio-9p-pci",) * 5)
    with pytest.raises(UsageError, match="needs 5 slots of 4"):
        machine("edu").argv(QEMU, crowd, "c0ffee")
