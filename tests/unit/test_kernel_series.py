# SPDX-License-Identifier: GPL-2.0-only
"""Which mails of a mailbox are the patches to apply."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import pytest

from harness.base.errors import HostError, SourceError, UsageError
from harness.kernel.series import Series, fetch_thread, is_message_id, read_series

FROM = "From 0123456789012345678901234567890123456789 Mon Sep 17 00:00:00 2001\n"


def mail(subject: str, body: str = "diff --git a/x b/x") -> str:
    return f"{FROM}From: A <a@example.org>\nSubject: {subject}\n\n{body}\n-- \n2.39\n\n"


class Box:
    """A mailbox, and a place for its mails."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "x.mbox"
        self._directory = directory

    def read(self, *mails: str) -> Series:
        self.path.write_text("".join(mails))
        return read_series(self.path, Path(tempfile.mkdtemp(dir=self._directory)))

    def subjects(self, *mails: str) -> list[str]:
        """Return the subjects of the patches to apply, in order."""
        texts = (path.read_text() for path in self.read(*mails).mails)
        return [text.partition("Subject: ")[2].partition("\n")[0] for text in texts]


@pytest.fixture
def box(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Box:
    caplog.set_level(logging.INFO, logger="harness")
    return Box(tmp_path)


@pytest.mark.parametrize(
    ("subjects", "chosen", "said"),
    [
        (["[PATCH] one"], [0], ""),
        (["no tag"], [0], ""),
        (["[PATCH 0/2] cover", "[PATCH 2/2] b", "[PATCH 1/2] a"], [2, 1], ""),
        (["[PATCH 1/2] a", "Re: [PATCH 1/2] a", "[PATCH 2/2] b", "RE: [PATCH 2/2] b"], [0, 2], ""),
        (["Re: [PATCH] only that"], [0], ""),
        (
            ["[PATCH 0/1] c", "[PATCH 1/1] a", "[PATCH v2 0/2] c", "[PATCH v2 1/2] x", "[PATCH v2 2/2] y"],
            [3, 4],
            "x.mbox has v1 and v2 of 'c': v2 is applied",
        ),
        (["[RFC PATCHv2] a", "[PATCH net,v10] a", "[PATCH] a"], [1], "v2 and v10 of 'a': v10 is applied"),
        (["[v2,1/1] a", "[1/1] a"], [0], "v1 and v2 of 'a'"),
        # A series and what it needs, of the same length or of another version.
        (["[PATCH 1/1] a", "[PATCH 1/1] b"], [0, 1], ""),
        (["[PATCH v3 1/1] a", "[PATCH 1/1] b"], [0, 1], ""),
        # Delivered by two lists, or sent again.
        (["[PATCH 1/2] a", "[PATCH 2/2] b", "[PATCH RESEND 1/2] a"], [2, 1], ""),
        (["[PATCH 2/4] b", "[PATCH 3/4] c"], [0, 1], "x.mbox lacks patches 1/4, 4/4 of 'b'"),
        (["[PATCH 1/2] [media] a", "[PATCH v2 1/2] [media] a", "[PATCH v2 2/2] b"], [1, 2], "v2 is applied"),
    ],
)
def test_patches_of_a_mailbox(
    box: Box, subjects: list[str], chosen: list[int], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Replies and cover letters are none; the newest version counts; the number decides the order."""
    assert box.subjects(*map(mail, subjects)) == [subjects[number] for number in chosen]
    assert (said in caplog.text) if said else not caplog.text


def test_a_version_that_is_not_whole(box: Box) -> None:
    """Whether the other patches of the older version belong to it is not known."""
    said = "has v1 of 'b', and v2 that lacks patches 1/3, 3/3 .*remove the mails of v1 or of v2"
    with pytest.raises(UsageError, match=said):
        box.read(
            *(mail(f"[PATCH {number}] {t}") for number, t in (("1/3", "a"), ("2/3", "b"), ("v2 2/3", "b")))
        )


@pytest.mark.parametrize(
    ("body", "base"),
    [
        ("base-commit: 0123456789ab", "0123456789ab"),
        ("base-commit: 0123456789ab\r", "0123456789ab"),
        ("> base-commit: 0123456789ab", ""),
        ("the base-commit: 0123456789ab", ""),
        ("base-commit: v7.3", ""),
    ],
)
def test_base_commit(box: Box, body: str, base: str) -> None:
    """It is in the cover letter, or in a patch; not in a reply."""
    assert box.read(mail("[PATCH 0/1] c", body), mail("[PATCH 1/1] a")).base == base
    assert box.read(mail("[PATCH 0/1] c"), mail("[PATCH 1/1] a", body)).base == base
    assert not box.read(mail("Re: [PATCH 0/1] c", body), mail("[PATCH 1/1] a")).base


@pytest.mark.parametrize(
    "subject", ["=?utf-8?q?=5BPATCH_1/1=5D_=C3=A4?=", "=?nonsense?b?4?=", "=?utf-8?b?/?=", "[PATCH", ""]
)
def test_subjects_of_any_kind(box: Box, subject: str) -> None:
    """An encoding that is wrong or unknown is no reason to leave a patch out."""
    assert len(box.read(mail(subject)).mails) == 1


def test_nothing_to_apply(box: Box) -> None:
    with pytest.raises(UsageError, match="has a cover letter and no patches"):
        box.read(mail("[PATCH 0/2] c"))
    box.path.write_bytes(b"")
    with pytest.raises(UsageError, match="cannot be read: "):
        box.read()


@pytest.mark.parametrize(
    ("word", "is_id"),
    [
        ("20261130.a-b.1@example.org", True),
        ("<20261130@example.org>", True),
        ("https://lore.kernel.org/r/20261130@example.org/", True),
        ("v2.mbox", False),
        ("patches/v2@next.mbox", False),
        ("there@here", False),
    ],
)
def test_message_ids(word: str, is_id: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is a file, whatever its name."""
    monkeypatch.chdir(tmp_path)
    Path("there@here").touch()
    assert is_message_id(word) is is_id


def fake_b4(directory: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    tool = directory / "bin" / "b4"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n{body}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")


def test_a_thread_that_b4_fetches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves the patches and the cover letter in two files, as b4 0.16 does."""
    patch, cover = mail("[PATCH 1/1] a"), mail("[PATCH 0/1] c", "base-commit: 0123456789ab")
    files = f"printf %s '{patch}' >$3/$5.mbx; printf %s '{cover}' >$3/$5.cover"
    fake_b4(tmp_path, monkeypatch, f"[ $1-$7 = am-1@x ] || exit 3; mkdir -p $3; {files}")
    fetched = fetch_thread("1@x", tmp_path)
    assert fetched.name == "thread-of-1@x"
    place = tmp_path / "mails"
    place.mkdir()
    series = read_series(fetched, place)
    assert (len(series.mails), series.base) == (1, "0123456789ab")


@pytest.mark.parametrize("status", [0, 1])
def test_a_thread_that_b4_does_not_find(status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last line says why, whatever its exit status."""
    fake_b4(tmp_path, monkeypatch, f"echo 'CRITICAL: Could not find it' >&2; exit {status}")
    with pytest.raises(SourceError, match="b4 found no series for 1@x: Could not find it"):
        fetch_thread("1@x", tmp_path)


def test_without_b4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match=r"no file 1@x, .* takes b4 \(install b4, or give the mbox\)"):
        fetch_thread("1@x", tmp_path)
