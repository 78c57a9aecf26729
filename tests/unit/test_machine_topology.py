# SPDX-License-Identifier: GPL-2.0-only
"""Topologies: the shipped ones, a user's own, and those that cannot work."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from harness.base.errors import UsageError
from harness.kernel.arch import ARCHES
from harness.machine import refusals, topology
from harness.machine.devices import Topology
from harness.machine.qemu import Qemu

EDU = '{id: edu0, driver: edu, addr: "0x5", pci: "1234:11e8"}'
SPLIT = "machine: {kernel-irqchip: split}\n"
PORT = '{id: port0, driver: pcie-root-port, addr: "0x8"}'


class FakeQemu(Qemu):
    """A QEMU with canned answers."""

    def properties(self, driver: str) -> frozenset[str]:
        return frozenset({"dma_mask", "mac", "netdev", "bus_nr", "id", "bus", "addr"})


def fake_qemu(*devices: str) -> Qemu:
    return FakeQemu(path=Path("/q"), version=(7, 2, 22), devices=frozenset(devices), identity="fake")


def write(directory: Path, text: str) -> Path:
    path = directory / "mine.yaml"
    path.write_text("summary: mine\n" + text, encoding="utf-8")
    return path


def load(directory: Path, text: str) -> Topology:
    return topology.load_topology(write(directory, text))


@pytest.mark.parametrize("name", topology.shipped_topologies())
def test_shipped(name: str) -> None:
    """Every shipped topology loads, has devices and tells where each one is."""
    shipped = topology.read_topology(name)
    assert shipped.name == name
    assert shipped.summary
    assert shipped.endpoints
    places = [shipped.location(device) for device in shipped.endpoints]
    assert len(set(places)) == len(places)
    for device in shipped.endpoints:
        if device.driver == "edu":
            assert device.props["dma_mask"] == "0xffffffffffffffff"
        if device.driver == "igb":
            assert "netdev" in device.props


def test_what_is_shipped() -> None:
    """The names that users and the matrix rely on."""
    assert set(topology.shipped_topologies()) >= {
        "edu", "igb", "edu-igb", "edu-edu", "iommu-intel", "iommu-amd", "iommu-virtio", "nvme", "hotplug",
        "pciehp", "shared-port", "sriov", "mixed", "aer",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("edu", {"edu", "intx"}),
        ("edu-edu", {"edu", "edu2", "intx"}),
        ("edu-igb", {"edu", "igb", "intx", "link-peer"}),
        ("nvme", {"nvme"}),
        ("aer", {"aer"}),
        ("hotplug", {"edu", "igb", "intx", "link-peer", "hotplug"}),
        ("pciehp", {"edu", "igb", "link-peer", "hotplug"}),
        ("shared-port", {"edu", "igb", "intx", "link-peer", "shared-port"}),
        ("sriov", {"igb", "link-peer", "sriov"}),
        ("iommu-amd", {"edu", "igb", "intx", "link-peer", "viommu", "viommu-amd"}),
        ("mixed", {"edu", "edu2", "mixed"}),
    ],
)
def test_features(name: str, features: set[str]) -> None:
    """Features follow from the devices; a device to be plugged in later does not count."""
    assert topology.load_topology(name).features == features


def test_places() -> None:
    """On a root bus the address is known; behind a bridge only the path is."""
    mixed = topology.load_topology("mixed")
    inner, outer = (mixed.location(mixed.device(name)) for name in ("edu0", "edu1"))
    assert (str(inner), inner.bdf) == ("00:05.0", "0000:00:05.0")
    assert (str(outer), outer.bdf) == ("40:00.0/00.0", None)
    assert mixed.behind_viommu(mixed.device("edu0"))
    assert not mixed.behind_viommu(mixed.device("edu1"))


@pytest.mark.parametrize("name", ["mine", "mine.yaml"])
def test_a_file_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """`./mine` is a path, with or without its suffix."""
    text = (topology.SHIPPED / "edu.yaml").read_text(encoding="utf-8")
    (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    mine = topology.load_topology("./mine")
    assert (mine.name, mine.where) == ("mine", str(tmp_path / name))
    monkeypatch.chdir("/")
    assert topology.load_topology(mine.where) == mine
    assert topology.parse_topology("mine", mine.text, "elsewhere") == mine


def test_unknown_name_names_the_nearest() -> None:
    """The hint for an unknown name is the nearest name."""
    with pytest.raises(UsageError, match="did you mean 'edu-igb'"):
        topology.load_topology("edu-igbb")


def test_values_are_spelled_for_qemu(tmp_path: Path) -> None:
    """true becomes on, and a comma is doubled."""
    mine = load(
        tmp_path,
        'devices:\n - {id: a, driver: nvme, addr: "04.1", pci: "1b36:0010", props: {x: true, y: "a,b"}}',
    )
    words = {"driver": "nvme", "id": "a", "bus": "pcie.0", "addr": "04.1", "x": "on", "y": "a,,b"}
    assert mine.devices[0].arguments() == words


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (f"devices:\n - {EDU}\n - {EDU.replace('0x5', '0x6')}", "the id 'edu0' is already taken in line 3"),
        (f"devices:\n - {EDU}\n - {EDU.replace('edu0', 'edu1')}", "'edu1' and 'edu0' both have slot 05.0"),
        (f"devices:\n - {EDU.replace('0x5', '0x1f')}", "cannot have slot 0x1f"),
        (f"devices:\n - {EDU.replace('0x5', '40')}", "'addr' must be a slot in hex"),
        (f"devices:\n - {EDU.replace('1234:11e8', '1234-11e8')}", "'pci' must read"),
        ('devices:\n - {id: a, driver: edu, addr: "4"}', "'edu' needs 'pci'"),
        ('devices:\n - {id: a, driver: igb, addr: "0x10", pci: "8086:10c9"}', "virtual functions do not fit"),
        (f"devices:\n - {EDU[:-1]}, plugged: false}}", "pcie.0 has no hot-plug"),
        (f"devices:\n - {EDU[:-1]}, bus: port9}}", "there is no bus 'port9'"),
        (f"devices:\n - {EDU[:-1]}, bus: port0}}\n - {PORT}", "declared before its bus"),
        (f"devices:\n - {PORT}\n - {EDU[:-1]}, bus: port0}}", "a root port has slot 0 only"),
        (f"devices:\n - {EDU[:-1]}, props: {{netdev: peer}}}}", "wants the netdev 'peer'"),
        ("devices:\n - {id: i, driver: intel-iommu}", "write `kernel-irqchip: split`"),
        (f"{SPLIT}devices:\n - {EDU}\n - {{id: i, driver: intel-iommu}}", "must come first"),
        (
            f"{SPLIT}devices:\n - {{id: i, driver: intel-iommu}}\n - {{id: j, driver: amd-iommu}}",
            "a q35 machine has one IOMMU",
        ),
        (f"features: [hotplug]\ndevices:\n - {EDU}", "no device sits in a pcie-root-port"),
        (f"features: [sriov]\ndevices:\n - {EDU}", "no device here has virtual functions"),
        (f"features: [edu]\ndevices:\n - {EDU}", "the rest follows from the devices"),
        (f"device:\n - {EDU}", "did you mean 'devices'"),
    ],
)  # fmt: skip
def test_impossible(tmp_path: Path, text: str, complaint: str) -> None:
    """An impossible topology is refused with file and line."""
    with pytest.raises(UsageError, match=complaint) as caught:
        load(tmp_path, text)
    assert "mine.yaml:" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ('["--"]', "would end or swallow the kernel arguments after it"),
        ("['a=\"b']", "would end or swallow the kernel arguments after it"),
        ('[""]', "would end or swallow"),
        ("[8250.nr_uarts=0]", "would take the serial console away"),
        ("[initcall_blacklist=serial8250_init]", "would take the serial console away"),
        (f"[{'x' * 1025}]", "are 1025 bytes long, more than 1024"),
    ],
)
def test_kernel_arguments_that_would_silence_it(tmp_path: Path, given: str, complaint: str) -> None:
    """What the harness's own arguments cannot override is refused with file, line and key."""
    with pytest.raises(UsageError, match="kernel_args") as caught:
        load(tmp_path, f"kernel_args: {given}\ndevices: [{EDU}]\n")
    assert caught.value.message.startswith(f"{tmp_path / 'mine.yaml'}:2: ")
    assert complaint in caught.value.message
    assert "\n" not in caught.value.message


def test_device_this_qemu_lacks() -> None:
    """igb on QEMU 7.2 is refused with the release that brought it."""
    with pytest.raises(UsageError, match=r"QEMU 7\.2\.22 has no device 'igb' \(it came with QEMU 8\.0\)"):
        topology.load_topology("edu-igb", fake_qemu("edu", "pcie-root-port"))


def test_property_this_qemu_lacks(tmp_path: Path) -> None:
    """The hint for an unknown property is the nearest one."""
    path = write(tmp_path, f"devices:\n - {EDU[:-1]}, props: {{dma-mask: 1}}}}")
    with pytest.raises(UsageError, match=r"'edu' has no property 'dma-mask' .did you mean 'dma_mask'"):
        topology.load_topology(path, fake_qemu("edu"))


def test_machine_property_nobody_knows(tmp_path: Path) -> None:
    """The machine's properties are checked too."""
    path = write(tmp_path, f"machine: {{kernel-irqchp: split}}\ndevices:\n - {EDU}")
    with pytest.raises(UsageError, match="did you mean 'kernel-irqchip'"):
        topology.load_topology(path, fake_qemu("edu"))


def test_machines_of_another_architecture() -> None:
    """What a machine cannot have is refused, with the architectures that can."""
    x86_64, arm64 = ARCHES["x86_64"], ARCHES["arm64"]
    found = topology.load_topology("iommu-smmuv3", arch=arm64)
    assert found.iommu == "smmuv3"
    assert {"viommu", "viommu-smmuv3"} <= found.features
    with pytest.raises(UsageError, match=r"smmuv3\.yaml:1: .*'iommu' \(arm64 machines can .*--arch arm64"):
        topology.load_topology("iommu-smmuv3", arch=x86_64)
    with pytest.raises(UsageError, match=r"arm64 machines have no intel-iommu"):
        refusals.refuse_impossible(topology.parse_topology("t", _ALONE.format("intel-iommu"), "t"), arm64)
    with pytest.raises(UsageError, match=r"pciehp\.yaml:1: the firmware of arm64 machines .*--arch x86_64"):
        topology.load_topology("pciehp", arch=arm64)
    with pytest.raises(UsageError, match=r"mixed\.yaml:\d+: arm64 machines have no .*--arch x86_64"):
        topology.load_topology("mixed", arch=arm64)
    unknown = topology.parse_topology("t", "summary: s\nmachine: {iommu: smmuv4}\ndevices: []\n", "t")
    with pytest.raises(UsageError, match=r"arm64 machines have no IOMMU 'smmuv4' \(did you mean 'smmuv3'"):
        refusals.refuse_impossible(unknown, arm64)
    assert topology.arches_of(topology.read_topology("edu-igb")) == tuple(ARCHES)


def test_firmware_for_further_roots() -> None:
    """Without it a machine with a pxb-pcie is refused, and the package that has it is named."""
    arch = dataclasses.replace(ARCHES["arm64"], roots_firmware=("/nonexistent/efi", "efi-package"))
    qemu = dataclasses.replace(fake_qemu("pxb-pcie", "pcie-root-port", "edu"), arch=arch)
    with pytest.raises(UsageError, match=r"smmuv3\.yaml:\d+: .* needs /nonexistent/efi.*install efi-package"):
        refusals.refuse_unavailable(topology.read_topology("mixed-smmuv3"), qemu)


_ALONE = "summary: s\ndevices:\n  - {{id: iommu0, driver: {0}}}\n"
