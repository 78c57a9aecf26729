# SPDX-License-Identifier: GPL-2.0-only
"""Split a matrix into shards, the same on every machine, without communication."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from harness.base.errors import UsageError
from harness.matrix.definition import Entry
from harness.session.wishes import KernelWish


def parse_shard(text: str) -> tuple[int, int]:
    """Return `3/8` as (3, 8).  Raises UsageError for anything else, and for a shard that does not exist."""
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if found is None:
        raise UsageError(f"--shard takes K/N, not {text!r}", hint="such as 1/8, the first of eight")
    number, count = int(found[1]), int(found[2])
    if not 1 <= number <= count:
        raise UsageError(
            f"--shard {text}: there is no shard {number} of {count}", hint=f"1/{count} is the first"
        )
    return number, count


def shard(entries: Sequence[Entry], number: int, count: int) -> tuple[Entry, ...]:
    """Return the entries of shard *number* (from 1) of *count*.

    The sizes of shards differ by at most one.  Entries of one kernel stay together as far as possible: each
    shard builds its own kernels.  One entry more or less moves few others, because a shard has no history of
    entries that another shard had.
    Raises UsageError when there are fewer entries than shards.
    """
    if count > len(entries):
        raise UsageError(f"{len(entries)} jobs cannot be split into {count} shards", hint="use fewer shards")
    places = _places(entries, count)
    return tuple(entry for entry, place in zip(entries, places, strict=True) if place == number)


def _places(entries: Sequence[Entry], count: int) -> list[int]:
    """Return the shard of each of *entries*: of the shards with room, the one that its kernel prefers most.

    Preferences come from hashing the kernel with each shard (rendezvous hashing), and the order of entries
    from hashing them, so that only the room depends on the other entries.
    """
    smallest, bigger = divmod(len(entries), count)
    sizes = dict.fromkeys(range(1, count + 1), 0)
    places = [0] * len(entries)
    for index in sorted(range(len(entries)), key=lambda index: _turn(entries[index])):
        # Only as many shards as necessary get one entry more.
        limit = smallest + (sum(size > smallest for size in sizes.values()) < bigger)
        roomy = (place for place, size in sizes.items() if size < limit)
        kernel = _kernel(entries[index])
        places[index] = max(roomy, key=lambda place: _draw(*kernel, str(place)))
        sizes[places[index]] += 1
    return places


def _turn(entry: Entry) -> tuple[bytes, bytes]:
    # The directory of a file may differ between machines.
    return _draw(*_kernel(entry)), _draw(Path(entry.topology).name)


def _kernel(entry: Entry) -> tuple[str, ...]:
    return entry.tree or "", *entry.kernel(KernelWish(variant="")).words


def _draw(*words: str) -> bytes:
    """Return a number that depends on *words* alone."""
    return hashlib.sha256("\0".join(words).encode()).digest()
