# SPDX-License-Identifier: GPL-2.0-only
"""Every variant proved in real trees from Debian by their own olddefconfig; nothing is compiled."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from harness.errors import NotApplicable
from harness.kernel.store import plan_kernel, prove_blocked
from harness.kernel.symbols import KconfigFiles
from harness.kernel.trees import KernelTree, TreeKind, open_tree
from harness.kernel.variants import Dialect, find_dialect, load_catalogue

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
    """Copy what kconfig reads of a tree."""

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
    """7.3 with a symbol for each path, as the fifth version of the cdev series had them."""
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
    """The package gives a tree of its series, whole and unconfigured."""
    assert merged.kind is TreeKind.DEBIAN
    assert merged.version.startswith("7.3.")
    assert find_dialect(KconfigFiles(merged.path)) is Dialect.MERGED


@pytest.mark.parametrize("name", [name for name in BUILT if name not in ALONE])
def test_variant_comes_out_in_7_3(merged: KernelTree, name: str) -> None:
    """Every symbol asked for and promised holds, and the shipped fragments name no symbol 7.3 lacks."""
    plan = plan_kernel(merged, CATALOGUE.variant(name))
    assert plan.undefined == ()
    assert plan.config.modular == ("modular" in plan.config_plan.features)


@pytest.mark.parametrize("name", ALONE)
def test_7_3_has_both_paths_or_none(merged: KernelTree, name: str) -> None:
    """One symbol turns no-IOMMU mode on for the group and the cdev."""
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
    """Each add-on holds on top of the default variant."""
    assert addon in plan_kernel(merged, CATALOGUE.variant("group-cdev"), [addon]).config_plan.features


@pytest.mark.parametrize("name", ["group", "group-compat", "noiommu-group", "off"])
def test_older_tree_has_groups(group_only: KernelTree, name: str) -> None:
    """What 7.2 and 6.12 can express comes out there from the same fragments."""
    assert plan_kernel(group_only, CATALOGUE.variant(name)).config_plan.dialect is Dialect.GROUP_ONLY


@pytest.mark.parametrize("name", ["group-cdev", "compat-cdev", "cdev", "modules", "noiommu-cdev", *BLOCKED])
def test_older_tree_says_what_it_has_not(group_only: KernelTree, name: str) -> None:
    """No no-IOMMU cdev, and nothing that blocks: an answer, not a failure."""
    with pytest.raises(NotApplicable):
        plan_kernel(group_only, CATALOGUE.variant(name))


@pytest.mark.parametrize("name", ["group", "group-cdev", "cdev", "off", *ALONE])
def test_variant_comes_out_with_a_symbol_for_each_path(split: KernelTree, name: str) -> None:
    """Both paths, one of them, none, and both with the mode for one."""
    plan = plan_kernel(split, CATALOGUE.variant(name))
    assert plan.config_plan.dialect is Dialect.SPLIT
    assert plan.undefined == ()


@pytest.mark.parametrize("name", BLOCKED)
def test_group_is_refused_without_a_container(split: KernelTree, name: str) -> None:
    """The group's symbol alone: a cdev needs no container."""
    assert prove_blocked(split, CATALOGUE.variant(name)).asked == ("VFIO_GROUP_NOIOMMU",)
