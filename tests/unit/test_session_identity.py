# SPDX-License-Identifier: GPL-2.0-only
"""What a run records that it was made with."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from harness.base import paths, process
from harness.base.errors import InfraError
from harness.kernel.arch import host_arch
from harness.kernel.toolchain import ToolchainIdentity
from harness.machine import image
from harness.machine.roots import ROOT_NAMES, find_root
from harness.session.records import harness_commit, made_with

HOST = host_arch().name


def git(directory: Path, *words: str) -> str:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    return process.run(["git", "-C", str(directory), *who, *words]).check("git").stdout.strip()


def test_the_commit_of_a_checkout(tmp_path: Path) -> None:
    """Only the top of a checkout has one: a package installed inside another repository has none."""
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


def test_made_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Host, toolchain and image are recorded; what is unknown is left out."""
    found = made_with("virtme", [HOST], [ToolchainIdentity(compiler="gcc 12", linker="ld 2")] * 2)
    assert (found["host"], found["compiler"], found["linker"]) == (socket.gethostname(), "gcc 12", "ld 2")
    assert "root image" not in found
    monkeypatch.setattr(image, "_root_digest", lambda *_: "d1")
    assert made_with("image", [HOST], ())["root image"] == "d1"

    def refuse(*_: object) -> str:
        raise InfraError("no sshd here")

    monkeypatch.setattr(image, "_root_digest", refuse)
    assert set(made_with("image", [HOST], ())) <= {"host", "harness commit"}


def test_every_root_has_an_identity() -> None:
    """Image disks have digests; virtme has none."""
    found = {name: find_root(name, host_arch()).disks(paths.guest_dir()) for name in ROOT_NAMES}
    assert found["virtme"] == {}
    assert set(found["image"]) == {"root", "guest"}
    assert all(re.fullmatch("[0-9a-f]{24}", digest) for digest in found["image"].values())
