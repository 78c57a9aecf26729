# SPDX-License-Identifier: GPL-2.0-only
"""A point in time that travels down through calls, in place of a fresh timeout at each level."""

from __future__ import annotations

import dataclasses
import time


@dataclasses.dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock, in seconds."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The moment *seconds* from now."""
        return cls(time.monotonic() + seconds)

    @property
    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at - time.monotonic())

    @property
    def expired(self) -> bool:
        return self.remaining == 0.0

    def within(self, seconds: float) -> Deadline:
        """The earlier of this deadline and *seconds* from now."""
        return Deadline(min(self.at, time.monotonic() + seconds))
