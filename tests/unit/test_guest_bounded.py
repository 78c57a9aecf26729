# SPDX-License-Identifier: GPL-2.0-only
"""Calls that may never return: their results, their errors, and the files that they must not keep open."""

from __future__ import annotations

import os
import threading

import pytest

from guest.bounded import within


def test_answer_comes_back() -> None:
    assert within(5, lambda: 7) == 7


def test_error_comes_back() -> None:
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)


def test_only_so_long() -> None:
    never = threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer after 0\.1 s"):
        within(0.1, never.wait)
    never.set()


def test_files_are_not_held() -> None:
    """A pipe ends when the caller closes its write end, even while a call is still running."""
    reading, writing = os.pipe()
    started, done = threading.Event(), threading.Event()

    def go_on() -> None:
        started.set()
        done.wait()

    with pytest.raises(TimeoutError):
        within(0.2, go_on)
    assert started.is_set()
    os.close(writing)
    assert os.read(reading, 1) == b""
    os.close(reading)
    done.set()


def test_files_of_the_caller_stay_open() -> None:
    reading, writing = os.pipe()
    within(5, lambda: None)
    os.write(writing, b"x")
    assert os.read(reading, 1) == b"x"
    os.close(reading)
    os.close(writing)
