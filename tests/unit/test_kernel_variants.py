# SPDX-License-Identifier: GPL-2.0-only
"""A variant says what it wants; the tree's Kconfig files decide which symbols that means."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from harness.base import paths
from harness.base.errors import NotApplicable, NotRefused, UsageError
from harness.kernel.arch import ARCHES
from harness.kernel.kconfig import ResolvedConfig, find_fragment, read_fragment
from harness.kernel.symbols import KconfigFiles
from harness.kernel.variants import ConfigPlan, Dialect, find_dialect, load_catalogue, plan_config, prove

NAMES = [
    *("group", "group-compat", "group-cdev", "compat-cdev", "cdev", "off", "modules"),
    *("noiommu-group", "noiommu-cdev", "blocked-group", "blocked-group-cdev"),
]

MERGED = """
config VFIO_NOIOMMU
	bool "no-IOMMU"
	depends on !VFIO_GROUP || VFIO_CONTAINER || IOMMUFD_VFIO_CONTAINER
	select IOMMUFD_NOIOMMU if VFIO_DEVICE_CDEV
config IOMMUFD_NOIOMMU
	bool
"""
SPLIT = """
config VFIO_GROUP_NOIOMMU
	bool "group no-IOMMU"
	depends on VFIO_GROUP
config VFIO_CDEV_NOIOMMU
	bool "cdev no-IOMMU"
	depends on IOMMUFD_NOIOMMU
config IOMMUFD_NOIOMMU
	bool "iommufd no-IOMMU"
"""
RULE = "depends on VFIO_CONTAINER || IOMMUFD_VFIO_CONTAINER"
SPLIT_WITH_RULE = SPLIT.replace("depends on VFIO_GROUP\n", f"depends on VFIO_GROUP\n\t{RULE}\n")
UNMERGED = [("noiommu-group", MERGED), ("noiommu-cdev", MERGED)]
"""What needs a symbol for each path."""
GROUP_ONLY = """
config VFIO_NOIOMMU
	bool "no-IOMMU"
	depends on VFIO_GROUP
"""


def symbols_of(directory: Path, dialect: str) -> KconfigFiles:
    """A tree that defines all that the fragments ask for, and no-IOMMU mode in one dialect."""
    asked = {s.symbol for path in paths.kconfigs_dir().glob("*.config") for s in read_fragment(path).settings}
    rest = sorted(symbol for symbol in asked if "NOIOMMU" not in symbol)
    text = "".join(f'config {symbol}\n\ttristate "x"\n' for symbol in rest)
    (directory / "Kconfig").write_text(text + dialect, encoding="utf-8")
    return KconfigFiles(directory)


def outcome(plan: ConfigPlan, **changes: str) -> ResolvedConfig:
    """A .config in which all came out as planned, but for *changes*."""
    values = {s: x.value for s, x in plan.settings.items() if s not in plan.blocked}
    values |= {**plan.expected, **changes}
    return ResolvedConfig.parse("".join(f"CONFIG_{s}={v}\n" for s, v in values.items() if v != "n"))


def noiommu_settings(plan: ConfigPlan) -> Mapping[str, str]:
    return {s: x.value for s, x in plan.settings.items() if "NOIOMMU" in s}


def test_the_variants_are_those_of_the_design() -> None:
    """Names are fixed: matrices, reports and needs refer to them."""
    catalogue = load_catalogue()
    assert list(catalogue.variants) == NAMES
    assert set(catalogue.addons) == {"64k-pages", "debug", "fault-injection", "gcov", "kunit"}


def test_an_addon_knows_better_of_what_it_says_it_overrides(tmp_path: Path) -> None:
    """And of nothing else; the machine's second processor is then none."""
    catalogue, symbols = load_catalogue(), symbols_of(tmp_path, MERGED)
    variant = catalogue.variant("group-cdev")
    assert catalogue.addon("kunit").overrides == ("SMP", "NR_CPUS")
    assert not plan_config(catalogue, variant, symbols).has_one_processor
    plan = plan_config(catalogue, variant, symbols, addons=["kunit"])
    assert (plan.settings["SMP"].path.name, plan.has_one_processor) == ("kunit.config", True)
    plain = dataclasses.replace(catalogue.addon("kunit"), overrides=())
    strict = dataclasses.replace(catalogue, addons={"kunit": plain})
    with pytest.raises(UsageError, match=r"asks for CONFIG_SMP=n but .*base\.config:4 asks for CONFIG_SMP=y"):
        plan_config(strict, variant, symbols, addons=["kunit"])


def test_every_fragment_named_exists_and_none_is_left_over() -> None:
    """variants.yaml and the directory agree."""
    catalogue = load_catalogue()
    named = {*catalogue.base, *(arch.fragment for arch in ARCHES.values())}
    named |= {"noiommu", "noiommu-group", "noiommu-cdev", "no-noiommu"}
    named |= {f for v in catalogue.variants.values() for f in v.fragments}
    named |= {f for a in catalogue.addons.values() for f in a.fragments}
    for name in named:
        find_fragment(catalogue.directory, name)
    assert {path.stem for path in catalogue.directory.glob("*.config")} == named


@pytest.mark.parametrize(
    ("name", "text"),
    [(name, text) for name in NAMES for text in (MERGED, SPLIT_WITH_RULE) if (name, text) not in UNMERGED],
)
@pytest.mark.parametrize("addons", [(), ("debug", "fault-injection", "gcov", "kunit")])
def test_fragments_never_conflict(tmp_path: Path, name: str, text: str, addons: tuple[str, ...]) -> None:
    """Every variant with every add-on merges, and its promise agrees with what it asks."""
    catalogue, symbols = load_catalogue(), symbols_of(tmp_path, text)
    plan = plan_config(catalogue, catalogue.variant(name), symbols, addons=addons)
    prove(plan, outcome(plan), symbols)
    assert set(addons) <= plan.features
    assert plan.undefined == ()


@pytest.mark.parametrize(
    ("text", "dialect"),
    [(MERGED, Dialect.MERGED), (SPLIT, Dialect.SPLIT), (GROUP_ONLY, Dialect.GROUP_ONLY), ("", Dialect.NONE)],
)
def test_dialect_is_read_from_the_files(tmp_path: Path, text: str, dialect: Dialect) -> None:
    """Which symbols exist tells the dialect; no version is asked."""
    assert find_dialect(symbols_of(tmp_path, text)) is dialect


def test_one_path_alone(tmp_path: Path) -> None:
    """v5: both paths are there and one of them has the mode; its symbols, and not the other's."""
    catalogue, symbols = load_catalogue(), symbols_of(tmp_path, SPLIT)
    group, cdev = catalogue.variant("noiommu-group"), catalogue.variant("noiommu-cdev")
    plan = plan_config(catalogue, group, symbols)
    assert noiommu_settings(plan) == {"VFIO_GROUP_NOIOMMU": "y"}
    assert plan.expected["VFIO_CDEV_NOIOMMU"] == plan.expected["IOMMUFD_NOIOMMU"] == "n"
    plan = plan_config(catalogue, cdev, symbols)
    assert noiommu_settings(plan) == {"VFIO_CDEV_NOIOMMU": "y", "IOMMUFD_NOIOMMU": "y"}
    assert plan.expected["VFIO_GROUP_NOIOMMU"] == "n"
    both = {"noiommu", "group", "cdev", "container", "iommufd"}
    assert group.features == both | {"noiommu-group"}
    assert cdev.features == both | {"noiommu-cdev"}


@pytest.mark.parametrize(("name", "text"), UNMERGED)
def test_merged_dialect_has_no_path_alone(tmp_path: Path, name: str, text: str) -> None:
    """7.3: one symbol is for both, so neither can be had without the other."""
    catalogue = load_catalogue()
    with pytest.raises(NotApplicable, match="for the group and the cdev alike"):
        plan_config(catalogue, catalogue.variant(name), symbols_of(tmp_path, text))


def test_group_only_tree_keeps_the_mode_to_the_group(tmp_path: Path) -> None:
    """7.2 with both paths is just that: its cdev has no such mode."""
    catalogue, symbols = load_catalogue(), symbols_of(tmp_path, GROUP_ONLY)
    plan = plan_config(catalogue, catalogue.variant("noiommu-group"), symbols)
    assert noiommu_settings(plan) == {"VFIO_NOIOMMU": "y"}
    with pytest.raises(NotApplicable, match="for groups only"):
        plan_config(catalogue, catalogue.variant("noiommu-cdev"), symbols)


@pytest.mark.parametrize(
    ("kept", "works", "lacks"),
    [("VFIO_GROUP_NOIOMMU", "group", "cdev"), ("VFIO_CDEV_NOIOMMU", "cdev", "group")],
)
def test_split_dialect_half_way_through_its_series(tmp_path: Path, kept: str, works: str, lacks: str) -> None:
    """A commit with one of the two symbols has that path, and says which symbol the other one wants."""
    other = {"VFIO_GROUP_NOIOMMU": "VFIO_CDEV_NOIOMMU", "VFIO_CDEV_NOIOMMU": "VFIO_GROUP_NOIOMMU"}[kept]
    catalogue, symbols = load_catalogue(), symbols_of(tmp_path, SPLIT.replace(f"config {other}", "config X"))
    assert kept in plan_config(catalogue, catalogue.variant(works), symbols).settings
    with pytest.raises(NotApplicable, match=f"defines no CONFIG_{other}"):
        plan_config(catalogue, catalogue.variant(lacks), symbols)


def test_merged_dialect_asks_for_one_symbol_and_expects_the_hidden_one(tmp_path: Path) -> None:
    """7.3: VFIO_NOIOMMU is asked for, IOMMUFD_NOIOMMU must follow with the cdev and must not without."""
    catalogue, symbols = load_catalogue(), symbols_of(tmp_path, MERGED)
    both = plan_config(catalogue, catalogue.variant("group-cdev"), symbols)
    group = plan_config(catalogue, catalogue.variant("group"), symbols)
    assert noiommu_settings(both) == {"VFIO_NOIOMMU": "y"}
    assert both.expected["IOMMUFD_NOIOMMU"] == "y"
    assert group.expected["IOMMUFD_NOIOMMU"] == "n"


def test_split_dialect_asks_for_each_path(tmp_path: Path) -> None:
    """v5: each path has a symbol, and iommufd's is visible."""
    catalogue, symbols = load_catalogue(), symbols_of(tmp_path, SPLIT)
    wanted = {
        name: plan_config(catalogue, catalogue.variant(name), symbols)
        for name in ("group", "cdev", "group-cdev")
    }
    assert noiommu_settings(wanted["group"]) == {"VFIO_GROUP_NOIOMMU": "y"}
    assert noiommu_settings(wanted["cdev"]) == {"VFIO_CDEV_NOIOMMU": "y", "IOMMUFD_NOIOMMU": "y"}
    assert set(noiommu_settings(wanted["group-cdev"])) == {
        *("VFIO_GROUP_NOIOMMU", "VFIO_CDEV_NOIOMMU", "IOMMUFD_NOIOMMU")
    }
    assert wanted["group"].expected["VFIO_CDEV_NOIOMMU"] == "n"


@pytest.mark.parametrize(
    ("name", "instead"), [("cdev", "group"), ("group-cdev", "group"), ("compat-cdev", "group-compat")]
)
def test_group_only_tree_has_no_noiommu_cdev(tmp_path: Path, name: str, instead: str) -> None:
    """7.2: said as what it is, with the variant that would work."""
    catalogue = load_catalogue()
    with pytest.raises(NotApplicable, match="for groups only") as caught:
        plan_config(catalogue, catalogue.variant(name), symbols_of(tmp_path, GROUP_ONLY))
    assert f"'{instead}'" in (caught.value.hint or "")


def test_group_only_tree_has_the_group_variants(tmp_path: Path) -> None:
    """7.2: groups and `off` apply as they do elsewhere."""
    catalogue, symbols = load_catalogue(), symbols_of(tmp_path, GROUP_ONLY)
    for name in ("group", "group-compat", "off"):
        assert plan_config(catalogue, catalogue.variant(name), symbols).dialect is Dialect.GROUP_ONLY


def test_tree_without_noiommu_has_off_only(tmp_path: Path) -> None:
    """No symbol at all: every variant that wants the mode is not applicable."""
    catalogue, symbols = load_catalogue(), symbols_of(tmp_path, "")
    plan_config(catalogue, catalogue.variant("off"), symbols)
    with pytest.raises(NotApplicable, match="no VFIO no-IOMMU mode"):
        plan_config(catalogue, catalogue.variant("group"), symbols)


def test_blocked_variant_must_not_get_what_it_asks(tmp_path: Path) -> None:
    """Asked for, must be off; coming out on is a failure of the tree."""
    catalogue, symbols = load_catalogue(), symbols_of(tmp_path, MERGED)
    plan = plan_config(catalogue, catalogue.variant("blocked-group-cdev"), symbols)
    assert noiommu_settings(plan) == {"VFIO_NOIOMMU": "y"}
    assert "noiommu" not in plan.features
    prove(plan, outcome(plan), symbols)
    with pytest.raises(NotRefused, match="CONFIG_VFIO_NOIOMMU must be n"):
        prove(plan, outcome(plan, VFIO_NOIOMMU="y"), symbols)


def test_blocked_variant_that_lost_its_rule(tmp_path: Path) -> None:
    """7.3 without the dependency on a container is judged by what comes out, not taken for an older tree."""
    without = MERGED.replace("depends on !VFIO_GROUP || VFIO_CONTAINER || IOMMUFD_VFIO_CONTAINER", "")
    catalogue, symbols = load_catalogue(), symbols_of(tmp_path, without)
    plan = plan_config(catalogue, catalogue.variant("blocked-group"), symbols)
    with pytest.raises(NotRefused):
        prove(plan, outcome(plan, VFIO_NOIOMMU="y"), symbols)


def test_blocked_variant_with_a_container_after_all(tmp_path: Path) -> None:
    """No-IOMMU mode beside a container that came out against the wish says nothing of the promise."""
    catalogue, symbols = load_catalogue(), symbols_of(tmp_path, MERGED)
    plan = plan_config(catalogue, catalogue.variant("blocked-group"), symbols)
    with pytest.raises(NotApplicable, match="CONFIG_VFIO_CONTAINER must be n"):
        prove(plan, outcome(plan, VFIO_NOIOMMU="y", VFIO_CONTAINER="y"), symbols)


def test_split_dialect_blocks_the_group_alone(tmp_path: Path) -> None:
    """v5: a container is the group's affair, so the cdev's symbols come out without one."""
    catalogue, symbols = load_catalogue(), symbols_of(tmp_path, SPLIT_WITH_RULE)
    plan = plan_config(catalogue, catalogue.variant("blocked-group-cdev"), symbols)
    assert plan.blocked == ("VFIO_GROUP_NOIOMMU",)
    assert plan.expected["VFIO_CDEV_NOIOMMU"] == plan.expected["IOMMUFD_NOIOMMU"] == "y"
    prove(plan, outcome(plan), symbols)
    with pytest.raises(NotRefused, match="CONFIG_VFIO_GROUP_NOIOMMU must be n"):
        prove(plan, outcome(plan, VFIO_GROUP_NOIOMMU="y"), symbols)


def test_blocked_variant_needs_a_container_rule(tmp_path: Path) -> None:
    """Where no-IOMMU mode does not depend on a container, its absence blocks nothing."""
    catalogue = load_catalogue()
    for number, text in enumerate((GROUP_ONLY, SPLIT)):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(NotApplicable, match="does not depend on a container"):
            plan_config(
                catalogue, catalogue.variant("blocked-group"), symbols_of(tmp_path / str(number), text)
            )


def test_missed_promise_is_explained(tmp_path: Path) -> None:
    """A symbol that did not come out is named with where it was asked for."""
    catalogue, symbols = load_catalogue(), symbols_of(tmp_path, MERGED)
    plan = plan_config(catalogue, catalogue.variant("group-cdev"), symbols)
    with pytest.raises(
        NotApplicable, match=r"CONFIG_VFIO_DEVICE_CDEV must be y \(asked at .*cdev\.config:\d+\)"
    ):
        prove(plan, outcome(plan, VFIO_DEVICE_CDEV="n"), symbols)


def test_unexpected_hidden_symbol_is_a_miss(tmp_path: Path) -> None:
    """`off` with anything of no-IOMMU mode left is refused."""
    catalogue, symbols = load_catalogue(), symbols_of(tmp_path, MERGED)
    plan = plan_config(catalogue, catalogue.variant("off"), symbols)
    with pytest.raises(NotApplicable, match="CONFIG_IOMMUFD_NOIOMMU must be n"):
        prove(plan, outcome(plan, IOMMUFD_NOIOMMU="y"), symbols)


def test_features() -> None:
    """The facts of a variant, as needs name them."""
    catalogue = load_catalogue()
    assert catalogue.variant("group-cdev").features == {
        *("noiommu", "noiommu-group", "noiommu-cdev", "group", "cdev", "container", "iommufd")
    }
    assert catalogue.variant("cdev").features == {"noiommu", "noiommu-cdev", "cdev", "iommufd"}
    assert catalogue.variant("off").features == {"group", "cdev", "container", "iommufd"}
    assert "compat" in catalogue.variant("compat-cdev").features
    assert "modular" in catalogue.variant("modules").features


def test_unknown_names_get_the_nearest() -> None:
    """A misspelt variant or add-on is met with the right spelling."""
    catalogue = load_catalogue()
    with pytest.raises(UsageError) as variant:
        catalogue.variant("group-cdv")
    with pytest.raises(UsageError) as addon:
        catalogue.addon("dbug")
    assert "'group-cdev'" in (variant.value.hint or "")
    assert "'debug'" in (addon.value.hint or "")


def test_users_fragment_with_an_unknown_symbol(tmp_path: Path) -> None:
    """A typo in the user's fragment is refused with its place, not dropped."""
    theirs = tmp_path / "mine.config"
    theirs.write_text("CONFIG_VFIO_GRUP=y\n", encoding="utf-8")
    catalogue = load_catalogue()
    with pytest.raises(UsageError, match=r"mine\.config:1 asks for CONFIG_VFIO_GRUP=y.*VFIO_GROUP"):
        plan_config(
            catalogue,
            catalogue.variant("group"),
            symbols_of(tmp_path, MERGED),
            extra=[read_fragment(theirs)],
        )


@pytest.mark.parametrize("symbol", ["PRINTK", "PRINTK_TIME", "SERIAL_8250_CONSOLE", "BUG", "TTY"])
def test_users_fragment_cannot_silence_the_kernel(tmp_path: Path, symbol: str) -> None:
    """A kernel without one of these would run cases while nobody sees its splats."""
    theirs = tmp_path / "mine.config"
    theirs.write_text(f"# CONFIG_{symbol} is not set\n", encoding="utf-8")
    catalogue, symbols = load_catalogue(), symbols_of(tmp_path, MERGED)
    message = rf"mine\.config:1 asks for CONFIG_{symbol}=n .*\.config:\d+ asks for CONFIG_{symbol}=y"
    with pytest.raises(UsageError, match=message):
        plan_config(catalogue, catalogue.variant("group"), symbols, extra=[read_fragment(theirs)])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("container: native}", "container: nativ}", r"variants\.yaml:\d+: .*'nativ'"),
        ("wants: {noiommu: true,", "wants: {noiomu: true,", r"lacks the key 'noiommu'"),
        ("noiommu_only: cdev", "noiommu_only: cdv", r"variants\.yaml:\d+: .*'cdv'"),
        ("summary:", "sumary:", r"lacks the key 'summary'"),
        ("blocked: true", "blockd: true", r"has no key 'blockd'"),
    ],
)
def test_variants_file_is_strict(tmp_path: Path, old: str, new: str, message: str) -> None:
    """A wrong value or key in variants.yaml is refused with file and line."""
    target = tmp_path / "kconfigs"
    shutil.copytree(paths.kconfigs_dir(), target)
    file = target / "variants.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        load_catalogue(target)
