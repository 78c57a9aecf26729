# SPDX-License-Identifier: GPL-2.0-only
"""Make a Job from a planned kernel and a requested machine."""

from __future__ import annotations

import contextlib
import itertools
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

from harness.base import paths
from harness.base.errors import InfraError, UsageError
from harness.base.output import tell
from harness.kernel.arch import Arch, find_arch
from harness.kernel.ready import ReadyKernel
from harness.kernel.selftests import features, list_programs, sources
from harness.kernel.trees import open_tree
from harness.machine.devices import Topology
from harness.machine.machine import machine_features
from harness.machine.qemu import QemuNeed
from harness.machine.rootparts import RootRef
from harness.machine.roots import find_root
from harness.plan import Job, KernelRef, Own
from harness.session.own import NOTHING, take, with_own
from harness.session.planning import (
    PlannedKernel,
    build_planned,
    check_job,
    check_machine,
    choose,
    is_blocked,
    plan_wished_kernel,
    tell_broken_suites,
)
from harness.session.wishes import Conduct, JobWish, KernelWish, MachineWish, OwnWish
from harness.suites.registry import chosen_suites

DEFAULT_MEMORY_MIB = 1024
"""Guest memory that is enough for every probe; a selftest that needs more says so in kselftest-*.yaml."""


def kernel_ref(planned: PlannedKernel) -> KernelRef:
    """Return the kernel of *planned*, which has a plan, as it is in a Job."""
    plan, tree, selftests = planned.plan, planned.tree, planned.selftests
    assert plan is not None
    assert tree is not None
    programs = tuple(f"{p.collection}/{p.name}" for p in list_programs(selftests)) if selftests else ()
    return KernelRef(
        digest=plan.key,
        version=tree.version,
        variant=planned.wish.variant,
        tree=tree.label,
        selftests=selftests.name if selftests else None,
        programs=programs,
        sources=sources(selftests) if selftests else {},
        selftest_features=features(selftests) if selftests else (),
    )


def _memory(
    machine: MachineWish,
    topology: Topology,
    suites: Sequence[str],
    ref: KernelRef,
    features: frozenset[str],
    least: int,
) -> int:
    """Return the MiB of --memory, else the most that topology and suites need.

    Raises UsageError when --memory is less than *least*, which the kernel needs.
    """
    if machine.memory is not None:
        if machine.memory < least:
            raise UsageError(f"--memory {machine.memory}: this kernel needs {least} MiB of guest memory")
        return machine.memory
    wanted = [DEFAULT_MEMORY_MIB, topology.min_memory, least]
    return max(*wanted, *(suite.memory(ref.programs, features) for suite in chosen_suites(suites)))


def make_job(planned: PlannedKernel, wish: JobWish, topology: Topology) -> Job:
    """Return the Job of *wish* on *topology*; its kernel is built or will be."""
    plan, machine = planned.plan, wish.machine
    assert plan is not None
    ref = kernel_ref(planned)
    least = plan.memory_mib if isinstance(plan, ReadyKernel) else 0
    memory = _memory(machine, topology, wish.suites, ref, plan.features | topology.features, least)
    # A vCPU that the kernel does not use would look like a lost one.
    cpus = 1 if plan.has_one_processor else machine.cpus
    return Job(
        name="-".join([ref.version, wish.kernel.name, topology.name]),
        arch=plan.arch.name,
        kernel=ref,
        topology=topology,
        root=_root_ref(machine.root, plan.arch),
        snapshots=machine.snapshots,
        accel=machine.accel,
        qemu=QemuNeed(devices=tuple(dict.fromkeys(device.driver for device in topology.devices))),
        cpus=cpus,
        memory_mib=memory,
        suites=wish.suites,
        own=planned.own.get(wish.own, Own()),
        features=tuple(sorted(_features(plan.features, topology, plan.arch, cpus, memory))),
    )


def distinct_name(name: str, label: str, taken: Collection[str]) -> str:
    """Return the *name* of a job, with the *label* of its tree if that is *taken*.

    Trees may have one version, and worktrees of one commit one label as well.
    """
    longer = (f"{label}-{number}-{name}" for number in itertools.count(2))
    return next(one for one in itertools.chain((name, f"{label}-{name}"), longer) if one not in taken)


def _features(
    kernel: frozenset[str], topology: Topology, arch: Arch, cpus: int, memory_mib: int
) -> frozenset[str]:
    machine = machine_features(topology, arch, cpus=cpus, memory_mib=memory_mib)
    # The BARs of QEMU's virtual functions are smaller than such a page (drivers/pci/iov.c sriov_init()).
    return kernel | (machine - {"sriov"} if "64k-pages" in kernel else machine)


def _root_ref(name: str, arch: Arch) -> RootRef:
    """Return the root *name* with the disks that this host makes for *arch*; without any if it cannot.

    The host that boots then reports what is missing.
    """
    with contextlib.suppress(InfraError):
        return RootRef(name=name, disks=find_root(name, arch).disks(paths.guest_dir()))
    return RootRef(name=name)


def rerun_command(wish: JobWish, conduct: Conduct, known_issues: Sequence[Path]) -> str:
    """Return the command that reruns the job of *wish* on this host, and judges its cases as *conduct* does.

    *known_issues* are the user's lists that count.
    """
    return shlex.join(["vfio-harness", "run", *wish.options(), *conduct.options(known_issues)])


def provide_job(wish: KernelWish, machine: MachineWish, own: OwnWish = NOTHING.wish) -> Job:
    """Build a kernel and return its Job on *machine* with *own* programs, for a verb that runs no suite.

    Raises UsageError for a variant that is never built and for a program that guests cannot run, and the
    errors of the kernel and the machine.
    """
    if is_blocked(wish):
        raise UsageError(f"variant {wish.variant!r} is never built, so there is nothing to boot")
    qemu, choice = choose(machine, wish.arch)
    tell(f"accelerator: {choice.reason}")
    topology = check_machine(machine, qemu)
    taken = take(own, machine.root, find_arch(wish.arch))
    tree = open_tree(wish.tree) if wish.ready is None else None
    tests = open_tree(wish.selftests) if wish.selftests is not None else None
    planned = plan_wished_kernel(tree, wish, tests=tests, with_selftests=True)
    planned = with_own(planned, [taken])
    if planned.plan is None:
        assert planned.problem is not None
        raise planned.problem
    check_job(planned, machine.root, topology)
    tell_broken_suites([planned])
    job = make_job(planned, JobWish(kernel=wish, machine=machine, own=own), topology)
    for program in job.own.programs:
        if program.problem:
            raise UsageError(program.problem)
    build_planned(planned)
    return job
