# SPDX-License-Identifier: GPL-2.0-only
"""Deadlines, and the time that the host took away."""

from __future__ import annotations

import time

import pytest

from harness.base.deadline import Deadline


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_earlier_of_two(clock: list[float]) -> None:
    limit = Deadline.after(10)
    assert (limit.within(3).remaining, limit.within(30).remaining) == (3, 10)
    clock[0] += 10
    assert limit.expired


def test_time_taken_away_makes_it_later(clock: list[float]) -> None:
    """Time taken before does not count, and the extension has a maximum."""
    taken = [7.0]
    limit = Deadline.after(10).excusing(lambda: taken[0], most=20)
    assert limit.remaining == 10
    clock[0] += 15
    assert limit.expired
    taken[0] += 8
    assert limit.remaining == 3
    # A wait within it is no longer than asked for, and moves along.
    assert (limit.within(1).remaining, limit.within(9).remaining) == (1, 3)
    within = limit.within(1)
    taken[0] += 1
    assert within.remaining == 2
    taken[0] += 100
    assert limit.remaining == 15


def test_a_process_that_ends_takes_nothing(clock: list[float]) -> None:
    """When its counter falls back to 0, the deadline does not move before its original time."""
    taken = [7.0]
    limit = Deadline.after(10).excusing(lambda: taken[0], most=20)
    taken[0] = 0.0
    assert limit.remaining == 10


def test_a_deadline_may_be_extended_twice(clock: list[float]) -> None:
    """A part of a wait that was extended has its whole time, and no time is counted twice."""
    taken = [0.0]
    limit = Deadline.after(10).excusing(lambda: taken[0], most=20)
    clock[0] += 14
    taken[0] += 8
    part = limit.within(2).excusing(lambda: taken[0], most=20)
    assert (limit.remaining, part.remaining) == (4, 2)
    taken[0] += 1
    assert (limit.remaining, part.remaining) == (5, 3)
