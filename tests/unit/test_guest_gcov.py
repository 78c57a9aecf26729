# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's counters, read from a directory that stands for debugfs."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

import pytest

from guest import gcov

ZERO = b"gcda" + bytes(100)


@pytest.fixture
def debugfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two objects, whose counters are zeroed by Counters.reset()."""
    monkeypatch.setattr(gcov, "ROOT", str(tmp_path))
    for name in ("build/drivers/vfio/a.gcda", "build/drivers/vfio/b.gcda"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(ZERO)
    (tmp_path / "build/drivers/vfio/a.gcno").symlink_to("/nowhere")

    def reset(counters: gcov.Counters) -> None:
        for path in tmp_path.rglob("*.gcda"):
            path.write_bytes(ZERO)

    monkeypatch.setattr(gcov.Counters, "reset", reset)
    return tmp_path


def sent(text: str) -> dict[str, bytes]:
    head, _, rest = zlib.decompress(base64.b64decode(text)).partition(b"\n")
    found = {}
    for name, size in json.loads(head):
        found[name], rest = rest[:size], rest[size:]
    assert not rest
    return found


def test_only_what_is_not_zero_is_sent(debugfs: Path) -> None:
    counters = gcov.Counters()
    counters.reset()
    used = ZERO[:-1] + b"\x01"
    for _ in range(2):
        # The first time, it does not know yet what zero looks like.
        (debugfs / "build/drivers/vfio/b.gcda").write_bytes(used)
        assert sent(counters.collect()) == {"/build/drivers/vfio/b.gcda": used}
        counters.reset()
    assert sent(counters.collect()) == {}


def test_the_objects_of_a_module_that_is_loaded_later_count(debugfs: Path) -> None:
    counters = gcov.Counters()
    assert sent(counters.collect()) == {}
    (debugfs / "build/c.gcda").write_bytes(b"gcda" + b"\x01" * 8)
    assert sent(counters.collect()) == {"/build/c.gcda": b"gcda" + b"\x01" * 8}
