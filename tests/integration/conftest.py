# SPDX-License-Identifier: GPL-2.0-only
"""Integration tests build real kernels (once; the store keeps them) and boot real VMs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.kernel.store import Kernel, provide_kernel
from harness.kernel.trees import KernelTree, open_tree
from harness.kernel.variants import load_catalogue
from harness.machine.accel import Choice
from harness.plan import Job
from harness.session.planning import choose, make_job, plan_wished_kernel
from harness.session.wishes import JobWish, KernelWish, MachineWish

TREE = "debian:7.3"


@pytest.fixture(scope="session")
def tree() -> KernelTree:
    """The 7.3 source that every integration test builds from."""
    return open_tree(TREE)


@pytest.fixture(scope="session")
def group_cdev(tree: KernelTree) -> Kernel:
    """The default variant's kernel."""
    return provide_kernel(tree, load_catalogue().variant("group-cdev"), jobs=(os.cpu_count() or 1) + 1)


@pytest.fixture(scope="session")
def machine_wish() -> MachineWish:
    """The smallest machine: one edu, one gibibyte."""
    return MachineWish(topology="edu", accel="auto", root="image", cpus=2, memory=None, qemu=None)


@pytest.fixture(scope="session")
def accel(group_cdev: Kernel, machine_wish: MachineWish) -> Choice:
    """What this host can run guests with."""
    return choose(machine_wish, group_cdev.vmlinux)[1]


@pytest.fixture(scope="session")
def edu_job(tree: KernelTree, group_cdev: Kernel, machine_wish: MachineWish, accel: Choice) -> Job:
    """group-cdev on the topology edu, with the vfio selftests' suite."""
    wish = KernelWish(tree=TREE, variant="group-cdev")
    planned = plan_wished_kernel(tree, wish, with_selftests=True)
    assert planned.is_built
    return make_job(planned, JobWish(kernel=wish, machine=machine_wish, suites=("kselftest:vfio",)), accel)


@pytest.fixture(scope="session", autouse=True)
def runs_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs made by tests do not end up in the working directory."""
    directory = tmp_path_factory.mktemp("runs")
    os.environ["VFIO_HARNESS_RUNS"] = str(directory)
    return directory
