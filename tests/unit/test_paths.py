# SPDX-License-Identifier: GPL-2.0-only
"""Where things are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.base import paths
from harness.base.errors import UsageError


def test_runs_are_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable says nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VFIO_HARNESS_RUNS", "")
    assert paths.runs_dir() == tmp_path / "runs"
    monkeypatch.setenv("VFIO_HARNESS_RUNS", "elsewhere")
    assert paths.runs_dir() == tmp_path / "elsewhere"


@pytest.mark.parametrize(
    ("variable", "directory"),
    [("VFIO_HARNESS_RUNS", paths.runs_dir), ("VFIO_HARNESS_CACHE", paths.cache_dir)],
)
def test_a_tilde_is_the_users_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, directory: Callable[[], Path]
) -> None:
    """In a unit file no shell expands it, and a directory named `~` was made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(variable, "~/r")
    assert directory() == tmp_path / "r"
    monkeypatch.setenv(variable, "~no-such-user/r")
    with pytest.raises(UsageError, match=f"{variable}=~no-such-user/r"):
        directory()
