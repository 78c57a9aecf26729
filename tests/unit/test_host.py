# SPDX-License-Identifier: GPL-2.0-only
"""What is read of the host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.host import available_mib, default_compilers


def test_memory_is_the_kernels_own_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MemAvailable, not what happens to be free; nothing where the kernel does not tell."""
    texts = iter(["MemFree: 1 kB\nMemAvailable:  4194304 kB\n", "MemFree: 1 kB\n"])
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: next(texts))
    assert available_mib() == 4096
    assert available_mib() == 0


def test_compilers_for_the_processors_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is bound to a few processors of many builds on those."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3, 7})
    assert default_compilers() == 3
