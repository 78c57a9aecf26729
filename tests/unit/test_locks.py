# SPDX-License-Identifier: GPL-2.0-only
"""Locks that are waited for so long and no longer."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.locks import locked, locked_by, try_locked


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path))
    return tmp_path


def test_a_lock_that_is_free_is_ours() -> None:
    with locked_by("x", Deadline.after(0)) as ours:
        assert ours
        with try_locked("x") as second:
            assert not second
    with try_locked("x") as again:
        assert again


def test_a_lock_that_stays_held_is_not_waited_for_longer() -> None:
    with locked("x", "never waits"), locked_by("x", Deadline.after(0.1)) as ours:
        assert not ours


def test_a_lock_that_becomes_free_in_time_is_ours() -> None:
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with locked("x", "never waits"):
            held.set()
            release.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(10)
    threading.Timer(0.1, release.set).start()
    with locked_by("x", Deadline.after(10)) as ours:
        assert ours
    holder.join()


def test_where_no_lock_can_be_made_things_go_on(cache: Path) -> None:
    (cache / "locks").write_text("in the way")
    with locked_by("x", Deadline.after(10)) as ours:
        assert not ours
