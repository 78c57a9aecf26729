# SPDX-License-Identifier: GPL-2.0-only
"""Functions in processes of their own: what came of them is said, and said rightly."""

from __future__ import annotations

import pytest

from guest import forked


def _raise(message: str) -> None:
    raise AssertionError(message)


def test_a_child_that_failed_is_told_of_in_place_of_the_wait_for_it() -> None:
    """Who waits for a gate that a failed child cannot open any more learns why it failed."""
    gate = forked.Gate()

    def wait() -> None:
        with forked.Child(lambda: _raise("want 64, got 0")) as child:
            child.wait()
            gate.wait(0.01)

    with pytest.raises(forked.ChildError, match="want 64, got 0"):
        wait()


def test_a_wait_for_a_child_that_did_nothing_wrong_stays_one() -> None:
    """A gate that nobody means to open is that, whatever the child does."""
    gate = forked.Gate()

    def wait() -> None:
        with forked.Child(lambda: 1) as child:
            child.wait()
            gate.wait(0.01)

    with pytest.raises(TimeoutError, match="nobody opened the gate"):
        wait()
