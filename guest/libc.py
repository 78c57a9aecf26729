# SPDX-License-Identifier: GPL-2.0-only
"""C library calls that Python 3.9 lacks; they raise OSError like its own."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from mmap import MAP_SHARED
from typing import Optional

# include/uapi/linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_SET_CHILD_SUBREAPER = 36
PR_CAPBSET_DROP = 24
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2

# include/uapi/linux/sched.h
CLONE_FILES = 0x400
CLONE_NEWUSER = 0x1000_0000

_shared: dict[int, int] = {}
"""Address and length of every file that is mapped shared."""


@functools.lru_cache(maxsize=None)
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
    for function in (libc.pread, libc.pwrite):
        function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64]
        function.restype = ctypes.c_ssize_t
    return libc


def raise_errno(what: str) -> OSError:
    """Return the OSError for the C library's errno, naming *what* failed."""
    code = ctypes.get_errno()
    return OSError(code, f"{what}: {os.strerror(code)}")


def mmap(length: int, prot: int, flags: int, fd: int = -1, offset: int = 0, *, address: int = 0) -> int:
    """Map memory and return its address; unlike mmap.mmap() it keeps no duplicate of *fd*."""
    result: Optional[int] = _libc().mmap(address or None, length, prot, flags, fd, offset)
    if result is None or result == ctypes.c_void_p(-1).value:
        raise raise_errno(f"mmap of {length:#x} bytes")
    if flags & MAP_SHARED and fd >= 0:
        _shared[result] = length
    return result


def munmap(address: int, length: int) -> None:
    """Unmap *length* bytes at *address*."""
    if _libc().munmap(address, length):
        raise raise_errno(f"munmap({address:#x}, {length:#x})")
    _shared.pop(address, None)


def munmap_shared() -> None:
    """Unmap every file that mmap() mapped shared, above all BARs, which a forked child must not keep."""
    for address, length in tuple(_shared.items()):
        with contextlib.suppress(OSError):
            munmap(address, length)


def mprotect(address: int, length: int, prot: int) -> None:
    """Change the protection of mapped memory."""
    if _libc().mprotect(address, length, prot):
        raise raise_errno(f"mprotect({address:#x}, {length:#x}, {prot})")


def madvise(address: int, length: int, advice: int) -> None:
    """Advise the kernel about mapped memory."""
    if _libc().madvise(address, length, advice):
        raise raise_errno(f"madvise({address:#x}, {length:#x}, {advice})")


def ioctl(fd: int, request: int, address: int) -> int:
    """Make an ioctl whose argument is at *address* itself; fcntl.ioctl() passes a copy."""
    result = int(_libc().ioctl(fd, request, address))
    if result < 0:
        raise raise_errno(f"ioctl {request:#x}")
    return result


def pread(fd: int, address: int, count: int, offset: int) -> int:
    """Read from *fd* to *address* and return the number of bytes read."""
    result = int(_libc().pread(fd, address, count, offset))
    if result < 0:
        raise raise_errno(f"pread of {count} bytes at {offset:#x}")
    return result


def pwrite(fd: int, address: int, count: int, offset: int) -> int:
    """Write from *address* to *fd* and return the number of bytes written."""
    result = int(_libc().pwrite(fd, address, count, offset))
    if result < 0:
        raise raise_errno(f"pwrite of {count} bytes at {offset:#x}")
    return result


def handle_signal(number: int, handler: int) -> None:
    """Let the C function at the address *handler* handle the signal *number* (signal(3))."""
    _libc().signal.restype = ctypes.c_void_p
    if _libc().signal(ctypes.c_int(number), ctypes.c_void_p(handler)) == ctypes.c_void_p(-1).value:
        raise raise_errno(f"signal({number})")


def prctl(option: int, argument: int = 0, second: int = 0) -> None:
    """Operate on the calling process (prctl(2))."""
    if _libc().prctl(ctypes.c_int(option), ctypes.c_ulong(argument), ctypes.c_ulong(second), 0, 0):
        raise raise_errno(f"prctl({option}, {argument})")


def unshare(what: int) -> None:
    """Give the calling thread its own copy of *what*, unshared from its process."""
    if _libc().unshare(what):
        raise raise_errno(f"unshare({what:#x})")


def call(name: str, *arguments: object) -> None:
    """Call a function of libc that is nothing but its system call; arguments are ctypes values or ints."""
    if getattr(_libc(), name)(*arguments):
        raise raise_errno(name)


def eventfd(value: int = 0, *, nonblocking: bool = True) -> int:
    """Create an eventfd (os.eventfd came with Python 3.10); EFD_CLOEXEC and EFD_NONBLOCK as in eventfd.h."""
    flags = 0o2000000 | (0o4000 if nonblocking else 0)
    fd = int(_libc().eventfd(ctypes.c_uint(value), ctypes.c_int(flags)))
    if fd < 0:
        raise raise_errno("eventfd")
    return fd


def eventfd_count(fd: int) -> int:
    """Return how often the nonblocking eventfd *fd* was signalled since the last call, 0 for never."""
    try:
        return int.from_bytes(os.read(fd, 8), "little")
    except BlockingIOError:
        return 0
