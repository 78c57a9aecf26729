# SPDX-License-Identifier: GPL-2.0-only
"""What bisecting is about, as values: what a test of a commit showed, and what that means for the hunt.

Pure: knows neither git nor how a commit is tested.  Two questions are kept apart: a Sight is what was seen at
a commit, whatever is hunted; a Mark is what git is told of it, which depends on the Aim.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Collection, Mapping, Sequence


class Sight(enum.Enum):
    """What one test of one commit showed."""

    PASSES = "passes"
    FAILS = "fails"
    MISSING = "not there"
    """The commit cannot express the variant, or every asked case says that it does not apply."""
    DIES = "does not boot"
    """The kernel died, or complained, before a guest answered."""
    UNBUILDABLE = "does not build"
    REFUSED = "cannot be asked"
    """What was asked makes no sense at this commit: no Linux at all, or a setting that it does not know."""
    NO_CHANCE = "no chance"
    """The host or the way to the guest failed: nothing is said about the commit."""


class Mark(enum.Enum):
    """What git is told of a commit."""

    OLD = "old"
    NEW = "new"
    SKIP = "skip"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What is hunted."""

    find_fix: bool = False
    """Whether the old end fails and the new end passes."""
    boot: bool = False
    """Whether it is the boot itself: cases do not matter then."""
    missing_fails: bool = False
    """Whether a commit without the thing counts as one where it fails: so it is when an end is without it."""
    repeat: int = 3
    """How many VMs judge a commit when two disagree."""
    term_old: str = ""
    """The user's word for an old commit; empty for the usual one."""
    term_new: str = ""

    @property
    def passing_end(self) -> Mark:
        return Mark.NEW if self.find_fix else Mark.OLD

    @property
    def failing_end(self) -> Mark:
        return Mark.OLD if self.find_fix else Mark.NEW

    def fails(self, sight: Sight) -> bool:
        """Whether *sight* is the failure that is hunted."""
        return (
            sight is Sight.FAILS
            or (sight is Sight.DIES and self.boot)
            or (sight is Sight.MISSING and self.missing_fails)
        )

    def mark(self, sight: Sight) -> Mark:
        """What *sight* means to git."""
        if sight is Sight.PASSES:
            return self.passing_end
        return self.failing_end if self.fails(sight) else Mark.SKIP

    @property
    def terms(self) -> tuple[str, str]:
        """git's words for an old and a new commit."""
        old, new = ("broken", "fixed") if self.find_fix else ("good", "bad")
        return self.term_old or old, self.term_new or new

    def other_term(self, term: str) -> str:
        """The one of the terms that *term* is not."""
        old, new = self.terms
        return new if term == old else old

    def word(self, mark: Mark) -> str:
        """git's word for *mark*."""
        return {Mark.OLD: self.terms[0], Mark.NEW: self.terms[1], Mark.SKIP: "skip"}[mark]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one VM, or the want of one, showed of a commit."""

    sight: Sight
    why: str
    """One line."""
    failure: str = ""
    """What kind of failure it is: equal for two of one cause; empty when that cannot be told."""
    cases: Mapping[str, Sight] = dataclasses.field(default_factory=dict)
    """What each case came to, by address."""
    run_dir: str = ""
    """Everything that is left of it; empty when nothing was booted."""
    silent: bool = False
    """Whether its VM ran and no guest ever answered: the host's doing, or a kernel that hangs."""
    hint: str = ""
    """What to do about it, or where its log is, when nothing was booted."""
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A commit and what it was judged to be."""

    commit: str
    subject: str
    sight: Sight
    why: str
    observations: tuple[Observation, ...] = ()
    content: str = ""
    """Digest of all that was booted; empty when nothing was built."""
    same_as: str = ""
    """The commit with the same content whose verdict this is."""
    flaky: bool = False
    """Whether the VMs disagreed."""
    build_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        return self.build_seconds + sum(seen.seconds for seen in self.observations)

    @property
    def vms(self) -> int:
        """How many VMs judged it."""
        return sum(1 for seen in self.observations if seen.run_dir)

    def telling(self) -> Observation | None:
        """The first observation that shows what it was judged to be."""
        return next((seen for seen in self.observations if seen.sight is self.sight), None)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """What several observations of one commit come to."""

    sight: Sight
    why: str
    flaky: bool = False


NO_CHANCE_TRIES = 2
"""How often a commit is tried again when the host gave it no chance."""

_CONFIRM = 2
"""How many VMs must show a failure before it is believed."""


def weigh(
    seen: Sequence[Observation], aim: Aim, *, wary: bool = False, usual: Collection[str] = ()
) -> Weighed | None:
    """What *seen* comes to; None when another VM must be asked.

    A failure is believed when a second VM shows it too.  Two that disagree are settled by the majority of
    `aim.repeat`.  When *wary*, because VMs disagreed earlier in the hunt, a pass needs that majority too.
    *usual* are the failures of the failing end: another is believed only when none of `aim.repeat` passes.
    """
    final = next((one for one in seen if _needs_no_second(one.sight, aim)), None)
    if final is not None:
        return Weighed(sight=final.sight, why=final.why)
    passes = [one for one in seen if one.sight is Sight.PASSES]
    fails = [one for one in seen if aim.fails(one.sight)]
    alike = [one for one in fails if not usual or not one.failure or one.failure in usual]
    flaky = bool(passes and fails)
    majority = aim.repeat // 2 + 1
    needed = majority if flaky else _CONFIRM if len(alike) == len(fails) else aim.repeat
    if len(alike if flaky else fails) >= needed:
        why = _told(fails[0], passes, fails)
        return Weighed(sight=fails[0].sight, why=why if alike else f"in another way, {why}", flaky=flaky)
    decided = flaky and len(passes) + len(fails) >= aim.repeat
    if len(passes) >= (majority if flaky or wary else 1) or (decided and not alike):
        return Weighed(sight=Sight.PASSES, why=_told(passes[0], passes, fails), flaky=flaky)
    if decided:
        why = f"VMs disagree: {len(fails)} failed, {len(passes)} passed"
        return Weighed(sight=Sight.NO_CHANCE, why=why, flaky=True)
    lost = [one for one in seen if one.sight is Sight.NO_CHANCE]
    return Weighed(sight=Sight.NO_CHANCE, why=lost[-1].why) if len(lost) >= NO_CHANCE_TRIES else None


def _needs_no_second(sight: Sight, aim: Aim) -> bool:
    """Whether *sight* comes from the source alone, or will be skipped anyway."""
    if sight in (Sight.UNBUILDABLE, Sight.MISSING, Sight.REFUSED):
        return True
    return sight is Sight.DIES and not aim.boot


def _told(first: Observation, passes: Sequence[Observation], fails: Sequence[Observation]) -> str:
    if not passes or not fails:
        return first.why
    return f"flaky, {len(fails)} of {len(passes) + len(fails)} VMs failed: {fails[0].why}"


def hunted_cases(passing: Observation, failing: Observation) -> tuple[str, ...]:
    """The cases that pass at one end and do not at the other: what the steps in between run.

    A case that fails at both ends was broken before, and says nothing.
    """
    passed = [case for case, sight in passing.cases.items() if sight is Sight.PASSES]
    failed = tuple(case for case in passed if failing.cases.get(case, Sight.FAILS) is Sight.FAILS)
    if failed and failing.sight is not Sight.MISSING:
        return failed
    return tuple(case for case in passed if failing.cases.get(case, Sight.MISSING) is Sight.MISSING)
