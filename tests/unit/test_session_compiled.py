# SPDX-License-Identifier: GPL-2.0-only
"""Selftests of a tree that do not compile are in the results if they were selected."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.specifiers import SpecifierSet

from harness.results import Address, Outcome, Result
from harness.session.planning import PlannedKernel
from harness.session.records import compile_results, may_select
from harness.session.wishes import KernelWish
from harness.suites.known import KnownIssue, shipped_issues
from harness.suites.registry import may_exist

BOTH = ("probes", "kselftest:vfio")
ADDRESS = "kselftest:vfio/build/compiles"


def found(
    selftests: Path,
    *,
    suites: tuple[str, ...] = BOTH,
    version: str = "7.3.4",
    cases: tuple[str, ...] = (),
    keyword: str = "",
    issues: tuple[KnownIssue, ...] = shipped_issues(),
) -> list[Result]:
    kernel = KernelWish(tree=None, variant="group")
    tree = SimpleNamespace(version=version)
    planned = PlannedKernel(wish=kernel, tree=tree, selftests=selftests)  # type: ignore[arg-type]
    asked = [suite for suite in suites if may_select(suite, cases, keyword)]
    return list(compile_results("j", asked, planned, issues))


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    (tmp_path / "vfio.failed").write_text("x.c:36: error: calloc_assert", encoding="utf-8")
    return tmp_path


def test_suite_that_does_not_compile_is_an_error(broken: Path) -> None:
    """The probes still run; without the suite there is no result about it."""
    (result,) = found(broken)
    assert (str(result.address), result.outcome) == (ADDRESS, Outcome.ERROR)
    assert "calloc_assert" in result.reason
    assert found(broken, suites=("probes",)) == []


@pytest.mark.parametrize(
    ("cases", "keyword", "asked"),
    [
        (("probes/nodes/*",), "", False),
        (("probes/nodes/*", "kselftest:vfio/vfio_*"), "", True),
        (("*/nodes/*",), "", True),
        ((), "get_pa", False),
        ((), "VFIO", True),
        ((), "VFIO or nodes", True),
        ((), "(iommu and not nodes)", False),
    ],
)
def test_suite_that_was_left_out_is_no_news(
    broken: Path, cases: tuple[str, ...], keyword: str, asked: bool
) -> None:
    """A selection of probes does not get the error of a suite that it left out."""
    assert bool(found(broken, cases=cases, keyword=keyword)) is asked


def test_known_not_to_compile(broken: Path, tmp_path: Path) -> None:
    """A kernel with that known issue is XFAIL, and XPASS once its suite compiles."""
    (result,) = found(broken, version="7.2.13")
    assert result.outcome is Outcome.XFAIL
    assert "calloc_assert" in result.log
    (tmp_path / "vfio.failed").unlink()
    (mended,) = found(tmp_path, version="7.2.99")
    assert mended.outcome is Outcome.XPASS
    assert found(tmp_path, version="7.3.4") == []


def test_issue_about_a_whole_suite_is_not_mended_by_its_compiling(broken: Path, tmp_path: Path) -> None:
    """An entry for a whole suite makes the error XFAIL, but never makes a success XPASS."""
    kernels = SpecifierSet(">=7.3")
    own = (KnownIssue(case="kselftest:vfio/*", kernels=kernels, reason="x", link="y"),)
    (result,) = found(broken, issues=own)
    assert result.outcome is Outcome.XFAIL
    (tmp_path / "vfio.failed").unlink()
    assert found(tmp_path, issues=own) == []


def test_a_suite_that_compiles_again_has_lost_no_case() -> None:
    """The case exists only while the suite does not compile."""
    assert not may_exist(Address.parse(ADDRESS))
    assert may_exist(Address.parse("kselftest:vfio/vfio_dma_mapping_test@edu0/all"))
