# SPDX-License-Identifier: GPL-2.0-only
"""Things that are closed at the end of a `with`."""

from __future__ import annotations

import abc
from typing import TypeVar

_Self = TypeVar("_Self", bound="Closing")


class Closing(abc.ABC):
    """Something that is closed at the end of a `with`, or earlier."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close it."""

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
