# SPDX-License-Identifier: GPL-2.0-only
"""harness.cli.planning on a source tree that is made for the purpose."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from kernel_fake_tree import make_fake_tree

from harness.cli.planning import plan_wished_kernel
from harness.cli.wishes import KernelWish
from harness.kernel.trees import open_tree

TOOLS = ("make", "gcc", "ld", "flex", "bison", "bc")
pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in TOOLS), reason="the tools of a kernel build are missing"
)


def test_plan_that_is_only_shown_starts_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Selftests that are not built yet are not counted, and it says so."""
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    source = make_fake_tree(tmp_path / "linux")

    def build(*_: object, **__: object) -> None:
        pytest.fail("something is built")

    monkeypatch.setattr("harness.cli.planning.provide_selftests", build)
    wish = KernelWish(tree=str(source), variant="cdev")
    planned = plan_wished_kernel(open_tree(str(source)), wish, with_selftests=True, build=False)
    assert planned.plan is not None
    assert planned.uncounted
    assert planned.selftests is None
    assert not planned.is_built
