# SPDX-License-Identifier: GPL-2.0-only
"""Parse times as people write them: `8h`, `90m`, `06:30`, `2026-11-26 06:30`."""

from __future__ import annotations

import contextlib
import datetime
import re

from harness.base.errors import UsageError

_SPAN = re.compile(r"(?:(\d{1,12})h)?\s*(?:(\d{1,12})m(?:in)?)?")


def parse_deadline(text: str | None) -> float | None:
    """Return the time of `--deadline`, in seconds since the epoch; None without one.  Raises UsageError."""
    if text is None:
        return None
    try:
        return parse_moment(text, datetime.datetime.now().astimezone()).timestamp()
    except UsageError as error:
        raise UsageError(f"--deadline: {error.message}", hint=error.hint) from error


def parse_moment(text: str, now: datetime.datetime) -> datetime.datetime:
    """Return the time that *text* names after *now*, which has a time zone; a bare time means its next
    occurrence.

    A time zone in *text* replaces the zone of *now*.  Raises UsageError if *text* is no time, or is not after
    *now*.
    """
    text = text.strip()
    if (span := _SPAN.fullmatch(text)) is not None and (span[1] or span[2]):
        hours, minutes = int(span[1] or 0), int(span[2] or 0)
        if not hours and not minutes:
            raise UsageError(f"{text!r} is zero", hint="give 8h or 90m")
        try:
            return now + datetime.timedelta(hours=hours, minutes=minutes)
        except OverflowError as error:
            raise UsageError(f"{text!r} is out of range", hint="give 8h or 90m") from error
    with contextlib.suppress(ValueError):
        time = datetime.time.fromisoformat(text)
        there = now.astimezone(time.tzinfo) if time.tzinfo is not None else now
        moment = datetime.datetime.combine(there.date(), time.replace(tzinfo=None), there.tzinfo)
        return moment if moment > now else moment + datetime.timedelta(days=1)
    return _date_and_time(text, now)


def _date_and_time(text: str, now: datetime.datetime) -> datetime.datetime:
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(
            f"{text!r} is not a time", hint="give 8h, 90m, 06:30 or a date with a time, 2026-11-26 06:30"
        ) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=now.tzinfo)
    if moment <= now:
        raise UsageError(f"{moment:%Y-%m-%d %H:%M} is in the past", hint=f"it is {now:%Y-%m-%d %H:%M} now")
    return moment
