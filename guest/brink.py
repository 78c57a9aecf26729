# SPDX-License-Identifier: GPL-2.0-only
"""Arguments of ioctls and system calls that lie where they hurt: at the end of memory, or in memory that
cannot be written.

Python copies the argument of an ioctl to a place of its own, from which no fault can come; libc.ioctl(),
pread() and pwrite() hand over the very address.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Iterator
from types import TracebackType
from typing import Optional, Union

from guest import libc, memory
from guest.memory import PAGE

NOWHERE = 0x1000
"""An address that is never mapped: below what mmap_min_addr lets anybody map."""


class Brink:
    """A page of memory with an abyss behind it."""

    def __init__(self) -> None:
        self._buffer = memory.anonymous(2 * PAGE)
        libc.mprotect(self._buffer.address + PAGE, PAGE, memory.PROT_NONE)

    def put(self, data: Union[bytes, bytearray, ctypes.Structure], length: Optional[int] = None) -> int:
        """Put the first *length* bytes of *data* right before the abyss and return their address."""
        raw = bytes(data)[:length]
        start = PAGE - len(raw)
        self._buffer.write(raw, start)
        return self._buffer.address + start

    def tail(self, length: int) -> bytes:
        """Return the last *length* bytes before the abyss."""
        return self._buffer.read(PAGE - length, length)

    def freeze(self) -> None:
        """From now on the page can only be read."""
        libc.mprotect(self._buffer.address, PAGE, mmap.PROT_READ)

    def close(self) -> None:
        """Unmap both pages."""
        self._buffer.close()

    def __enter__(self) -> Brink:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()


@contextlib.contextmanager
def frozen(data: Union[bytes, bytearray, ctypes.Structure]) -> Iterator[int]:
    """The address of a copy of *data* that the kernel can read and not write."""
    with Brink() as brink:
        address = brink.put(data)
        brink.freeze()
        yield address
