# SPDX-License-Identifier: GPL-2.0-only
"""A tree's own selftests that do not compile are in the results where they were asked for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.specifiers import SpecifierSet

from harness.results import Address, Outcome, Result
from harness.session.background import exists
from harness.session.compiled import Asked, compile_results
from harness.session.planning import Planned
from harness.session.wishes import JobWish, KernelWish, MachineWish
from harness.suites.known import KnownIssue, shipped_issues

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
    wish = JobWish(kernel=kernel, machine=MachineWish(topology="edu"), suites=suites)
    tree = SimpleNamespace(version=version)
    planned = Planned(wish=kernel, tree=tree, selftests=selftests)  # type: ignore[arg-type]
    return list(compile_results("j", wish, planned, issues, Asked(cases=cases, keyword=keyword)))


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    (tmp_path / "vfio.failed").write_text("x.c:36: error: calloc_assert", encoding="utf-8")
    return tmp_path


def test_suite_that_does_not_compile_is_an_error(broken: Path) -> None:
    """The probes run all the same, and alone they do not mind."""
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
    ],
)
def test_suite_that_was_left_out_is_no_news(
    broken: Path, cases: tuple[str, ...], keyword: str, asked: bool
) -> None:
    """Who asks for a few probes gets their verdict, not that of programs that were never to run."""
    assert bool(found(broken, cases=cases, keyword=keyword)) is asked


def test_known_not_to_compile(broken: Path, tmp_path: Path) -> None:
    """On released kernels with that defect it is no news, and loudly mended once they compile."""
    (result,) = found(broken, version="7.2.13")
    assert result.outcome is Outcome.XFAIL
    assert "calloc_assert" in result.log
    (tmp_path / "vfio.failed").unlink()
    (mended,) = found(tmp_path, version="7.2.99")
    assert mended.outcome is Outcome.XPASS
    assert found(tmp_path, version="7.3.4") == []


def test_issue_about_a_whole_suite_is_not_mended_by_its_compiling(broken: Path, tmp_path: Path) -> None:
    """A list of one's own may excuse all that a suite says; only an entry about this case can be refuted."""
    kernels = SpecifierSet(">=7.3")
    own = (KnownIssue(case="kselftest:vfio/*", kernels=kernels, reason="x", link="y"),)
    (result,) = found(broken, issues=own)
    assert result.outcome is Outcome.XFAIL
    (tmp_path / "vfio.failed").unlink()
    assert found(tmp_path, issues=own) == []


def test_a_suite_that_compiles_again_has_lost_no_case() -> None:
    """The case is there only for as long as the suite does not compile."""
    assert not exists(Address.parse(ADDRESS))
    assert exists(Address.parse("kselftest:vfio/vfio_dma_mapping_test@edu0/all"))
