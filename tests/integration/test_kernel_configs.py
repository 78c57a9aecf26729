# SPDX-License-Identifier: GPL-2.0-only
"""Every variant proved in real trees from Debian by their own olddefconfig; nothing is compiled."""

from __future__ import annotations

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
