# SPDX-License-Identifier: GPL-2.0-only
"""Known issues: defects of released kernels, each with the case that shows it, and the kernels that have it.

A case that is listed for the kernel at hand is expected to fail (XFAIL); passing (XPASS) is as bad as failing
elsewhere: the kernel has changed, and the list is out of date.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from harness import yamlfile
from harness.errors import UsageError, nearest
from harness.suites.probes import SUITE, probe_cases

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
    return load_issues(_SHIPPED, [f"{SUITE}/{case.address}" for case in probe_cases()])


def load_issues(path: Path, cases: Collection[str]) -> tuple[KnownIssue, ...]:
    """Read a file of known issues about *cases*; UsageError names file, line and key of what is wrong."""
    top = yamlfile.load(path)
    issues = tuple(_read(section, cases) for section in top.sections("issues"))
    top.done()
    _check_twice(issues)
    return issues


def _read(section: yamlfile.Section, cases: Collection[str]) -> KnownIssue:
    case = section.text("case")
    if case not in cases:
        raise UsageError(f"{section.where('case')}: there is no case {case!r}", hint=nearest(case, cases))
    issue = KnownIssue(
        case=case,
        kernels=_kernels(section),
        reason=_sentence(section, "reason"),
        evidence=_sentence(section, "evidence"),
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
