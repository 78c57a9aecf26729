# SPDX-License-Identifier: GPL-2.0-only
"""Settings: how the work of jobs is carried out, as one value."""

from __future__ import annotations

import dataclasses
from typing import Self

from harness.plan import Isolation, Plan
from harness.suites.known import KnownIssue, issues_in


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the work of jobs is carried out."""

    seed: int
    isolation: Isolation = Isolation.VM
    confirm: bool = False
    """Whether a failure is tried again in a VM in which nothing has run."""
    until: float | None = None
    """Seconds since the epoch after which no attempt begins."""
    issues: tuple[KnownIssue, ...] = ()
    """The known issues to apply."""
    process: str = "main"
    """Part of the names of VM directories: several processes may share one directory."""

    @classmethod
    def of(cls, plan: Plan, process: str = "main") -> Self:
        """Return the settings in *plan*, for VM directories named after *process*."""
        return cls(
            seed=plan.seed,
            isolation=plan.isolation,
            confirm=plan.confirm,
            until=plan.until,
            issues=issues_in(plan.known_issues),
            process=process,
        )
