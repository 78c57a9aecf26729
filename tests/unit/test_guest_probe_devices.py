# SPDX-License-Identifier: GPL-2.0-only
"""The cases about devices: their declarations and their pure functions."""

from __future__ import annotations

import re

import pytest

from guest import pci
from guest.case import Case, discover
from guest.needs import FEATURES

MODULES = (
    "container", "device", "dma", "group", "igb", "interrupts", "intx", "ioeventfd", "mixed", "msi",
    "regions", "reset", "viommu",
)  # fmt: skip

CASES = [one for one in discover() if one.module in MODULES]


def config_with(*capabilities: tuple[int, int, int]) -> bytes:
    """Return configuration space with (offset, id, next) capabilities; the list begins with the first."""
    data = bytearray(256)
    data[pci.CAP_LIST] = capabilities[0][0] if capabilities else 0
    for offset, name, following in capabilities:
        data[offset : offset + 2] = bytes((name, following))
    return bytes(data)


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.address)
def test_a_case_says_why_it_is_true(one: Case) -> None:
    """Each case cites a source file or a document, promises one sentence, and needs something."""
    assert re.search(r"\w/[\w-]+\.(c|rst)", one.cites)
    assert one.promise.endswith(".")
    assert len(one.promise) < 330
    assert one.needs


@pytest.mark.parametrize("one", [c for c in CASES if c.module != "viommu"], ids=lambda one: one.address)
def test_a_case_without_iommu_stays_away_from_one(one: Case) -> None:
    """A case about a device without an IOMMU does not run if every device is behind one.

    Cases that need no such device run on both; hotplug slots are never behind an IOMMU.
    """
    about_noiommu = any(need.startswith("noiommu") for need in one.needs)
    uses_device = {"edu", "igb"} & set(one.needs)
    assert not (about_noiommu and uses_device) or {"!viommu", "mixed", "hotplug"} & set(one.needs)


def test_every_variant_has_cases_of_its_own() -> None:
    """Group, cdev and both kinds of container have cases of their own."""
    for feature in ("noiommu-cdev", "noiommu-group", "container", "compat", "viommu", "mixed", "hotplug"):
        assert feature in FEATURES
        assert [one for one in CASES if feature in one.needs], feature


def test_capabilities_walks_the_list() -> None:
    """It finds the capabilities in order, and none in an empty list."""
    space = config_with((0x40, 1, 0x70), (0x70, pci.CAP_MSIX, 0xA0), (0xA0, pci.CAP_EXPRESS, 0))
    assert pci.capabilities(space) == [(1, 0x40), (pci.CAP_MSIX, 0x70), (pci.CAP_EXPRESS, 0xA0)]
    assert pci.capabilities(config_with()) == []


def test_capabilities_does_not_run_in_circles() -> None:
    """A list that does not end is an error, not a hang."""
    with pytest.raises(AssertionError, match="does not end"):
        pci.capabilities(config_with((0x40, 1, 0x40)))
