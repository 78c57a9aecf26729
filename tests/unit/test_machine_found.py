# SPDX-License-Identifier: GPL-2.0-only
"""What the guest tells about its devices, and how that is judged."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness.base.errors import LostGuest
from harness.machine import found
from harness.machine.topology import load_topology


def device(bdf: str, pci: str, *path: str, root: str = "0000:00", **more: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {"driver": None, "iommu_group": None, "noiommu": False, "vfio_dev": []}
    return {"bdf": bdf, "root": root, "path": list(path), "pci": pci, **empty, **more}


def judge(topology: str, *devices: dict[str, Any]) -> tuple[str, ...]:
    return found.mismatches(load_topology(topology), found.read_facts(told(*devices)))


def told(*devices: dict[str, Any]) -> str:
    """What a guest with these devices says."""
    return json.dumps(
        {"uptime": 1, "nonce": "1", "notes": "0400", "devices": devices, "vfio_nodes": ["vfio"]}
    )


IGB = device("0000:00:04.0", "8086:10c9", "04.0")
EDU = device("0000:00:05.0", "1234:11e8", "05.0")


def test_as_asked() -> None:
    """Devices in their places are no news, whatever else the machine has."""
    assert judge("edu-igb", IGB, EDU, device("0000:00:18.0", "1af4:1000", "18.0")) == ()


def test_a_group_of_vfios_own_is_no_iommu() -> None:
    """A no-IOMMU device that is bound has a group, and is still not translated."""
    assert judge("edu", {**EDU, "iommu_group": "0", "noiommu": True}) == ()


def test_everything_wrong() -> None:
    """Each mismatch is one sentence."""
    assert judge("edu-igb", {**IGB, "pci": "8086:10d3"}, device("0000:00:07.0", "1234:11e8", "07.0")) == (
        "igb0 at 0000:00:04.0 is a 8086:10d3, not a 8086:10c9",
        "edu0 (edu) is missing at 00:05.0",
        "0000:00:07.0 is a 1234:11e8 that the topology does not have there",
    )


def test_iommu_or_not() -> None:
    """An IOMMU that is there and should not be, or the other way round, is the worst mismatch of all."""
    real = {"iommu_group": "3"}
    assert judge("edu", {**EDU, **real}) == (
        "edu0 at 0000:00:05.0 is in IOMMU group 3, but should have no IOMMU",
    )
    assert judge("iommu-intel", {**IGB, **real}, EDU) == ("edu0 at 0000:00:05.0 is not behind an IOMMU",)


def test_behind_bridges() -> None:
    """Bus numbers are the guest's choice; the way through the bridges tells the device."""
    outer = device("0000:99:00.0", "1234:11e8", "00.0", "00.0", root="0000:40")
    assert judge("mixed", {**EDU, "iommu_group": "1"}, outer) == ()
    topology = load_topology("mixed")
    assert found.bdfs(topology, found.read_facts(told(outer))) == {"edu1": "0000:99:00.0"}


def test_plugged_too_early() -> None:
    """A device that is to be plugged in later must not be there at boot."""
    edu0 = device("0000:02:00.0", "1234:11e8", "09.0", "00.0")
    edu1 = device("0000:03:00.0", "1234:11e8", "0a.0", "00.0")
    igb0 = device("0000:01:00.0", "8086:10c9", "08.0", "00.0")
    assert judge("hotplug", igb0, edu0) == ()
    assert judge("hotplug", igb0, edu0, edu1) == (
        "edu1 (edu) is at 0000:03:00.0 already, but was not to be plugged in yet",
    )


@pytest.mark.parametrize("text", ["", "Traceback", "[]", '{"devices": [{}], "vfio_nodes": []}'])
def test_rubbish_is_a_lost_guest(text: str) -> None:
    """An answer that is none is no statement about devices."""
    with pytest.raises(LostGuest, match="unreadable"):
        found.read_facts(text)
