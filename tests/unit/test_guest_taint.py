# SPDX-License-Identifier: GPL-2.0-only
"""The description of the taint mask."""

from __future__ import annotations

from pathlib import Path

import pytest

from guest import taint


def test_each_bit_is_named() -> None:
    assert taint.describe(taint.USER) == "bit 6 (U, requested by user space)"
    assert (
        taint.describe(1 | 1 << 18) == "bit 0 (P, proprietary module loaded), bit 18 (N, in-kernel test run)"
    )
    assert taint.describe(1 << 40) == "bit 40"
    assert taint.describe(0) == ""


def test_the_letters_are_the_kernels() -> None:
    letters = "".join(taint.describe(1 << bit).split("(")[1][0] for bit in range(20))
    assert letters == "PFSRMBUDAWCIOELKXTNJ"


def test_the_mask_is_what_the_kernel_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taint, "TAINTED", tmp_path / "tainted")
    (tmp_path / "tainted").write_text("4160\n", encoding="ascii")
    assert taint.mask() == 1 << 12 | taint.USER
