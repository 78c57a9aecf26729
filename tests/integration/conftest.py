# SPDX-License-Identifier: GPL-2.0-only
"""Integration tests build real kernels, once, since the store keeps them, and boot real VMs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.kernel.arch import host_arch
from harness.kernel.provide import Kernel, provide_kernel
from harness.kernel.trees import KernelTree, open_tree
from harness.kernel.variants import load_catalogue
from harness.machine.accel import Choice
from harness.machine.topology import arches_of, load_topology, read_topology, shipped_topologies
from harness.plan import Job
from harness.session.jobs import make_job
from harness.session.planning import choose, plan_wished_kernel
from harness.session.wishes import JobWish, KernelWish, MachineWish

TREE = "debian:7.3"

TOPOLOGIES = tuple(
    name for name in shipped_topologies() if host_arch().name in arches_of(read_topology(name))
)
"""The shipped topologies that machines of this host's architecture can have."""


@pytest.fixture(scope="session")
def tree() -> KernelTree:
    """The Linux 7.3 source that every integration test builds from."""
    return open_tree(TREE)


@pytest.fixture(scope="session")
def group_cdev(tree: KernelTree) -> Kernel:
    """The default variant's kernel."""
    return provide_kernel(tree, load_catalogue().variant("group-cdev"), compilers=(os.cpu_count() or 1) + 1)


@pytest.fixture(scope="session")
def machine_wish() -> MachineWish:
    """The smallest machine: one edu and 1 GiB of memory."""
    return MachineWish(topology="edu", accel="auto", root="image", cpus=2, memory=None, qemu=None)


@pytest.fixture(scope="session")
def accel(group_cdev: Kernel, machine_wish: MachineWish) -> Choice:
    """The accelerator that runs guests on this host."""
    return choose(machine_wish, host_arch().name, group_cdev.vmlinux)[1]


@pytest.fixture(scope="session")
def edu_job(tree: KernelTree, group_cdev: Kernel, machine_wish: MachineWish) -> Job:
    """group-cdev on the topology edu, with the VFIO selftests."""
    wish = KernelWish(tree=TREE, variant="group-cdev")
    planned = plan_wished_kernel(tree, wish, with_selftests=True)
    assert planned.is_built
    job_wish = JobWish(kernel=wish, machine=machine_wish, suites=("kselftest:vfio",))
    return make_job(planned, job_wish, load_topology(machine_wish.topology))


@pytest.fixture(scope="session", autouse=True)
def runs_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep runs made by tests out of the working directory."""
    directory = tmp_path_factory.mktemp("runs")
    os.environ["VFIO_HARNESS_RUNS"] = str(directory)
    return directory
