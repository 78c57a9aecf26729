# SPDX-License-Identifier: GPL-2.0-only
"""The Kconfig reader finds symbols, their conditions and their selectors, and explains a miss."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.kernel.expr import parse_expression
from harness.kernel.kconfig import ResolvedConfig
from harness.kernel.symbols import KconfigFiles

KCONFIG = """\
mainmenu "Linux/$(ARCH) Kernel Configuration"
source "arch/$(SRCARCH)/Kconfig"

menuconfig VFIO
  tristate "VFIO"
  select HIDDEN if WANTED && !64BIT
  help
    config NOT_A_SYMBOL is text.

    depends on nothing either.

if VFIO
config VFIO_GROUP
  bool "group"   # depends on comments
  default y

config VFIO_NOIOMMU
  bool "no-IOMMU"
  depends on VFIO_GROUP || (VFIO_CDEV && !GENERIC_ATOMIC64)
  depends on !VFIO_GROUP || VFIO_CONTAINER || \\
    IOMMUFD_CONTAINER
  select IOMMUFD_NOIOMMU if VFIO_CDEV
endif

menu "rest"
  depends on MENU_ON

config IN_MENU
  def_bool y
  prompt "in the menu"

config OLD_NAME
  bool
  transitional
  help
    Only read from old files.

config IOMMUFD_NOIOMMU
  bool
  depends on LEFT if RIGHT
endmenu

config AFTER
  string "after"
"""


@pytest.fixture
def symbols(tmp_path: Path) -> KconfigFiles:
    (tmp_path / "arch" / "x86").mkdir(parents=True)
    (tmp_path / "arch" / "x86" / "Kconfig").write_text('config 64BIT\n\tbool "64-bit"\n', encoding="utf-8")
    (tmp_path / "Kconfig").write_text(KCONFIG, encoding="utf-8")
    return KconfigFiles(tmp_path)


def resolved(*lines: str) -> ResolvedConfig:
    return ResolvedConfig.parse("".join(f"CONFIG_{line}\n" for line in lines))


def test_definitions_are_found(symbols: KconfigFiles) -> None:
    """Sources are followed with the architecture filled in; help texts define nothing."""
    assert symbols.files == {"Kconfig", "arch/x86/Kconfig"}
    assert set(symbols.definitions) == {
        *("64BIT", "VFIO", "VFIO_GROUP", "VFIO_NOIOMMU", "IN_MENU", "OLD_NAME", "IOMMUFD_NOIOMMU", "AFTER")
    }


def test_prompts(symbols: KconfigFiles) -> None:
    """A symbol without a prompt cannot be asked for."""
    assert symbols.has_prompt("VFIO_GROUP")
    assert symbols.has_prompt("IN_MENU")
    assert not symbols.has_prompt("IOMMUFD_NOIOMMU")
    assert not symbols.has_prompt("NO_SUCH")


def test_dependencies_come_from_blocks_too(symbols: KconfigFiles) -> None:
    """`if` blocks and menus add to what a symbol needs, and end where they end."""
    assert "VFIO" in symbols.depends_on("VFIO_NOIOMMU")
    assert symbols.depends_on("VFIO_NOIOMMU") >= {"VFIO_CONTAINER", "IOMMUFD_CONTAINER", "GENERIC_ATOMIC64"}
    assert symbols.depends_on("IN_MENU") == {"MENU_ON"}
    assert symbols.depends_on("AFTER") == frozenset()


def test_miss_names_the_unsatisfied_dependency(symbols: KconfigFiles) -> None:
    """Only the condition that fails is named, with the values of its symbols and its place."""
    reason = symbols.explain_miss("VFIO_NOIOMMU", "y", resolved("VFIO=y", "VFIO_GROUP=y"))
    assert "VFIO_CONTAINER is n" in reason
    assert "Kconfig:20" in reason
    assert "GENERIC_ATOMIC64" not in reason


def test_miss_names_a_condition_of_a_block(symbols: KconfigFiles) -> None:
    """A symbol inside `if VFIO` misses because VFIO is off."""
    assert "VFIO (it is n; Kconfig:12)" in symbols.explain_miss("VFIO_GROUP", "y", resolved())


def test_module_does_not_satisfy_built_in(symbols: KconfigFiles) -> None:
    """m is not enough where y is asked."""
    assert "VFIO (it is m" in symbols.explain_miss("VFIO_GROUP", "y", resolved("VFIO=m"))


def test_miss_names_the_nearest_symbol(symbols: KconfigFiles) -> None:
    """A symbol that no file defines is met with the nearest that one does."""
    reason = symbols.explain_miss("VFIO_NOIOMU", "y", resolved())
    assert "defines no CONFIG_VFIO_NOIOMU" in reason
    assert "VFIO_NOIOMMU" in reason


def test_unwanted_symbol_names_its_selector(symbols: KconfigFiles) -> None:
    """Who turned it on is named, but not a selector whose condition does not hold."""
    config = resolved("VFIO=y", "VFIO_NOIOMMU=y", "VFIO_CDEV=y", "IOMMUFD_NOIOMMU=y", "HIDDEN=y")
    assert "selected by VFIO_NOIOMMU" in symbols.explain_miss("IOMMUFD_NOIOMMU", "n", config)


def test_hidden_symbol_says_who_could_select_it(symbols: KconfigFiles) -> None:
    """A promptless symbol whose dependencies hold needs a selector."""
    reason = symbols.explain_miss("IOMMUFD_NOIOMMU", "y", resolved("MENU_ON=y"))
    assert "no prompt" in reason
    assert "VFIO_NOIOMMU" in reason


def test_conditional_dependency(symbols: KconfigFiles) -> None:
    """`depends on A if B` needs A only where B holds."""
    reason = symbols.explain_miss("IOMMUFD_NOIOMMU", "y", resolved("MENU_ON=y", "RIGHT=y"))
    assert "LEFT is n" in reason


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("A", 2),
        ("M", 1),
        ("!M", 1),
        ("N", 0),
        ("A && M", 1),
        ("N || M", 1),
        ("!(A && N)", 2),
        ("A=y", 2),
        ("M!=y", 2),
        ("NR < 10", 2),
        ('TEXT = "a b"', 2),
        ("64BIT", 2),
        ("A && $(cc-option,-fx(y))", 2),
        ("n", 0),
        ("A &&", 2),
    ],
)
def test_expression_values(text: str, value: int) -> None:
    """Expressions are worth what kconfig says; what cannot be read holds."""
    config = resolved("A=y", "M=m", "NR=8", 'TEXT="a b"', "64BIT=y")
    assert parse_expression(text).value(config) == value
