# SPDX-License-Identifier: GPL-2.0-only
"""Which nodes a device has: that depends on its IOMMU, and on the no-IOMMU modes of the kernel under test."""

from __future__ import annotations

import pytest

from guest import pci
from guest.opened import has_door, usable

BDF = "0000:00:05.0"


class Skipped(Exception):
    """The case does not apply."""


class FakeTest:
    """The part of guest.case.Test that these tests use."""

    def __init__(self, *features: str) -> None:
        self.features = frozenset(features)

    def device(self, kind: str) -> str:
        return BDF

    def skip(self, reason: str) -> None:
        raise Skipped(reason)


@pytest.mark.parametrize(
    ("behind", "group", "cdev"), [(True, True, True), (False, True, False)], ids=["iommu", "no-iommu"]
)
def test_doors_of_a_kernel_with_noiommu_groups_alone(
    behind: bool, group: bool, cdev: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Group and cdev are built: a device behind an IOMMU has both, a device without one has the group
    only."""
    monkeypatch.setattr(pci, "has_iommu", lambda _: behind)
    t = FakeTest("noiommu", "noiommu-group", "group", "cdev")
    assert has_door(t, BDF, "group") is group  # type: ignore[arg-type]
    assert has_door(t, BDF, "cdev") is cdev  # type: ignore[arg-type]


def test_case_about_both_doors_is_skipped_where_one_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A case that needs group and cdev is skipped, and does not fail, if the configuration lacks one of
    them."""
    monkeypatch.setattr(pci, "has_iommu", lambda _: False)
    t = FakeTest("noiommu", "noiommu-cdev", "group", "cdev")
    assert usable(t) == usable(t, "edu", "cdev") == BDF  # type: ignore[arg-type]
    with pytest.raises(Skipped, match="has no group"):
        usable(t, "edu", "group", "cdev")  # type: ignore[arg-type]
    with pytest.raises(Skipped, match="cannot bind the device"):
        usable(FakeTest("group", "cdev"))  # type: ignore[arg-type]
