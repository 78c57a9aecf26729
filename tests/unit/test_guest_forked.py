# SPDX-License-Identifier: GPL-2.0-only
"""Functions in child processes: their results and errors reach the parent."""

from __future__ import annotations

import pytest

from guest import forked


def _raise(message: str) -> None:
    raise AssertionError(message)


def test_a_child_that_failed_is_told_of_in_place_of_the_wait_for_it() -> None:
    """If a child fails before it opens a gate, waiting for the gate raises the child's error."""
    gate = forked.Gate()

    def wait() -> None:
        with forked.Child(lambda: _raise("want 64, got 0")) as child:
            child.wait()
            gate.wait(0.01)

    with pytest.raises(forked.ChildError, match="want 64, got 0"):
        wait()


def test_a_wait_for_a_child_that_did_nothing_wrong_stays_one() -> None:
    """Waiting for a gate that nobody opens is a TimeoutError if no child failed."""
    gate = forked.Gate()

    def wait() -> None:
        with forked.Child(lambda: 1) as child:
            child.wait()
            gate.wait(0.01)

    with pytest.raises(TimeoutError, match="nobody opened the gate"):
        wait()
