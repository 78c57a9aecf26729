# SPDX-License-Identifier: GPL-2.0-only
"""Which accelerator this host runs jobs with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from harness.base.errors import HarnessError
from harness.kernel.arch import find_arch
from harness.machine.accel import Choice, choose_accel
from harness.machine.qemu import find_qemu
from harness.plan import Job


def choices(jobs: Sequence[Job]) -> Iterator[Choice]:
    """Yield the Choice for each accelerator that *jobs* request, unless this host has none."""
    for wish, arch in dict.fromkeys((job.accel, job.arch) for job in jobs):
        with contextlib.suppress(HarnessError):
            yield choose_accel(wish, find_qemu(arch=find_arch(arch)))


def proven_accel(jobs: Sequence[Job]) -> str:
    """Return the accelerator of the first of *jobs*; empty if this host has none."""
    return next((choice.accel.value for choice in choices(jobs[:1])), "")
