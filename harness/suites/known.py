# SPDX-License-Identifier: GPL-2.0-only
"""Known issues: defects of released kernels, each with the case that shows it, and the kernels that have it.

A case that is listed for the kernel at hand is expected to fail (XFAIL); passing (XPASS) is as bad as failing
elsewhere: the kernel has changed, and the list is out of date.  An entry that has expired, or whose case is
gone, is reported and goes on excusing.

Beside the list that comes with the harness a run may have one of its user's, of the same form, which is
looked at first and may speak of upstream's selftests too.
"""

from __future__ import annotations

import dataclasses
import datetime
import fnmatch
import functools
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from harness import yamlfile
from harness.errors import UsageError, nearest
from harness.results import KCONFIG_SUITE, KERNEL_SUITE
from harness.suites.probes import SUITE as PROBES
from harness.suites.upstream import shipped_suites

_SHIPPED = Path(__file__).with_name("known-issues.yaml")

OWN_FILE = "known-issues.yaml"
"""Where in its directory a run keeps the list of its user's."""

_VERSION = re.compile(r"\d+(?:\.\d+){1,2}")
"""What of `uname -r` orders kernels; what follows (`-rc2-00012-g1234`) does not."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KnownIssue:
    """A defect, and where it shows."""

    case: str
    """Address of the case that states what should hold; shell patterns allowed."""
    kernels: SpecifierSet
    """The releases that have it, such as `>=7.3,<7.5`."""
    reason: str
    """What is wrong, in a sentence."""
    jobs: tuple[str, ...] = ()
    """Patterns of names of the jobs in which it shows, such as `*-cdev-*`; empty: all."""
    evidence: str = ""
    """Where it is shown: a file of this project or a message."""
    expires: datetime.date | None = None
    """When a person is to look at it again."""
    link: str = ""
    """Where it was reported; empty: not yet."""
    racy: bool = False
    """Whether it is a race, which a run may win: then PASS is no news."""
    where: str = ""
    """File and line of the entry."""

    def concerns(self, case: str, release: str, job: str) -> bool:
        """Whether this is about *case* in *job*, on the kernel whose `uname -r` is *release*."""
        return fnmatch.fnmatchcase(case, self.case) and self.applies(release, job)

    def applies(self, release: str, job: str) -> bool:
        """Whether it is about any case of *job*, on the kernel whose `uname -r` is *release*."""
        version = _VERSION.match(release)
        return (
            version is not None
            and version[0] in self.kernels
            and (not self.jobs or any(fnmatch.fnmatchcase(job, pattern) for pattern in self.jobs))
        )

    @property
    def suite(self) -> str:
        """The suite of its cases, or a pattern of suites."""
        return self.case.partition("/")[0]


def known_issue(issues: Iterable[KnownIssue], case: str, *, release: str, job: str) -> KnownIssue | None:
    """The first of *issues* that is about *case* in *job* on the kernel *release*; None when it must pass."""
    return next((issue for issue in issues if issue.concerns(case, release, job)), None)


def issues_of(run_dir: Path) -> tuple[KnownIssue, ...]:
    """What counts as known in the run in *run_dir*: its user's list, then the shipped one.

    Raises UsageError as load_issues() does.
    """
    own = run_dir / OWN_FILE
    return (*(load_issues(own) if own.is_file() else ()), *shipped_issues())


@functools.cache
def shipped_issues() -> tuple[KnownIssue, ...]:
    """The issues that come with the harness."""
    return load_issues(_SHIPPED)


def load_issues(path: Path) -> tuple[KnownIssue, ...]:
    """Read a file of known issues; UsageError names file, line and key of what is wrong."""
    top = yamlfile.load(path)
    issues = tuple(_read(section) for section in top.sections("issues"))
    top.done()
    _check_suites(issues)
    _check_twice(issues)
    return issues


def outdated(
    issues: Iterable[KnownIssue],
    cases: Collection[str],
    passed: Iterable[tuple[str, str, str]],
    today: datetime.date,
) -> tuple[str, ...]:
    """A sentence about every one of *issues* that a person should look at again.

    *cases* are all probe cases that there are; *passed* the addresses that were XPASS, each with the kernel's
    release and the job.  Of upstream's selftests nobody can say which cases are gone.
    """
    found = []
    surprises = list(passed)
    for issue in issues:
        entry = f"known issue {issue.case} ({issue.where})"
        if issue.case.startswith(f"{PROBES}/") and not fnmatch.filter(cases, issue.case):
            found.append(f"{entry}: there is no such case any more; {nearest(issue.case, cases)}")
        if issue.expires is not None and issue.expires < today:
            found.append(f"{entry} expired on {issue.expires}: {issue.reason}")
        found += [
            f"{entry} passed on {release}: if that kernel is mended, end its range of releases"
            for case, release, job in surprises
            if issue.concerns(case, release, job)
        ]
    return tuple(dict.fromkeys(found))


def matching_nothing(
    issues: Iterable[KnownIssue], tried: Collection[tuple[str, str, str]]
) -> tuple[str, ...]:
    """A sentence about every one of *issues* that is about no case though its suite ran where it applies.

    *tried* are the addresses of a whole run's cases, each with the kernel's release and the job.
    """
    found = []
    for issue in issues:
        cases = {
            case
            for case, release, job in tried
            if issue.applies(release, job) and fnmatch.fnmatchcase(case.partition("/")[0], issue.suite)
        }
        if cases and not fnmatch.filter(cases, issue.case):
            hint = nearest(issue.case, cases)
            found.append(f"known issue {issue.case} ({issue.where}) is about no case of this run; {hint}")
    return tuple(found)


def _read(section: yamlfile.Section) -> KnownIssue:
    issue = KnownIssue(
        case=section.text("case"),
        kernels=_kernels(section),
        reason=_sentence(section, "reason"),
        jobs=section.texts("jobs", ()),
        evidence=_sentence(section, "evidence") if "evidence" in section else "",
        expires=section.date("expires"),
        link=section.text("link", ""),
        racy=section.flag("racy", False),
        where=section.where(),
    )
    section.done()
    if not (issue.evidence or issue.link):
        raise UsageError(f"{issue.where}: {issue.case} says neither 'evidence' nor 'link'")
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


def _check_suites(issues: Iterable[KnownIssue]) -> None:
    suites = (PROBES, *shipped_suites(), KERNEL_SUITE, KCONFIG_SUITE)
    for issue in issues:
        if not fnmatch.filter(suites, issue.suite):
            hint = nearest(issue.suite, suites)
            raise UsageError(f"{issue.where}: {issue.case} is of no suite that there is", hint=hint)


def _check_twice(issues: Iterable[KnownIssue]) -> None:
    seen: dict[tuple[str, str, tuple[str, ...]], KnownIssue] = {}
    for issue in issues:
        before = seen.setdefault((issue.case, str(issue.kernels), issue.jobs), issue)
        if before is not issue:
            raise UsageError(f"{issue.where}: {issue.case} is known already from {before.where}")
