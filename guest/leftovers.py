# SPDX-License-Identifier: GPL-2.0-only
"""Find files and eventfds that the kernel keeps although nobody has them open."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from guest import libc
from guest.case import Test
from guest.opened import open_files

EVENTFDS = 24
"""More than any block below creates."""

TIMES = 20
"""So many leaked files are more than others in the machine open and close meanwhile."""


def _free_eventfd_ids() -> list[str]:
    """Return the kernel's IDs for the next eventfds, which are the lowest free ones."""
    fds = [libc.eventfd() for _ in range(EVENTFDS)]
    told = [Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii").splitlines() for fd in fds]
    for fd in fds:
        os.close(fd)
    return [line for lines in told for line in lines if line.startswith("eventfd-id:")]


@contextlib.contextmanager
def eventfds_come_back(t: Test, what: str) -> Iterator[Callable[[], int]]:
    """Yield a maker of eventfds, close them after the block, and fail if the kernel keeps any of them
    then."""
    free, made = _free_eventfd_ids(), []

    def make() -> int:
        made.append(libc.eventfd())
        return made[-1]

    yield make
    for fd in made:
        os.close(fd)
    # ERR and REQ release theirs after an RCU grace period.
    t.wait_until(lambda: _free_eventfd_ids() == free, f"the release of all eventfds after {what}", 5)


@contextlib.contextmanager
def files_come_back(t: Test, what: str) -> Iterator[None]:
    """Fail if about as many files as TIMES stay open after the block, which opens each of its files so
    often."""
    before = open_files()
    yield
    t.wait_until(lambda: open_files() < before + TIMES / 2, f"the release of the files of {what}", 5)
