# SPDX-License-Identifier: GPL-2.0-only
"""The harness starts itself from the files that it runs from."""

from __future__ import annotations

from pathlib import Path

import pytest

import harness
from harness.base import itself, process


def test_it_is_the_same_harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a directory called harness where we are nor another PYTHONPATH takes its place."""
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness" / "__main__.py").write_text("print('another')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = process.run(itself.argv(["--version"]), cwd=tmp_path, env=itself.env())
    assert done.stdout.strip() == f"vfio-harness, version {harness.__version__}", done.stderr
    assert itself.env()["PYTHONPATH"].split(":")[1:] == [str(tmp_path)]
