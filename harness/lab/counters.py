# SPDX-License-Identifier: GPL-2.0-only
"""Keep the coverage counters that guests send, one file for each piece of work beside the VM's console."""

from __future__ import annotations

import base64
import contextlib
import urllib.parse
from collections.abc import Iterator

from harness.base import paths
from harness.base.errors import LostGuest
from harness.base.files import write_atomic
from harness.lab.boot import Booted, ask
from harness.lab.current import CurrentVM
from harness.suites.model import Work


def keep(booted: Booted, work: Work, counters: str) -> None:
    """Write the *counters* of *work*, from guest.gcov.Counters.collect(); nothing if they are empty.

    The verdict does not depend on them: those that are damaged, or do not fit on the disk, are left out.
    """
    if counters:
        directory = booted.directory / paths.COUNTERS
        with contextlib.suppress(OSError, ValueError):
            directory.mkdir(exist_ok=True)
            path = directory / urllib.parse.quote(work.address, safe="")
            write_atomic(path, base64.b64decode(counters))


@contextlib.contextmanager
def counted(vm: CurrentVM, booted: Booted, work: Work) -> Iterator[None]:
    """Keep the counters of what the block runs outside the agent, if the kernel has any."""
    if "gcov" not in vm.job.features:
        yield
        return
    ask(booted.guest, ["counters", "reset"], vm.service())
    yield
    with contextlib.suppress(LostGuest):
        keep(booted, work, ask(booted.guest, ["counters", "collect"], vm.service()).strip())
