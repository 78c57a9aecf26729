# SPDX-License-Identifier: GPL-2.0-only
"""Choosing an accelerator, with scripts that behave as a good and a bad QEMU do."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from harness.base import process
from harness.base.errors import InfraError, UsageError
from harness.machine import accel
from harness.machine.accel import Accel
from harness.machine.qemu import Qemu, read_note

GOOD = 'echo "VFS: Unable to mount root fs"; exit 0'


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with a /dev/kvm that opens, and a cache of its own."""
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(accel, "KVM_DEVICE", tmp_path / "kvm")
    (tmp_path / "kvm").touch()


def fake(directory: Path, body: str) -> Qemu:
    """A QEMU that is this shell script; it leaves a line in `ran` for each run."""
    path = directory / "qemu"
    path.write_text(f"#!/bin/sh\necho x >>{directory}/ran\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return Qemu(path=path, version=(10, 0, 0), devices=frozenset(), identity=body)


def broken_on(accel: str, good: str = GOOD) -> str:
    """The script of a QEMU whose *accel* loses every kernel, and no boot sector."""
    return f"""case "$*" in
*-kernel*-append*) ;;
*) exit 85;;
esac
case "$*" in
*"-accel {accel}"*) echo "KVM internal error. Suberror: 3" >&2; exit 1;;
*) {good};;
esac"""


def noted(directory: Path) -> dict[str, object]:
    return read_note(directory / "cache" / "host" / "kvm.json")


def runs(directory: Path) -> int:
    return len((directory / "ran").read_text().splitlines())


def test_kvm_that_runs_a_guest_is_used(tmp_path: Path) -> None:
    """85 is what the boot sector makes of QEMU's exit status; the answer is remembered."""
    qemu = fake(tmp_path, "exit 85")
    assert accel.choose_accel("auto", qemu).accel is Accel.KVM
    assert accel.choose_accel("kvm", qemu).accel is Accel.KVM
    assert runs(tmp_path) == 1


def test_kvm_that_kills_its_guests_is_not(tmp_path: Path) -> None:
    """The reason is told and remembered; forced, it is an error."""
    qemu = fake(tmp_path, "echo 'qemu-system-x86_64: error: failed to set MSR 0x10a' >&2; kill -ABRT $$")
    choice = accel.choose_accel("auto", qemu)
    assert choice.accel is Accel.TCG
    assert choice.reason.endswith("QEMU was killed by SIGABRT: error: failed to set MSR 0x10a")
    with pytest.raises(InfraError, match=r"KVM does not work here.*--accel tcg"):
        accel.choose_accel("kvm", qemu)
    assert runs(tmp_path) == 1


@pytest.fixture
def slow_kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> Qemu:
    """A QEMU on whose KVM a guest, *what*, stands still until there is a file `idle`."""
    monkeypatch.setattr(accel, "_SECTOR_SECONDS", 0.6)
    monkeypatch.setattr(accel, "_KERNEL_SECONDS", 0.6)
    busy = f'*"-accel kvm"*) test -e {tmp_path}/idle || exec sleep 60;; esac'
    guests = f'case "$*" in *-kernel*-append*) {GOOD};; *) exit 85;; esac'
    slow = {"sector": f'case "$*" in {busy}', "kernel": f'case "$*" in *-append*) case "$*" in {busy};; esac'}
    return fake(tmp_path, f"{slow[what]}\n{guests}")


@pytest.mark.parametrize("what", ["sector", "kernel"])
def test_time_that_ran_out_on_a_busy_host_is_not_remembered_against_kvm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow_kvm: Qemu
) -> None:
    """A busy host slows a guest down; an accelerator that was not proven is tried again on the next run."""
    monkeypatch.setattr(accel, "starvation", lambda _: lambda: 60.0)
    assert accel.kvm_fault(slow_kvm, Path("vmlinux")) is not None
    assert noted(tmp_path) == {}
    (tmp_path / "idle").touch()
    assert accel.kvm_fault(slow_kvm, Path("vmlinux")) is None
    assert noted(tmp_path)["kernel"] is True


@pytest.mark.parametrize("what", ["sector", "kernel"])
def test_a_hang_on_kvm_alone_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow_kvm: Qemu
) -> None:
    """KVM had a CPU for as long as TCG needs: the next run does not wait for KVM again."""
    monkeypatch.setattr(accel, "starvation", lambda _: lambda: 0.0)
    told = accel.kvm_fault(slow_kvm, Path("vmlinux"))
    assert noted(tmp_path)["fault"] == told is not None
    before = runs(tmp_path)
    assert accel.kvm_fault(slow_kvm, Path("vmlinux")) == told
    assert runs(tmp_path) == before


def test_a_clean_exit_is_no_proof(tmp_path: Path) -> None:
    """QEMU may end well without having run a byte of the guest's."""
    assert accel.choose_accel("auto", fake(tmp_path, "exit 0")).accel is Accel.TCG


def test_a_hang_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that hangs costs seconds, once."""
    monkeypatch.setattr(accel, "_SECTOR_SECONDS", 0.2)
    assert "did not finish" in accel.choose_accel("auto", fake(tmp_path, "sleep 60")).reason


def test_a_guest_that_got_no_cpu_has_more_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy host is no fault of KVM; the wait is bounded all the same."""
    monkeypatch.setattr(accel, "_SECTOR_SECONDS", 0.5)
    began = time.monotonic()
    monkeypatch.setattr(accel, "starvation", lambda _: lambda: time.monotonic() - began)
    assert accel.kvm_fault(fake(tmp_path, "sleep 0.8; exit 85")) is None
    assert "did not finish" in str(accel.kvm_fault(fake(tmp_path, "sleep 60; exit 85")))
    assert time.monotonic() - began < 30


def test_a_kernel_proves_more_than_a_sector(tmp_path: Path) -> None:
    """With a kernel at hand, KVM must carry it up to the missing root."""
    qemu = fake(tmp_path, 'case "$*" in *-kernel*) echo "VFS: Unable to mount root fs";; *) exit 85;; esac')
    assert accel.kvm_fault(qemu) is None
    assert accel.kvm_fault(qemu, Path("vmlinux")) is None
    assert runs(tmp_path) == 3
    assert accel.kvm_fault(qemu, Path("vmlinux")) is None
    assert runs(tmp_path) == 3


def test_a_kernel_that_dies_under_kvm_only(tmp_path: Path) -> None:
    """A boot sector that ran does not excuse a kernel that TCG carries and KVM does not; it is remembered."""
    qemu = fake(tmp_path, broken_on("kvm"))
    assert accel.kvm_fault(qemu, Path("vmlinux")) == "QEMU exited with 1: KVM internal error. Suberror: 3"
    assert "Suberror" in str(noted(tmp_path)["fault"])
    before = runs(tmp_path)
    assert accel.choose_accel("auto", qemu).accel is Accel.TCG
    assert runs(tmp_path) == before


@pytest.mark.parametrize(
    "behaviour",
    [
        'echo "Linux version 7.3"; echo "Kernel panic - not syncing: Attempted to kill init"; exit 0',
        'echo "Linux version 7.3"; exec sleep 60',
        "exit 0",
    ],
    ids=["panics", "hangs", "says nothing"],
)
def test_a_broken_kernel_is_not_taken_for_broken_kvm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str
) -> None:
    """A kernel that comes no further on TCG blames nobody but itself; a good kernel is tried anew."""
    monkeypatch.setattr(accel, "_KERNEL_SECONDS", 0.4)
    body = (
        f'case "$*" in *-kernel*) test -e {tmp_path}/good || {{ {behaviour}; }}; {GOOD};; *) exit 85;; esac'
    )
    qemu = fake(tmp_path, body)
    assert accel.kvm_fault(qemu, Path("vmlinux")) is None
    assert noted(tmp_path)["fault"] is None
    assert noted(tmp_path)["kernel"] is False
    (tmp_path / "good").touch()
    assert accel.kvm_fault(qemu, Path("vmlinux")) is None
    assert noted(tmp_path)["kernel"] is False, "the store's kernels do not change: this one was tried"
    assert accel.kvm_fault(qemu, Path("another-vmlinux")) is None
    assert noted(tmp_path)["kernel"] is True


def test_a_kernel_that_got_no_cpu_on_tcg_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy host neither accelerator gets far, which says nothing about the kernel."""
    monkeypatch.setattr(accel, "_KERNEL_SECONDS", 0.1)
    began = time.monotonic()
    monkeypatch.setattr(accel, "starvation", lambda _: lambda: time.monotonic() - began)
    busy = f'test -e {tmp_path}/idle || exec sleep 60; case "$*" in *"-accel kvm"*) exit 1;; esac'
    qemu = fake(tmp_path, f'case "$*" in *-kernel*) {busy}; {GOOD};; *) exit 85;; esac')
    assert accel.kvm_fault(qemu, Path("vmlinux")) is None
    (tmp_path / "idle").touch()
    assert accel.kvm_fault(qemu, Path("vmlinux")) == "QEMU exited with 1: no message"


def test_a_broken_kernel_never_condemns_kvm_for_good(tmp_path: Path) -> None:
    """Where KVM loses even a broken kernel earlier than TCG does, all VMs of that kernel run on TCG.

    Another kernel is tried anew.
    """
    panics = 'echo "Kernel panic - not syncing: Fatal exception"; exit 0'
    qemu = fake(tmp_path, broken_on("kvm", panics))
    told = accel.kvm_fault(qemu, Path("vmlinux"))
    assert "Suberror" in str(told)
    assert noted(tmp_path)["fault"] is None
    before = runs(tmp_path)
    assert accel.kvm_fault(qemu, Path("vmlinux")) == told, "workers ask again"
    assert runs(tmp_path) == before
    assert accel.kvm_fault(qemu) is None
    accel.kvm_fault(qemu, Path("another-vmlinux"))
    assert runs(tmp_path) > before


def test_trouble_of_the_host_is_no_fault_of_kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be started did not run too long; it says nothing that could be remembered."""
    monkeypatch.setattr(process, "find_tool", lambda _name: None)
    with pytest.raises(InfraError, match="setpriv is missing"):
        accel.kvm_fault(fake(tmp_path, "exit 85"))
    assert noted(tmp_path) == {}


def test_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /dev/kvm nothing is run."""
    monkeypatch.setattr(accel, "KVM_DEVICE", tmp_path / "none")
    assert accel.choose_accel("auto", fake(tmp_path, "exit 85")).reason.endswith("none does not exist")


def test_wishes(tmp_path: Path) -> None:
    """tcg is taken at its word; anything else must be spelled right."""
    qemu = fake(tmp_path, "exit 1")
    assert accel.choose_accel("tcg", qemu).accel is Accel.TCG
    with pytest.raises(UsageError, match="did you mean 'kvm'"):
        accel.choose_accel("kmv", qemu)


def test_factor() -> None:
    """Emulation gets more time."""
    assert Accel.TCG.timeout_factor > Accel.KVM.timeout_factor == 1.0
