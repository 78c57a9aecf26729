# SPDX-License-Identifier: GPL-2.0-only
"""Where things are."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import paths


def test_runs_are_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable says nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VFIO_HARNESS_RUNS", "")
    assert paths.runs_dir() == tmp_path / "runs"
    monkeypatch.setenv("VFIO_HARNESS_RUNS", "elsewhere")
    assert paths.runs_dir() == tmp_path / "elsewhere"
