# SPDX-License-Identifier: GPL-2.0-only
"""A point in time that is passed down through calls, instead of a new timeout at each level."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable


def _nothing() -> float:
    return 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock, in seconds."""

    at: float
    excused: Callable[[], float] = dataclasses.field(default=_nothing, compare=False)
    """Seconds by which the deadline has moved so far, for time that the host took away."""

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The moment *seconds* from now."""
        return cls(time.monotonic() + seconds)

    @property
    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at + self.excused() - time.monotonic())

    @property
    def expired(self) -> bool:
        return self.remaining == 0.0

    def within(self, seconds: float) -> Deadline:
        """The earlier of this deadline and *seconds* from now."""
        now = time.monotonic() + seconds - self.excused()
        return Deadline(min(self.at, now), self.excused)

    def excusing(self, taken: Callable[[], float], most: float) -> Deadline:
        """Return this deadline, extended as *taken* grows from now on, by at most *most* seconds."""
        before, already = taken(), self.excused()
        return Deadline(self.at, lambda: already + min(most, max(0.0, taken() - before)))
