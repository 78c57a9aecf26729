# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness build` of several variants, with real make and gcc on a tree that builds in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from kernel_fake_tree import make_fake_tree, needs_build_tools

from harness.base.errors import ExitCode, NotApplicable
from harness.cli.build_verb import command

pytestmark = needs_build_tools


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    return make_fake_tree(tmp_path / "linux")


def test_one_that_cannot_be_costs_no_other(source: Path) -> None:
    """A variant that the tree cannot express is reported, and the next ones are built."""
    words = ["--tree", str(source), "--variant", "noiommu-cdev", "--variant", "cdev", "--json"]
    done = CliRunner().invoke(command, words, standalone_mode=False)
    assert done.return_value == ExitCode.KERNEL
    assert "noiommu-cdev: this tree cannot express" in done.stderr
    assert [built["variant"] for built in json.loads(done.stdout)] == ["cdev"]


def test_one_alone_is_an_error(source: Path) -> None:
    """A single variant that cannot be built is the error of the command."""
    done = CliRunner().invoke(command, ["--tree", str(source), "--variant", "noiommu-cdev"])
    assert isinstance(done.exception, NotApplicable)
