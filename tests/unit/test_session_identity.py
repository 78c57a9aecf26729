# SPDX-License-Identifier: GPL-2.0-only
"""What a run says it was made with."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from harness import paths, process
from harness.errors import InfraError
from harness.machine import image
from harness.machine.roots import ROOT_NAMES, find_root
from harness.session.identity import harness_commit, identity


def git(directory: Path, *words: str) -> str:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    return process.run(["git", "-C", str(directory), *who, *words]).check("git").stdout.strip()


def test_the_commit_of_a_checkout(tmp_path: Path) -> None:
    """Of the top of a checkout only: an installed package in somebody's repository is not that repository."""
    assert harness_commit(tmp_path) == ""
    git(tmp_path, "init", "-q")
    assert harness_commit(tmp_path) == ""
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_text("a")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "x")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert harness_commit(tmp_path) == commit
    assert harness_commit(tmp_path / "inner") == ""
    (tmp_path / "inner" / "file").write_text("b")
    assert harness_commit(tmp_path) == f"{commit} with local changes"


def test_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Host, compiler and image; what cannot be learned is left out."""
    found = identity("virtme", ["gcc 12", "gcc 12"])
    assert (found["host"], found["compiler"]) == (socket.gethostname(), "gcc 12")
    assert "root image" not in found
    monkeypatch.setattr(image, "_root_digest", lambda *_: "d1")
    assert identity("image", ())["root image"] == "d1"

    def refuse(*_: object) -> str:
        raise InfraError("no sshd here")

    monkeypatch.setattr(image, "_root_digest", refuse)
    assert set(identity("image", ())) <= {"host", "harness commit"}


def test_every_root_has_an_identity() -> None:
    """An image's is a digest, the live host has none."""
    found = {name: find_root(name).identity(paths.guest_dir()) for name in ROOT_NAMES}
    assert found["virtme"] == ""
    assert re.fullmatch("[0-9a-f]{24}", found["image"])
