# SPDX-License-Identifier: GPL-2.0-only
"""Attempt: one try of one piece of work, with its results and the evidence for them."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence

from harness.base.cause import Cause
from harness.base.outcome import Outcome
from harness.machine.splat import Splat
from harness.suites.model import CaseResult, Work


class Again(enum.Enum):
    """Why another attempt follows."""

    BOOT = "the VM did not come up"
    LOST = "the guest was lost"
    CONFIRM = "a failure is confirmed in a VM in which nothing has run"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try of one piece of work, or of a boot."""

    work: Work | None = None
    """The work; None if the Attempt is about the kernel: a boot, or splats outside any case."""
    results: tuple[CaseResult, ...] = ()
    number: int = 1
    """Counts the attempts at this work; those at a boot, in their job."""
    confirms: bool = False
    """Whether it was made to see if a failure repeats, or follows such an attempt."""
    again: Again | None = None
    """Why one more attempt at this work follows; None for the last."""
    seconds: float = 0.0
    printed: str = ""
    """The end of the output."""
    console: str = ""
    """If something was wrong, the end of the console since the work began."""
    splat: str = ""
    """The kernel's splats during it."""
    vm_dir: str = ""
    """The VM's directory, relative to that of the lab; empty when no VM was used."""
    strays: tuple[Splat, ...] = ()
    """Splats outside any case since the attempt before: while booting, between cases."""
    boots: tuple[Attempt, ...] = ()
    """If a boot since the attempt before failed: all boots since then; and guests that ended silently."""

    def has(self, *wanted: Outcome) -> bool:
        """Whether one of its cases had one of the outcomes *wanted*."""
        return any(result.outcome in wanted for result in self.results)

    def lost_by(self, cause: Cause) -> bool:
        """Whether one of its cases was lost because of *cause*."""
        return any(result.outcome is Outcome.LOST and result.cause is cause for result in self.results)


def text_of(splats: Sequence[Splat]) -> str:
    """Return *splats* as they were on the console."""
    return "\n\n".join("\n".join(splat.lines) for splat in splats)
