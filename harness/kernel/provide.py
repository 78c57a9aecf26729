# SPDX-License-Identifier: GPL-2.0-only
"""Get a planned kernel, and its tree's selftests, from the store or build them now."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from harness.base import paths
from harness.base.cause import Cause
from harness.base.errors import HostError, KernelError
from harness.base.locks import Waiting
from harness.kernel import elf, selftests
from harness.kernel.arch import Arch
from harness.kernel.build import BuildTree, build_tree_of, find_build_trees, profile_arguments
from harness.kernel.kconfig import Fragment
from harness.kernel.make import RECIPE, BuildProgress, Make, MakeResult, Progress, ignore_progress
from harness.kernel.plan import KernelPlan, forget_config, installed_toolchain, plan_kernel
from harness.kernel.proof import prove_built
from harness.kernel.ready import ReadyKernel
from harness.kernel.relatives import start_from_nearest
from harness.kernel.store import (
    OURS,
    Built,
    digest_of,
    find_built,
    is_whole,
    kernel_entry,
    list_kernels,
    notes_in,
    provide_entry,
    selftests_entry,
    write_facts,
)
from harness.kernel.toolchain import GCC, Toolchain, ToolchainIdentity
from harness.kernel.trees import KernelTree
from harness.kernel.userspace import provide_userspace
from harness.kernel.variants import Variant

TYPICAL_STEPS = 2200
"""How many steps the default variant of Linux 7.3.4 takes: the estimate for a first build."""

_log = logging.getLogger("harness.kernel")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kernel(Built):
    """A finished build with selftests."""

    features: frozenset[str]
    selftests: Path | None  # one directory of programs per collection; see selftests.list_programs()


def provide_kernel(
    tree: KernelTree,
    variant: Variant,
    addons: Iterable[str] = (),
    extra_fragments: Iterable[Fragment] = (),
    *,
    toolchain: Toolchain = GCC,
    arch: Arch | None = None,
    compilers: int,
    progress: Progress = ignore_progress,
    with_selftests: bool = True,
    selftests_of: KernelTree | None = None,
) -> Kernel:
    """Return the kernel of *variant* in *tree*, for this host or *arch*: from the store, or built now.

    Its selftests are those of *tree*, or of *selftests_of* if given.

    Raises NotApplicable and UsageError as `plan_kernel`; BuildError when the kernel or a selftest does not
    compile; InfraError for host trouble.
    """
    if variant.blocked:
        raise KernelError(
            f"the variant {variant.name!r} is proved by its configuration and never built",
            cause=Cause.KCONFIG,
        )
    plan = plan_kernel(tree, variant, addons, extra_fragments, toolchain=toolchain, arch=arch)
    built = build_kernel(plan, compilers=compilers, progress=progress)
    programs = None
    if with_selftests:
        wanted = plan_selftests(plan, selftests_of or tree, headers=tree)
        programs = provide_selftests(wanted, compilers=compilers, progress=progress)
    return Kernel(
        **{field.name: getattr(built, field.name) for field in dataclasses.fields(built)},
        features=plan.features,
        selftests=programs,
    )


def build_kernel(plan: KernelPlan, *, compilers: int, progress: Progress = ignore_progress) -> Built:
    """Return the kernel of *plan*: from the store, or built now.

    *progress* is called while another process builds, too.  Raises BuildError, InfraError and whatever
    *progress* raises.
    """
    entry = kernel_entry(plan.key)
    busy = f"another process is building the {plan.variant.name} kernel of {plan.tree.label}"
    waiting = _telling(progress)

    def build(partial: Path) -> None:
        with plan.tree.held(waiting):
            _build_entry(plan, partial, compilers=compilers, progress=progress)

    is_new = provide_entry(entry, busy, build, waiting, is_there=is_whole)
    built = find_built(plan.key)
    assert built is not None
    return dataclasses.replace(built, is_new=is_new)


def _telling(progress: Progress) -> Waiting:
    """Return a Waiting that tells *progress* that the build has not begun; *progress* may raise."""
    return lambda: progress(BuildProgress(phase="waiting", done=0, total=None, eta=None))


def _build_entry(plan: KernelPlan, partial: Path, *, compilers: int, progress: Progress) -> None:
    """Build the kernel of *plan* and put it into *partial*."""
    objects = build_tree_of(plan.tree.path, plan.config)
    if not objects.path.is_dir():
        differing = start_from_nearest(objects, plan.config)
        if differing is not None:
            _log.info("starting from the objects of a kernel that differs in %d symbols", differing)
    make = _make_for(plan, plan.tree, objects.path, compilers, progress)
    made = _update(plan, objects, make)
    objects.install(make, plan.config, partial)
    objects.keep_notes(plan.tree.path, plan.config_plan.profile, notes_in(partial))
    shutil.copy2(make.log, partial / "build.log")
    facts = {
        "digest": plan.key,
        "arch": plan.arch.name,
        "release": objects.release,
        "build_id": elf.build_id(partial / "vmlinux"),
        "variant": plan.variant.name,
        "features": sorted(plan.features),
        "tree_label": plan.tree.label,
        "tree_identity": plan.tree.identity,
        "toolchain": str(plan.built_with),
        "build_seconds": round(made.seconds, 1),
        "cpu_seconds": round(made.cpu_seconds, 1),
        "compiled": made.compiled,
        "steps": made.steps,
        "gcov": plan.toolchain.gcov if plan.config_plan.profile else "",
        "undefined_symbols": list(plan.undefined),
    }
    write_facts(partial, facts)


def _make_for(
    plan: KernelPlan | SelftestPlan, tree: KernelTree, output: Path, compilers: int, progress: Progress
) -> Make:
    """Return how make is run in *tree* for *plan*, with a new log beside *output*."""
    log = output.with_suffix(".log")
    log.unlink(missing_ok=True)
    return Make(
        tree=tree.path,
        log=log,
        arch=plan.arch,
        toolchain=plan.toolchain,
        compilers=compilers,
        progress=progress,
    )


def _update(plan: KernelPlan, objects: BuildTree, make: Make) -> MakeResult:
    """Bring the objects up to date with the tree and the configuration."""
    began = time.time()
    objects.recover()
    objects.note_begun(began)
    made = objects.build(
        make,
        plan.config,
        arguments=profile_arguments(plan.config_plan.profile),
        expected_steps=None if objects.facts.finished else _known_steps(objects.path.parent),
    )
    _prove(plan, objects)
    objects.note_finished(made.steps)
    return made


def _prove(plan: KernelPlan, objects: BuildTree) -> None:
    """Raise HostError, and drop the objects, unless make built the kernel of *plan*."""
    try:
        for name in ("vmlinux", plan.arch.image):
            if not (objects.path / name).is_file():
                raise HostError(f"make succeeded, but built no {name}", hint="run it again")
        prove_built(
            objects.path / "vmlinux",
            plan.config,
            used=objects.config,
            release=objects.release,
            version=plan.tree.version,
        )
    except HostError:
        objects.clear()
        # Resolve it anew the next time: a tool that Kconfig asks may have changed.
        forget_config(plan)
        raise


def _known_steps(source: Path) -> int:
    """Estimate the steps of a whole build by an earlier one of the same source, if there was one."""
    return max(
        (steps for tree in find_build_trees(source) if (steps := tree.facts.full_steps)),
        default=TYPICAL_STEPS,
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SelftestPlan:
    """Selftests before they are built."""

    tree: KernelTree
    headers: KernelTree
    """The tree whose uapi headers they are compiled against."""
    arch: Arch
    toolchain: Toolchain
    built_with: ToolchainIdentity

    @property
    def entry(self) -> Path:
        """Where they are in the store, or will be."""
        trees = dict.fromkeys(tree.selftest_identity for tree in (self.tree, self.headers))
        # One LLVM compiles for all architectures.
        of_arch = filter(None, (self.arch.label,))
        return selftests_entry(
            digest_of("selftests", str(RECIPE), selftests.FORM, *trees, str(self.built_with), *of_arch)
        )

    @property
    def cached(self) -> bool:
        """Whether the store has them already."""
        return self.entry.is_dir()


def plan_selftests(
    plan: KernelPlan | ReadyKernel,
    tree: KernelTree,
    *,
    headers: KernelTree | None = None,
    toolchain: Toolchain = GCC,
) -> SelftestPlan:
    """Return how the selftests of *tree* are built for the kernel of *plan*.  Raises InfraError.

    *headers* is the tree of that kernel, if there is one and it is another.  With a finished kernel
    *toolchain* compiles them, else that of the kernel.
    """
    if isinstance(plan, KernelPlan):
        toolchain, built_with = plan.toolchain, plan.built_with
    else:
        toolchain, built_with = installed_toolchain(plan.arch, toolchain)
    return SelftestPlan(
        tree=tree, headers=headers or tree, arch=plan.arch, toolchain=toolchain, built_with=built_with
    )


def provide_headers(plan: SelftestPlan, *, compilers: int, progress: Progress = ignore_progress) -> Path:
    """Return a directory with the uapi headers, in `include`, and kselftest's own, made once for a tree.

    In an O= directory of their own.  Raises BuildError and InfraError.
    """
    tree = plan.headers
    parts = ("headers", str(RECIPE), tree.selftest_identity, plan.arch.name)
    entry = paths.cache_dir() / "headers" / digest_of(*parts)
    waiting = _telling(progress)

    def install(partial: Path) -> None:
        work = partial / "work"
        # Nobody changes an unpacked source.
        with tree.held(waiting) if tree.checkout else tree.configurable():
            make = _make_for(plan, tree, work, compilers, progress)
            selftests.install_headers(make, work, partial / "include")
            for path in selftests.kselftest_headers(tree.path):
                shutil.copyfile(path, partial / path.name)
        shutil.rmtree(work)

    provide_entry(entry, f"another process is making the headers of {tree.label}", install, waiting)
    return entry


def provide_selftests(
    plan: SelftestPlan, *, compilers: int, progress: Progress = ignore_progress
) -> Path | None:
    """Return the selftests of *plan*, built once for all variants; None when the tree has none of those we
    run.

    Those that do not compile are missing: see selftests.failures().  Raises BuildError and InfraError.
    """
    entry, waiting = plan.entry, _telling(progress)

    def build(partial: Path) -> None:
        _build_selftests(plan, partial, waiting, compilers, progress)

    provide_entry(entry, f"another process is building the selftests of {plan.tree.label}", build, waiting)
    return entry if selftests.list_programs(entry) or selftests.failures(entry) else None


def _build_selftests(
    plan: SelftestPlan, target: Path, waiting: Waiting, compilers: int, progress: Progress
) -> None:
    """Build the selftests of *plan* into *target*.

    Two refs of one repository may share their worktree, so the trees are used one after the other.
    """
    headers = None
    if plan.headers.selftest_identity != plan.tree.selftest_identity:
        headers = provide_headers(plan, compilers=compilers, progress=progress) / "include"
    with plan.tree.held(waiting):
        work = plan.tree.path / f"{OURS}selftests"
        make = _make_for(plan, plan.tree, work, compilers, progress)
        userspace = provide_userspace(plan.arch) if plan.arch.label else None
        selftests.build_selftests(make, work, target, headers=headers, userspace=userspace)


def seconds_lately(plan: KernelPlan) -> float | None:
    """Return what the last kernel in the store with the features of *plan* took to build; None without one.

    A first build of a tree takes longer than one that starts from another's objects.
    """
    features = sorted(plan.features)
    same = [facts for facts in list_kernels() if facts.get("features") == features]
    found = [facts["build_seconds"] for facts in same if not facts.get("handed_in")]
    return float(found[-1]) if found else None
