# SPDX-License-Identifier: GPL-2.0-only
"""Open trees, check machines, configure and build one kernel; what goes wrong with it is kept as a value."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TextIO

from harness.base import paths
from harness.base.errors import (
    ExitCode,
    HarnessError,
    HostError,
    InfraError,
    KernelError,
    NotApplicable,
    NotRefused,
    UsageError,
)
from harness.base.host import total_mib
from harness.base.output import tell
from harness.base.words import duration
from harness.kernel import gittree
from harness.kernel.arch import Arch, find_arch
from harness.kernel.commits import provide_commits
from harness.kernel.kconfig import read_fragment
from harness.kernel.make import BuildProgress, Progress
from harness.kernel.plan import KernelPlan, plan_kernel, prove_blocked
from harness.kernel.provide import build_kernel, plan_selftests, provide_selftests
from harness.kernel.ready import UNNAMED, ReadyKernel, hand_in, open_ready
from harness.kernel.required import require_small_blocks, require_symbols, unwatched
from harness.kernel.selftests import failures
from harness.kernel.store import Built
from harness.kernel.toolchain import Toolchain, find_toolchain
from harness.kernel.trees import KernelTree, TreeKind, open_tree
from harness.kernel.variants import Variant, load_catalogue
from harness.lab.artefacts import Artefact, BuildOrder
from harness.machine.accel import Choice, choose_accel
from harness.machine.devices import Topology
from harness.machine.qemu import Qemu, find_qemu
from harness.machine.roots import find_root
from harness.machine.topology import load_topology, read_topology, topology_in_results
from harness.plan import Job, Own
from harness.results import KCONFIG_SUITE, Address, JobRecord, Outcome, Result
from harness.session.wishes import JobWish, KernelWish, MachineWish, OwnWish, ReadyWish, line_of
from harness.suites.registry import all_suites, chosen_suites


def open_trees(
    specs: Sequence[str | None], pins: Mapping[str | None, str] = MappingProxyType({})
) -> dict[str | None, KernelTree | InfraError]:
    """Return for each of *specs* its tree, or the InfraError with which opening it failed.

    *pins* maps specs that may have moved to what to open instead.
    Raises UsageError for a tree that does not exist, and InfraError when none could be opened.
    """
    trees: dict[str | None, KernelTree | InfraError] = {}
    for spec in specs:
        try:
            tree = open_tree(pins.get(spec, spec))
        except InfraError as error:
            if len(specs) == 1:
                raise
            tell(f"tree: {line_of(spec)}: {error}")
            trees[spec] = error
        else:
            place = (spec or Path.cwd()) if tree.checkout else tree.path
            tell(f"tree: {tree.label} ({place})")
            trees[spec] = tree
    troubles = [tree for tree in trees.values() if isinstance(tree, InfraError)]
    if troubles and len(troubles) == len(trees):
        raise troubles[0]
    return trees


def take_ready(wish: KernelWish) -> KernelWish:
    """Copy the finished kernel of *wish* into the store; return *wish* with its digest, variant and add-ons.

    Without such a kernel *wish* is unchanged.

    Raises UsageError and InfraError as harness.kernel.ready.hand_in().
    """
    if wish.ready is None:
        return wish
    path = paths.expanded(wish.ready.kernel)
    found = open_ready(hand_in(wish.ready.kernel, wish.ready.modules, wish.ready.config))
    origin = os.fspath(path.absolute()) if path.exists() else found.label
    like = f"configured like {found.variant!r}" if found.variant != UNNAMED else "configured like no variant"
    if wish.ready.arch not in ("", found.arch.name):
        raise UsageError(
            f"--kernel {origin} is for {found.arch.name}, not for {wish.ready.arch}",
            hint=f"leave --arch out, or give a kernel for {wish.ready.arch}",
        )
    tell(f"kernel: {origin} is {found.built.release} {found.key[:12]}, {like}")
    lacks = unwatched(found.config, found.arch)
    if lacks:
        more = f" and {len(lacks) - 5} more" if len(lacks) > 5 else ""
        named = ", ".join(f"CONFIG_{symbol}" for symbol in lacks[:5])
        tell(f"kernel: it lacks {named}{more}: cases that need them may fail")
    ready = ReadyWish(kernel=origin, digest=found.key)
    return dataclasses.replace(
        wish, variant=found.variant, addons=found.addons, arch=found.arch.name, ready=ready
    )


def runnable(wish: KernelWish, suites: tuple[str, ...], *, strict: bool = False) -> tuple[str, ...]:
    """Return those of *suites* that can run on the kernel of *wish*, and say which cannot.

    A finished kernel has no source for selftests.  Raises UsageError when none is left, or with *strict* when
    one cannot.
    """
    if wish.ready is None or wish.selftests is not None:
        return suites
    left = tuple(name for name in suites if not needs_selftests((name,)))
    if left != suites:
        gone = ", ".join(name for name in suites if name not in left)
        why = f"{gone}: a finished kernel comes without the source of its selftests"
        hint = "give a source for them: --selftests TREE"
        if strict or not left:
            raise UsageError(why, hint=hint)
        tell(f"{why}, so they are not run ({hint})")
    return left


def check_kernel(wish: KernelWish) -> None:
    """Refuse a variant or add-on that does not exist, and a fragment of the user's that cannot be read."""
    if wish.ready is not None:
        return
    catalogue = load_catalogue()
    catalogue.variant(wish.variant)
    for name in wish.addons:
        catalogue.addon(name).check(find_arch(wish.arch))
    for path in wish.configs:
        read_fragment(path)
    find_toolchain(wish.toolchain)


def choose(machine: MachineWish, arch: str, image: Path | None = None) -> tuple[Qemu, Choice]:
    """Return the QEMU and the accelerator for guests of *arch*; it is proven with *image* if given."""
    qemu = find_qemu(machine.qemu, find_arch(arch))
    return qemu, choose_accel(machine.accel, qemu, image)


def choose_all(
    machine: MachineWish, arches: Sequence[str]
) -> tuple[dict[str, tuple[Qemu, Choice]], dict[str, InfraError]]:
    """Return choose() for each of *arches*, and why this host can run no guest of the others.

    Raises InfraError if it can run none of them.
    """
    chosen: dict[str, tuple[Qemu, Choice]] = {}
    lacking: dict[str, InfraError] = {}
    for arch in arches:
        try:
            chosen[arch] = choose(machine, arch)
        except UsageError as error:
            # The QEMU that was named is that of another architecture.
            if len(arches) == 1:
                raise
            lacking[arch] = HostError(error.message, hint=error.hint)
        except InfraError as error:
            lacking[arch] = error
        else:
            announce(chosen[arch][1], arch)
    if not chosen:
        raise next(iter(lacking.values()))
    for arch, reason in lacking.items():
        tell(f"jobs of {arch} guests will not run: {reason}")
    return chosen, lacking


def announce(choice: Choice, arch: str) -> None:
    """Print which accelerator guests of *arch* get."""
    factor = choice.accel.timeout_factor
    scaled = f"; timeouts x{factor:g}" if factor != 1 else ""
    label = find_arch(arch).label
    tell(f"accelerator{f' of {label} guests' if label else ''}: {choice.reason}{scaled}")


def check_machine(machine: MachineWish, qemu: Qemu) -> Topology:
    """Return the topology of *machine*, after refusing what *qemu* and the topology cannot do."""
    topology = load_topology(machine.topology, qemu)
    find_root(machine.root, qemu.arch)
    if machine.memory is not None and machine.memory < topology.min_memory:
        raise UsageError(
            f"topology {topology.name!r} needs {topology.min_memory} MiB of memory, not {machine.memory}"
        )
    if machine.memory is not None and 0 < total_mib() < machine.memory:
        raise UsageError(f"--memory {machine.memory}: this host has {total_mib()} MiB of memory")
    return topology


def config_in_results(path: Path) -> str:
    """Return the name of the `--config` fragment *path* in the results."""
    if path.resolve().parent == paths.kconfigs_dir().resolve():
        return path.name
    # Otherwise two files of the same name would share their history.
    return f"{path.name}@{hashlib.sha256(path.read_bytes()).hexdigest()[:6]}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlannedKernel:
    """A kernel before it is built: its plan, or a proof or problem instead."""

    wish: KernelWish
    tree: KernelTree | ReadyKernel | None
    """The tree, or what stands for it; None when it could not be opened, and `problem` says why."""
    plan: KernelPlan | ReadyKernel | None = None
    selftests: Path | None = None
    uncounted: bool = False
    """Whether the selftests of its tree are wanted but not built, so that they cannot be counted."""
    tests: KernelTree | None = None
    """The tree of `--selftests`."""
    own: Mapping[OwnWish, Own] = dataclasses.field(default_factory=dict)
    """What the user brought along for its jobs."""
    proof: Result | None = None
    """The result of a blocked variant's one case: that Kconfig refuses no-IOMMU mode."""
    problem: HarnessError | None = None

    @property
    def is_built(self) -> bool:
        """Whether the store has it."""
        return self.plan is not None and self.plan.cached

    def order(self, *, travels: bool) -> BuildOrder | None:
        """Return how another process builds it; None for a finished kernel.

        If it *travels*, the source is packed for hosts that do not have it.  Raises SourceError.
        """
        if not isinstance(self.plan, KernelPlan):
            return None
        tree = self.plan.tree
        order = BuildOrder(
            commit=tree.checkout,
            digest=self.plan.key,
            tree=str(self.pinned.absolute().tree),
            variant=self.wish.variant,
            addons=self.wish.addons,
            fragments=tuple(map(read_fragment, self.wish.configs)),
            toolchain=self.wish.toolchain,
            arch=self.plan.arch.name,
            built_with=str(self.plan.built_with),
            profile=bool(self.plan.config_plan.profile),
        )
        if not travels or not order.may_travel or tree.repository is None or not tree.checkout:
            return order
        tell(f"packing {tree.label} for the fleet")
        source = provide_commits(gittree.provide_mirror(tree.repository), [tree.checkout])
        return dataclasses.replace(order, source=Artefact.of(source))

    @property
    def is_never_built(self) -> bool:
        """Whether its variant is one that Kconfig must refuse."""
        return is_blocked(self.wish)

    @property
    def broken_suites(self) -> dict[str, str]:
        """Suite of the tree's own selftests -> why it does not compile."""
        found = failures(self.selftests) if self.selftests is not None else {}
        return {suite.name: found[suite.selftests] for suite in all_suites() if suite.selftests in found}

    @property
    def tree_label(self) -> str:
        """The name of the tree, for people."""
        return self.tree.label if self.tree is not None else self.wish.line

    @property
    def pinned(self) -> KernelWish:
        """Return this wish with trees that always open these sources, even if a ref moves."""
        wish = self.wish
        if isinstance(self.tree, KernelTree):
            wish = wish.of_tree(pinned_spec(self.tree, wish.tree))
        tests = pinned_spec(self.tests, wish.selftests) if self.tests is not None else wish.selftests
        return dataclasses.replace(wish, selftests=tests)

    @property
    def tree_identity(self) -> str:
        """Label and identity of the tree, as in the results."""
        return f"{self.tree_label} {self.tree.identity}" if self.tree is not None else self.tree_label

    def record(
        self,
        topology: str,
        job: Job | None,
        problem: HarnessError | None = None,
        suites: tuple[str, ...] = (),
    ) -> JobRecord:
        """Return the results' record of its job of *suites* on *topology*; *problem* is one of its build."""
        problem = problem or self.problem
        tree = self.tree.version if self.tree is not None else slug(self.tree_label)
        name = "-".join(word for word in (tree, self.wish.name, topology) if word)
        return JobRecord(
            name=job.name if job else name,
            kernel=f"{job.kernel.version} {job.kernel.digest[:12]}" if job else "",
            variant=self.wish.variant,
            topology=topology,
            addons=(*self.wish.addons, *map(config_in_results, self.wish.configs)),
            toolchain=find_toolchain(self.wish.toolchain).label,
            compiler=self.plan.built_with.compiler if self.plan is not None else "",
            tree=self.tree_identity,
            exact_tree=self.tree.exact if self.tree is not None else "",
            commit=self.tree.checkout if isinstance(self.tree, KernelTree) else "",
            line=self.wish.line,
            features=job.features if job else (),
            suites=suites,
            problem=str(problem) if problem else "",
            problem_code=problem.exit_code if problem else ExitCode.GOOD,
            cause=problem.cause if problem else None,
            arch=self.wish.arch,
            cross=find_arch(self.wish.arch).label,
            applicable=not isinstance(problem, NotApplicable),
        )


def pinned_spec(tree: KernelTree, spec: str | None) -> str | None:
    """Return a spec that always opens the source of *tree*, which *spec* opened."""
    if tree.kind is TreeKind.REF and not tree.exact:
        return f"{tree.repository}@{tree.commit}"
    return tree.exact or spec


def is_blocked(wish: KernelWish) -> bool:
    """Whether the kernel of *wish* is never built, because its variant is one that Kconfig must refuse."""
    return wish.ready is None and load_catalogue().variant(wish.variant).blocked


def cell_of(wish: JobWish) -> str:
    """Return JobRecord.cell of the job of *wish*, without opening a tree."""
    # The job of a blocked variant has no machine.
    topology = "" if is_blocked(wish.kernel) else topology_in_results(read_topology(wish.machine.topology))
    return PlannedKernel(wish=wish.kernel, tree=None).record(topology, None).cell


def slug(text: str) -> str:
    """Return *text* as part of the name of a file or a job."""
    return re.sub(r"[^\w.+~-]+", "-", text)


def needs_selftests(suites: Iterable[str]) -> bool:
    """Return whether one of *suites* needs selftests to be built from the tree."""
    return any(suite.selftests for suite in chosen_suites(tuple(suites)))


def plan_wished_kernel(
    tree: KernelTree | None,
    wish: KernelWish,
    *,
    tests: KernelTree | None = None,
    with_selftests: bool,
    build: bool = True,
) -> PlannedKernel:
    """Resolve and prove the configuration of *wish*, and build the selftests, but not the kernel.

    *tree* is None for a finished kernel; *tests* is the tree of `--selftests`.  Without *build* selftests
    that are not built yet are left out.  KernelError and InfraError are returned as the problem, because
    neither is about other kernels.
    """
    source: KernelTree | ReadyKernel | None = tree
    plan: KernelPlan | ReadyKernel
    toolchain, arch = find_toolchain(wish.toolchain), find_arch(wish.arch)
    try:
        if wish.ready is not None:
            plan = source = open_ready(wish.ready.digest, wish.ready.kernel)
        else:
            assert tree is not None
            variant = load_catalogue().variant(wish.variant)
            if variant.blocked:
                return PlannedKernel(wish=wish, tree=tree, proof=_proof(tree, variant, toolchain, arch))
            fragments = tuple(map(read_fragment, wish.configs))
            plan = plan_kernel(tree, variant, wish.addons, fragments, toolchain=toolchain, arch=arch)
        selftests, uncounted = None, False
        if with_selftests and (of := tests or tree) is not None:
            wanted = plan_selftests(plan, of, headers=tree or of, toolchain=toolchain)
            uncounted = not build and not wanted.cached
            if not uncounted:
                with build_progress(wish.name, sys.stderr) as progress:
                    selftests = provide_selftests(wanted, compilers=wish.compilers, progress=progress)
    except (KernelError, InfraError) as error:
        return PlannedKernel(wish=wish, tree=source, tests=tests, problem=error)
    return PlannedKernel(
        wish=wish, tree=source, tests=tests, plan=plan, selftests=selftests, uncounted=uncounted
    )


def check_job(planned: PlannedKernel, root: str, topology: Topology) -> None:
    """Refuse a kernel that lacks what a guest with *root* or *topology* cannot do without.

    A kernel that the harness configures has the symbols.  Raises KernelError, NotApplicable when only this
    topology or this size of pages is out of its reach.
    """
    plan = planned.plan
    if plan is not None:
        version = plan.version if isinstance(plan, ReadyKernel) else plan.tree.version
        require_small_blocks(plan.config, plan.arch, version, root)
    if isinstance(plan, ReadyKernel):
        require_symbols(
            plan.config,
            plan.arch,
            has_modules=plan.built.modules_dir is not None,
            root=root,
            features=topology.features,
            iommu=topology.iommu,
        )


def tell_broken_suites(kernels: Iterable[PlannedKernel]) -> None:
    """Print which selftests do not compile, once for all of *kernels* that share them."""
    broken = dict.fromkeys(pair for planned in kernels for pair in planned.broken_suites.items())
    for suite, reason in broken:
        tell(f"{suite}: {reason}")


def build_planned(planned: PlannedKernel, check: Callable[[], None] = lambda: None) -> Built:
    """Return a kernel from the store, or build it and show the progress; *check* may raise to stop the build.

    Raises KernelError and InfraError.
    """
    plan = planned.plan
    assert plan is not None
    if isinstance(plan, ReadyKernel):
        return plan.built
    with build_progress(planned.wish.name, sys.stderr) as progress:

        def check_and_show(how_far: BuildProgress) -> None:
            check()
            progress(how_far)

        return build_kernel(plan, compilers=planned.wish.compilers, progress=check_and_show)


def _proof(tree: KernelTree, variant: Variant, toolchain: Toolchain, arch: Arch) -> Result:
    """Return the one case of a blocked variant: olddefconfig must leave no-IOMMU mode off."""
    address = Address(suite=KCONFIG_SUITE, program=variant.name, case="noiommu_is_refused")
    try:
        proof = prove_blocked(tree, variant, toolchain, arch)
    except NotRefused as error:
        return Result(address=address, job=variant.name, outcome=Outcome.FAIL, reason=str(error))
    asked = ", ".join(proof.asked)
    return Result(
        address=address, job=variant.name, outcome=Outcome.PASS, reason=f"{asked} stays off: {proof.reason}"
    )


_SHOW_SECONDS = 0.5
"""How often the line on a terminal changes."""

_PLAIN_SECONDS = 30.0
"""How often a build without a terminal prints a line."""


@contextlib.contextmanager
def build_progress(name: str, stream: TextIO) -> Iterator[Progress]:
    """Yield a Progress that shows how far the build of *name* is, with an ETA.

    On a terminal one line changes; elsewhere a line is printed now and then.
    """
    begin, end, pause = ("\r", "\x1b[K", _SHOW_SECONDS) if stream.isatty() else ("", "\n", _PLAIN_SECONDS)
    shown = began = time.monotonic()

    def update(state: BuildProgress) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= pause:
            shown = now
            print(f"{begin}{_progress_line(name, state, now - began)}", end=end, file=stream, flush=True)

    try:
        yield update
    finally:
        if begin and shown > began:
            print(begin, end=end, file=stream, flush=True)


def _progress_line(name: str, state: BuildProgress, seconds: float) -> str:
    total = f"/{state.total}" if state.total else ""
    steps = f": {state.done}{total}" if state.done or state.total else ""
    left = f", about {duration(state.eta)} left" if state.eta is not None else ""
    return f"{name}: {state.phase}{steps}, {duration(seconds)}{left}"
