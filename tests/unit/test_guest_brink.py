# SPDX-License-Identifier: GPL-2.0-only
"""Arguments at the end of mapped memory, and the calls that take their address."""

from __future__ import annotations

import errno
import fcntl
import os
import termios

import pytest

from guest import brink, libc, memory, pci
from guest.brink import NOWHERE, Brink
from guest.uapi import errno_of


def test_brink_ends_where_memory_does() -> None:
    """Data put there can be read to its last byte and not beyond."""
    fd = memory.memfd(memory.PAGE)
    with Brink() as edge:
        where = edge.put(b"12345678", 5)
        assert edge.tail(5) == b"12345"
        assert libc.pwrite(fd, where, 5, 0) == 5
        assert os.pread(fd, 8, 0)[:5] == b"12345"
        assert errno_of(libc.pwrite, fd, where + 5, 1, 0) == errno.EFAULT
        assert libc.pread(fd, edge.put(bytes(3)), 3, 1) == 3
        assert edge.tail(3) == b"234"
    os.close(fd)


def test_frozen_memory_is_read_and_not_written() -> None:
    fd = memory.memfd(memory.PAGE)
    with brink.frozen(b"kept") as where:
        assert libc.pwrite(fd, where, 4, 0) == 4
        assert errno_of(libc.pread, fd, where, 4, 0) == errno.EFAULT
    assert os.pread(fd, 4, 0) == b"kept"
    os.close(fd)


def test_ioctl_takes_the_address_itself() -> None:
    """The errno comes from the kernel's own access to that memory; fcntl.ioctl() would have copied it."""
    reader, writer = os.pipe()
    os.write(writer, b"abc")
    with Brink() as edge:
        where = edge.put(bytes(4))
        libc.ioctl(reader, termios.FIONREAD, where)
        assert edge.tail(4) == (3).to_bytes(4, "little")
        assert errno_of(libc.ioctl, reader, termios.FIONREAD, NOWHERE) == errno.EFAULT
        assert errno_of(libc.ioctl, reader, termios.FIONREAD, where + 1) == errno.EFAULT
    assert fcntl.ioctl(reader, termios.FIONREAD, bytes(4)) == (3).to_bytes(4, "little")
    os.close(reader)
    os.close(writer)


def test_errno_of_success_is_zero() -> None:
    assert errno_of(os.getpid) == 0


def test_a_bound_device_without_nodes_is_no_success() -> None:
    """A case that checks every node fails if there is none."""
    with pytest.raises(AssertionError, match="no VFIO node"):
        _ = pci.Nodes(group=None, cdev=None).made
