# SPDX-License-Identifier: GPL-2.0-only
"""A kernel before it is built: its configuration resolved and proved, its key in the store known."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterable
from pathlib import Path

from harness.base import paths
from harness.base.environment import warn_ignored
from harness.base.errors import UsageError
from harness.base.files import write_atomic
from harness.base.locks import locked
from harness.kernel.arch import Arch, host_arch
from harness.kernel.build import profile_arguments, resolve_config
from harness.kernel.hostneeds import require_build_tools
from harness.kernel.kconfig import Fragment, ResolvedConfig, render
from harness.kernel.make import RECIPE, Make
from harness.kernel.store import OURS, digest_of, is_whole, kernel_entry, source_lock, writing_cache
from harness.kernel.symbols import KconfigFiles
from harness.kernel.toolchain import GCC, Toolchain, ToolchainIdentity, named_in
from harness.kernel.trees import KernelTree
from harness.kernel.variants import ConfigPlan, Variant, load_catalogue, plan_config, prove


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KernelPlan:
    """Everything about a kernel that is known before it is built."""

    tree: KernelTree
    config_plan: ConfigPlan
    config: ResolvedConfig
    toolchain: Toolchain
    built_with: ToolchainIdentity
    key: str

    @property
    def cached(self) -> bool:
        """Whether the store has it already."""
        return is_whole(kernel_entry(self.key))

    @property
    def arch(self) -> Arch:
        return self.config_plan.arch

    @property
    def image(self) -> Path:
        """Where the boot image will be once it is built."""
        return kernel_entry(self.key) / self.arch.image_name

    @property
    def variant(self) -> Variant:
        return self.config_plan.variant

    @property
    def features(self) -> frozenset[str]:
        """The features of guest/needs.py that hold in this kernel."""
        return self.config_plan.features

    @property
    def has_one_processor(self) -> bool:
        return self.config_plan.has_one_processor

    @property
    def undefined(self) -> tuple[str, ...]:
        """Symbols of the shipped base that this tree does not define, so that the kernel lacks them."""
        return self.config_plan.undefined


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BlockedProof:
    """The proof that a tree's Kconfig refuses no-IOMMU mode in a blocked variant."""

    variant: str
    asked: tuple[str, ...]  # symbols that were requested and ended up off
    reason: str  # the dependency that refuses


def plan_kernel(
    tree: KernelTree,
    variant: Variant,
    addons: Iterable[str] = (),
    extra_fragments: Iterable[Fragment] = (),
    *,
    toolchain: Toolchain = GCC,
    arch: Arch | None = None,
) -> KernelPlan:
    """Resolve and prove the configuration for *arch* (default: this host's), without building.

    Raises NotApplicable when the tree cannot express the variant, UsageError for wrong add-ons or fragments.
    """
    arch = arch or host_arch()
    toolchain, built_with = installed_toolchain(arch, toolchain)
    with tree.configurable() as source:
        symbols = _symbols(source, tree.config_identity, arch)
        plan = plan_config(load_catalogue(), variant, symbols, addons=addons, extra=extra_fragments)
        config = _resolved(tree, source, plan, toolchain, built_with)
        prove(plan, config, symbols)
    if plan.profile and not toolchain.gcov:
        raise UsageError(f"coverage needs {GCC.name}: the counters of {toolchain.compiler} are not read")
    inputs = (*profile_arguments(plan.profile), *_outside_inputs(tree.path, config))
    key = digest_of("kernel", str(RECIPE), tree.identity, config.digest, str(built_with), *inputs)
    return KernelPlan(
        tree=tree, config_plan=plan, config=config, toolchain=toolchain, built_with=built_with, key=key
    )


def installed_toolchain(arch: Arch, toolchain: Toolchain = GCC) -> tuple[Toolchain, ToolchainIdentity]:
    """Return *toolchain* as it builds for *arch* on this host, and its versions.

    Raises InfraError when this host cannot build with it, UsageError when it is for another architecture.
    """
    toolchain = toolchain.resolve(arch)
    warn_ignored(" ".join(["--toolchain", *filter(None, [named_in(os.environ)])]))
    require_build_tools(toolchain, arch.label)
    return toolchain, toolchain.identify(arch)


_NAMED_FILES = ("INITRAMFS_SOURCE", "SYSTEM_TRUSTED_KEYS", "SYSTEM_REVOCATION_KEYS", "MODULE_SIG_KEY")
"""Symbols whose values are files that a kernel is built from."""


def _outside_inputs(tree: Path, config: ResolvedConfig) -> list[str]:
    """Return digests of the files outside of *tree* that *config* names, which no identity covers."""

    def words(symbol: str) -> list[str]:
        return config.get(symbol).strip('"').split()

    named = [tree / word for symbol in _NAMED_FILES for word in words(symbol)]
    for place in words("EXTRA_FIRMWARE_DIR"):
        named += [tree / place / word for word in words("EXTRA_FIRMWARE")]
    outside = [path for path in named if path.exists() and not path.resolve().is_relative_to(tree)]
    return [f"{path} {_describe_files(path)}" for path in outside]


def _describe_files(path: Path) -> str:
    """Return a digest of names, sizes and times of the file *path*, or of all files below it."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    facts = ((file, file.stat()) for file in files)
    return digest_of(*(f"{file} {stat.st_size} {stat.st_mtime_ns}" for file, stat in facts))


def prove_blocked(
    tree: KernelTree, variant: Variant, toolchain: Toolchain = GCC, arch: Arch | None = None
) -> BlockedProof:
    """Prove by olddefconfig alone that the tree refuses no-IOMMU mode in a *blocked* variant on *arch*.

    Raises NotRefused when it does not, NotApplicable when this tree has other rules.
    """
    assert variant.blocked, variant.name
    plan = plan_kernel(tree, variant, toolchain=toolchain, arch=arch)
    asked = plan.config_plan.blocked
    with tree.configurable() as source:
        reason = _symbols(source, tree.config_identity, plan.arch).explain_miss(asked[0], "y", plan.config)
    return BlockedProof(variant=variant.name, asked=asked, reason=reason)


@functools.lru_cache(maxsize=4)
def _symbols(tree: Path, config_identity: str, arch: Arch) -> KconfigFiles:
    """The tree's symbols, read once for all variants of one identity."""
    key = digest_of("symbols", str(RECIPE), config_identity, arch.name)
    return KconfigFiles(tree, arch=arch, memo=paths.cache_dir() / "configs" / f"{key}.symbols")


def _resolved(
    tree: KernelTree, source: Path, plan: ConfigPlan, toolchain: Toolchain, built_with: ToolchainIdentity
) -> ResolvedConfig:
    """Return the plan's configuration, cached until one of its inputs changes."""
    memo = _config_memo(tree, plan, built_with)
    with contextlib.suppress(OSError):
        return ResolvedConfig.parse(memo.read_text(encoding="utf-8"))
    output = source / f"{OURS}kconfig"
    with (
        locked(source_lock(output), f"another process is configuring {tree.label}"),
        writing_cache(memo),
    ):
        output.mkdir(parents=True, exist_ok=True)
        memo.parent.mkdir(parents=True, exist_ok=True)
        make = Make(tree=source, log=output.with_suffix(".log"), arch=plan.arch, toolchain=toolchain)
        make.log.unlink(missing_ok=True)
        config = resolve_config(make, plan, output)
        write_atomic(memo, config.text)
    return config


def _config_memo(tree: KernelTree, plan: ConfigPlan, built_with: ToolchainIdentity) -> Path:
    key = digest_of("config", str(RECIPE), tree.config_identity, render(plan.settings), str(built_with))
    return paths.cache_dir() / "configs" / f"{key}.config"


def forget_config(plan: KernelPlan) -> None:
    """Drop the cached configuration of *plan*, so that the next plan resolves it anew."""
    with contextlib.suppress(OSError):
        _config_memo(plan.tree, plan.config_plan, plan.built_with).unlink()
