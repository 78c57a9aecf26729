# SPDX-License-Identifier: GPL-2.0-only
"""Place arguments of ioctls and system calls at the end of mapped memory, or in read-only memory.

fcntl.ioctl() copies its argument to a buffer of its own, where no access faults; libc.ioctl(), pread() and
pwrite() pass the address itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Iterator
from typing import Optional, Union

from guest import libc, memory
from guest.closing import Closing
from guest.memory import PAGE

NOWHERE = 0x1000
"""An address that is never mapped, because it is below mmap_min_addr."""


class Brink(Closing):
    """A page of memory followed by an inaccessible page."""

    def __init__(self) -> None:
        self._buffer = memory.anonymous(2 * PAGE)
        libc.mprotect(self._buffer.address + PAGE, PAGE, memory.PROT_NONE)

    def put(self, data: Union[bytes, bytearray, ctypes.Structure], length: Optional[int] = None) -> int:
        """Put the first *length* bytes of *data* at the end of the page and return their address."""
        raw = bytes(data)[:length]
        start = PAGE - len(raw)
        self._buffer.write(raw, start)
        return self._buffer.address + start

    def tail(self, length: int) -> bytes:
        """Return the last *length* bytes of the page."""
        return self._buffer.read(PAGE - length, length)

    def freeze(self) -> None:
        """Make the page read-only."""
        libc.mprotect(self._buffer.address, PAGE, mmap.PROT_READ)

    def close(self) -> None:
        """Unmap both pages."""
        self._buffer.close()


@contextlib.contextmanager
def frozen(data: Union[bytes, bytearray, ctypes.Structure]) -> Iterator[int]:
    """Yield the address of a copy of *data* that the kernel can read but not write."""
    with Brink() as brink:
        address = brink.put(data)
        brink.freeze()
        yield address
