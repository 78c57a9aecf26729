# SPDX-License-Identifier: GPL-2.0-only
"""Cutting a matrix into shards that machines without a word to each other can run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

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

    Shards are as big as one another, to one entry.  Entries of one kernel stay together as far as that goes,
    for each shard builds what it needs.  An entry more or less moves few of the others, for a shard that gets
    another shard's entry knows nothing of its earlier nights.
    Raises UsageError where there are fewer entries than shards.
    """
    if count > len(entries):
        raise UsageError(f"{len(entries)} jobs cannot be cut into {count} shards", hint="use fewer shards")
    places = _places(entries, count)
    return tuple(entry for entry, place in zip(entries, places, strict=True) if place == number)


def _places(entries: Sequence[Entry], count: int) -> list[int]:
    """The shard of each of *entries*: the one of those with room that its kernel likes best.

    What a kernel likes is drawn by hashing it with each shard (rendezvous hashing), and who comes first by
    hashing alone, so that neither depends on what else there is; only the room does.
    """
    smallest, bigger = divmod(len(entries), count)
    sizes = dict.fromkeys(range(1, count + 1), 0)
    places = [0] * len(entries)
    for index in sorted(range(len(entries)), key=lambda index: _turn(entries[index])):
        # As many may grow beyond the smallest as need to.
        limit = smallest + (sum(size > smallest for size in sizes.values()) < bigger)
        roomy = (place for place, size in sizes.items() if size < limit)
        kernel = _kernel(entries[index])
        places[index] = max(roomy, key=lambda place: _draw(*kernel, str(place)))
        sizes[places[index]] += 1
    return places


def _turn(entry: Entry) -> tuple[bytes, bytes]:
    # A file's directory is the machine's own matter.
    return _draw(*_kernel(entry)), _draw(Path(entry.topology).name)


def _kernel(entry: Entry) -> tuple[str, ...]:
    return entry.tree or "", entry.variant, *entry.addons


def _draw(*words: str) -> bytes:
    """A number drawn for *words*, the same everywhere and always."""
    return hashlib.sha256("\0".join(words).encode()).digest()
