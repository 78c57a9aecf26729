# SPDX-License-Identifier: GPL-2.0-only
"""Cutting a matrix into shards that machines without a word to each other can run."""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.errors import UsageError
from harness.matrix.definition import Entry


def parse_shard(text: str) -> tuple[int, int]:
    """`3/8` as (3, 8).  Raises UsageError for anything else, and for a shard that is not there."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None:
        raise UsageError(f"--shard takes K/N, not {text!r}", hint="such as 1/8, the first of eight")
    number, count = int(found[1]), int(found[2])
    if not 1 <= number <= count:
        raise UsageError(
            f"--shard {text}: there is no shard {number} of {count}", hint=f"1/{count} is the first"
        )
    return number, count


def shard(entries: Sequence[Entry], number: int, count: int) -> tuple[Entry, ...]:
    """The entries of shard *number* (from 1) of *count*: the same on every machine.

    Entries of one kernel stay together as far as that goes, for each shard builds what it needs.
    Raises UsageError where there are fewer entries than shards.
    """
    if count > len(entries):
        raise UsageError(f"{len(entries)} jobs cannot be cut into {count} shards", hint="use fewer shards")
    kernels = {_kernel(entry): place for place, entry in reversed(list(enumerate(entries)))}
    ordered = sorted(entries, key=lambda entry: kernels[_kernel(entry)])
    begin, end = (len(ordered) * cut // count for cut in (number - 1, number))
    return tuple(ordered[begin:end])


def _kernel(entry: Entry) -> tuple[str | None, str, tuple[str, ...]]:
    return entry.tree, entry.variant, entry.addons
