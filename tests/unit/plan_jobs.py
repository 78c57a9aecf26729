# SPDX-License-Identifier: GPL-2.0-only
"""Jobs for tests that boot nothing."""

from __future__ import annotations

from harness.plan import Job, KernelRef

KERNEL = KernelRef(
    digest="d" * 32,
    release="7.3.4",
    build_id="ab" * 20,
    variant="group-cdev",
    tree="a tree",
    vmlinux="/nonexistent/vmlinux",
    config="/nonexistent/config",
    modules_dir=None,
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
