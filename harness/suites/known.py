# SPDX-License-Identifier: GPL-2.0-only
"""Known issues: defects of released kernels, each with the case that shows it and the kernels that have it.

A case that is listed for the kernel under test is expected to fail (XFAIL).  If it passes (XPASS) the run is
bad: the kernel has changed, and the list is out of date.  An entry that has expired, or whose case no longer
exists, still applies and is reported.

A run may also have its user's own lists in the same format, which take precedence over the shipped one.
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

from harness.base import yamlfile
from harness.base.errors import UsageError, nearest
from harness.results import KCONFIG_SUITE, KERNEL_SUITE
from harness.suites.registry import suite_names

_SHIPPED = Path(__file__).with_name("known-issues.yaml")

_OWN_FILES = "known-issues*.yaml"
"""The names of the user's lists in the directory of a run."""

_VERSION = re.compile(r"\d+(?:\.\d+){1,2}")
"""The part of `uname -r` that is compared; the rest (`-rc2-00012-g1234`) is ignored."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KnownIssue:
    """A defect, and where it is seen."""

    case: str
    """Address of the case that states what should hold; may be a shell pattern."""
    kernels: SpecifierSet
    """The releases that have it, such as `>=7.3,<7.5`."""
    reason: str
    """What is wrong, in a sentence."""
    jobs: tuple[str, ...] = ()
    """Patterns of the names of its jobs, such as `*-cdev-*`; empty: all."""
    evidence: str = ""
    """A file of this project, or a place in a kernel's source."""
    expires: datetime.date | None = None
    """When a person should review it."""
    link: str = ""
    """Where it was reported; empty while it is not."""
    racy: bool = False
    """Whether it is a race, which a run may win: then PASS stays PASS."""
    splat: re.Pattern[str] | None = None
    """What is in the title of the first splat that it causes in a destructive case; None: any title is."""
    where: str = ""
    """File and line of the entry."""

    def concerns(self, case: str, release: str, job: str) -> bool:
        """Whether the issue applies to *case* in *job*, on the kernel whose `uname -r` is *release*."""
        return fnmatch.fnmatchcase(case, self.case) and self.applies(release, job)

    def applies(self, release: str, job: str) -> bool:
        """Whether it applies to any case of *job*, on the kernel whose `uname -r` is *release*."""
        version = _VERSION.match(release)
        return (
            version is not None
            and version[0] in self.kernels
            and (not self.jobs or any(fnmatch.fnmatchcase(job, pattern) for pattern in self.jobs))
        )

    def causes(self, title: str) -> bool:
        """Whether it may cause a splat with this *title* in a destructive case."""
        return self.splat is None or self.splat.search(title) is not None

    @property
    def suite(self) -> str:
        """The suite of its cases; may be a pattern."""
        return self.case.partition("/")[0]


def known_issue(issues: Iterable[KnownIssue], case: str, *, release: str, job: str) -> KnownIssue | None:
    """Return the first of *issues* that applies to *case* in *job* on the kernel *release*, if any."""
    return next((issue for issue in issues if issue.concerns(case, release, job)), None)


def issues_of(run_dir: Path) -> tuple[KnownIssue, ...]:
    """Return the known issues of the run in *run_dir*: its user's, then the shipped ones.

    Raises UsageError as load_issues() does.
    """
    return (*(issue for own in own_lists(run_dir) for issue in load_issues(own)), *shipped_issues())


def own_lists(run_dir: Path) -> tuple[Path, ...]:
    """Return the user's lists that the run in *run_dir* has, in the order in which they were given."""
    return tuple(sorted(run_dir.glob(_OWN_FILES), key=lambda path: (len(path.name), path.name)))


def own_names(count: int) -> list[str]:
    """Return the names that the directory of a run gives to *count* lists of the user."""
    return [_OWN_FILES.replace("*", f"-{number}" if number > 1 else "") for number in range(1, count + 1)]


def issue_texts(own: Iterable[Path]) -> tuple[str, ...]:
    """Return the texts of all lists that count: the user's *own*, then the shipped one."""
    return tuple(yamlfile.read(path) for path in (*own, _SHIPPED))


def issues_in(texts: Iterable[str]) -> tuple[KnownIssue, ...]:
    """Return what the lists of issue_texts() hold, in their order."""
    return tuple(issue for text in texts for issue in _issues(yamlfile.parse(text, "known-issues.yaml")))


@functools.cache
def shipped_issues() -> tuple[KnownIssue, ...]:
    """Return the issues that come with the harness."""
    return load_issues(_SHIPPED)


def load_issues(path: Path) -> tuple[KnownIssue, ...]:
    """Read a file of known issues; UsageError names file, line and key of what is wrong."""
    return _issues(yamlfile.load(path))


def _issues(top: yamlfile.Section) -> tuple[KnownIssue, ...]:
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
    """Return a sentence for each of *issues* that a person should review.

    *cases* are all declared cases; *passed* the addresses that were XPASS, each with the kernel's release and
    the job.  Whether a case still exists is known only for suites that declare their cases.
    """
    found = []
    declared = {case.partition("/")[0] for case in cases}
    surprises = list(passed)
    for issue in issues:
        entry = f"known issue {issue.case} ({issue.where})"
        if issue.suite in declared and not fnmatch.filter(cases, issue.case):
            found.append(f"{entry}: the case no longer exists; {nearest(issue.case, cases)}")
        if issue.expires is not None and issue.expires < today:
            found.append(f"{entry} expired on {issue.expires}: {issue.reason}")
        found += [
            f"{entry} passed on {release}: if that kernel is fixed, end the range of releases"
            for case, release, job in surprises
            if issue.concerns(case, release, job)
        ]
    return tuple(dict.fromkeys(found))


def matching_nothing(
    issues: Iterable[KnownIssue], tried: Collection[tuple[str, str, str]]
) -> tuple[str, ...]:
    """Return a sentence for each of *issues* that matches no case, although its suite ran where it applies.

    *tried* are the addresses of all cases of a run, each with the kernel's release and the job.
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
            found.append(f"known issue {issue.case} ({issue.where}) matches no case of this run; {hint}")
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
        splat=section.pattern("splat") if "splat" in section else None,
        where=section.where(),
    )
    section.done()
    if not (issue.evidence or issue.link):
        raise UsageError(f"{issue.where}: {issue.case} has neither 'evidence' nor 'link'")
    return issue


def _sentence(section: yamlfile.Section, key: str) -> str:
    text = " ".join(section.text(key).split())
    if not text:
        raise UsageError(f"{section.where(key)}: {key!r} is empty")
    return text


def _kernels(section: yamlfile.Section) -> SpecifierSet:
    text = section.text("kernels")
    try:
        return SpecifierSet(text)
    except InvalidSpecifier as error:
        raise UsageError(
            f"{section.where('kernels')}: {text!r} is not a range of releases", hint="such as '>=7.3,<7.5'"
        ) from error


def _check_suites(issues: Iterable[KnownIssue]) -> None:
    suites = (*suite_names(), KERNEL_SUITE, KCONFIG_SUITE)
    for issue in issues:
        if not fnmatch.filter(suites, issue.suite):
            hint = nearest(issue.suite, suites)
            raise UsageError(f"{issue.where}: there is no suite {issue.suite!r}", hint=hint)


def _check_twice(issues: Iterable[KnownIssue]) -> None:
    seen: dict[tuple[str, str, tuple[str, ...]], KnownIssue] = {}
    for issue in issues:
        before = seen.setdefault((issue.case, str(issue.kernels), issue.jobs), issue)
        if before is not issue:
            raise UsageError(f"{issue.where}: {issue.case} is already listed at {before.where}")
