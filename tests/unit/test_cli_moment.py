# SPDX-License-Identifier: GPL-2.0-only
"""Times as people write them."""

from __future__ import annotations

import datetime

import pytest

from harness.base.errors import UsageError
from harness.cli.moment import parse_moment

NOW = datetime.datetime(2026, 11, 25, 22, 15, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("8h", "2026-11-26 06:15"),
        ("90m", "2026-11-25 23:45"),
        ("2h30m", "2026-11-26 00:45"),
        ("1h30min", "2026-11-25 23:45"),
        ("23:00", "2026-11-25 23:00"),
        ("06:30", "2026-11-26 06:30"),
        ("06:30+09:00", "2026-11-26 21:30"),
        ("08:00+09:00", "2026-11-25 23:00"),
        ("23:00Z", "2026-11-25 23:00"),
        ("2026-11-27 06:30", "2026-11-27 06:30"),
        ("2026-11-27T06:30+01:00", "2026-11-27 05:30"),
    ],
)
def test_moments(text: str, moment: str) -> None:
    """A span counts from now; a bare time is its next occurrence."""
    assert f"{parse_moment(text, NOW).astimezone(datetime.UTC):%Y-%m-%d %H:%M}" == moment


@pytest.mark.parametrize("text", ["", "tomorrow", "8", "9" * 5000 + "h", "25:00", "2026-13-01 10:00"])
def test_no_moments(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time"):
        parse_moment(text, NOW)


def test_past() -> None:
    with pytest.raises(UsageError, match="2026-11-24 06:30 is in the past"):
        parse_moment("2026-11-24 06:30", NOW)


@pytest.mark.parametrize("text", ["0h", "0m", "0h0m", "99999999999h", "999999999999h"])
def test_spans_that_end_never_or_now(text: str) -> None:
    with pytest.raises(UsageError, match=r"is zero|is out of range"):
        parse_moment(text, NOW)
