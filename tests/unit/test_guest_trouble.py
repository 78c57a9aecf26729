# SPDX-License-Identifier: GPL-2.0-only
"""What a probe reports when a call fails unexpectedly."""

from __future__ import annotations

import os

import pytest

from guest import forked, libc
from guest.trouble import one_line, path_of
from guest.uapi import Descriptor


def test_an_ioctl_names_itself_and_its_file() -> None:
    """`[Errno 22] Invalid argument` says neither which call nor which path."""
    null = Descriptor(os.open("/dev/null", os.O_RDWR))
    with pytest.raises(OSError, match="/dev/null") as one:
        null.call(0x3B64)
    null.close()
    told = one_line(one.value)
    assert told.startswith(
        "OSError: [Errno 25] ioctl 0x3b64: Inappropriate ioctl for device: '/dev/null', in "
    )
    assert one.value.errno == 25


def test_any_call_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    """For an OSError without a file, the function and its failing line are named."""

    def read() -> None:
        os.read(-1, 1)

    with pytest.raises(OSError, match="Errno 9") as error:
        read()
    assert one_line(error.value) == "OSError: [Errno 9] Bad file descriptor, in read(): os.read(-1, 1)"
    with pytest.raises(forked.ChildError, match=r"in read\(\): os\.read\(-1, 1\)"):
        forked.call(read)
    capfd.readouterr()


def test_other_errors_stay_short() -> None:
    """Their traceback is in the log."""
    assert one_line(ValueError("no\nnumber")) == "ValueError: no number"
    with pytest.raises(OSError, match="munmap") as error:
        libc.munmap(1, 1)
    assert "munmap(0x1, 0x1)" in one_line(error.value)
    assert path_of(-1) == "descriptor -1"
