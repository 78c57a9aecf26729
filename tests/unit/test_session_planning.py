# SPDX-License-Identifier: GPL-2.0-only
"""How kernels are planned, and the names of a user's files in the results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from kernel_fake_tree import make_fake_tree, needs_build_tools

from harness.base import paths
from harness.base.errors import NotApplicable, UsageError
from harness.kernel.trees import open_tree
from harness.machine.accel import Accel, Choice
from harness.machine.topology import SHIPPED, load_topology, topology_in_results
from harness.results import Outcome
from harness.session.planning import (
    PlannedKernel,
    choose_all,
    config_in_results,
    plan_wished_kernel,
    tell_broken_suites,
)
from harness.session.wishes import KernelWish, MachineWish


def test_a_qemu_of_one_architecture_leaves_out_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A matrix of several architectures goes on with what the named QEMU can run; alone it is refused."""

    def choose(machine: MachineWish, arch: str) -> tuple[str, Choice]:
        if arch == "arm64":
            raise UsageError("qemu-system-x86_64 is the QEMU for x86_64 guests, not for arm64")
        return "qemu", Choice(accel=Accel.TCG, reason="no KVM")

    monkeypatch.setattr("harness.session.planning.choose", choose)
    chosen, lacking = choose_all(MachineWish(topology="edu"), ["x86_64", "arm64"])
    assert (list(chosen), list(lacking)) == (["x86_64"], ["arm64"])
    assert "jobs of arm64 guests will not run: qemu-system-x86_64 is" in capsys.readouterr().err
    with pytest.raises(UsageError, match="not for arm64"):
        choose_all(MachineWish(topology="edu"), ["arm64"])


@needs_build_tools
def test_plan_that_is_only_shown_starts_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Selftests that are not built yet are marked as not counted."""
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    source = make_fake_tree(tmp_path / "linux")

    def build(*_: object, **__: object) -> None:
        pytest.fail("something is built")

    monkeypatch.setattr("harness.session.planning.provide_selftests", build)
    wish = KernelWish(tree=str(source), variant="cdev")
    planned = plan_wished_kernel(open_tree(str(source)), wish, with_selftests=True, build=False)
    assert planned.plan is not None
    assert planned.uncounted
    assert planned.selftests is None
    assert not planned.is_built


@needs_build_tools
@pytest.mark.parametrize("ruled", [True, False])
def test_blocked_variant_fails_only_where_there_is_a_rule(
    ruled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tree with the rule of 7.3 must refuse; to an older tree the variant is not applicable."""
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    source = make_fake_tree(tmp_path / "linux")
    if not ruled:
        kconfig = source / "Kconfig"
        kconfig.write_text(kconfig.read_text().replace("IOMMUFD_NOIOMMU", "SOMETHING_ELSE"))
    wish = KernelWish(tree=str(source), variant="blocked-group")
    planned = plan_wished_kernel(open_tree(str(source)), wish, with_selftests=False)
    if ruled:
        assert planned.proof is not None
        assert planned.proof.outcome is Outcome.FAIL
        assert "CONFIG_VFIO_NOIOMMU must be n" in planned.proof.reason
    else:
        assert planned.proof is None
        assert isinstance(planned.problem, NotApplicable)
        assert not planned.record("edu", None).applicable


def test_suites_that_do_not_compile_are_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Kernels of one tree share their selftests: the error is printed once."""
    (tmp_path / "vfio.failed").write_text("x.c:36: error: calloc_assert", encoding="utf-8")
    wishes = [KernelWish(tree=None, variant=name) for name in ("group", "off")]
    tell_broken_suites(PlannedKernel(wish=wish, tree=None, selftests=tmp_path) for wish in wishes)
    assert capsys.readouterr().err == "kselftest:vfio: x.c:36: error: calloc_assert\n"


def test_a_topology_of_the_same_name_has_a_series_of_its_own(tmp_path: Path) -> None:
    """The name of a user's file has a digest of its content; a shipped one has none, by any path."""
    mine = tmp_path / "edu-igb.yaml"
    shipped = SHIPPED / "edu-igb.yaml"
    mine.write_text(f"# mine\n{shipped.read_text()}")
    name = topology_in_results(load_topology(mine))
    assert re.fullmatch(r"edu-igb@[0-9a-f]{6}", name)
    assert topology_in_results(load_topology(mine)) == name
    assert {topology_in_results(load_topology(word)) for word in ("edu-igb", shipped)} == {"edu-igb"}
    mine.write_text(f"# yours\n{shipped.read_text()}")
    assert topology_in_results(load_topology(mine)) != name


def test_configs_of_one_name(tmp_path: Path) -> None:
    """Two fragments of one name get different names; a shipped one keeps its own."""
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "x.config").write_text(f"CONFIG_{place.upper()}=y\n")
    first, second = (config_in_results(tmp_path / place / "x.config") for place in ("a", "b"))
    assert first.startswith("x.config@")
    assert first != second
    shipped = next(paths.kconfigs_dir().glob("*.config"))
    assert config_in_results(shipped) == shipped.name
