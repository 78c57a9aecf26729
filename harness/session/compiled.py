# SPDX-License-Identifier: GPL-2.0-only
"""What the results say of a tree's own selftests that do not compile, whose programs nobody can run."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Collection, Iterator

from harness.results import Address, Outcome, Result
from harness.session.planning import Planned, needs_selftests
from harness.session.wishes import JobWish
from harness.suites.known import KnownIssue, known_issue
from harness.suites.upstream import COMPILES


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What of the suites was asked for: `--case`, pytest's `-k`; neither: all of them."""

    cases: tuple[str, ...] = ()
    keyword: str = ""

    def includes(self, suite: str) -> bool:
        """Whether any of *suite* may be meant."""
        heads = [pattern.partition("/")[0] for pattern in self.cases]
        named = not heads or any(fnmatch.fnmatchcase(suite, head) for head in heads)
        return named and self.keyword.lower() in suite


def compile_results(
    job: str, wish: JobWish, planned: Planned, issues: Collection[KnownIssue], asked: Asked
) -> Iterator[Result]:
    """Every suite of *wish* that does not compile, and every one that does although *issues* name it.

    One that was not asked for is no news.
    """
    version = planned.tree.version if planned.tree is not None else ""
    for suite in wish.suites:
        if planned.selftests is None or not needs_selftests([suite]) or not asked.includes(suite):
            continue
        address = Address.parse(f"{suite}/{COMPILES}")
        known = known_issue(issues, str(address), release=version, job=job)
        broken = planned.broken_suites.get(suite)
        if broken is not None and known is not None:
            yield Result(address=address, job=job, outcome=Outcome.XFAIL, reason=known.reason, log=broken)
        elif broken is not None:
            yield Result(address=address, job=job, outcome=Outcome.ERROR, reason=broken)
        elif known is not None and known.case == str(address):
            yield Result(address=address, job=job, outcome=Outcome.XPASS, reason=known.reason)
