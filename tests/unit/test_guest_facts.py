# SPDX-License-Identifier: GPL-2.0-only
"""The facts that a guest reports about its devices, from a fake sysfs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from guest import facts

CHECKOUT = Path(__file__).resolve().parents[2]


def _device(sys_dir: Path, way: str, pci: str) -> Path:
    """Make a device at the path *way* (`pci0000:00/0000:00:02.0/...`) and its link on the bus."""
    where = sys_dir / "devices" / way
    where.mkdir(parents=True, exist_ok=True)
    vendor, device = pci.split(":")
    (where / "vendor").write_text(f"0x{vendor}\n", encoding="ascii")
    (where / "device").write_text(f"0x{device}\n", encoding="ascii")
    bus = sys_dir / "bus/pci/devices"
    bus.mkdir(parents=True, exist_ok=True)
    (bus / where.name).symlink_to(where)
    return where


def test_a_bare_device_and_one_behind_a_bridge(tmp_path: Path) -> None:
    _device(tmp_path, "pci0000:00/0000:00:05.0", "1234:11e8")
    igb = _device(tmp_path, "pci0000:00/0000:00:02.0/0000:01:00.0", "8086:10c9")
    driver, group = tmp_path / "drivers/vfio-pci", tmp_path / "kernel/iommu_groups/3"
    driver.mkdir(parents=True)
    group.mkdir(parents=True)
    (group / "name").write_text("vfio-noiommu\n", encoding="ascii")
    (igb / "driver").symlink_to(driver)
    (igb / "iommu_group").symlink_to(group)
    (igb / "vfio-dev" / "noiommu-vfio0").mkdir(parents=True)
    nodes = tmp_path / "dev" / "vfio"
    (nodes / "devices").mkdir(parents=True)
    for name in ("vfio", "noiommu-3", "devices/noiommu-vfio0"):
        (nodes / name).touch()
    (tmp_path / "kernel/notes").write_bytes(b"\x04\x00GNU")
    nonce = tmp_path / "firmware/qemu_fw_cfg/by_name/opt/vfio-harness/nonce"
    nonce.mkdir(parents=True)
    (nonce / "raw").write_text("c0ffee", encoding="ascii")
    found = facts.gather(str(tmp_path), str(tmp_path / "dev"))
    assert found.pop("uptime") > 0
    assert found == {
        "nonce": "c0ffee",
        "notes": "0400474e55",
        "devices": [
            {
                "bdf": "0000:00:05.0", "root": "0000:00", "path": ["05.0"], "pci": "1234:11e8",
                "driver": None, "iommu_group": None, "noiommu": False, "vfio_dev": [],
            },
            {
                "bdf": "0000:01:00.0", "root": "0000:00", "path": ["02.0", "00.0"], "pci": "8086:10c9",
                "driver": "vfio-pci", "iommu_group": "3", "noiommu": True, "vfio_dev": ["noiommu-vfio0"],
            },
        ],
        "vfio_nodes": ["devices/noiommu-vfio0", "noiommu-3", "vfio"],
    }  # fmt: skip


def test_a_machine_without_a_pci_bus_has_no_devices(tmp_path: Path) -> None:
    found = facts.gather(str(tmp_path), str(tmp_path))
    del found["uptime"]
    assert found == {
        "nonce": "",
        "notes": "",
        "devices": [],
        "vfio_nodes": [],
    }


def test_it_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "guest.facts"],
        cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert set(json.loads(done.stdout)) == {"uptime", "nonce", "notes", "devices", "vfio_nodes"}
