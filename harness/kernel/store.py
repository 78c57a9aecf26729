# SPDX-License-Identifier: GPL-2.0-only
"""The kernel store: finished kernels by the digest of all that decides them, and objects to build from.

Below the cache directory:

    kernels/KEY/           kernel.json, vmlinux, config, lib/modules, build.log: whole or not there
    selftests/KEY/         programs and scripts, shared by all variants of a tree
    objects/PLACE/DIGEST/  one O= directory per source path and configuration; the one at work is PLACE/build
    configs/KEY.config     what olddefconfig made of a plan
    worktrees/PLACE/LINE   refs of the user's repositories, checked out (harness.kernel.trees)
    sources/               unpacked tarballs and Debian packages (harness.kernel.trees, harness.kernel.debian)
    apt/                   Debian's package lists (harness.kernel.debian)
    locks/                 never removed; the kernel drops a lock when its holder dies

Whole entries are found without a lock, in a read-only cache too; who uses one for long holds it: `hold`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness import paths, process
from harness.errors import InfraError, KernelError
from harness.kernel import elf, selftests
from harness.kernel.build import (
    BuildTree,
    at_build_path,
    clear_build_path,
    find_build_trees,
    profile_arguments,
    resolve_config,
)
from harness.kernel.kconfig import Fragment, ResolvedConfig, render
from harness.kernel.make import (
    RECIPE,
    BuildProgress,
    MakeResult,
    Progress,
    Toolchain,
    find_toolchain,
    ignore_progress,
)
from harness.kernel.symbols import KconfigFiles
from harness.kernel.trees import KernelTree, TreeKind, find_misdated, open_tree
from harness.kernel.variants import ConfigPlan, Variant, load_catalogue, plan_config, prove
from harness.locks import Waiting, locked, shared

TYPICAL_STEPS = 2200
"""What make announced for the default variant of Linux 7.3.4, for the estimate of a very first build."""

_FACTS = ("digest", "release", "build_id", "variant", "tree_label", "build_seconds", "cpu_seconds")
"""What kernel.json must tell."""

_log = logging.getLogger("harness.kernel")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a build left in the store."""

    digest: str  # its key in the store
    release: str  # what `uname -r` says
    vmlinux: Path
    config: Path
    modules_dir: Path | None  # the directory lib/modules/RELEASE, None when nothing is modular
    build_id: str  # GNU build-id, in hex
    build_seconds: float  # what the build took, whenever it was
    build_cpu_seconds: float  # the same in processor time
    is_new: bool = dataclasses.field(default=False, compare=False)
    """Whether who asked has built it; otherwise the store had it, or another process was there first."""

    @property
    def spent_cpu_seconds(self) -> float:
        """What it cost who asked for it."""
        return self.build_cpu_seconds if self.is_new else 0.0

    @property
    def ticks(self) -> bool:
        """Whether it interrupts every processor at a fixed rate, idle or not."""
        return ResolvedConfig.parse(self.config.read_text(encoding="utf-8")).get("HZ_PERIODIC") == "y"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kernel(Built):
    """A finished build and what decided it."""

    selftests: Path | None  # one directory of programs per collection; see selftests.list_programs()
    variant: str
    features: frozenset[str]
    tree_label: str
    tree_identity: str
    toolchain: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KernelPlan:
    """A kernel before it is built: everything about it but the bytes."""

    tree: KernelTree
    config_plan: ConfigPlan
    config: ResolvedConfig
    toolchain: Toolchain
    key: str

    @property
    def cached(self) -> bool:
        """Whether the store has it already."""
        return _is_whole(_entry(self.key))

    @property
    def vmlinux(self) -> Path:
        """Where it will be once it is built."""
        return _entry(self.key) / "vmlinux"

    @property
    def variant(self) -> Variant:
        return self.config_plan.variant

    @property
    def features(self) -> frozenset[str]:
        """The features of guest/needs.py that hold in this kernel."""
        return self.config_plan.features

    @property
    def undefined(self) -> tuple[str, ...]:
        """Symbols of the shipped base that this tree does not know, hence built without."""
        return self.config_plan.undefined


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BlockedProof:
    """That a tree's Kconfig refuses no-IOMMU mode in a blocked variant."""

    variant: str
    asked: tuple[str, ...]  # symbols that were asked for and came out off
    reason: str  # the dependency that refuses


@contextlib.contextmanager
def _writing(what: Path) -> Iterator[None]:
    """Turn trouble with the cache's disk into one sentence."""
    try:
        yield
    except OSError as error:
        raise InfraError(
            f"cannot write to the cache: {error.filename or what}: {error.strerror or error}",
            hint="VFIO_HARNESS_CACHE moves the cache",
        ) from error


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def build_place(tree: KernelTree) -> Path:
    """Where the objects of a source path live."""
    name = re.sub(r"[^\w.+~-]", "-", tree.path.name)
    return paths.cache_dir() / "objects" / f"{name}-{_digest(os.fspath(tree.path))[:12]}"


def kconfig_lock(place: str) -> str:
    """The name of the lock on the `kconfig` directory of a place in `objects`."""
    return f"{place}-kconfig"


def plan_kernel(
    tree: KernelTree, variant: Variant, addons: Iterable[str] = (), extra_fragments: Iterable[Fragment] = ()
) -> KernelPlan:
    """Resolve and prove the configuration, without building.

    Raises NotApplicable when the tree cannot express the variant, UsageError for wrong add-ons or fragments.
    """
    toolchain = find_toolchain()
    with tree.held():
        symbols = KconfigFiles(tree.path, memo=_symbols_memo(tree))
        plan = plan_config(load_catalogue(), variant, symbols, addons=addons, extra=extra_fragments)
        config = _resolved(tree, plan, toolchain)
        prove(plan, config, symbols)
    profile = sorted(directory for addon in plan.addons for directory in addon.profile)
    key = _digest("kernel", str(RECIPE), tree.identity, config.digest, str(toolchain), *profile)
    return KernelPlan(tree=tree, config_plan=plan, config=config, toolchain=toolchain, key=key)


def _symbols_memo(tree: KernelTree) -> Path:
    key = _digest("symbols", str(RECIPE), tree.config_identity)
    return paths.cache_dir() / "configs" / f"{key}.symbols"


def _resolved(tree: KernelTree, plan: ConfigPlan, toolchain: Toolchain) -> ResolvedConfig:
    """The plan's configuration, remembered for as long as nothing that decides it changes."""
    key = _digest("config", str(RECIPE), tree.config_identity, render(plan.settings), str(toolchain))
    memo = paths.cache_dir() / "configs" / f"{key}.config"
    with contextlib.suppress(OSError):
        return ResolvedConfig.parse(memo.read_text(encoding="utf-8"))
    place = build_place(tree)
    with (
        locked(kconfig_lock(place.name), f"another process is configuring {tree.label}"),
        _writing(memo),
    ):
        output = place / "kconfig"
        output.mkdir(parents=True, exist_ok=True)
        memo.parent.mkdir(parents=True, exist_ok=True)
        log = place / "kconfig.log"
        log.unlink(missing_ok=True)
        config = resolve_config(tree.path, plan, output, log)
        _write_whole(memo, config.text)
    return config


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def prove_blocked(tree: KernelTree, variant: Variant) -> BlockedProof:
    """Prove by olddefconfig alone that the tree refuses no-IOMMU mode in a *blocked* variant.

    Raises NotRefused when it does not, NotApplicable when this tree's rules are other ones.
    """
    assert variant.blocked, variant.name
    plan = plan_kernel(tree, variant)
    asked = plan.config_plan.blocked
    with tree.held():
        reason = KconfigFiles(tree.path).explain_miss(asked[0], "y", plan.config)
    return BlockedProof(variant=variant.name, asked=asked, reason=reason)


def provide_kernel(
    tree: KernelTree,
    variant: Variant,
    addons: Iterable[str] = (),
    extra_fragments: Iterable[Fragment] = (),
    *,
    jobs: int,
    progress: Progress = ignore_progress,
    with_selftests: bool = True,
) -> Kernel:
    """The kernel of *variant* in *tree*: from the store, or built now.

    Raises NotApplicable and UsageError as `plan_kernel`; BuildError when the kernel or a selftest does not
    compile; InfraError when the host is in the way.
    """
    if variant.blocked:
        raise KernelError(
            f"the variant {variant.name!r} is proved by its configuration, it is never built",
            hint="its proof is prove_blocked()",
        )
    plan = plan_kernel(tree, variant, addons, extra_fragments)
    built = build_kernel(plan, jobs=jobs, progress=progress)
    programs = provide_selftests(plan, jobs=jobs, progress=progress) if with_selftests else None
    return Kernel(
        **{field.name: getattr(built, field.name) for field in dataclasses.fields(built)},
        selftests=programs,
        variant=plan.variant.name,
        features=plan.features,
        tree_label=tree.label,
        tree_identity=tree.identity,
        toolchain=str(plan.toolchain),
    )


def build_kernel(plan: KernelPlan, *, jobs: int, progress: Progress = ignore_progress) -> Built:
    """The kernel of *plan*: from the store, or built now.

    *progress* hears of it while another process builds, too.  Raises BuildError, InfraError and whatever
    *progress* raises.
    """
    entry = _entry(plan.key)
    is_new = False
    if not _is_whole(entry):
        busy = f"another process is building the {plan.variant.name} kernel of {plan.tree.label}"
        waiting = _telling(progress)
        with locked(plan.key, busy, waiting):
            if not _is_whole(entry):
                with _building(plan.tree, waiting), _writing(entry):
                    _build_entry(plan, entry, jobs=jobs, progress=progress)
                is_new = True
    built = find_built(plan.key)
    assert built is not None
    return dataclasses.replace(built, is_new=is_new)


def find_built(digest: str) -> Built | None:
    """The kernel that the store has as *digest*, None when it has none; InfraError when it is damaged."""
    entry = _entry(digest)
    if not _is_whole(entry):
        return None
    facts = read_facts(entry)
    modules = entry / "lib" / "modules" / str(facts["release"])
    _note_use(entry)
    return Built(
        digest=digest,
        release=str(facts["release"]),
        vmlinux=entry / "vmlinux",
        config=entry / "config",
        modules_dir=modules if modules.is_dir() else None,
        build_id=str(facts["build_id"]),
        build_seconds=float(facts["build_seconds"]),
        build_cpu_seconds=float(facts["cpu_seconds"]),
    )


def _entry(key: str) -> Path:
    return paths.cache_dir() / "kernels" / key


def _is_whole(entry: Path) -> bool:
    return (entry / "kernel.json").is_file()


@contextlib.contextmanager
def hold(kernel_digest: str, selftests_dir: str | Path | None = None) -> Iterator[None]:
    """Keep a kernel of the store, and selftests, from being pruned while a VM runs on them.

    *kernel_digest* is `Kernel.digest`, *selftests_dir* its `selftests`.  Any number of processes may hold one
    kernel.  Raises InfraError when one of the two was pruned before it was held.
    """
    entries = [_entry(kernel_digest), *([Path(selftests_dir)] if selftests_dir is not None else [])]
    with contextlib.ExitStack() as stack:
        for entry in entries:
            stack.enter_context(shared(entry.name, f"another process is working on {entry}"))
            if not entry.is_dir():
                raise InfraError(f"{entry} was removed from the cache meanwhile", hint="run it again")
            _note_use(entry)
        yield


def _note_use(entry: Path) -> None:
    """Make *entry* the last to be pruned."""
    with contextlib.suppress(OSError):
        os.utime(entry)


@contextlib.contextmanager
def _building(tree: KernelTree, waiting: Waiting) -> Iterator[None]:
    """One build at a time per source path: it has all cores, and the next one can start from its objects."""
    busy = f"another process is building from {tree.path}"
    with locked(build_place(tree).name, busy, waiting), tree.held(waiting):
        yield


def _telling(progress: Progress) -> Waiting:
    """Tells *progress* that a build has not begun yet; it may raise to give it up."""
    return lambda: progress(BuildProgress(phase="waiting", done=0, total=None, eta=None))


def _build_entry(plan: KernelPlan, entry: Path, *, jobs: int, progress: Progress) -> None:
    """Build beside the entry, then rename: an entry that exists is whole."""
    partial = _begin_entry(entry)
    place = build_place(plan.tree)
    place.mkdir(parents=True, exist_ok=True)
    clear_build_path(place)
    name = plan.config.digest[:16]
    if not (place / name).is_dir():
        _start_from_nearest(place, name, plan.config)
    log = place / f"{name}.log"
    log.unlink(missing_ok=True)
    with at_build_path(place, name) as objects:
        made = _make(plan, objects, log, jobs=jobs, progress=progress)
        objects.install(plan.tree.path, plan.config, partial, log)
        release = objects.release
    shutil.copy2(log, partial / "build.log")
    facts = {
        "digest": plan.key,
        "release": release,
        "build_id": elf.build_id(partial / "vmlinux"),
        "variant": plan.config_plan.variant.name,
        "features": sorted(plan.features),
        "tree_label": plan.tree.label,
        "tree_identity": plan.tree.identity,
        "toolchain": str(plan.toolchain),
        "build_seconds": round(made.seconds, 1),
        "cpu_seconds": round(made.cpu_seconds, 1),
        "compiled": made.compiled,
        "steps": made.steps,
        "undefined_symbols": list(plan.undefined),
    }
    (partial / "kernel.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    partial.rename(entry)


def _make(plan: KernelPlan, objects: BuildTree, log: Path, *, jobs: int, progress: Progress) -> MakeResult:
    """Bring the objects up to date with the tree and the configuration."""
    began = time.time()
    objects.recover()
    _forget_misdated(plan.tree, objects)
    objects.note_begun(began)
    profile = [directory for addon in plan.config_plan.addons for directory in addon.profile]
    made = objects.build(
        plan.tree.path,
        plan.config,
        log,
        jobs=jobs,
        arguments=profile_arguments(plan.tree.path, profile),
        progress=progress,
        expected_steps=None if objects.finished else _known_steps(objects.path.parent),
    )
    _require_unchanged(plan.tree, objects, began)
    objects.note_finished(identity=plan.tree.identity, began=began, steps=made.steps)
    return made


def _known_steps(place: Path) -> int:
    """How many steps a whole build will take, going by another one of the same source if there was one."""
    return max(
        (steps for tree in find_build_trees(place) if (steps := tree.full_steps)), default=TYPICAL_STEPS
    )


def _require_unchanged(tree: KernelTree, objects: BuildTree, began: float) -> None:
    """Refuse a build during which the user edited the tree, and drop the objects that it made."""
    if (
        tree.kind not in (TreeKind.GIT, TreeKind.PLAIN)
        or open_tree(os.fspath(tree.path)).identity == tree.identity
    ):
        return
    objects.sweep(began)
    raise InfraError(f"{tree.path} changed while it was being built", hint="run it again")


def _forget_misdated(tree: KernelTree, objects: BuildTree) -> None:
    """Drop the objects that make would wrongly keep, in a tree that its user may have changed in any way."""
    movable = tree.kind in (TreeKind.GIT, TreeKind.PLAIN)
    if movable and objects.built_since and objects.built_from != tree.identity:
        misdated = find_misdated(tree.path, objects.built_since)
        if misdated:
            objects.forget(misdated)


def _start_from_nearest(place: Path, name: str, config: ResolvedConfig) -> None:
    """Copy the finished build tree whose configuration differs in the fewest symbols; nothing without one.

    Copied with its times, beside and then renamed; shares blocks where the file system can.
    """
    finished = [tree for tree in find_build_trees(place) if tree.finished]
    ranked = [(theirs.difference(config), tree) for tree in finished if (theirs := tree.config)]
    if not ranked:
        return
    differing, nearest = min(ranked, key=lambda pair: pair[0])
    _log.info("starting from the objects of a kernel that differs in %d symbols", differing)
    partial = place / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    process.run(["cp", "--archive", "--reflink=auto", nearest.path, partial]).check(
        "cannot copy a build tree"
    )
    partial.rename(place / name)


def provide_selftests(plan: KernelPlan, *, jobs: int, progress: Progress = ignore_progress) -> Path | None:
    """The tree's selftests, built once for all variants; None when the tree has none of those we run.

    Those that do not compile are missing: see selftests.failures().  Raises BuildError and InfraError.
    """
    tree = plan.tree
    entry = _selftests_entry(plan)
    if not entry.is_dir():
        waiting = _telling(progress)
        with (
            locked(entry.name, f"another process is building the selftests of {tree.label}", waiting),
            _building(tree, waiting),
            _writing(entry),
        ):
            if not entry.is_dir():
                partial = _begin_entry(entry)
                place = build_place(tree)
                log = place / "selftests.log"
                log.unlink(missing_ok=True)
                work = place / "selftests"
                selftests.build_selftests(tree.path, work, partial, log, jobs=jobs, progress=progress)
                partial.rename(entry)
    _note_use(entry)
    return entry if selftests.list_programs(entry) or selftests.failures(entry) else None


def has_selftests(plan: KernelPlan) -> bool:
    """Whether provide_selftests() would find them there."""
    return _selftests_entry(plan).is_dir()


def _selftests_entry(plan: KernelPlan) -> Path:
    key = _digest("selftests", str(RECIPE), selftests.FORM, plan.tree.selftest_identity, str(plan.toolchain))
    return paths.cache_dir() / "selftests" / key


def _begin_entry(entry: Path) -> Path:
    """An empty directory beside *entry*, to be renamed when it is whole."""
    partial = entry.with_name(f".{entry.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def list_kernels() -> tuple[Mapping[str, Any], ...]:
    """What kernel.json says of every whole entry in the store, the most recently used last.

    A damaged entry is left out, and a warning names it.
    """
    found = []
    for path in (paths.cache_dir() / "kernels").glob("[!.]*/kernel.json"):
        with contextlib.suppress(FileNotFoundError):  # pruned since the glob
            used = path.parent.stat().st_mtime
            try:
                found.append((used, read_facts(path.parent)))
            except InfraError as error:
                _log.warning("%s", error)
    return tuple(facts for _used, facts in sorted(found, key=lambda pair: pair[0]))


def seconds_lately(plan: KernelPlan) -> float | None:
    """What the last kernel in the store with the features of *plan* took to build; None where it has none.

    A first build of a tree takes longer than one that starts from another's objects.
    """
    features = sorted(plan.features)
    found = [facts["build_seconds"] for facts in list_kernels() if facts.get("features") == features]
    return float(found[-1]) if found else None


def read_facts(entry: Path) -> Mapping[str, Any]:
    """What kernel.json in a store entry says; InfraError when it is damaged."""
    reason = "kernel.json is not what was written"
    try:
        facts = json.loads((entry / "kernel.json").read_text(encoding="utf-8"))
        if isinstance(facts, dict) and all(name in facts for name in _FACTS):
            return facts
    except (OSError, ValueError) as error:
        reason = str(error)
    raise InfraError(f"the store entry {entry} is damaged: {reason}", hint=f"remove {entry}")
