# SPDX-License-Identifier: GPL-2.0-only
"""Numbers as people read them."""

from __future__ import annotations

import pytest

from harness.base.errors import nearest
from harness.base.words import count_of, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (59.9, "60 s"), (83, "1 min 23 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float, text: str) -> None:
    """Durations are told in the unit a human would use."""
    assert duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 jobs"), (1, "1 job"), (2, "2 jobs")])
def test_counts(number: int, text: str) -> None:
    """One of a thing is no plural."""
    assert count_of(number, "job") == text


def test_a_hint_ends_with_a_word() -> None:
    """Also when there is nothing to choose from."""
    assert nearest("x", ()) == "known: none"
    assert nearest("x", ("long", "name")) == "known: long, name"
