# SPDX-License-Identifier: GPL-2.0-only
"""When something is tried again: the limits, and the one rule for boots and for work.

Used outside this package: WORKERS_PER_ITEM and WORKER_STARTS for xdist, is_lost_for_good() by the session,
which at its end reruns the work that could not be tried.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.base.cause import Cause
from harness.base.outcome import Outcome
from harness.lab.attempt import Again, Attempt

LOST_TRIES = 2
"""How many attempts are made at work whose guest is lost: a loss is no verdict on the kernel."""

LOST_VCPU_TRIES = 4
"""The same if QEMU is known to have lost a vCPU: TCG of QEMU 10.0.2 loses one in 200 to 300 seconds of
computing on a busy host, and a case may compute for 60."""

BOOT_TRIES = 2
"""How many boots are tried until a VM comes up: the host may have been busy, or the kernel may crash at some
boots only.
"""

MOST_CONFIRMED = 25
"""How many failures of a job a process retries: a kernel that fails everywhere is bad, not flaky."""

WORKERS_PER_ITEM = 2
"""How many workers may die while running the same item."""

WORKER_STARTS = 3
"""How many workers may die in a row before they are ready."""


def again(attempts: Sequence[Attempt], *, may_confirm: bool = False) -> Again | None:
    """Return why to try once more after *attempts* at one boot or one piece of work; None to stop.

    *may_confirm* tells whether failures are to be confirmed, and fewer than MOST_CONFIRMED were.
    """
    last = attempts[-1]
    if last.work is None:
        # A missing kernel was never booted.
        return Again.BOOT if len(attempts) < BOOT_TRIES and not last.has(Outcome.NOT_RUN) else None
    most = LOST_VCPU_TRIES if last.lost_by(Cause.LOST_VCPU) else LOST_TRIES
    if last.has(Outcome.LOST) and _losses(attempts) < most:
        return Again.LOST
    failed = any(result.outcome.is_failure for result in last.results)
    return Again.CONFIRM if failed and may_confirm and not last.confirms else None


def is_lost_for_good(losses: int) -> bool:
    """Whether work that was lost *losses* times is not tried again, whatever the cause."""
    return losses >= LOST_TRIES


def is_last_chance(attempts: Sequence[Attempt]) -> bool:
    """Whether the attempt that follows *attempts* is the last if its guest is lost."""
    return is_lost_for_good(_losses(attempts) + 1)


def _losses(attempts: Sequence[Attempt]) -> int:
    return sum(attempt.has(Outcome.LOST) for attempt in attempts)
