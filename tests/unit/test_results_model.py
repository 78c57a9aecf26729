# SPDX-License-Identifier: GPL-2.0-only
"""Outcomes, addresses, and how several attempts become one result."""

from __future__ import annotations

import dataclasses
import datetime
import itertools

import pytest

from harness.base.errors import UsageError
from harness.results import FLAKY, WHOLE_PROGRAM, Address, JobRecord, Outcome, Result, Run, RunInfo, settle

ADDRESS = Address(suite="probes", program="iommufd", case="get_pa")


def result(outcome: Outcome, *, job: str = "j", attempt: int = 1, address: Address = ADDRESS) -> Result:
    return Result(address=address, job=job, outcome=outcome, attempt=attempt)


def test_the_outcomes_are_those_of_the_design() -> None:
    """No outcome is missing and none was invented."""
    assert {outcome.value for outcome in Outcome} == set(
        ["PASS", "SKIP", "XFAIL", "XPASS", "FAIL", "ERROR", "TIMEOUT", "CRASH", "LOST", "NOT_RUN"]
    )


def test_expected_outcomes_are_good_and_all_others_bad() -> None:
    """XFAIL counts as expected and XPASS as bad; what had no chance is bad but no failure."""
    assert {outcome for outcome in Outcome if not outcome.is_bad} == {
        Outcome.PASS,
        Outcome.SKIP,
        Outcome.XFAIL,
    }
    assert {outcome for outcome in Outcome if outcome.is_infra} == {Outcome.LOST, Outcome.NOT_RUN}
    assert not any(outcome.is_infra and outcome.is_failure for outcome in Outcome)


def test_each_outcome_has_its_own_symbol_and_words() -> None:
    """A progress line can be read back without doubt."""
    assert len({outcome.symbol for outcome in Outcome}) == len(Outcome)
    assert all(len(outcome.symbol) == 1 and outcome.meaning for outcome in Outcome)


def test_worst_wins() -> None:
    """A crash beats everything, one pass makes skips a pass, and nothing at all is no success."""
    assert Outcome.worst([Outcome.PASS, Outcome.CRASH, Outcome.LOST]) is Outcome.CRASH
    assert Outcome.worst([Outcome.SKIP, Outcome.PASS]) is Outcome.PASS
    assert Outcome.worst([Outcome.LOST, Outcome.FAIL]) is Outcome.FAIL
    assert Outcome.worst([Outcome.SKIP, Outcome.SKIP]) is Outcome.SKIP
    assert Outcome.worst([]) is Outcome.NOT_RUN


def test_a_known_defect_excuses_a_failure_and_nothing_else() -> None:
    """FAIL becomes expected, PASS becomes news; a crash or a timeout stays what it is."""
    assert Outcome.FAIL.with_known_defect() is Outcome.XFAIL
    assert Outcome.PASS.with_known_defect() is Outcome.XPASS
    others = set(Outcome) - {Outcome.FAIL, Outcome.PASS}
    assert all(outcome.with_known_defect() is outcome for outcome in others)


def test_addresses_go_both_ways() -> None:
    """An address is read back as it was written, with slashes in the case."""
    text = "kselftest:vfio/vfio_pci_device_test/a.b/c"
    address = Address.parse(text)
    assert (address.program_path, address.case) == ("kselftest:vfio/vfio_pci_device_test", "a.b/c")
    assert str(address) == text


@pytest.mark.parametrize("text", ["", "probes", "probes/iommufd", "probes//x", "/a/b", "a/b/"])
def test_broken_addresses_are_refused(text: str) -> None:
    """An incomplete address is the user's error, with the right form named."""
    with pytest.raises(UsageError, match="suite/program/case"):
        Address.parse(text)


def test_a_reason_is_one_line() -> None:
    """Whatever is given as reason is stored as one line."""
    given = Result(address=ADDRESS, job="j", outcome=Outcome.FAIL, reason="a\n  b\tc\n")
    assert given.reason == "a b c"


def test_a_retry_replaces_infrastructure_trouble() -> None:
    """A guest that was lost once does not stain a case that passed on a fresh one, in either order."""
    for pair in itertools.permutations([result(Outcome.LOST), result(Outcome.PASS, attempt=2)]):
        assert [one.outcome for one in settle(pair)] == [Outcome.PASS]


def test_a_program_that_was_lost_once_is_settled_by_its_cases() -> None:
    """Its cases have addresses of their own, under which the second attempt is told."""
    lost = result(Outcome.LOST, address=Address(suite="kselftest:vfio", program="x", case=WHOLE_PROGRAM))
    cases = [Address(suite="kselftest:vfio", program="x", case=name) for name in "ab"]
    first = [result(Outcome.PASS, address=cases[0]), result(Outcome.NOT_RUN, address=cases[1])]
    again = [result(Outcome.PASS, address=case, attempt=2) for case in cases]
    assert [one.label for one in settle([*first, lost, *again])] == ["PASS", "PASS"]
    labels = {one.label for one in settle([*first, lost])}
    assert labels == {"PASS", "NOT_RUN", "LOST"}
    lost_again = dataclasses.replace(lost, attempt=2)
    assert "LOST" in {one.label for one in settle([*first, lost, again[0], lost_again])}
    elsewhere = [dataclasses.replace(one, job="k") for one in again]
    assert "LOST" in {one.label for one in settle([*first, lost, *elsewhere])}


def test_a_program_that_a_run_which_went_on_has_made_up_for_is_settled() -> None:
    """Where a run goes on the attempts begin at 1 again, and what the deadline cut off has had its chance."""
    late = result(Outcome.NOT_RUN, address=Address(suite="kselftest:vfio", program="x", case=WHOLE_PROGRAM))
    case = Address(suite="kselftest:vfio", program="x", case="a")
    assert [one.label for one in settle([late, result(Outcome.PASS, address=case)])] == ["PASS"]
    assert [one.label for one in settle([late, late])] == ["NOT_RUN"]


def test_a_retry_washes_no_failure_clean() -> None:
    """A case that failed once stays failed, whatever later attempts say."""
    attempts = [result(Outcome.FAIL), result(Outcome.PASS, attempt=2), result(Outcome.LOST, attempt=3)]
    for order in itertools.permutations(attempts):
        assert [one.outcome for one in settle(order)] == [Outcome.FAIL]


def test_jobs_do_not_mix() -> None:
    """The same case in two Jobs is two results, in plan order."""
    now = datetime.datetime(2030, 1, 2, tzinfo=datetime.UTC)
    run = Run(
        info=RunInfo(id="r", started=now, harness_version="1"),
        jobs=(JobRecord(name="a"), JobRecord(name="b")),
        results=(result(Outcome.FAIL, job="b"), result(Outcome.PASS, job="a"), result(Outcome.PASS, job="b")),
    )
    assert [(one.job, one.outcome) for one in run.cases] == [("a", Outcome.PASS), ("b", Outcome.FAIL)]


def test_a_start_without_a_time_zone_is_refused() -> None:
    """Two hosts' runs can be put in order only when both say where their clocks stand."""
    with pytest.raises(ValueError, match="time zone"):
        RunInfo(id="r", started=datetime.datetime(2030, 1, 2), harness_version="1")


def attempts(first: Outcome, *again: Outcome, case: str = "get_pa") -> list[Result]:
    address = Address(suite="probes", program="iommufd", case=case)
    tries = [result(first, address=address)]
    for number, outcome in enumerate(again, start=2):
        tries.append(dataclasses.replace(tries[0], outcome=outcome, attempt=number, confirms=True))
    return tries


@pytest.mark.parametrize("failure", [Outcome.FAIL, Outcome.ERROR, Outcome.TIMEOUT])
def test_a_failure_that_does_not_repeat_is_flaky(failure: Outcome) -> None:
    """What failed and passed in a fresh VM keeps its failure, is labelled, and is no failure of the run."""
    (case,) = settle(attempts(failure, Outcome.PASS))
    assert (case.outcome, case.attempt, case.label) == (failure, 1, FLAKY)
    assert not case.is_bad


def test_a_failure_that_repeats_stays_one() -> None:
    """A second failure confirms the first; a retry in a used VM, a skip or a lost guest proves nothing."""
    for again in (Outcome.FAIL, Outcome.SKIP, Outcome.LOST, Outcome.NOT_RUN):
        (case,) = settle(attempts(Outcome.FAIL, again))
        assert (case.outcome, case.is_failure, case.flaky) == (Outcome.FAIL, True, False)
    tries = [dataclasses.replace(one, confirms=False) for one in attempts(Outcome.FAIL, Outcome.PASS)]
    assert settle(tries)[0].is_failure
    assert settle(attempts(Outcome.FAIL, Outcome.PASS, Outcome.FAIL))[0].is_failure


def test_a_splat_needs_no_second_witness() -> None:
    """A crash that does not repeat is said to be flaky and is bad all the same."""
    (case,) = settle(attempts(Outcome.CRASH, Outcome.PASS))
    assert (case.flaky, case.is_failure, case.label) == (True, True, "CRASH")


def test_a_pass_that_was_news_once_is_flaky() -> None:
    """XPASS that becomes XFAIL in the confirming attempt is a race, not a mended kernel."""
    assert settle(attempts(Outcome.XPASS, Outcome.XFAIL))[0].label == FLAKY


def test_a_program_that_fails_as_a_whole_once_is_flaky() -> None:
    """A failure of the program itself leaves no result where it does not repeat: its cases must be good."""
    (whole,) = attempts(Outcome.TIMEOUT, case=WHOLE_PROGRAM)
    good = attempts(Outcome.NOT_RUN, Outcome.PASS, case="a")
    assert [case.label for case in settle([whole, *good])] == [FLAKY, "PASS"]
    bad = attempts(Outcome.PASS, Outcome.FAIL, case="b")
    assert [case.label for case in settle([whole, *good, *bad])] == ["TIMEOUT", "PASS", "FAIL"]
    assert settle([whole])[0].label == "TIMEOUT"


def test_a_series_outlives_a_release() -> None:
    """The job of the next stable release is the same series; another line, add-on or topology is not."""
    old = JobRecord(name="7.3.4-cdev-edu", line="debian:7.3", variant="cdev", topology="edu")
    new = dataclasses.replace(old, name="7.3.5-cdev-edu")
    assert old.series == new.series == "debian:7.3 cdev edu"
    assert dataclasses.replace(old, addons=("debug",)).series == "debian:7.3 cdev+debug edu"
    assert dataclasses.replace(old, toolchain="llvm").series == "debian:7.3 cdev+llvm edu"
    assert dataclasses.replace(old, line="debian:7.2").series != old.series
    assert JobRecord(name="blocked").series == "blocked"
