# SPDX-License-Identifier: GPL-2.0-only
"""Jobs for tests that boot nothing."""

from __future__ import annotations

from harness.kernel.arch import host_arch
from harness.machine.qemu import QemuNeed
from harness.machine.rootparts import RootRef
from harness.machine.topology import load_topology
from harness.plan import Job, KernelRef

KERNEL = KernelRef(
    digest="d" * 32,
    version="7.3.4",
    variant="group-cdev",
    tree="a tree",
    selftests=None,
    programs=("vfio/vfio_pci_device_test",),
)


def job(topology: str = "edu", *, features: tuple[str, ...] = ("edu",)) -> Job:
    """A job on *topology*, of a kernel that does not exist."""
    return Job(
        name=f"7.3.4-group-cdev-{topology}",
        arch=host_arch().name,
        kernel=KERNEL,
        topology=load_topology(topology),
        root=RootRef(name="virtme"),
        snapshots=False,
        accel="tcg",
        qemu=QemuNeed(),
        cpus=1,
        memory_mib=1024,
        suites=("probes", "kselftest:vfio"),
        features=features,
    )
