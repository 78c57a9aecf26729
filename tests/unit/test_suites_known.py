# SPDX-License-Identifier: GPL-2.0-only
"""Known issues: which kernels they concern, and files of them that are wrong."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import pytest

from harness.base.errors import UsageError
from harness.suites.known import (
    issues_of,
    known_issue,
    load_issues,
    matching_nothing,
    outdated,
    shipped_issues,
)
from harness.suites.probes import SUITE, probe_cases

CASE = "probes/cdev/pasid_zero_is_no_pasid"
ENTRY = """issues:
  - case: probes/a/b
    kernels: ">=7.3,<7.5"
    reason: it is
      broken
    evidence: a mail
"""


def load(tmp_path: Path, text: str) -> str:
    """The one sentence with which *text* is refused; empty when it is not."""
    path = tmp_path / "known.yaml"
    path.write_text(text)
    try:
        load_issues(path)
    except UsageError as error:
        return f"{error.message} {error.hint}"
    return ""


@pytest.mark.parametrize(
    ("release", "concerned"),
    [
        ("7.2.12", False),
        ("7.3.0-rc1", True),
        ("7.3.4", True),
        ("7.4.0-rc2-00012-g1234abc", True),
        ("7.5.0", False),
        ("next", False),
    ],
)
def test_releases(tmp_path: Path, release: str, concerned: bool) -> None:
    """Only the numbers of a release count: a release candidate has the issues of its release."""
    path = tmp_path / "known.yaml"
    path.write_text(ENTRY)
    (issue,) = load_issues(path)
    assert issue.reason == "it is broken"
    assert issue.concerns("probes/a/b", release, "job") is concerned
    assert not issue.concerns("probes/a/c", release, "job")


def test_patterns_of_cases_and_jobs(tmp_path: Path) -> None:
    """An issue may apply to several cases, and to some jobs only."""
    path = tmp_path / "known.yaml"
    path.write_text(ENTRY.replace("probes/a/b", "kselftest:vfio/*") + "    jobs: ['*-cdev-*', x]\n")
    (issue,) = load_issues(path)
    assert issue.concerns("kselftest:vfio/dma/a.b", "7.3.4", "7.3.4-cdev-edu")
    assert issue.concerns("kselftest:vfio/dma/a.b", "7.3.4", "x")
    assert not issue.concerns("kselftest:vfio/dma/a.b", "7.3.4", "7.3.4-group-edu")
    assert not issue.concerns("probes/a/b", "7.3.4", "x")


def test_a_splat_may_be_named(tmp_path: Path) -> None:
    """By a regular expression that is found in its title; without one any splat is meant."""
    path = tmp_path / "known.yaml"
    path.write_text(ENTRY)
    assert load_issues(path)[0].causes("BUG: anything")
    path.write_text(f"{ENTRY}    splat: in (f|g)\\b\n")
    (issue,) = load_issues(path)
    assert issue.causes("BUG: x, in g")
    assert not issue.causes("BUG: x, in gh")
    assert "not a regular expression" in load(tmp_path, f"{ENTRY}    splat: '('\n")


TITLES = {
    "probes/container/group_file_lives_as_long_as_its_users": (
        "WARNING: drivers/vfio/container.c:526 at vfio_group_unuse_container+0x20/0x30 [vfio], CPU#0: py",
        "WARNING: CPU: 0 PID: 56 at drivers/vfio/container.c:474 vfio_group_detach_container+0xec/0x13c",
        "VFS: Close: file count is 0 (f_op=0xffffffff81659600), in filp_flush",
        "VFS: Close: file count is 0 (f_op=0xffff8000805bcde8), in filp_close",
        "imbalanced put on file reference count, in __file_ref_put_badval",
    ),
    "probes/failing/bind_that_fails_leaves_nothing": (
        "WARNING: drivers/vfio/group.c:510 at vfio_group_release+0x39/0x50, CPU#1: python3/53",
    ),
}
"""The titles of the splats that kernels printed in destructive cases."""


def test_every_shipped_issue_with_damage_names_its_splats() -> None:
    """Otherwise the splat of any other bug in that case would be XFAIL."""
    damaging = {f"probes/{one.address}" for one in probe_cases() if one.destructive}
    listed = {issue.case: issue for issue in shipped_issues() if issue.case in damaging}
    assert set(listed) == set(TITLES)
    for case, titles in TITLES.items():
        assert all(listed[case].causes(title) for title in titles)
        assert not listed[case].causes("BUG: KASAN: slab-use-after-free in iommufd_ioas_destroy+0x1/0x2")


def test_the_list_of_a_runs_user_comes_first(tmp_path: Path) -> None:
    """The list in the run's directory comes before the shipped one."""
    assert issues_of(tmp_path) == shipped_issues()
    (tmp_path / "known-issues.yaml").write_text(ENTRY.replace("probes/a/b", CASE))
    found = known_issue(issues_of(tmp_path), CASE, release="7.3.4", job="j")
    assert found is not None
    assert found.reason == "it is broken"
    (tmp_path / "known-issues.yaml").write_text("issues: no")
    with pytest.raises(UsageError, match=r"known-issues\.yaml"):
        issues_of(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("a mail", "a mail\n    expires: soon", "must be a date like 2030-01-31, not 'soon'"),
        ("a mail", "a mail\n    expires: 2030-01-02 10:00:00", "must be a date like 2030-01-31"),
        (">=7.3,<7.5", "7.3 and up", "known.yaml:3: '7.3 and up' is not a range of releases"),
        ("a mail", '" "', "known.yaml:6: 'evidence' is empty"),
        ("    evidence: a mail\n", "", "known.yaml:2: probes/a/b has neither 'evidence' nor 'link'"),
        ("evidence:", "evidnce:", "has no key 'evidnce' did you mean 'evidence'"),
        (
            "    evidence: a mail\n",
            "    evidence: x\n    link2: y\n",
            "has no key 'link2' did you mean 'link'",
        ),
    ],
)
def test_wrong_files(tmp_path: Path, old: str, new: str, said: str) -> None:
    """The error has file, line and what is wrong."""
    assert said in load(tmp_path, ENTRY.replace(old, new))


def test_twice(tmp_path: Path) -> None:
    assert "is already listed at" in load(tmp_path, ENTRY + ENTRY.partition("\n")[2])


def test_shipped_ones_have_their_evidence() -> None:
    """A defect of current kernels has a report; one of older kernels a place in the source of one."""
    root = Path(__file__).parents[2]
    assert shipped_issues()
    cases = [f"{SUITE}/{case.address}" for case in probe_cases()]
    assert outdated(shipped_issues(), cases, [], datetime.date(2026, 11, 1)) == ()
    for issue in shipped_issues():
        report = (root / issue.evidence).is_file()
        source = re.fullmatch(r"(drivers|include|tools)/[\w/.]+ .*of \d+\.\d+\.\d+", issue.evidence)
        assert report or (source and not issue.kernels.contains("99")), issue.where
        assert (issue.expires is not None) is issue.kernels.contains("99"), issue.where


def test_known_on_the_kernel_at_hand_only() -> None:
    issues = shipped_issues()
    assert known_issue(issues, CASE, release="7.3.4", job="j") is not None
    assert known_issue(issues, CASE, release="7.2.12", job="j") is None
    assert known_issue(issues, "probes/cdev/no_such_case", release="7.3.4", job="j") is None


def test_what_is_out_of_date_is_said(tmp_path: Path) -> None:
    """An issue that expired, whose case no longer exists or passes is reported in a sentence."""
    path = tmp_path / "known.yaml"
    path.write_text(ENTRY + "    expires: 2030-01-31\n")
    issues = load_issues(path)
    day = datetime.date(2030, 1, 31)
    cases = ["probes/a/b"]
    assert outdated(issues, cases, [("probes/a/b", "7.5.0", "j"), ("probes/a/c", "7.3.4", "j")], day) == ()
    (expired,) = outdated(issues, cases, [], day + datetime.timedelta(days=1))
    assert expired == f"known issue probes/a/b ({path}:2) expired on 2030-01-31: it is broken"
    (passed,) = outdated(issues, cases, [("probes/a/b", "7.3.4", "j")] * 2, day)
    assert "passed on 7.3.4" in passed
    (gone,) = outdated(issues, ["probes/a/bb"], [], day)
    assert gone.endswith("the case no longer exists; did you mean 'probes/a/bb'?")


@pytest.mark.parametrize(
    ("case", "jobs", "said"),
    [
        (
            "kselftest:vfio/dma_maping/*",
            "",
            "matches no case of this run; did you mean 'kselftest:vfio/dma_mapping/a'?",
        ),
        ("kselftest:vfio/dma_mapping/*", "", ""),
        ("kselftest:vfio/dma_maping/*", "    jobs: ['*-amd']\n", ""),
        ("kselftest:iommu/x/*", "", ""),
    ],
)
def test_what_is_about_nothing_is_said(tmp_path: Path, case: str, jobs: str, said: str) -> None:
    """An issue that matches no case is reported only where its suite ran."""
    path = tmp_path / "known.yaml"
    path.write_text(ENTRY.replace("probes/a/b", f'"{case}"') + jobs)
    notes = matching_nothing(load_issues(path), [("kselftest:vfio/dma_mapping/a", "7.3.4", "7.3.4-cdev-edu")])
    assert len(notes) == bool(said)
    assert "".join(notes).endswith(said)


def test_suite_that_is_none_is_refused(tmp_path: Path) -> None:
    said = load(tmp_path, ENTRY.replace("probes/a/b", "probse/a/b"))
    assert "known.yaml:2: there is no suite 'probse' did you mean 'probes'?" in said
