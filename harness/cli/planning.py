# SPDX-License-Identifier: GPL-2.0-only
"""From options to a Plan: opens the tree, provides the kernels, resolves machines, and keeps what went wrong.

A variant that cannot be built costs its own jobs only; the others go on.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.cli.options import DEFAULT_CPUS, DEFAULT_SUITES
from harness.cli.output import tell
from harness.errors import ExitCode, KernelError, NotApplicable, UsageError
from harness.kernel.kconfig import Fragment, read_fragment
from harness.kernel.selftests import list_programs
from harness.kernel.store import Kernel, prove_blocked, provide_kernel
from harness.kernel.trees import DEFAULT_SPEC, KernelTree, is_linux, open_tree
from harness.kernel.variants import Variant, load_catalogue
from harness.machine.accel import Choice, choose_accel
from harness.machine.devices import Topology
from harness.machine.machine import Machine
from harness.machine.qemu import Qemu, find_qemu
from harness.machine.roots import DEFAULT_ROOT, find_root
from harness.machine.topology import load_topology
from harness.plan import Job, KernelRef
from harness.results import Address, JobRecord, Outcome, Result
from harness.suites.kselftest import shipped_suites
from harness.suites.manifest import source_digest

DEFAULT_MEMORY_MIB = 1024
"""Enough for every probe; a selftest that needs more says so in kselftest-*.yaml."""


DEFAULT_SEED = 1


def default_tree() -> str:
    """What `--tree` would have had to say for the tree that is taken without it."""
    return os.fspath(Path.cwd()) if is_linux(Path.cwd()) else DEFAULT_SPEC


def line_of(spec: str | None) -> str:
    """The line of development that `--tree SPEC` names; a directory by its absolute path."""
    spec = spec or default_tree()
    if spec.startswith("debian:"):
        return spec
    path, at, ref = (spec, "", "") if Path(spec).exists() else spec.rpartition("@")
    return f"{Path(path).absolute()}{at}{ref}" if path else spec


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KernelWish:
    """Which kernel a verb was asked for."""

    tree: str | None
    variant: str
    addons: tuple[str, ...] = ()
    configs: tuple[Path, ...] = ()
    jobs: int | None = None
    seed: int = DEFAULT_SEED

    def options(self) -> list[str]:
        """The options that say it again."""
        words = ["--tree", self.tree or default_tree(), "--variant", self.variant]
        words += [word for addon in self.addons for word in ("--with", addon)]
        words += [word for config in self.configs for word in ("--config", os.fspath(config.absolute()))]
        words += ["--seed", str(self.seed)] if self.seed != DEFAULT_SEED else []
        return words


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MachineWish:
    """Which machine a verb was asked for."""

    topology: str
    accel: str = "auto"
    root: str = DEFAULT_ROOT
    cpus: int = DEFAULT_CPUS
    memory: int | None = None
    qemu: str | None = None
    snapshots: bool = True

    @property
    def kind(self) -> str:
        """What decides which cases apply, beside the topology and the root."""
        return f"{self.cpus} processors, {self.memory or 'default'} MiB"

    def options(self) -> list[str]:
        """The options that say it again, defaults left out."""
        is_file = "/" in self.topology or self.topology.endswith((".yaml", ".yml"))
        words = ["--topology", os.fspath(Path(self.topology).absolute()) if is_file else self.topology]
        if self.accel != "auto":
            words += ["--accel", self.accel]
        if self.root != DEFAULT_ROOT:
            words += ["--root", self.root]
        if self.cpus != DEFAULT_CPUS:
            words += ["--cpus", str(self.cpus)]
        if self.memory is not None:
            words += ["--memory", str(self.memory)]
        if not self.snapshots:
            words.append("--no-snapshots")
        if self.qemu is not None:
            words += ["--qemu", os.fspath(find_qemu(self.qemu).path)]
        return words


def open_wished_tree(wish: str | None) -> KernelTree:
    """The tree of `--tree`, or the default one."""
    return open_tree(wish)


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


def kernel_ref(kernel: Kernel, tree: KernelTree) -> KernelRef:
    """The Kernel as a Job carries it."""
    programs = list_programs(kernel.selftests) if kernel.selftests else ()
    paths = tuple(f"{p.collection}/{p.name}" for p in programs)
    return KernelRef(
        digest=kernel.digest,
        release=kernel.release,
        build_id=kernel.build_id,
        variant=kernel.variant,
        tree=kernel.tree_label,
        vmlinux=os.fspath(kernel.vmlinux),
        config=os.fspath(kernel.config),
        modules_dir=os.fspath(kernel.modules_dir) if kernel.modules_dir else None,
        selftests_dir=os.fspath(kernel.selftests) if kernel.selftests else None,
        programs=paths,
        sources={path: digest for path in paths if (digest := source_digest(tree.path, path))},
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


def make_job(
    kernel: Kernel,
    tree: KernelTree,
    wish: KernelWish,
    machine: MachineWish,
    accel: Choice,
    suites: tuple[str, ...],
) -> Job:
    """The Job of one kernel on one topology."""
    topology = load_topology(machine.topology)
    ref = kernel_ref(kernel, tree)
    memory = _memory(machine, topology, suites, ref, kernel.features | topology.features)
    value = Machine(
        vmlinux=kernel.vmlinux,
        modules_dir=kernel.modules_dir,
        topology=topology,
        cpus=machine.cpus,
        memory_mib=memory,
        accel=accel.accel,
        root=find_root(machine.root),
    )
    extra = [word for suite in suites for word in ("--suite", suite)] if suites != DEFAULT_SUITES else []
    return Job(
        name="-".join([kernel.release, kernel.variant, *wish.addons, topology.name]),
        kernel=ref,
        topology=os.fspath(topology.path.absolute()) if topology.name != machine.topology else topology.name,
        root=machine.root,
        snapshots=machine.snapshots,
        accel=accel.accel.value,
        qemu=os.fspath(find_qemu(machine.qemu).path) if machine.qemu else None,
        cpus=machine.cpus,
        memory_mib=memory,
        suites=suites,
        features=tuple(sorted(kernel.features | value.features)),
        rerun=shlex.join(["vfio-harness", "run", *wish.options(), *machine.options(), *extra]),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Provided:
    """What became of one wished kernel: it, or why there is none."""

    wish: KernelWish
    kernel: Kernel | None = None
    proof: Result | None = None
    """For a blocked variant: that Kconfig refuses no-IOMMU mode, or does not."""
    problem: KernelError | None = None
    tree: str = ""
    """Identity of the source."""

    def record(self, topology: str, job: Job | None) -> JobRecord:
        """How this kernel's job on *topology* goes into the results."""
        identity = JobRecord(
            name=f"{self.wish.variant}-{topology}" if topology else self.wish.variant,
            variant=self.wish.variant,
            topology=topology,
            addons=(*self.wish.addons, *(config.name for config in self.wish.configs)),
            tree=self.tree,
            line=line_of(self.wish.tree),
        )
        if job is not None and self.kernel is not None:
            kernel = f"{self.kernel.release} {self.kernel.digest[:12]}"
            return dataclasses.replace(identity, name=job.name, kernel=kernel, features=job.features)
        return dataclasses.replace(
            identity,
            problem=str(self.problem) if self.problem else "",
            problem_code=self.problem.exit_code if self.problem else ExitCode.GOOD,
            applicable=not isinstance(self.problem, NotApplicable),
        )


def provide(tree: KernelTree, wish: KernelWish) -> Provided:
    """Get the kernel of *wish* from the store or build it; a KernelError is kept, not raised."""
    from harness.cli.progress import build_progress

    variant = wished_variant(wish.variant)
    identity = f"{tree.label} {tree.identity}"
    if variant.blocked:
        return Provided(wish=wish, proof=_proof(tree, variant), tree=identity)
    with build_progress(variant.name, sys.stderr) as progress:
        try:
            kernel = provide_kernel(
                tree,
                variant,
                wish.addons,
                read_configs(wish.configs),
                jobs=wish.jobs or (os.cpu_count() or 1) + 1,
                progress=progress,
            )
        except KernelError as error:
            return Provided(wish=wish, problem=error, tree=identity)
    return Provided(wish=wish, kernel=kernel, tree=identity)


def provide_job(wish: KernelWish, machine: MachineWish) -> Job:
    """One kernel on one machine, announced and ready to boot, for a verb that runs no suite.

    Raises UsageError for a variant that is never built, and whatever keeps the kernel or machine from being.
    """
    if wished_variant(wish.variant).blocked:
        raise UsageError(f"variant {wish.variant!r} is never built, so there is nothing to boot")
    qemu, choice = choose(machine)
    tell(f"accelerator: {choice.reason}")
    check_machine(machine, qemu)
    tree = open_wished_tree(wish.tree)
    provided = provide(tree, wish)
    if provided.kernel is None:
        assert provided.problem is not None
        raise provided.problem
    _, choice = choose(machine, provided.kernel.vmlinux)
    return make_job(provided.kernel, tree, wish, machine, choice, ())


def _proof(tree: KernelTree, variant: Variant) -> Result:
    """A blocked variant's one case: olddefconfig must leave no-IOMMU mode off, and say why."""
    address = Address(suite="kconfig", program=variant.name, case="noiommu_is_refused")
    try:
        proof = prove_blocked(tree, variant)
    except NotApplicable as error:
        return Result(address=address, job=variant.name, outcome=Outcome.FAIL, reason=str(error))
    asked = ", ".join(proof.asked)
    return Result(
        address=address, job=variant.name, outcome=Outcome.PASS, reason=f"{asked} stays off: {proof.reason}"
    )
