# SPDX-License-Identifier: GPL-2.0-only
"""Which objects get debug information."""

from __future__ import annotations

from pathlib import Path

from harness.kernel.debugfile import _debugged


def test_only_what_the_kernel_was_linked_from(tmp_path: Path) -> None:
    """A build that began with the objects of another kernel has some that are not its own."""
    built_in, modules = tmp_path / "drivers/iommu", tmp_path / "drivers/vfio"
    for directory, names in ((built_in, ("device", "stale")), (modules, ("group", "stale"))):
        directory.mkdir(parents=True)
        for name in names:
            (directory / f"{name}.o").touch()
            (directory / f".{name}.o.cmd").touch()
    (built_in / ".built-in.a.cmd").write_text('savedcmd := printf "drivers/iommu/%s " device.o | xargs ar\n')
    (modules / "vfio.mod").write_text("drivers/vfio/group.o\n")
    found = _debugged(tmp_path, ("drivers/iommu", "drivers/vfio", "drivers/iommu/stale.o"))
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "drivers/iommu/device.o",
        "drivers/vfio/group.o",
        "drivers/iommu/stale.o",
    ]
