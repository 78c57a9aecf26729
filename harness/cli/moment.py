# SPDX-License-Identifier: GPL-2.0-only
"""Moments as people write them: `8h`, `90m`, `06:30`, `2026-11-26 06:30`."""

from __future__ import annotations

import datetime
import re

from harness.errors import UsageError

_SPAN = re.compile(r"(?:(\d{1,12})h)?\s*(?:(\d{1,12})m(?:in)?)?")


def parse_moment(text: str, now: datetime.datetime) -> datetime.datetime:
    """The moment that *text* names, later than *now*, which has a time zone; a bare time is its next one.

    A zone in *text* counts, in place of that of *now*.
    Raises UsageError for what is not a time, and for one that is not later than *now*.
    """
    span = _SPAN.fullmatch(text.strip())
    if span is not None and (span[1] or span[2]):
        return _after(text, now, hours=int(span[1] or 0), minutes=int(span[2] or 0))
    try:
        time = datetime.time.fromisoformat(text.strip())
    except ValueError:
        return _date_and_time(text, now)
    there = now.astimezone(time.tzinfo) if time.tzinfo is not None else now
    moment = datetime.datetime.combine(there.date(), time.replace(tzinfo=None), there.tzinfo)
    return moment if moment > now else moment + datetime.timedelta(days=1)


def _after(text: str, now: datetime.datetime, *, hours: int, minutes: int) -> datetime.datetime:
    if not hours and not minutes:
        raise UsageError(f"{text!r} is no time at all", hint="give 8h or 90m")
    try:
        return now + datetime.timedelta(hours=hours, minutes=minutes)
    except OverflowError as error:
        raise UsageError(f"{text!r} is beyond every calendar", hint="give 8h or 90m") from error


def _date_and_time(text: str, now: datetime.datetime) -> datetime.datetime:
    try:
        moment = datetime.datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise UsageError(
            f"{text!r} is not a time", hint="give 8h, 90m, 06:30 or a date with a time, 2026-11-26 06:30"
        ) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=now.tzinfo)
    if moment <= now:
        raise UsageError(f"{moment:%Y-%m-%d %H:%M} is in the past", hint=f"it is {now:%Y-%m-%d %H:%M} now")
    return moment
