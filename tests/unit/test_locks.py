# SPDX-License-Identifier: GPL-2.0-only
"""Locks that are waited for so long and no longer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from harness.base.deadline import Deadline
from harness.base.locks import alone_with, locked, locked_by, making, shared, take, try_locked


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


@pytest.mark.parametrize("wait_for", [locked, shared])
def test_who_waits_may_give_up(wait_for: Callable[..., AbstractContextManager[None]]) -> None:
    """Waiting ends by what the caller raises, in a thread as well."""

    class Enough(Exception):
        pass

    turns = 0

    def count() -> None:
        nonlocal turns
        turns += 1
        if turns == 3:
            raise Enough

    with locked("x", "never waits"):
        with pytest.raises(Enough), wait_for("x", "busy", count):
            pytest.fail("nobody has it twice")
        assert turns == 3
    with wait_for("x", "never waits", count):
        assert turns == 3


def test_where_no_lock_can_be_made_things_go_on(cache: Path) -> None:
    (cache / "locks").write_text("in the way")
    with locked_by("x", Deadline.after(10)) as ours:
        assert not ours


def test_open_files_and_directories_are_locked_alone_or_shared(tmp_path: Path) -> None:
    with tmp_path.joinpath("x").open("wb") as one, tmp_path.joinpath("x").open("rb") as two:
        assert take(one.fileno())
        assert not take(two.fileno(), alone=False)
        one.close()
        assert take(two.fileno(), alone=False)
    with alone_with(tmp_path), alone_with(tmp_path / "made", create=True):
        assert (tmp_path / "made").is_file()
    with pytest.raises(FileNotFoundError), alone_with(tmp_path / "missing"):
        pass


def test_who_waits_to_make_what_another_process_made_does_not_wait_for_its_users() -> None:
    made, seen = threading.Event(), []

    def wait() -> None:
        with making("x", "busy", made.is_set) as is_ours:
            seen.append(is_ours)

    with shared("x", "never waits"):
        waiter = threading.Thread(target=wait, daemon=True)
        waiter.start()
        waiter.join(0.2)
        assert not seen
        made.set()
        waiter.join(10)
        assert seen == [False]


def test_what_is_made_is_made_by_one() -> None:
    made: list[str] = []

    def make() -> None:
        with making("x", "busy", lambda: bool(made)) as is_ours:
            if is_ours:
                made.append("x")

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert made == ["x"]
