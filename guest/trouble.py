# SPDX-License-Identifier: GPL-2.0-only
"""Describe an unexpected exception in one line: which call failed, and on which file."""

from __future__ import annotations

import os
import traceback

_HERE = os.path.dirname(os.path.abspath(__file__))
_NOT_TOLD = (
    os.path.join(_HERE, "uapi.py"),
    os.path.join(_HERE, "libc.py"),
    os.path.dirname(os.__file__) + os.sep,
)


def one_line(error: BaseException) -> str:
    """Return the name of *error*, its message and, for an OSError, the function and the call that failed."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if not isinstance(error, OSError):
        return text
    # The innermost frame that is neither a wrapper of ours nor in Python's library.
    frames = traceback.extract_tb(error.__traceback__)
    found = [frame for frame in frames if not os.path.abspath(frame.filename).startswith(_NOT_TOLD)]
    return f"{text}, in {found[-1].name}(): {found[-1].line}" if found else text


def path_of(fd: int) -> str:
    """Return the path of the file that the descriptor *fd* has open."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return f"descriptor {fd}"
