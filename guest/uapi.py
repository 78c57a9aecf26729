# SPDX-License-Identifier: GPL-2.0-only
"""Common parts of VFIO and iommufd: structures that contain their own size, and files that take ioctls."""

from __future__ import annotations

import ctypes
import fcntl
import os
import threading
from typing import Callable, Union

from guest.closing import Closing
from guest.trouble import path_of

Fields = tuple[tuple[str, type[ctypes._SimpleCData]], ...]  # type: ignore[type-arg]


def u8(*names: str) -> Fields:
    """Fields of type __u8."""
    return tuple((name, ctypes.c_uint8) for name in names)


def u16(*names: str) -> Fields:
    """Fields of type __u16."""
    return tuple((name, ctypes.c_uint16) for name in names)


def u32(*names: str) -> Fields:
    """Fields of type __u32."""
    return tuple((name, ctypes.c_uint32) for name in names)


def s32(*names: str) -> Fields:
    """Fields of type __s32."""
    return tuple((name, ctypes.c_int32) for name in names)


def u64(*names: str) -> Fields:
    """Fields of type __u64."""
    return tuple((name, ctypes.c_uint64) for name in names)


def errno_of(call: Callable[..., object], *arguments: object) -> int:
    """Make *call* and return its errno, 0 for success."""
    try:
        call(*arguments)
    except OSError as error:
        return error.errno or -1
    return 0


def errnos_at_once(*attempts: Callable[[], object]) -> list[int]:
    """Make all *attempts* at once, each in a thread, and return the errno of each, 0 for success.

    An attempt that has not ended after ten seconds has -1.
    """
    start, results = threading.Barrier(len(attempts)), [-1] * len(attempts)

    def run(index: int) -> None:
        start.wait(10)
        results[index] = errno_of(attempts[index])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(attempts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    return results


class Struct(ctypes.Structure):
    """A uapi structure whose first member is its size, filled in at once."""

    def __init__(self, **fields: int) -> None:
        super().__init__(**fields)
        first = self._fields_[0][0]
        if first not in fields:
            setattr(self, first, ctypes.sizeof(self))


class Descriptor(Closing):
    """An object with a file descriptor that is closed at the end of a `with`, or earlier."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def fileno(self) -> int:
        """Return the descriptor, -1 once closed."""
        return self.fd

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def call(self, request: int, argument: Union[int, bytearray, ctypes.Structure] = 0) -> int:
        """Make an ioctl; a buffer is passed as it is and updated in place, an int by value (0 is NULL)."""
        try:
            if isinstance(argument, int):
                return int(fcntl.ioctl(self.fd, request, argument))
            return int(fcntl.ioctl(self.fd, request, argument, True))
        except OSError as error:
            error.strerror, error.filename = f"ioctl {request:#x}: {error.strerror}", path_of(self.fd)
            raise
