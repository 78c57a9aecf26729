# SPDX-License-Identifier: GPL-2.0-only
"""Directories that a guest sees: which are refused, and QEMU's words for the others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.base.errors import UsageError
from harness.machine import shares
from harness.machine.shares import Share, read_share, read_shares


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with `src`, `a:b` and `x, y=ro;'$` in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("src", "a:b", "x, y=ro;'$"):
        Path(name).mkdir()
    Path("file").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("word", "name", "writable"),
    [
        ("src", "src", False),
        ("./src/", "src", False),
        ("src:rw", "src", True),
        ("src:ro", "src", False),
        ("a:b", "a:b", False),
        ("a:b:rw", "a:b", True),
        ("x, y=ro;'$:rw", "x, y=ro;'$", True),
        ("src/../src", "src", False),
    ],
)
def test_what_can_be_shared(here: Path, word: str, name: str, writable: bool) -> None:
    """A path is read whole, whatever characters it has; it is read-only unless it says rw."""
    assert read_share(word) == Share(here / name, writable)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("", "the directory's name is empty"),
        ("nowhere", "there is no .*/nowhere$"),
        ("nowhere:rx", "there is no .*/nowhere:rx$"),
        (":rw", "there is no .*/:rw$"),
        ("file", r"file is not a directory \(share /.*\)"),
        ("src:rx", r"--share src:rx: there is no mode 'rx' \(rw lets the guest write\)"),
        ("src:", "there is no mode ''"),
        ("/", r"/ has no name in the guest \(--root virtme shows this host's root in its place\)"),
        ("/:rw", "/ has no name in the guest"),
        ("new\nline", "is not printable UTF-8"),
        (os.fsdecode(b"latin-\xe4"), r"'latin-\\udce4' is not printable UTF-8"),
    ],
)
def test_what_cannot_be_shared(word: str, said: str) -> None:
    """One sentence says why."""
    if "latin" in word or "new" in word:
        Path(word).mkdir()
    with pytest.raises(UsageError, match=said):
        read_share(word)


@pytest.mark.parametrize(
    ("denied", "word", "said"), [(os.R_OK, "src", "is not readable"), (os.W_OK, "src:rw", "leave :rw out")]
)
def test_what_the_user_may_not_see(
    denied: int, word: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rights are looked at before anything boots."""
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & denied)
    with pytest.raises(UsageError, match=said):
        read_share(word)


def test_names_are_apart(here: Path) -> None:
    """Two directories of one name are refused; a link gives another name."""
    other = here / "other" / "src"
    other.mkdir(parents=True)
    with pytest.raises(UsageError, match=r"would both be /run/share/src \(share one through a link"):
        read_shares(["src", os.fspath(other)])
    (here / "link").symlink_to(other)
    assert [share.point for share in read_shares(["src", "link"])] == ["/run/share/src", "/run/share/link"]
    crowd = [here / f"d{number}" for number in range(9)]
    for directory in crowd:
        directory.mkdir()
    with pytest.raises(UsageError, match="at most 8 directories, not 9"):
        read_shares([os.fspath(directory) for directory in crowd])


def test_words_for_qemu(here: Path) -> None:
    """No path is among them; only a share that says so is writable; each is a function of the slot."""
    shared = read_shares(["src", "x, y=ro;'$:rw"])
    shares.link(shared, here)
    given = iter(shares.arguments(shared, 0x1E))
    words = list(zip(given, given, strict=True))
    local = "security_model=none,multidevs=remap"
    where = "bus=pcie.0,addr=0x1e"
    assert words == [
        ("-fsdev", f"local,id=share0,path=share0,{local},readonly=on"),
        ("-device", f"virtio-9p-pci,fsdev=share0,mount_tag=share0,{where}.0,multifunction=on"),
        ("-fsdev", f"local,id=share1,path=share1,{local}"),
        ("-device", f"virtio-9p-pci,fsdev=share1,mount_tag=share1,{where}.1,multifunction=on"),
    ]
    assert (here / "share1").resolve() == here / "x, y=ro;'$"
    assert ",ro" in shares.mount_words(0, shared[0])[4]
    assert ",ro" not in shares.mount_words(1, shared[1])[4]
