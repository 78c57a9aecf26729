#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""A DESTROY of an object that is let go at that moment sleeps for a minute.

Usage: reproduce.py   (as root; no device is needed, two processors are)
Exit status: 0 the kernel behaves (or the race was not met), 1 the defect shows, 2 it cannot be tried here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
import sys
import time

DESTROY, IOAS_ALLOC, IOAS_IOVA_RANGES = 0x3B80, 0x3B81, 0x3B84
USERS = 2
SECONDS = 240
"""How long the race is looked for."""
LONG = 2.0
"""Seconds that no DESTROY has a reason to take."""


class CannotRun(Exception):
    """This machine cannot show it."""


def new_ioas(iommufd: int) -> int:
    """Make an address space; the kernel gives it the lowest free id, so that it is the same each time."""
    data = bytearray(struct.pack("=III", 12, 0, 0))
    fcntl.ioctl(iommufd, IOAS_ALLOC, data, True)
    return int(struct.unpack("=III", data)[2])


def destroy(iommufd: int, number: int) -> None:
    """Destroy an object, again and again while others use it."""
    while True:
        try:
            fcntl.ioctl(iommufd, DESTROY, struct.pack("=II", 8, number))
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise


def use(iommufd: int, number: int) -> None:
    """Ask an address space that may be there for its ranges, for ever."""
    question = struct.pack("=4IQQ", 32, number, 0, 0, 0, 0)
    while True:
        try:
            fcntl.ioctl(iommufd, IOAS_IOVA_RANGES, question)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EMSGSIZE):
                raise


def fork_user(iommufd: int, number: int) -> int:
    """A process that uses the address space."""
    pid = os.fork()
    if pid == 0:
        try:
            use(iommufd, number)
        finally:
            os._exit(1)
    return pid


def race(iommufd: int, number: int) -> float:
    """Make and destroy an address space until that takes long, and return how long; 0 when it never does."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        began = time.monotonic()
        destroy(iommufd, number)
        took = time.monotonic() - began
        if took > LONG:
            return took
        if new_ioas(iommufd) != number:
            raise CannotRun("the kernel gives a new object another id")
    return 0.0


def main() -> int:
    if (os.cpu_count() or 1) < 2:
        raise CannotRun("one processor is too few for a race")
    iommufd = os.open("/dev/iommu", os.O_RDWR | os.O_CLOEXEC)
    number = new_ioas(iommufd)
    users = [fork_user(iommufd, number) for _ in range(USERS)]
    try:
        took = race(iommufd, number)
    finally:
        for pid in users:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    print(f"the longest DESTROY: want less than {LONG:g} s, got {took:.1f} s")
    return int(took > 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (CannotRun, OSError) as problem:
        print(f"cannot run: {problem!r}")
        sys.exit(2)
