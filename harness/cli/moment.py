# SPDX-License-Identifier: GPL-2.0-only
"""Moments as people write them: `8h`, `90m`, `06:30`, `2026-11-26 06:30`."""

from __future__ import annotations

import datetime
import re

from harness.errors import UsageError

_SPAN = re.compile(r"(?:(\d+)h)?\s*(?:(\d+)m(?:in)?)?")


def parse_moment(text: str, now: datetime.datetime) -> datetime.datetime:
    """The moment that *text* names, later than *now*, which has a time zone; a bare time is its next one.

    Raises UsageError for what is no moment, and for one in the past.
    """
    span = _SPAN.fullmatch(text.strip())
    if span is not None and (span[1] or span[2]):
        return now + datetime.timedelta(hours=int(span[1] or 0), minutes=int(span[2] or 0))
    try:
        time = datetime.time.fromisoformat(text.strip())
    except ValueError:
        return _date_and_time(text, now)
    moment = datetime.datetime.combine(now.date(), time, now.tzinfo)
    return moment if moment > now else moment + datetime.timedelta(days=1)


def _date_and_time(text: str, now: datetime.datetime) -> datetime.datetime:
    try:
        moment = datetime.datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise UsageError(
            f"{text!r} is no moment", hint="give 8h, 90m, 06:30 or a date with a time, 2026-11-26 06:30"
        ) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=now.tzinfo)
    if moment <= now:
        raise UsageError(f"{moment:%Y-%m-%d %H:%M} is in the past", hint=f"it is {now:%Y-%m-%d %H:%M} now")
    return moment
