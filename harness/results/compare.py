# SPDX-License-Identifier: GPL-2.0-only
"""Two Runs side by side: what became worse, what became better, what came and what went."""

from __future__ import annotations

import dataclasses

from harness.results.model import Address, Outcome, Result, Run


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One case of one Job that is not as it was; a side is None when the case is not in that Run."""

    job: str
    address: Address
    before: Result | None
    after: Result | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Every case that changed, by what the change means, each in the later Run's order."""

    # It fails now and did not.
    regressions: tuple[Change, ...] = ()
    # It failed and does no longer.
    fixes: tuple[Change, ...] = ()
    # It ran before and is skipped, had no chance, or is gone: coverage that was lost.
    lost: tuple[Change, ...] = ()
    # Any other difference in outcome, and new cases.
    other: tuple[Change, ...] = ()


def compare(before: Run, after: Run) -> Comparison:
    """What changed from *before* to *after*, per Job name and address."""
    old = {(result.job, result.address): result for result in before.cases}
    new = {(result.job, result.address): result for result in after.cases}
    kinds: dict[str, list[Change]] = {"regressions": [], "fixes": [], "lost": [], "other": []}
    for job, address in (*new, *(key for key in old if key not in new)):
        change = Change(
            job=job, address=address, before=old.get((job, address)), after=new.get((job, address))
        )
        kind = _kind(change)
        if kind is not None:
            kinds[kind].append(change)
    return Comparison(**{kind: tuple(changes) for kind, changes in kinds.items()})


def _kind(change: Change) -> str | None:
    before = change.before.outcome if change.before else None
    after = change.after.outcome if change.after else None
    if before is after:
        return None
    failed_before = before is not None and before.is_failure
    if after is not None and after.is_failure:
        return "other" if failed_before else "regressions"
    if after in (Outcome.PASS, Outcome.XFAIL):
        return "fixes" if failed_before else "other"
    return "other" if before in (None, Outcome.SKIP, Outcome.LOST, Outcome.NOT_RUN) else "lost"
