# SPDX-License-Identifier: GPL-2.0-only
"""Whether work ran out of time because this host gave QEMU no CPU, whoever set the time limit.

The agent, the waits of probes, and upstream's programs go by a clock that runs on while QEMU waits for a CPU.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from harness.base.cause import Cause
from harness.base.host import processor_use, starvation
from harness.base.outcome import Outcome
from harness.suites.model import CaseResult

STALLS = ("soft-lockup", "hard-lockup", "rcu-stall", "hung-task", "workqueue")
"""The kinds of splats in harness/machine/splats.yaml by which a kernel says that something took too long."""

_NEVER_IDLE, _ENOUGH = 0.9, 0.75
"""Parts of a time.  Mapping 1 GiB takes an emulated guest 8 CPU seconds, of upstream's limit of 30 s."""

_UNDONE = (Outcome.FAIL, Outcome.ERROR, Outcome.TIMEOUT)


@dataclasses.dataclass(frozen=True, slots=True)
class _Span:
    seconds: float
    starved: float
    """For how many of them QEMU was runnable without a CPU."""
    ran: float
    """For how many seconds its threads ran, in sum."""
    waited: float
    """For how many seconds they were runnable without a CPU, in sum."""


class Stopwatch:
    """Measures one piece of work, and each test point of a program, from now on."""

    def __init__(self, pid: int, limit: float) -> None:
        """*pid* is QEMU; *limit* is the time limit of the whole work in seconds."""
        self._starvation, self._use = starvation(pid), processor_use(pid)
        self._limit = limit
        self._began = time.monotonic()
        self._last = _Span(0.0, 0.0, 0.0, 0.0)
        self._points: dict[str, _Span] = {}

    def lap(self, point: str) -> None:
        """Take the time since the last call as that of *point*, a test point that has ended."""
        now, last = self._now(), self._last
        self._points[point] = _Span(
            now.seconds - last.seconds,
            now.starved - last.starved,
            now.ran - last.ran,
            now.waited - last.waited,
        )
        self._last = now

    def excuse(
        self, results: Sequence[CaseResult], *, stalled: bool = False, waits: str = ""
    ) -> tuple[CaseResult, ...]:
        """Return *results*; what ran out of time is LOST if QEMU had a CPU for less than half of that time,
        or for less than three quarters of it if the guest was never idle: what hangs sleeps.

        A CRASH ran out of time if all that the kernel reported is that something *stalled*; it is LOST in any
        case if the guest *waits* for QEMU in that function.  Later failures
        of the same program are LOST as well: upstream's harness kills a late test point, and starts the next
        one while the dying one may still hold the device.  A guest that hangs by itself waits for a CPU less
        than half of the time: 28 to 43 % beside load 23 on 2 CPUs, with CONFIG_HZ_PERIODIC.
        """
        done: list[CaseResult] = []
        late = ""
        for result in results:
            why = self._why(result, stalled, waits)
            if why is None and late and result.outcome in _UNDONE:
                why = f"after {late}, which ran out of time because this host had no CPU for QEMU"
            elif why is not None:
                late = late or result.case
            if why is not None:
                reason = f"{result.reason}; {why}" if result.reason else why
                result = dataclasses.replace(result, outcome=Outcome.LOST, reason=reason, cause=Cause.HOST)
            done.append(result)
        return tuple(done)

    def _why(self, result: CaseResult, stalled: bool, waits: str) -> str | None:
        """Return why *result* is excused, None if it is not."""
        late = stalled and result.outcome is Outcome.CRASH
        if not late and (result.outcome not in _UNDONE or result.cause is not Cause.TIMED_OUT):
            return None
        if late and waits:
            return f"QEMU did not answer the guest, which waits for it in {waits}"
        own = self._points.get(result.case) or self._points.get(result.case.partition("/")[0])
        span = own or self._now()
        # The time limit that a program has for its own test point is not known, but is over.
        limit = min(span.seconds, self._limit)
        if (span.seconds - span.starved) * 2 < limit:
            return f"this host had no CPU for QEMU for {span.starved:.0f} of {span.seconds:.0f} s"
        if span.ran + span.waited >= _NEVER_IDLE * span.seconds and span.ran < _ENOUGH * limit:
            had = f"for {span.ran:.0f} of {span.seconds:.0f} s"
            return f"this host had a CPU for QEMU {had}, in which it was never idle"
        return None

    def _now(self) -> _Span:
        return _Span(time.monotonic() - self._began, self._starvation(), *self._use())
