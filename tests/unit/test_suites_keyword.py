# SPDX-License-Identifier: GPL-2.0-only
"""An expression for -k that can choose nothing is refused before anything is built."""

from __future__ import annotations

import pytest

from harness.errors import UsageError
from harness.suites.keyword import check_keyword


@pytest.mark.parametrize(
    ("keyword", "said"),
    [
        ("get_pa and nonsenseword", "'nonsenseword' is in no name"),
        ("nonsenseword or other_nonsense", "'nonsenseword' is in no name"),
        (
            "get_pa and refusals_come_in_odrer",
            "refusals_come_in_odrer: did you mean 'refusals_come_in_order'?",
        ),
        ("get_pa and not get_pa", "see: vfio-harness list cases"),
        ("get_pa and", "join words with and, or, not"),
        ("get_pa refusals", "join words with and, or, not"),
    ],
)
def test_nothing_is_chosen(keyword: str, said: str) -> None:
    """The word that is in no name is told, or that the words never come together."""
    with pytest.raises(UsageError) as error:
        check_keyword(keyword, ("probes",))
    assert said in str(error.value)


@pytest.mark.parametrize(
    "keyword",
    [
        "get_pa and refusals",
        "GET_PA and not Refusals",
        "(get_pa or nonsenseword) and probes",
        "get_pa and edu_igb",
        "get_pa and 7.3.4-cdev",
        "",
        "get_pa and 7",
    ],
)
def test_something_may_be_chosen(keyword: str) -> None:
    """As pytest matches: parts of names, in any case; parts of a job's name pass."""
    check_keyword(keyword, ("probes",), ("edu_igb",))


def test_selftests_are_not_known_here() -> None:
    """Only a tree tells which programs it has."""
    check_keyword("nonsenseword and other", ("probes", "kselftest:vfio"))
