# SPDX-License-Identifier: GPL-2.0-only
"""From options to a Plan: opens the tree, provides the kernels, resolves machines, and keeps what went wrong.

A variant that cannot be built costs its own jobs only; the others go on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from harness import paths
from harness.errors import (
    ExitCode,
    HarnessError,
    InfraError,
    KernelError,
    NotApplicable,
    NotRefused,
    UsageError,
)
from harness.kernel.kconfig import Fragment, read_fragment
from harness.kernel.make import BuildProgress
from harness.kernel.selftests import failures, list_programs, sources
from harness.kernel.store import (
    Built,
    KernelPlan,
    build_kernel,
    has_selftests,
    plan_kernel,
    prove_blocked,
    provide_selftests,
)
from harness.kernel.trees import KernelTree, open_tree
from harness.kernel.variants import Variant, load_catalogue
from harness.machine.accel import Choice, choose_accel
from harness.machine.devices import Topology
from harness.machine.machine import Machine
from harness.machine.qemu import Qemu, find_qemu
from harness.machine.roots import find_root
from harness.machine.topology import SHIPPED as SHIPPED_TOPOLOGIES
from harness.machine.topology import load_topology
from harness.output import tell
from harness.plan import Job, KernelRef
from harness.results import KCONFIG_SUITE, Address, JobRecord, Outcome, Result
from harness.session.progress import build_progress
from harness.session.wishes import JobWish, KernelWish, MachineWish, line_of
from harness.suites.upstream import shipped_suites

DEFAULT_MEMORY_MIB = 1024
"""Enough for every probe; a selftest that needs more says so in kselftest-*.yaml."""


def open_wished_tree(wish: str | None) -> KernelTree:
    """The tree of `--tree`, or the default one."""
    return open_tree(wish)


def open_trees(
    specs: Sequence[str | None], pins: Mapping[str | None, str] = MappingProxyType({})
) -> dict[str | None, KernelTree | InfraError]:
    """Every tree, or why it could not be had: that of one must not cost the night of the others.

    *pins* say what stands for a spec that may mean another tree by now.

    Raises UsageError for one that is not there to be had, and InfraError when none could be.
    """
    trees: dict[str | None, KernelTree | InfraError] = {}
    for spec in specs:
        try:
            tree = open_wished_tree(pins.get(spec, spec))
        except InfraError as error:
            tell(f"tree: {line_of(spec)}: {error}")
            trees[spec] = error
        else:
            tell(f"tree: {tree.label} ({tree.path})")
            trees[spec] = tree
    troubles = [tree for tree in trees.values() if isinstance(tree, InfraError)]
    if len(troubles) == len(trees):
        raise troubles[0]
    return trees


def wished_variant(name: str) -> Variant:
    """The variant called *name*; UsageError names the nearest one."""
    return load_catalogue().variant(name)


def check_addons(names: Sequence[str]) -> None:
    """Refuse an add-on that does not exist."""
    for name in names:
        load_catalogue().addon(name)


def read_configs(paths: Sequence[Path]) -> tuple[Fragment, ...]:
    """The user's own fragments; UsageError names file and line of what is wrong in one."""
    return tuple(read_fragment(path) for path in paths)


def choose(machine: MachineWish, vmlinux: Path | None = None) -> tuple[Qemu, Choice]:
    """The QEMU and the accelerator; proven with *vmlinux* once there is one."""
    qemu = find_qemu(machine.qemu)
    return qemu, choose_accel(machine.accel, qemu, vmlinux)


def check_machine(machine: MachineWish, qemu: Qemu) -> Topology:
    """Refuse an impossible machine before anything is built for it."""
    topology = load_topology(machine.topology, qemu)
    find_root(machine.root)
    if machine.memory is not None and machine.memory < topology.min_memory:
        raise UsageError(
            f"topology {topology.name!r} needs {topology.min_memory} MiB of memory, not {machine.memory}"
        )
    return topology


def topology_in_results(wish: str) -> str:
    """What the results call the topology that `--topology` takes as *wish*: one series per content."""
    topology = load_topology(wish)
    return _by_content(topology.name, topology.path, SHIPPED_TOPOLOGIES)


def config_in_results(path: Path) -> str:
    """What the results call the fragment of `--config`."""
    return _by_content(path.name, path, paths.kconfigs_dir())


def _by_content(name: str, path: Path, shipped: Path) -> str:
    """*name*, and a digest of what is in *path* unless it is one of the *shipped*, which are known by name.

    Two files of one name would share their history otherwise.
    """
    if path.resolve().parent == shipped.resolve():
        return name
    return f"{name}@{hashlib.sha256(path.read_bytes()).hexdigest()[:6]}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What became of one wished kernel before it is built: its plan, or why there is none."""

    wish: KernelWish
    tree: KernelTree | None
    """None when it could not be had, which is the problem then."""
    plan: KernelPlan | None = None
    selftests: Path | None = None
    uncounted: bool = False
    """Whether its tree's selftests are wanted but not built, so that nobody knows which there are."""
    proof: Result | None = None
    """For a blocked variant: that Kconfig refuses no-IOMMU mode, or does not."""
    problem: HarnessError | None = None

    @property
    def is_built(self) -> bool:
        """Whether the store has it."""
        return self.plan is not None and self.plan.cached

    @property
    def is_never_built(self) -> bool:
        """Whether its variant is one that Kconfig must refuse."""
        return wished_variant(self.wish.variant).blocked

    @property
    def broken_suites(self) -> dict[str, str]:
        """Suite of the tree's own selftests -> why it does not compile."""
        found = failures(self.selftests) if self.selftests is not None else {}
        return {f"kselftest:{collection}": reason for collection, reason in found.items()}

    @property
    def tree_label(self) -> str:
        """What the tree is called, had or not."""
        return self.tree.label if self.tree is not None else line_of(self.wish.tree)

    @property
    def tree_identity(self) -> str:
        """Label and identity, as results tell of the tree."""
        return f"{self.tree_label} {self.tree.identity}" if self.tree is not None else self.tree_label

    def record(
        self,
        topology: str,
        job: Job | None,
        problem: HarnessError | None = None,
        suites: tuple[str, ...] = (),
    ) -> JobRecord:
        """How this kernel's job of *suites* on *topology* goes into the results.

        *problem* is one of its build.
        """
        problem = problem or self.problem
        tree = self.tree.version if self.tree is not None else slug(self.tree_label)
        name = "-".join(word for word in (tree, self.wish.variant, *self.wish.addons, topology) if word)
        return JobRecord(
            name=job.name if job else name,
            kernel=f"{job.kernel.version} {job.kernel.digest[:12]}" if job else "",
            variant=self.wish.variant,
            topology=topology,
            addons=(*self.wish.addons, *map(config_in_results, self.wish.configs)),
            tree=self.tree_identity,
            line=line_of(self.wish.tree),
            features=job.features if job else (),
            suites=suites,
            problem=str(problem) if problem else "",
            problem_code=problem.exit_code if problem else ExitCode.GOOD,
            applicable=not isinstance(problem, NotApplicable),
        )


def seat_of(wish: JobWish) -> str:
    """What the results will call the place of the job of *wish*, see JobRecord.seat; no tree is opened."""
    # That of a blocked variant is had without a machine.
    has_machine = not wished_variant(wish.kernel.variant).blocked
    topology = topology_in_results(wish.machine.topology) if has_machine else ""
    return Planned(wish=wish.kernel, tree=None).record(topology, None).seat


def slug(text: str) -> str:
    """*text* as part of a file's or a job's name."""
    return re.sub(r"[^\w.+~-]+", "-", text)


def kernel_ref(plan: KernelPlan, selftests: Path | None) -> KernelRef:
    """The Kernel of *plan* as a Job carries it."""
    programs = tuple(f"{p.collection}/{p.name}" for p in list_programs(selftests)) if selftests else ()
    tree = plan.tree
    return KernelRef(
        digest=plan.key,
        version=tree.version,
        variant=plan.variant.name,
        tree=tree.label,
        selftests_dir=os.fspath(selftests) if selftests else None,
        programs=programs,
        sources=sources(selftests) if selftests else {},
    )


def _memory(
    machine: MachineWish, topology: Topology, suites: Sequence[str], ref: KernelRef, features: frozenset[str]
) -> int:
    """MiB: what the user said, else the most that topology and suites ask for."""
    if machine.memory is not None:
        return machine.memory
    wanted = [DEFAULT_MEMORY_MIB, topology.min_memory]
    known = (shipped_suites()[name] for name in suites if name in shipped_suites())
    return max(*wanted, *(suite.memory_for(ref.programs, features) for suite in known))


def needs_selftests(suites: Iterable[str]) -> bool:
    """Whether one of *suites* consists of the tree's own selftests."""
    return any(suite in shipped_suites() and shipped_suites()[suite].is_compiled for suite in suites)


def make_job(planned: Planned, wish: JobWish, accel: Choice) -> Job:
    """The Job of *wish*, whose kernel is built or will be."""
    plan, machine = planned.plan, wish.machine
    assert plan is not None
    topology = load_topology(machine.topology)
    ref = kernel_ref(plan, planned.selftests)
    memory = _memory(machine, topology, wish.suites, ref, plan.features | topology.features)
    # A processor that the kernel does not know of would look like one that is lost.
    cpus = 1 if plan.config_plan.has_one_processor else machine.cpus
    value = Machine(
        vmlinux=plan.vmlinux,
        topology=topology,
        cpus=cpus,
        memory_mib=memory,
        accel=accel.accel,
        root=find_root(machine.root),
    )
    return Job(
        name="-".join([ref.version, wish.kernel.name, topology.name]),
        kernel=ref,
        topology=os.fspath(topology.path.absolute()) if topology.name != machine.topology else topology.name,
        root=machine.root,
        snapshots=machine.snapshots,
        accel=accel.accel.value,
        qemu=os.fspath(find_qemu(machine.qemu).path) if machine.qemu else None,
        cpus=cpus,
        memory_mib=memory,
        suites=wish.suites,
        features=tuple(sorted(plan.features | value.features)),
        rerun=shlex.join(["vfio-harness", "run", *wish.options()]),
    )


def plan_wished_kernel(
    tree: KernelTree, wish: KernelWish, *, with_selftests: bool, build: bool = True
) -> Planned:
    """Resolve and prove the configuration of *wish*, and build its tree's selftests, but not the kernel.

    Without *build* only selftests that are there already are taken.  KernelError and InfraError are kept, not
    raised: neither is about other kernels.
    """
    variant = wished_variant(wish.variant)
    try:
        if variant.blocked:
            return Planned(wish=wish, tree=tree, proof=_proof(tree, variant))
        plan = plan_kernel(tree, variant, wish.addons, read_configs(wish.configs))
        selftests = None
        uncounted = with_selftests and not build and not has_selftests(plan)
        if with_selftests and not uncounted:
            with build_progress(variant.name, sys.stderr) as progress:
                selftests = provide_selftests(plan, jobs=wish.compilers, progress=progress)
    except (KernelError, InfraError) as error:
        return Planned(wish=wish, tree=tree, problem=error)
    return Planned(wish=wish, tree=tree, plan=plan, selftests=selftests, uncounted=uncounted)


def tell_broken_suites(kernels: Iterable[Planned]) -> None:
    """Say which selftests do not compile, once for all of *kernels* that share them."""
    broken = dict.fromkeys(pair for planned in kernels for pair in planned.broken_suites.items())
    for suite, reason in broken:
        tell(f"{suite}: {reason}")


def build_planned(planned: Planned, check: Callable[[], None] = lambda: None) -> Built:
    """Get a planned kernel from the store or build it, for all to see; *check* may raise to end the build.

    Raises KernelError and InfraError.
    """
    assert planned.plan is not None
    with build_progress(planned.wish.variant, sys.stderr) as progress:

        def check_and_show(how_far: BuildProgress) -> None:
            check()
            progress(how_far)

        return build_kernel(planned.plan, jobs=planned.wish.compilers, progress=check_and_show)


def provide_job(wish: KernelWish, machine: MachineWish) -> Job:
    """One kernel on one machine, announced and ready to boot, for a verb that runs no suite.

    Raises UsageError for a variant that is never built, and whatever keeps the kernel or machine from being.
    """
    if wished_variant(wish.variant).blocked:
        raise UsageError(f"variant {wish.variant!r} is never built, so there is nothing to boot")
    qemu, choice = choose(machine)
    tell(f"accelerator: {choice.reason}")
    check_machine(machine, qemu)
    planned = plan_wished_kernel(open_wished_tree(wish.tree), wish, with_selftests=True)
    if planned.plan is None:
        assert planned.problem is not None
        raise planned.problem
    tell_broken_suites([planned])
    built = build_planned(planned)
    _, choice = choose(machine, built.vmlinux)
    return make_job(planned, JobWish(kernel=wish, machine=machine), choice)


def _proof(tree: KernelTree, variant: Variant) -> Result:
    """A blocked variant's one case: olddefconfig must leave no-IOMMU mode off, and say why."""
    address = Address(suite=KCONFIG_SUITE, program=variant.name, case="noiommu_is_refused")
    try:
        proof = prove_blocked(tree, variant)
    except NotRefused as error:
        return Result(address=address, job=variant.name, outcome=Outcome.FAIL, reason=str(error))
    asked = ", ".join(proof.asked)
    return Result(
        address=address, job=variant.name, outcome=Outcome.PASS, reason=f"{asked} stays off: {proof.reason}"
    )
