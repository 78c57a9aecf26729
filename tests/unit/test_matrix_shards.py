# SPDX-License-Identifier: GPL-2.0-only
"""Shards: together they are the matrix, and nobody needs to tell the others."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from harness.base.errors import UsageError
from harness.matrix import Entry, load_matrix
from harness.matrix.shards import parse_shard, shard

ENTRIES = load_matrix("full").entries


@pytest.mark.parametrize("count", [1, 2, 3, 8, len(ENTRIES)])
def test_shards_are_the_matrix(count: int) -> None:
    """Every entry is in one shard, and sizes differ by at most one."""
    cut = [shard(ENTRIES, number, count) for number in range(1, count + 1)]
    assert sorted(map(str, ENTRIES)) == sorted(str(entry) for part in cut for entry in part)
    assert max(map(len, cut)) - min(map(len, cut)) <= 1


def test_kernels_stay_together() -> None:
    """Few kernels are built by more than one shard."""
    first, second = (shard(ENTRIES, number, 2) for number in (1, 2))
    kernels = [{(entry.variant, entry.addons) for entry in part} for part in (first, second)]
    assert len(kernels[0] & kernels[1]) <= 1


@pytest.mark.parametrize("name", ["nightly", "full"])
@pytest.mark.parametrize("count", [2, 4, 8])
def test_an_edit_moves_few_jobs(name: str, count: int) -> None:
    """Adding or removing an entry moves no more entries than there are shards."""
    entries = load_matrix(name).entries
    before = places(entries, count)
    for gone in entries:
        left = tuple(entry for entry in entries if entry != gone)
        after = places(left, count)
        assert sum(after[entry] != before[entry] for entry in left) <= count


def test_the_order_of_a_matrix_moves_nothing() -> None:
    assert places(ENTRIES, 4) == places(ENTRIES[::-1], 4)


def places(entries: Sequence[Entry], count: int) -> dict[Entry, int]:
    return {entry: number for number in range(1, count + 1) for entry in shard(entries, number, count)}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("3", "takes K/N, not '3'"),
        ("a/b", "takes K/N"),
        ("0/4", "there is no shard 0 of 4"),
        ("5/4", "there is no shard 5 of 4"),
    ],
)
def test_wrong_shards(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parse_shard(text)


def test_more_shards_than_jobs() -> None:
    with pytest.raises(UsageError, match="3 jobs cannot be split into 4 shards"):
        shard(ENTRIES[:3], 1, 4)
