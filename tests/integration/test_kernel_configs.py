# SPDX-License-Identifier: GPL-2.0-only
"""Every variant is proved in real Debian trees with their own olddefconfig; nothing is compiled."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from harness.base.errors import BuildError, HarnessError, HostError, NotApplicable
from harness.base.process import find_tool
from harness.kernel.arch import find_arch, host_arch
from harness.kernel.plan import plan_kernel, prove_blocked
from harness.kernel.required import require_symbols, unwatched
from harness.kernel.symbols import KconfigFiles
from harness.kernel.toolchain import GCC, find_toolchain
from harness.kernel.trees import KernelTree, TreeKind, open_tree
from harness.kernel.variants import Dialect, features_of, find_dialect, load_catalogue
from harness.machine.roots import ROOT_NAMES

pytestmark = pytest.mark.integration

CATALOGUE = load_catalogue()
ALONE = [variant.name for variant in CATALOGUE.variants.values() if variant.wants.noiommu_only]
BUILT = [variant.name for variant in CATALOGUE.variants.values() if not variant.blocked]
BLOCKED = [variant.name for variant in CATALOGUE.variants.values() if variant.blocked]


@pytest.fixture(scope="module")
def merged() -> KernelTree:
    return open_tree("debian:7.3")


@pytest.fixture(scope="module", params=["7.2", "6.12"])
def group_only(request: pytest.FixtureRequest) -> KernelTree:
    return open_tree(f"debian:{request.param}")


SPLIT = """\
config VFIO_GROUP_NOIOMMU
	bool "no-IOMMU mode of the group"
	depends on VFIO_GROUP
	depends on VFIO_CONTAINER || IOMMUFD_VFIO_CONTAINER

config VFIO_CDEV_NOIOMMU
	bool "no-IOMMU mode of the cdev"
	depends on VFIO_DEVICE_CDEV
	depends on IOMMUFD_NOIOMMU

"""
CONFIGURES = re.compile(r"(Kconfig|Makefile|Kbuild|MAINTAINERS|COPYING).*|.*\.config")


def _skeleton(source: Path, target: Path) -> None:
    """Copy the files of a tree that kconfig reads."""

    def others(directory: str, names: list[str]) -> list[str]:
        kept = Path(directory).is_relative_to(source / "scripts")
        return [
            name
            for name in names
            if not kept and not CONFIGURES.fullmatch(name) and not Path(directory, name).is_dir()
        ]

    shutil.copytree(source, target, symlinks=True, ignore=others)


@pytest.fixture(scope="module")
def split(merged: KernelTree, tmp_path_factory: pytest.TempPathFactory) -> KernelTree:
    """7.3 with one symbol for each path, as in version 5 of the cdev patches."""
    tree = tmp_path_factory.mktemp("split") / "linux"
    _skeleton(merged.path, tree)
    vfio, iommufd = tree / "drivers/vfio/Kconfig", tree / "drivers/iommu/iommufd/Kconfig"
    text = vfio.read_text(encoding="utf-8")
    vfio.write_text(re.sub(r"^config VFIO_NOIOMMU\n(.*\n)+?(?=config )", SPLIT, text, flags=re.M))
    text = iommufd.read_text(encoding="utf-8")
    iommufd.write_text(
        text.replace("config IOMMUFD_NOIOMMU\n\tbool\n", 'config IOMMUFD_NOIOMMU\n\tbool "x"\n')
    )
    return open_tree(str(tree))


def test_source_is_what_was_asked(merged: KernelTree) -> None:
    """The package unpacks to a complete, unconfigured tree of the requested version."""
    assert merged.kind is TreeKind.DEBIAN
    assert merged.version.startswith("7.3.")
    assert find_dialect(KconfigFiles(merged.path)) is Dialect.MERGED


@pytest.mark.parametrize("name", [name for name in BUILT if name not in ALONE])
def test_variant_comes_out_in_7_3(merged: KernelTree, name: str) -> None:
    """Every requested and promised symbol has its value, and the shipped fragments name no symbol that 7.3
    lacks."""
    plan = plan_kernel(merged, CATALOGUE.variant(name))
    assert plan.undefined == ()
    assert plan.config.modular == ("modular" in plan.config_plan.features)
    assert features_of(CATALOGUE, plan.config) == plan.features
    for root in ROOT_NAMES:
        everything = {"hotplug", "sriov", "aer"}
        require_symbols(plan.config, plan.arch, has_modules=True, root=root, features=everything)
    assert unwatched(plan.config, plan.arch) == ()


@pytest.mark.parametrize("name", ALONE)
def test_7_3_has_both_paths_or_none(merged: KernelTree, name: str) -> None:
    """One symbol turns no-IOMMU mode on for both the group and the cdev."""
    with pytest.raises(NotApplicable):
        plan_kernel(merged, CATALOGUE.variant(name))


@pytest.mark.parametrize("name", BLOCKED)
def test_7_3_refuses_noiommu_without_a_container(merged: KernelTree, name: str) -> None:
    """Groups without any container block no-IOMMU mode, with or without the cdev."""
    proof = prove_blocked(merged, CATALOGUE.variant(name))
    assert "VFIO_NOIOMMU" in proof.asked
    assert "VFIO_CONTAINER is n" in proof.reason


@pytest.mark.parametrize("addon", list(CATALOGUE.addons))
def test_addon_comes_out_in_7_3(merged: KernelTree, addon: str) -> None:
    """Each add-on gives its symbols their values, on top of the default variant."""
    arch = next(map(find_arch, CATALOGUE.addon(addon).arches), host_arch())
    if not GCC.resolve(arch).is_complete:
        pytest.skip(f"no compiler for {arch.name}; see: vfio-harness doctor --arch {arch.name}")
    plan = plan_kernel(merged, CATALOGUE.variant("group-cdev"), [addon], arch=arch)
    assert addon in plan.features
    assert features_of(CATALOGUE, plan.config) == plan.features


def test_variant_comes_out_with_llvm(merged: KernelTree) -> None:
    """clang and lld give every promised symbol its value, and make another kernel."""
    llvm = find_toolchain("llvm")
    if not llvm.resolve(host_arch()).is_complete:
        pytest.skip("LLVM is not installed; see: vfio-harness doctor --toolchain llvm")
    variant = CATALOGUE.variant("group-cdev")
    plan = plan_kernel(merged, variant, toolchain=llvm)
    assert (plan.config.get("CC_IS_CLANG"), plan.config.get("LD_IS_LLD"), plan.undefined) == ("y", "y", ())
    assert plan.key != plan_kernel(merged, variant).key


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        (
            '[ "$1" = --version ] && echo "gcc (Old) 5.1.0" || exec gcc -U__GNUC__ -D__GNUC__=5 "$@"',
            BuildError,
            r"C compiler is too old, Your GCC version: 5\.[\d.]+, Minimum GCC version: ",
        ),
        (
            'case "$1" in --version) echo "gcc (X) 14.1.0";; -dumpmachine) gcc "$1";; *) kill -SEGV $$; esac',
            HostError,
            "a tool crashed: Segmentation fault",
        ),
    ],
    ids=["too old", "crashes"],
)
def test_compiler_that_7_3_cannot_be_configured_with(
    merged: KernelTree, tmp_path: Path, script: str, error: type[HarnessError], message: str
) -> None:
    """The tree's own scripts refuse a version, which says nothing about this host; a crash does."""
    for tool in (GCC.linker, *GCC.binutils):
        (tmp_path / tool).symlink_to(find_tool(tool) or tool)
    (tmp_path / GCC.compiler).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (tmp_path / GCC.compiler).chmod(0o755)
    with pytest.raises(error, match=message):
        plan_kernel(merged, CATALOGUE.variant("group-cdev"), toolchain=find_toolchain(f"{tmp_path}/"))


@pytest.mark.parametrize("name", ["group", "group-compat", "noiommu-group", "off"])
def test_older_tree_has_groups(group_only: KernelTree, name: str) -> None:
    """The variants that 7.2 and 6.12 support are proved there with the same fragments."""
    assert plan_kernel(group_only, CATALOGUE.variant(name)).config_plan.dialect is Dialect.GROUP_ONLY


@pytest.mark.parametrize("name", ["group-cdev", "compat-cdev", "cdev", "modules", "noiommu-cdev", *BLOCKED])
def test_older_tree_says_what_it_has_not(group_only: KernelTree, name: str) -> None:
    """Variants with a no-IOMMU cdev or without a container are absent from these trees, which is no
    failure."""
    with pytest.raises(NotApplicable):
        plan_kernel(group_only, CATALOGUE.variant(name))


@pytest.mark.parametrize("name", ["group", "group-cdev", "cdev", "off", *ALONE])
def test_variant_comes_out_with_a_symbol_for_each_path(split: KernelTree, name: str) -> None:
    """With a symbol for each path, variants with both paths, one or none are proved, and so are those with
    both paths and no-IOMMU mode for one."""
    plan = plan_kernel(split, CATALOGUE.variant(name))
    assert plan.config_plan.dialect is Dialect.SPLIT
    assert plan.undefined == ()
    assert features_of(CATALOGUE, plan.config) == plan.features


@pytest.mark.parametrize("name", BLOCKED)
def test_group_is_refused_without_a_container(split: KernelTree, name: str) -> None:
    """Without a container only the group's symbol is blocked; a cdev needs no container."""
    assert prove_blocked(split, CATALOGUE.variant(name)).asked == ("VFIO_GROUP_NOIOMMU",)
