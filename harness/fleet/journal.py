# SPDX-License-Identifier: GPL-2.0-only
"""Journal: how far a unit is, kept by the scheduler, so that whoever takes over from a dead worker knows.

The pieces of a unit are carried out in order.  Each line is noted before the piece is begun, and after a
worker has left it undone for another reason than its death.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

BEGAN, LEFT = "began", "left"

Line = Sequence[object]
"""Index of the piece, BEGAN or LEFT, name of the worker: what msgpack can carry."""


def where(lines: Iterable[Line]) -> tuple[int, tuple[str, ...]]:
    """Return the index of the piece to go on with, and the workers that died at it."""
    index, died = 0, list[str]()
    for at, what, worker in lines:
        assert isinstance(at, int)
        if at > index:
            index, died = at, []
        if at == index and what == BEGAN:
            died.append(str(worker))
        elif at == index and died:
            died.pop()
    return index, tuple(died)
