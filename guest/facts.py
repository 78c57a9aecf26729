# SPDX-License-Identifier: GPL-2.0-only
"""Print the VM's nonce, the kernel's build and the PCI devices as one JSON document on standard output.

The host asks for it once per boot, before anything else (guest/resident.py, or `python3 -m guest.facts`), and
parses this format:

    {"nonce": "c0ffee",                         identifies this VM; QEMU was started with it
     "uptime": 1.5,                             seconds since boot, by the guest's own clock
     "notes": "040000001400...",                the running kernel's ELF notes in hex, with the build-id
     "devices": [{"bdf": "0000:01:00.0",        address in the guest
                  "root": "0000:00",            domain and number of the root bus
                  "path": ["08.0", "00.0"],     slot.function of each bridge on the way, and the device's own
                  "pci": "1234:11e8",           vendor and device
                  "driver": "igb" or null,
                  "iommu_group": "3" or null,   number of the group
                  "noiommu": false,             whether VFIO made up the group
                  "vfio_dev": ["noiommu-vfio0"]}],
     "vfio_nodes": ["devices/noiommu-vfio0", "noiommu-0", "vfio"]}
"""

from __future__ import annotations

import json
import os
import time
from typing import Any, Optional


def _read(path: str) -> str:
    try:
        # Not pathlib: importing it takes a tenth of a second under emulation.
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _link(path: str) -> Optional[str]:
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return None


def _list(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def _device(sys_dir: str, bdf: str) -> dict[str, Any]:
    here = f"{sys_dir}/bus/pci/devices/{bdf}"
    steps = os.path.realpath(here).split("/")
    start = max(index for index, step in enumerate(steps) if step.startswith("pci"))
    return {
        "bdf": bdf,
        "root": steps[start][3:],
        "path": [step.rsplit(":", 1)[1] for step in steps[start + 1 :]],
        "pci": f"{_read(f'{here}/vendor')[2:]}:{_read(f'{here}/device')[2:]}",
        "driver": _link(f"{here}/driver"),
        "iommu_group": _link(f"{here}/iommu_group"),
        "noiommu": _read(f"{here}/iommu_group/name") == "vfio-noiommu",
        "vfio_dev": _list(f"{here}/vfio-dev"),
    }


def _read_bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def gather(sys_dir: str = "/sys", dev_dir: str = "/dev") -> dict[str, Any]:
    """Return the document, read from a sysfs and a /dev (tests pass their own)."""
    nodes = [name for name in _list(f"{dev_dir}/vfio") if name != "devices"]
    nodes += [f"devices/{name}" for name in _list(f"{dev_dir}/vfio/devices")]
    devices = [_device(sys_dir, bdf) for bdf in _list(f"{sys_dir}/bus/pci/devices")]
    return {
        "uptime": time.monotonic(),
        "nonce": _read(f"{sys_dir}/firmware/qemu_fw_cfg/by_name/opt/vfio-harness/nonce/raw"),
        "notes": _read_bytes(f"{sys_dir}/kernel/notes").hex(),
        "devices": devices,
        "vfio_nodes": sorted(nodes),
    }


if __name__ == "__main__":
    print(json.dumps(gather()))
