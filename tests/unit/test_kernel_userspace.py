# SPDX-License-Identifier: GPL-2.0-only
"""The user space of another architecture, from packages that a pretended apt fetches."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from harness.base import process
from harness.base.errors import HostError, SourceError
from harness.kernel import debian, userspace
from harness.kernel.arch import ARCHES, Arch

FOREIGN = next(arch for arch in ARCHES.values() if arch.label)

needs_dpkg = pytest.mark.skipif(process.find_tool("dpkg-deb") is None, reason="this host has no dpkg-deb")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("VFIO_HARNESS_CACHE", os.fspath(tmp_path / "cache"))
    return tmp_path / "cache"


def _package(archives: Path, work: Path) -> None:
    """Build a package as Debian 12 has them: with files in /bin and /lib, and absolute links."""
    for name in ("bin/kmod", f"lib/{FOREIGN.triplet}/libuuid.so.1.3", "usr/bin/dropbear"):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(name, encoding="utf-8")
    (work / "sbin").mkdir()
    (work / "sbin/modprobe").symlink_to("/bin/kmod")
    (work / f"lib/{FOREIGN.triplet}/libuuid.so.1").symlink_to("libuuid.so.1.3")
    (work / "DEBIAN").mkdir()
    control = f"Package: tools\nVersion: 1\nArchitecture: {FOREIGN.debian}\nMaintainer: x\nDescription: x\n"
    (work / "DEBIAN/control").write_text(control, encoding="utf-8")
    argv = ["dpkg-deb", "--build", "--root-owner-group", os.fspath(work), os.fspath(archives / "tools_1.deb")]
    subprocess.run(argv, check=True, capture_output=True)


@needs_dpkg
def test_packages_are_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged below /usr, with links that stay inside."""
    fetched = []

    def fetch(arch: Arch, archives: Path) -> None:
        fetched.append(arch.name)
        _package(archives, tmp_path / "work")

    monkeypatch.setattr(userspace, "_fetch", fetch)
    entry = userspace.provide_userspace(FOREIGN)
    top = userspace.top_of(entry)
    assert (top / "usr/bin/kmod").read_text() == "bin/kmod"
    assert (top / "usr/sbin/modprobe").resolve() == (top / "usr/bin/kmod").resolve()
    assert (top / "bin").is_symlink()
    library = userspace.libraries_of(entry) / "libuuid.so.1"
    assert library.read_text() == f"lib/{FOREIGN.triplet}/libuuid.so.1.3"
    assert userspace.packages_of(entry).read_text().startswith("tools_1.deb ")
    assert not (entry / "archives").exists()
    assert userspace.provide_userspace(FOREIGN) == entry
    assert fetched == [FOREIGN.name]


def test_what_apt_says_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first error, and what it was asked for."""
    monkeypatch.setattr(process, "find_tool", lambda name, **_: f"/usr/bin/{name}")
    monkeypatch.setattr(debian, "KEYRING", Path(__file__))
    monkeypatch.setattr(debian, "find_mirror", lambda: "mirror:/debian")
    said = process.Completed((), 100, "", "W: old\nE: Unable to locate package dash\n")
    monkeypatch.setattr(debian, "bounded", lambda *_: said)
    with pytest.raises(SourceError, match="asking mirror:/debian failed: Unable to locate package dash"):
        userspace.provide_userspace(FOREIGN)


def test_a_host_without_apt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else has the packages."""
    monkeypatch.setattr(process, "find_tool", lambda _name, **_: None)
    with pytest.raises(HostError, match=f"guests of {FOREIGN.name} are made of Debian's packages.*apt-get"):
        userspace.provide_userspace(FOREIGN)
