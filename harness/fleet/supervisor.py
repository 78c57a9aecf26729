# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness worker`: the workers of this host, each a process that is started again when it dies."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from harness.base import itself, process
from harness.base.errors import ExitCode
from harness.base.output import tell

_POLL_SECONDS = 0.5
_SHORTEST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
"""Seconds before a worker that ended is started again: twice as long each time, while it ends at once."""

_AT_ONCE_SECONDS = 60.0

LOST_SCHEDULER = 75
"""Exit status of a worker process whose scheduler went away (sysexits.h EX_TEMPFAIL)."""

TROUBLED = 71
"""Exit status of a worker process whose host boots no VM (sysexits.h EX_OSERR)."""


class Slot:
    """One worker process after the other."""

    def __init__(self, words: Sequence[str], name: str, output: IO[bytes] | None = None) -> None:
        """*words* are the arguments of `python -m harness.fleet`."""
        self._words = words
        self._output = output
        self.name = name
        self._stack = contextlib.ExitStack()
        self._child: process.Process | None = None
        self._began = 0.0
        self._pause = _SHORTEST_PAUSE
        self._next = 0.0
        self.starts = 0

    def look(self) -> int | None:
        """Start the process if there is none; return its exit status if it has just ended."""
        if self._child is None:
            if time.monotonic() >= self._next:
                self._start()
            return None
        status = self._child.status
        if status is None:
            return None
        self.stop()
        lived = time.monotonic() - self._began
        self._pause = _SHORTEST_PAUSE if lived > _AT_ONCE_SECONDS else min(2 * self._pause, _LONGEST_PAUSE)
        self._next = time.monotonic() + self._pause
        return status

    def _start(self) -> None:
        self._began = time.monotonic()
        self.starts += 1
        argv = [sys.executable, "-P", "-m", "harness.fleet", *self._words]
        # Should this process die, the worker is killed, and its VM with it.
        self._child = self._stack.enter_context(
            process.spawn(argv, env=itself.env(), stdout=self._output, stderr=self._output)
        )

    def stop(self) -> None:
        """End the process, in order if it still runs."""
        self._child = None
        self._stack.close()


def supervise(address: str, name: str, vms: int, keys: Path | None, *, builds: bool) -> int:
    """Run *vms* workers for the scheduler at *address* until interrupted; return an exit code.

    Ends, too, when a process does not reach the scheduler at first, or finds that this host boots no VM.  One
    of them *builds* kernels: a build uses all processors.
    """
    more = ["--keys", str(keys.absolute())] if keys is not None else []
    names = [name] if vms == 1 else [f"{name}-{number}" for number in range(1, vms + 1)]
    words = [[address, one, *more, *([] if builds and one == names[0] else ["--no-builds"])] for one in names]
    slots = [Slot(own, one) for own, one in zip(words, names, strict=True)]
    try:
        while slots:
            for slot in slots:
                status = slot.look()
                if status is None:
                    continue
                if status == TROUBLED:
                    slots.remove(slot)
                    break
                # Later, a scheduler that does not answer may come back, and forget that it knows our name.
                if status == ExitCode.GOOD or (
                    status in (ExitCode.USAGE, ExitCode.INFRA) and slot.starts == 1
                ):
                    return status
                tell(f"worker {slot.name}: its process ended with {status}; starting another one")
            time.sleep(_POLL_SECONDS)
        return ExitCode.INFRA
    finally:
        for slot in slots:
            slot.stop()
