# SPDX-License-Identifier: GPL-2.0-only
"""Arguments of ioctls and system calls that lie where they hurt: at the end of memory, or in memory that
cannot be written.

Python copies the argument of an ioctl to a place of its own, from which no fault can come; these calls hand
over the very address.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from types import TracebackType
from typing import Optional, Union

from guest import libc, memory
from guest.memory import PAGE

PROT_NONE = 0

NOWHERE = 0x1000
"""An address that is never mapped: below what mmap_min_addr lets anybody map."""


@functools.lru_cache(maxsize=None)
def _libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
    for name in ("pread", "pwrite"):
        function = getattr(library, name)
        function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64]
        function.restype = ctypes.c_ssize_t
    return library


def ioctl(fd: int, request: int, address: int) -> int:
    """Make an ioctl whose argument lies at *address*; raise its OSError."""
    result = int(_libc().ioctl(fd, request, address))
    if result < 0:
        raise libc.raise_errno(f"ioctl {request:#x}")
    return result


def pread(fd: int, address: int, count: int, offset: int) -> int:
    """Read to *address* and return the number of bytes read; raise the OSError."""
    result = int(_libc().pread(fd, address, count, offset))
    if result < 0:
        raise libc.raise_errno(f"pread of {count} bytes at {offset:#x}")
    return result


def pwrite(fd: int, address: int, count: int, offset: int) -> int:
    """Write from *address* and return the number of bytes written; raise the OSError."""
    result = int(_libc().pwrite(fd, address, count, offset))
    if result < 0:
        raise libc.raise_errno(f"pwrite of {count} bytes at {offset:#x}")
    return result


class Brink:
    """A page of memory with an abyss behind it."""

    def __init__(self) -> None:
        self._buffer = memory.anonymous(2 * PAGE)
        libc.mprotect(self._buffer.address + PAGE, PAGE, PROT_NONE)

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


def frozen(data: Union[bytes, bytearray, ctypes.Structure]) -> tuple[Brink, int]:
    """Return a brink that holds *data* and cannot be written, and the address of the data."""
    brink = Brink()
    address = brink.put(data)
    brink.freeze()
    return brink, address
