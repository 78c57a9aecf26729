# SPDX-License-Identifier: GPL-2.0-only
"""The directory of `vfio-harness shell`: it goes with the VM and stays, named, after an error."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest

from harness.base.errors import LostGuest
from harness.cli.shell_verb import _kept_after_an_error


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("error", "files", "stays"),
    [
        (None, True, False),
        (KeyboardInterrupt(), True, False),
        (LostGuest("gone"), True, True),
        (OSError("disk"), True, True),
        (LostGuest("never there"), False, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_what_becomes_of_the_directory(
    error: BaseException | None,
    files: bool,
    stays: bool,
    temporary: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is removed when the user ends the shell, and after an error if it is empty."""
    expected = contextlib.nullcontext() if error is None else pytest.raises(type(error))
    seen = []
    with expected, _kept_after_an_error() as directory:
        seen.append(directory)
        if files:
            (directory / "console.log").touch()
        if error is not None:
            raise error
    assert list(temporary.iterdir()) == (seen if stays else [])
    assert (f"kept: {seen[0]}" in capsys.readouterr().err) is stays
