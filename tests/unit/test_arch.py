# SPDX-License-Identifier: GPL-2.0-only
"""One row per architecture, and nothing of it anywhere else."""

from __future__ import annotations

import dataclasses
import platform
import re
from pathlib import Path

import pytest
from fake_root import FakeRoot

from harness.base import paths
from harness.base.errors import InfraError, UsageError
from harness.kernel.arch import ARCHES, Arch, find_arch, host_arch
from harness.kernel.kconfig import find_fragment
from harness.machine.accel import Accel
from harness.machine.machine import Machine
from harness.machine.qemu import Qemu
from harness.machine.rootparts import RootParts
from harness.machine.topology import arches_of, load_topology, read_topology, shipped_topologies

ROOT = Path(__file__).resolve().parents[2]

WORDS = re.compile(
    r"q35|ttyS\d|x86|qemu-system|isa-debug-exit|\blapic\b|qboot|\bRIP\b|\b4096\b|-linux-gnu\b"
    r"|aarch64|ttyAMA|pl011|gic-version"
)
"""What only a row of harness.kernel.arch and its fragment may spell; 4096 where it is the size of a page."""

ROWS = {"harness/kernel/arch.py", *(f"kconfigs/{arch.fragment}.config" for arch in ARCHES.values())}

ALLOWED = {
    # MiB that a program needs.
    ("harness/suites/kselftest-vfio.yaml", "    memory: 4096"),
    # Names of what is tested.
    ("harness/matrix/matrix.yaml", "        arches: ["),
    # The one add-on that cannot be had everywhere, besides those of one architecture.
    ("kconfigs/variants.yaml", "    arches: [x86_64]"),
    # The kernel's names of its own unit tests.
    ("harness/suites/kunit-iommu.yaml", "  x86_64_fmt_test: {"),
    ("harness/suites/kunit-iommu.yaml", "  x86_64_iommu_test: {"),
}
"""File and start of each line that has such a word for another reason."""

BOOTING = ("lab", "machine", "plugin", "session")
"""Packages that boot kernels: they know the boot image, not the ELF file beside it."""


def files() -> list[Path]:
    """Every source file of harness/ and kconfigs/ but the topologies, which are the user's QEMU names."""
    found = [*(ROOT / "harness").rglob("*"), *(ROOT / "kconfigs").iterdir()]
    skipped = ("__pycache__", "topologies")
    return [path for path in found if path.is_file() and not set(skipped) & set(path.parts)]


def test_only_rows_and_fragments_know_an_architecture() -> None:
    """In code, comments, docstrings, help texts and data."""
    found = []
    for path in files():
        name = str(path.relative_to(ROOT))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            allowed = any(name == file and line.startswith(start) for file, start in ALLOWED)
            if WORDS.search(line) and name not in ROWS and not allowed:
                found.append(f"{name}:{number}: {line.strip()}")
    assert not found


def test_what_is_allowed_is_there() -> None:
    """No exception outlives its reason."""
    for name, start in ALLOWED:
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        assert any(line.startswith(start) for line in lines), start


def test_only_the_kernel_package_knows_the_elf_file() -> None:
    """What boots is Arch.image, whatever its name."""
    found = [
        str(path.relative_to(ROOT))
        for package in BOOTING
        for path in (ROOT / "harness" / package).rglob("*.py")
        if "vmlinux" in path.read_text(encoding="utf-8")
    ]
    assert not found


def test_rows_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown name is wrong use, an unknown host is infrastructure."""
    assert [find_arch(name).name for name in ARCHES] == list(ARCHES)
    with pytest.raises(UsageError, match="there is no architecture 'x86'"):
        find_arch("x86")
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    with pytest.raises(InfraError, match="hosts of the architecture vax are not supported"):
        host_arch()


@pytest.mark.parametrize("arch", ARCHES.values(), ids=lambda arch: str(arch.name))
def test_row(arch: Arch) -> None:
    """A row has a fragment, a CPU model for every accelerator, and slots that nobody shares."""
    assert find_fragment(paths.kconfigs_dir(), arch.fragment).settings
    assert set(arch.cpu) == {accel.value for accel in Accel}
    slots = arch.slots
    taken = [*slots.topology, slots.network, slots.ports, slots.panic, *slots.root]
    assert len(set(taken)) == len(taken)
    assert max(taken) < 0x1F


@pytest.mark.parametrize("arch", ARCHES.values(), ids=lambda arch: str(arch.name))
def test_cross_compile(arch: Arch, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's own compiler builds for the host; elsewhere the cross compiler does."""
    monkeypatch.setattr(platform, "machine", lambda: arch.host)
    assert arch.cross_compile == ""
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    assert arch.cross_compile == f"{arch.triplet}-"


def test_a_machine_is_made_of_its_row() -> None:
    """With another row, no word of this one is left on the command lines of QEMU and the kernel."""
    row = host_arch()
    other = dataclasses.replace(
        row,
        name="other",
        machine={"type": "virt"},
        console="hvc7",
        firmware=None,
        cpu={"tcg": "neoverse-n1"},
        emulated_args=(),
        panic_device="pvpanic",
        slots=dataclasses.replace(row.slots, network=0x14, ports=0x15, panic=0x16, root=range(0x17, 0x19)),
    )
    machine = Machine(
        arch=other, image=Path("Image"), topology=load_topology("edu"), accel=Accel.TCG, root=FakeRoot()
    )
    qemu = Qemu(
        path=Path("qemu"), version=(10, 0, 0), devices=frozenset(), identity="", arch=other, has_firmware=True
    )
    text = " ".join(machine.argv(qemu, RootParts(), "nonce"))
    assert not WORDS.search(text)
    words = ("-machine type=virt", "-cpu neoverse-n1", "console=hvc7", "pvpanic,bus=pcie.0,addr=0x16")
    assert [word for word in words if word not in text] == []


def test_topologies_fit() -> None:
    """Every shipped topology exists on some machine, and each architecture has the default one."""
    on = {name: arches_of(read_topology(name)) for name in shipped_topologies()}
    assert all(on.values())
    assert set(on["edu-igb"]) == set(ARCHES)


def test_x86_64_boot_sector() -> None:
    """A PC boots 512 bytes that end in 55 aa."""
    code = ARCHES["x86_64"].boot_sector.code
    assert (len(code), code[-2:]) == (512, b"\x55\xaa")


def test_names_of_an_architecture() -> None:
    """People say what kbuild, uname(1) and Debian say."""
    assert {find_arch(name).name for name in ("arm64", "aarch64")} == {"arm64"}
    assert {find_arch(name).name for name in ("x86_64", "amd64")} == {"x86_64"}
    with pytest.raises(UsageError, match=r"there is no architecture 'arm46'.*did you mean 'arm64'"):
        find_arch("arm46")


def test_arm64_boot_sector() -> None:
    """Four instructions: SYSTEM_OFF of PSCI into x0, a hypervisor call, and a loop."""
    sector = ARCHES["arm64"].boot_sector
    words = [int.from_bytes(sector.code[at : at + 4], "little") for at in range(0, len(sector.code), 4)]
    assert words == [0xD2800100, 0xF2B08000, 0xD4000002, 0x14000000]
    assert sector.status == 0
