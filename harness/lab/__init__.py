# SPDX-License-Identifier: GPL-2.0-only
"""The engine: carries out the work of a Job in VMs of this host.

It knows no pytest, no results database and no command line.  Whatever is about a job it writes below the
directory it is given.  It reads kernels and disks from the content-addressed store, and where it may write
there it keeps snapshots and what it learnt of this host, which every job can do without.  VMs of all runs of
a user queue for this host by tickets in /tmp (harness.lab.admission).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.lab.attempt import Attempt
    from harness.lab.settings import Settings
    from harness.plan import Job
    from harness.suites.model import Work


def execute(job: Job, work: Iterable[Work], directory: Path, *, settings: Settings) -> Iterator[Attempt]:
    """Run *work* of *job* and yield every Attempt as soon as it ends.

    VMs are booted when they are needed, below *directory*/vm, and are stopped at the end.  An Attempt without
    work comes last if the kernel printed a splat between the last case and the end.
    """
    # SSH and QMP take long to import, and most importers of this package want one constant.
    from harness.lab.lab import Lab

    with contextlib.closing(Lab(directory, settings)) as lab:
        for one in work:
            yield from lab.perform(job, one)
        last = lab.retire()
        if last is not None:
            yield last
