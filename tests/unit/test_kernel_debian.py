# SPDX-License-Identifier: GPL-2.0-only
"""The newest Debian source that satisfies a request is chosen from what apt says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from harness.base.errors import SourceError, UsageError
from harness.kernel import debian
from harness.kernel.debian import (
    DebianSource,
    choose,
    choose_mirrors,
    compare_versions,
    parse_madison,
    suites,
)

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg") is None, reason="dpkg is missing")

MADISON = """\
linux-source-7.2 | 7.2.13-1 | http://mirror.example/debian sid/main amd64 Packages
linux-source-7.2 | 7.2.12-1 | http://mirror.example/debian sid/main Sources
linux-source-7.3 | 7.3.4-1~bpo13+1 | http://mirror.example/debian sid/main amd64 Packages
linux-source     | 7.2.13-1 | http://mirror.example/debian sid/main amd64 Packages
"""


def test_madison_gives_binary_packages_of_a_series() -> None:
    """The meta-package and source entries are no candidates."""
    found = parse_madison(MADISON)
    assert [(c.package, c.version) for c in found] == [
        ("linux-source-7.2", "7.2.13-1"),
        ("linux-source-7.3", "7.3.4-1~bpo13+1"),
    ]


def candidate(series: str, version: str) -> DebianSource:
    return DebianSource(package=f"linux-source-{series}", version=version)


@needs_dpkg
def test_versions_compare_as_dpkg_does() -> None:
    """A tilde sorts before its absence."""
    assert compare_versions("7.3.4-1~bpo13+1", "7.3.4-1") < 0
    assert compare_versions("6.12.107-1", "6.12.94-1") > 0
    assert compare_versions("1", "1") == 0


@needs_dpkg
def test_choice() -> None:
    """`latest` is the highest series as numbers, a series its highest version."""
    offered = [candidate("6.12", "6.12.94-1"), candidate("6.12", "6.12.107-1"), candidate("7.2", "7.2.9-1")]
    assert choose("latest", offered).version == "7.2.9-1"
    assert choose("6.12", offered).version == "6.12.107-1"
    with pytest.raises(UsageError, match=r"no Debian suite has the sources of Linux 6\.2"):
        choose("6.2", offered)


def test_suites_of_a_debian_release(tmp_path: Path) -> None:
    """Own release and its backports first, then every later one, then sid."""
    path = tmp_path / "os-release"
    path.write_text('ID=debian\nVERSION_CODENAME="trixie"\n', encoding="utf-8")
    found = suites(path)
    assert found[:4] == ("trixie", "trixie-backports", "forky", "forky-backports")
    assert found[-1] == "sid"
    assert "bookworm" not in found


def test_suites_elsewhere(tmp_path: Path) -> None:
    """A host that is not Debian asks for all of them."""
    assert suites(tmp_path / "none")[0] == "bookworm"


def test_mirror_is_the_one_that_serves_a_known_suite() -> None:
    """Security and foreign archives are passed over."""
    text = (
        "http://other.example/tool nodistro main \n"
        "http://mirror.example/debian-security bookworm-security main \n"
        "http://mirror.example/debian bookworm contrib \n"
        "http://mirror.example/debian bookworm main \n"
        "http://mirror.example/debian bookworm-updates main \n"
    )
    assert choose_mirrors(text, ("bookworm", "sid")) == ["http://mirror.example/debian"]


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with one unpacked source, and an apt whose mirror accepts and never answers."""
    bin_dir, cache = tmp_path / "bin", tmp_path / "cache"
    bin_dir.mkdir()
    for name in ("apt-get", "apt-cache"):
        (bin_dir / name).write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\nexec sleep 60\n', "utf-8")
        (bin_dir / name).chmod(0o755)
    (bin_dir / "apt-cache").write_text("#!/bin/sh\n", encoding="utf-8")
    (bin_dir / "keyring").touch()
    (cache / "sources" / "debian" / "linux-source-7.3_7.3.4-1").mkdir(parents=True)
    monkeypatch.setenv("PATH", f"{bin_dir}:/usr/bin:/bin")
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(cache))
    monkeypatch.setenv(debian.MIRROR_VARIABLE, "http://mirror.example/debian")
    monkeypatch.setattr(debian, "KEYRING", bin_dir / "keyring")
    monkeypatch.setattr(debian, "_UPDATE_SECONDS", 0.2)
    monkeypatch.setattr(debian, "_DOWNLOAD_SECONDS", 0.2)
    return cache


def no_extract(tarball: Path, target: Path) -> None:
    raise AssertionError(f"{tarball} unpacked as {target}")


def test_a_mirror_that_hangs_is_asked_once(
    hanging: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The cached source serves, and the other suites are not waited for; without one it is one sentence."""
    assert debian.fetch("7.3", no_extract).version == "7.3.4-1"
    assert "timed out after 0 s; using the cached linux-source-7.3 7.3.4-1" in caplog.text
    assert len((tmp_path / "asked").read_text().splitlines()) == 1
    with pytest.raises(SourceError, match="timed out"):
        debian.fetch("6.12", no_extract)


def test_a_download_that_hangs(hanging: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A newer source that does not come is no reason to have none."""
    newer = {"package": "linux-source-7.3", "version": "7.3.9-1"}
    (hanging / "apt").mkdir()
    facts = {"settings": debian._apt_settings(), "offered": [newer]}
    (hanging / "apt" / "candidates.json").write_text(json.dumps(facts), encoding="utf-8")
    assert debian.fetch("latest", no_extract).version == "7.3.4-1"
    assert "fetching linux-source-7.3 7.3.9-1 timed out" in caplog.text
    assert [path.name for path in (hanging / "sources" / "debian").iterdir()] == ["linux-source-7.3_7.3.4-1"]


@needs_dpkg
def test_without_a_network_the_cached_source_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The newest cached version that fits the request is used, and said; without one it is one sentence."""

    def offline() -> list[DebianSource]:
        raise SourceError("cannot fetch Debian's package index: no route")

    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path))
    monkeypatch.setattr(debian, "find_candidates", offline)
    for version in ("7.3.4-1", "7.3.10-1"):
        (tmp_path / "sources" / "debian" / f"linux-source-7.3_{version}").mkdir(parents=True)
    assert debian.fetch("7.3", no_extract).version == "7.3.10-1"
    assert "using the cached linux-source-7.3 7.3.10-1" in caplog.text
    assert debian.fetch("latest", no_extract).version == "7.3.10-1"
    with pytest.raises(SourceError, match="no route"):
        debian.fetch("6.12", no_extract)


@needs_dpkg
def test_one_upload_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the cache without a question, whatever the mirror has by now; else from there."""
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path))
    monkeypatch.setattr(debian, "find_candidates", lambda: [candidate("7.3", "7.3.10-1")])
    (tmp_path / "sources" / "debian" / "linux-source-7.3_7.3.4-1~bpo13+1").mkdir(parents=True)
    assert debian.fetch("7.3=7.3.4-1~bpo13+1", no_extract).version == "7.3.4-1~bpo13+1"
    assert choose("7.3=7.3.10-1", debian.find_candidates()).version == "7.3.10-1"
    with pytest.raises(
        UsageError, match=r"no Debian suite has the sources of Linux 7\.3=7\.3\.9-1"
    ) as caught:
        debian.fetch("7.3=7.3.9-1", no_extract)
    assert "did you mean '7.3=7.3.10-1'?" in (caught.value.hint or "")
