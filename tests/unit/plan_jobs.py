# SPDX-License-Identifier: GPL-2.0-only
"""Jobs for tests that boot nothing."""

from __future__ import annotations

from harness.plan import Job, KernelRef

KERNEL = KernelRef(
    digest="d" * 32,
    version="7.3.4",
    variant="group-cdev",
    tree="a tree",
    selftests_dir=None,
    programs=("vfio/vfio_pci_device_test",),
)


def job(topology: str = "edu", *, features: tuple[str, ...] = ("edu",)) -> Job:
    """A job on *topology*, of a kernel that does not exist."""
    return Job(
        name=f"7.3.4-group-cdev-{topology}",
        kernel=KERNEL,
        topology=topology,
        root="virtme",
        snapshots=False,
        accel="tcg",
        qemu=None,
        cpus=1,
        memory_mib=1024,
        suites=("probes", "kselftest:vfio"),
        features=features,
        rerun="vfio-harness run",
    )
