# SPDX-License-Identifier: GPL-2.0-only
"""The names of needs and features."""

from __future__ import annotations

import pytest

from guest import needs


def test_unmet_keeps_the_order_and_understands_absence() -> None:
    wants = ("noiommu-cdev", "!viommu", "edu2")
    assert needs.unmet(wants, {"noiommu-cdev", "edu2"}) == ()
    assert needs.unmet(wants, {"viommu"}) == ("noiommu-cdev", "!viommu", "edu2")
    assert needs.unmet((), set()) == ()


def test_features_are_a_set_of_known_names() -> None:
    assert needs.parse_features("edu, igb,,edu") == {"edu", "igb"}
    assert needs.parse_features("") == frozenset()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("noiomu", r"unknown feature 'noiomu' \(did you mean 'noiommu'\?\)"),
        ("edu,!viommu", "is a need, not a feature"),
        ("xyzzy", "unknown feature 'xyzzy'$"),
    ],
)
def test_a_wrong_feature_is_named(text: str, message: str) -> None:
    with pytest.raises(needs.UnknownFeature, match=message):
        needs.parse_features(text)


def test_every_feature_says_what_it_means() -> None:
    assert all(meaning.strip() for meaning in needs.FEATURES.values())
    assert not [name for name in needs.FEATURES if name.startswith("!") or "," in name]


def test_one_of_several_is_enough() -> None:
    """Alternatives may be absences too; an unmet need is reported as it is written."""
    assert needs.unmet(("noiommu|viommu",), {"viommu"}) == ()
    assert needs.unmet(("noiommu|!smp",), set()) == ()
    assert needs.unmet(("cdev", "noiommu|viommu"), {"cdev", "edu"}) == ("noiommu|viommu",)
    with pytest.raises(needs.UnknownFeature, match=r"viomu.*did you mean 'viommu'"):
        needs.check_names(["noiommu|viomu"])
