# SPDX-License-Identifier: GPL-2.0-only
"""What became of a piece of work, as the VM's side tells it to the Lab."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from harness.machine.splat import Splat
from harness.suites.judging import Judged


@dataclasses.dataclass(frozen=True, slots=True)
class FalseStart:
    """A VM that never came up and was not the last to be tried."""

    reason: str
    vm_dir: str
    """Relative to the run directory."""
    splat: str = ""
    """What the kernel said when it was that which died."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A piece of work that was carried out, or could not be."""

    judged: tuple[Judged, ...] = ()
    seconds: float = 0.0
    printed: str = ""
    console: str = ""
    """The end of the console, where something was wrong; since the work began, if the log tells when."""
    splat: str = ""
    vm_dir: str = ""
    """Relative to the run directory; empty when no VM was used."""
    lost_processor: bool = False
    """Whether it ended because QEMU lost a processor."""
    strays: tuple[Splat, ...] = ()
    """What the kernel complained of outside any case: while booting, between cases."""
    false_starts: tuple[FalseStart, ...] = ()
    """The VMs that did not come up before the one that did the work, or was to."""


def text_of(splats: Sequence[Splat]) -> str:
    """The splats as they stood on the console."""
    return "\n\n".join("\n".join(splat.lines) for splat in splats)
