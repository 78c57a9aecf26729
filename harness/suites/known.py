# SPDX-License-Identifier: GPL-2.0-only
"""Known issues: defects of released kernels, each with the case that shows it, and the kernels that have it.

A case that is listed for the kernel at hand is expected to fail (XFAIL); passing (XPASS) is as bad as failing
elsewhere: the kernel has changed, and the list is out of date.  An entry that has expired, or whose case is
gone, is reported and goes on excusing.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from harness import yamlfile
from harness.errors import UsageError, nearest

_SHIPPED = Path(__file__).with_name("known-issues.yaml")

_VERSION = re.compile(r"\d+(?:\.\d+){1,2}")
"""What of `uname -r` orders kernels; what follows (`-rc2-00012-g1234`) does not."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KnownIssue:
    """A defect, and where it shows."""

    case: str
    """Address of the case that states what should hold."""
    kernels: SpecifierSet
    """The releases that have it, such as `>=7.3,<7.5`."""
    reason: str
    """What is wrong, in a sentence."""
    evidence: str
    """Where it is shown: a file of this project or a message."""
    expires: datetime.date | None = None
    """When a person is to look at it again."""
    link: str = ""
    """Where it was reported; empty: not yet."""
    racy: bool = False
    """Whether it is a race, which a run may win: then PASS is no news."""
    where: str = ""
    """File and line of the entry."""

    def concerns(self, case: str, release: str) -> bool:
        """Whether this is about *case* on the kernel whose `uname -r` is *release*."""
        version = _VERSION.match(release)
        return case == self.case and version is not None and version[0] in self.kernels


def known_issue(case: str, release: str) -> KnownIssue | None:
    """What is known of the probe case *case* on the kernel *release*; None when it must pass there."""
    return next((issue for issue in shipped_issues() if issue.concerns(case, release)), None)


@functools.cache
def shipped_issues() -> tuple[KnownIssue, ...]:
    """The issues that come with the harness."""
    return load_issues(_SHIPPED)


def load_issues(path: Path) -> tuple[KnownIssue, ...]:
    """Read a file of known issues; UsageError names file, line and key of what is wrong."""
    top = yamlfile.load(path)
    issues = tuple(_read(section) for section in top.sections("issues"))
    top.done()
    _check_twice(issues)
    return issues


def outdated(
    issues: Iterable[KnownIssue],
    cases: Collection[str],
    passed: Iterable[tuple[str, str]],
    today: datetime.date,
) -> tuple[str, ...]:
    """A sentence about every one of *issues* that a person should look at again.

    *cases* are all that there are, *passed* the addresses that were XPASS with the kernel's release.
    """
    found = []
    surprises = list(passed)
    for issue in issues:
        entry = f"known issue {issue.case} ({issue.where})"
        if issue.case not in cases:
            found.append(f"{entry}: there is no such case any more; {nearest(issue.case, cases)}")
        if issue.expires is not None and issue.expires < today:
            found.append(f"{entry} expired on {issue.expires}: {issue.reason}")
        found += [
            f"{entry} passed on {release}: if that kernel is mended, end its range of releases"
            for case, release in surprises
            if issue.concerns(case, release)
        ]
    return tuple(dict.fromkeys(found))


def _read(section: yamlfile.Section) -> KnownIssue:
    issue = KnownIssue(
        case=section.text("case"),
        kernels=_kernels(section),
        reason=_sentence(section, "reason"),
        evidence=_sentence(section, "evidence"),
        expires=section.date("expires"),
        link=section.text("link", ""),
        racy=section.flag("racy", False),
        where=section.where(),
    )
    section.done()
    return issue


def _sentence(section: yamlfile.Section, key: str) -> str:
    text = " ".join(section.text(key).split())
    if not text:
        raise UsageError(f"{section.where(key)}: {key!r} says nothing")
    return text


def _kernels(section: yamlfile.Section) -> SpecifierSet:
    text = section.text("kernels")
    try:
        return SpecifierSet(text)
    except InvalidSpecifier as error:
        raise UsageError(
            f"{section.where('kernels')}: {text!r} is no range of releases", hint="such as '>=7.3,<7.5'"
        ) from error


def _check_twice(issues: Iterable[KnownIssue]) -> None:
    seen: dict[tuple[str, str], KnownIssue] = {}
    for issue in issues:
        before = seen.setdefault((issue.case, str(issue.kernels)), issue)
        if before is not issue:
            raise UsageError(f"{issue.where}: {issue.case} is known already from {before.where}")
