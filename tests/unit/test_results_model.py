# SPDX-License-Identifier: GPL-2.0-only
"""Outcomes, addresses, and how several attempts become one result."""

from __future__ import annotations

import datetime
import itertools

import pytest

from harness.errors import UsageError
from harness.results import Address, JobRecord, Outcome, Result, Run, RunInfo, settle

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
