# SPDX-License-Identifier: GPL-2.0-only
"""Finding QEMU and asking it, with a script in its place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.base.cause import Cause
from harness.base.errors import InfraError, UsageError
from harness.kernel.arch import ARCHES, host_arch
from harness.machine import qemu


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def script(directory: Path, version: str) -> Path:
    """A QEMU that counts how often it is asked."""
    path = directory / "qemu"
    path.write_text(
        f"""#!/bin/sh
echo x >>{directory}/asked
case "$*" in
"-L help") echo {directory};;
--version) echo "QEMU emulator version {version} (Debian 1:x)";;
"-device help") echo 'name "edu", bus PCI'; echo 'name "virtio-iommu-pci", bus PCI, alias "virtio-iommu"';;
"-device edu,help") echo 'edu options:'; echo '  dma_mask=<uint64>'; echo '  romfile=<str>';;
*) exit 1;;
esac
""",
        encoding="utf-8",
    )
    path.chmod(0o755)
    return path


def asked(directory: Path) -> int:
    return len((directory / "asked").read_text().splitlines())


def test_answers_are_remembered(tmp_path: Path) -> None:
    """The second process of the harness asks nothing; another build of QEMU is asked again."""
    path = script(tmp_path, "10.0.2")
    found = qemu.find_qemu(path)
    assert found.version == (10, 0, 2)
    assert found.devices == {"edu", "virtio-iommu-pci", "virtio-iommu"}
    assert found.properties("edu") == {"dma_mask", "romfile", "id", "bus", "addr"}
    assert not found.has_firmware
    before = asked(tmp_path)
    qemu._probe.cache_clear()
    qemu._properties.cache_clear()
    again = qemu.find_qemu(path)
    assert again == found
    assert again.properties("edu") == found.properties("edu")
    assert asked(tmp_path) == before
    assert qemu.find_qemu(script(tmp_path, "10.1.0")).version == (10, 1, 0)


def test_firmware_is_looked_for(tmp_path: Path) -> None:
    """qboot.rom is used where QEMU brought it."""
    (tmp_path / "qboot.rom").touch()
    assert qemu.find_qemu(script(tmp_path, "10.0.2")).has_firmware


def test_too_old(tmp_path: Path) -> None:
    """An old QEMU is named, with the way out."""
    with pytest.raises(InfraError, match=r"is QEMU 6\.2; 7\.2 or newer is needed .*doctor --fix"):
        qemu.find_qemu(script(tmp_path, "6.2.0"))


def test_missing(tmp_path: Path) -> None:
    """Installing another one does not help where a path was given: the hint is about that."""
    with pytest.raises(InfraError, match=r"nowhere: No such file .*give --qemu, or VFIO_HARNESS_QEMU"):
        qemu.find_qemu(tmp_path / "nowhere")


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU runs in the VM's directory, where a path relative to the user's means something else."""
    path = script(tmp_path, "10.0.2")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert qemu.find_qemu(Path("../qemu")).path.is_absolute()
    assert qemu.find_qemu("../qemu").path.samefile(path)
    monkeypatch.chdir(tmp_path)
    assert qemu.find_qemu("./qemu").path == path
    assert qemu.find_qemu(Path("./qemu")).path == path


def test_a_bare_name_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--qemu NAME` is what a shell would run for NAME."""
    path = script(tmp_path, "10.0.2").rename(tmp_path / "qemu-mine")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert qemu.find_qemu("qemu-mine").path == path
    assert qemu.find_qemu(Path("qemu-mine")).path == path
    with pytest.raises(InfraError, match="qemu-other is not installed"):
        qemu.find_qemu("qemu-other")


def test_nonsense() -> None:
    """Something else called qemu is found out."""
    with pytest.raises(InfraError, match="not understood"):
        qemu.parse_version("hello")


def test_a_damaged_note_is_no_note(tmp_path: Path) -> None:
    """A cache may be lost at any time."""
    path = tmp_path / "note.json"
    path.write_text("{", encoding="utf-8")
    assert qemu.read_note(path) == {}
    qemu.write_note(path, {"a": 1})
    assert qemu.read_note(path) == {"a": 1}


def test_what_a_job_needs_is_checked_where_it_runs(tmp_path: Path) -> None:
    """A QEMU that is too old, or lacks a device, is the host's fault."""
    found = qemu.find_qemu(script(tmp_path, "10.0.2"))
    qemu.QemuNeed(devices=("edu", "virtio-iommu")).check(found)
    for need, problem in (
        (qemu.QemuNeed(version=(10, 1)), r"is QEMU 10\.0\.2; 10\.1 or newer is needed"),
        (qemu.QemuNeed(devices=("edu", "igb")), r"QEMU 10\.0\.2 .* has no device igb"),
    ):
        with pytest.raises(InfraError, match=problem) as refused:
            need.check(found)
        assert refused.value.cause is Cause.HOST


def test_chosen_qemu_is_that_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of its workers, for as long as the block lasts; an option still comes before it."""
    monkeypatch.delenv(qemu.SETTING, raising=False)
    mine, other = script(tmp_path, "10.0.2"), tmp_path / "other"
    other.mkdir()
    with qemu.chosen_qemu(str(mine)):
        assert qemu.find_qemu().path == mine
        with qemu.chosen_qemu(str(script(other, "10.1.0"))):
            assert qemu.find_qemu().version == (10, 1, 0)
            assert qemu.find_qemu(mine).path == mine
        with qemu.chosen_qemu(None):
            assert qemu.find_qemu().path == mine
    assert qemu.SETTING not in os.environ


def test_a_qemu_of_another_architecture(tmp_path: Path) -> None:
    """Its machines are others: said before QEMU says it."""
    host, foreign = host_arch(), next(arch for arch in ARCHES.values() if arch.label)
    path = script(tmp_path, "10.0.2").rename(tmp_path / host.qemu)
    assert qemu.find_qemu(path).path == path
    with pytest.raises(UsageError, match=f"is the QEMU for {host.name} guests, not for {foreign.name}"):
        qemu.find_qemu(path, foreign)
