# SPDX-License-Identifier: GPL-2.0-only
"""What was unused for longest goes first, and nothing goes that somebody uses."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from kernel_fake_tree import git, make_fake_tree, needs_build_tools

from harness.base.errors import InfraError
from harness.base.locks import locked
from harness.cli import gc_verb
from harness.kernel.provide import Kernel, provide_kernel
from harness.kernel.prune import collect_garbage, list_entries
from harness.kernel.store import hold
from harness.kernel.trees import open_tree
from harness.kernel.variants import load_catalogue

pytestmark = needs_build_tools


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    for name, value in {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path: Path, cache: Path) -> Path:
    return make_fake_tree(tmp_path / "linux")


@pytest.fixture
def repository(source: Path) -> Path:
    git(source, "init", "--quiet", "--initial-branch=main")
    git(source, "add", "--all")
    git(source, "commit", "--quiet", "--message=one")
    return source


def provide(spec: str | Path, name: str = "group-cdev") -> Kernel:
    return provide_kernel(open_tree(str(spec)), load_catalogue().variant(name), compilers=1)


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_garbage_goes_oldest_first(source: Path) -> None:
    """By size the least recently used goes first; what was used within the hour stays."""
    oldest = provide(source, "group-cdev")
    provide(source, "cdev")
    assert collect_garbage(max_bytes=0) == ()
    for entry in list_entries():
        age(entry.path, 7200)
    age(oldest.vmlinux.parent, 9000)
    total = sum(entry.size for entry in list_entries())
    assert [entry.path for entry in collect_garbage(max_bytes=total - 1)] == [oldest.vmlinux.parent]
    assert not oldest.vmlinux.exists()


def cached(cache: Path, *places: str) -> list[Path]:
    """Entries of 64 KiB each, used just now, the first a second longer ago than the next."""
    made = [cache / place for place in places]
    for seconds, path in enumerate(reversed(made)):
        path.mkdir(parents=True)
        (path / "file").write_bytes(bytes(2**16))
        age(path, seconds)
    return made


def test_a_size_can_be_had_at_once(cache: Path) -> None:
    """Who knows that nothing runs any more spares only what is in use; the oldest goes first still."""
    first, held, last = cached(cache, "images/a", "images/b", "images/c")
    assert collect_garbage(max_bytes=2**16 + 2**15) == ()
    with locked("b", "busy"):
        removed = collect_garbage(max_bytes=2**16 + 2**15, spared=0)
    assert [entry.path for entry in removed] == [first, last]
    assert held.is_dir()


def test_snapshots_can_go_alone(cache: Path) -> None:
    """They go first, whatever their age, and count no more; one that a VM starts from stays."""
    image, snapshot, used = cached(cache, "images/a", "snapshots/k", "snapshots/u")
    with locked("u", "busy"):
        done = CliRunner().invoke(gc_verb.command, ["--no-snapshots", "--spare", "0", "--max-size", "128K"])
    assert done.exit_code == 0, done.output
    assert (image.is_dir(), snapshot.is_dir(), used.is_dir()) == (True, False, True)
    assert CliRunner().invoke(gc_verb.command, ["--no-snapshots"]).exit_code == 0
    assert used.is_dir()


def test_garbage_goes_by_age(source: Path) -> None:
    """By age only what is too old goes, and the next build works without it."""
    kernel = provide(source)
    for entry in list_entries():
        age(entry.path, 10_000)
    removed = collect_garbage(max_age=9_000)
    assert kernel.vmlinux.parent in [entry.path for entry in removed]
    assert provide(source).build_id == kernel.build_id


def age_all(seconds: float = 10_000) -> None:
    for entry in list_entries():
        age(entry.path, seconds)


def test_what_a_vm_runs_on_stays(source: Path) -> None:
    """A kernel and its selftests stay for as long as anybody holds them, and go afterwards."""
    kernel = provide(source)
    assert kernel.selftests is None
    tests = kernel.vmlinux.parents[2] / "selftests"
    (entry,) = tests.iterdir()
    with hold(kernel.digest, entry.name), hold(kernel.digest):
        age_all()
        assert collect_garbage(max_age=60)
        assert kernel.vmlinux.is_file()
        assert entry.is_dir()
    age_all()
    assert {kernel.vmlinux.parent, entry} <= {gone.path for gone in collect_garbage(max_age=60)}
    with pytest.raises(InfraError, match="removed from the cache before"), hold(kernel.digest):
        pass


def test_a_held_kernel_can_be_had(source: Path) -> None:
    """Nobody waits for a VM to end: the kernel that it runs on is found, and its selftests are built."""
    kernel = provide(source)
    with hold(kernel.digest):
        shutil.rmtree(kernel.vmlinux.parents[2] / "selftests")
        assert provide(source) == kernel


def test_selftests_under_construction_stay(source: Path) -> None:
    """Half-made entries belong to who makes them."""
    provide(source)
    tests = source.parent / "cache" / "selftests"
    partial = tests / ".0123.partial"
    partial.mkdir()
    age_all()
    with locked("0123", "busy"):
        collect_garbage(max_bytes=0)
        assert partial.is_dir()
    collect_garbage(max_age=60)
    assert not partial.exists()


def test_worktrees_go_with_what_git_knows_of_them(repository: Path) -> None:
    """A worktree goes when nobody uses it, and the user's repository forgets it and no other."""
    git(repository, "worktree", "add", "--quiet", str(repository.parent / "theirs"))
    tree = open_tree(f"{repository}@main")
    with tree.held():
        age_all()
        collect_garbage(max_bytes=0)
        assert (tree.path / "Makefile").is_file()
    age_all()
    assert tree.path in [gone.path for gone in collect_garbage(max_bytes=0)]
    assert not tree.path.exists()
    known = git(repository, "worktree", "list")
    assert str(tree.path) not in known
    assert "theirs" in known
    assert open_tree(f"{repository}@main").path == tree.path


def test_worktree_of_a_repository_that_is_gone(repository: Path) -> None:
    """Its owner may have been deleted."""
    tree = open_tree(f"{repository}@main")
    with tree.held():
        shutil.rmtree(repository)
    age_all()
    assert tree.path in [gone.path for gone in collect_garbage(max_bytes=0)]


def test_using_a_worktree_keeps_it(repository: Path) -> None:
    """The last use counts, not the day it was made."""
    tree = open_tree(f"{repository}@main")
    with tree.held():
        pass
    age_all()
    with tree.held():
        pass
    collect_garbage(max_age=60)
    assert tree.path.is_dir()


def test_source_under_build_stays(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build may take longer than what was just used is spared."""
    source = make_fake_tree(cache / "sources" / "debian" / "linux-source-7.3_7.3.0-1")
    monkeypatch.setenv("PATH", str(cache))
    tree = open_tree("debian:7.3")
    with tree.held():
        age_all()
        collect_garbage(max_bytes=0)
        assert source.is_dir()
    age_all()
    collect_garbage(max_bytes=0)
    assert not source.exists()


def test_lists_of_apt(cache: Path) -> None:
    """apt's lists go with the memo of what they offer, unless apt is at work on them."""
    for name in ("lists", "backports"):
        (cache / "apt" / name).mkdir(parents=True)
    (cache / "apt" / "candidates.json").touch()
    for path in (cache / "apt").rglob("*"):
        age(path, 10_000)
    age(cache / "apt" / "backports", 0)
    with locked("apt", "busy"):
        assert collect_garbage(max_age=60) == ()
    collect_garbage(max_age=60)
    assert [path.name for path in (cache / "apt").iterdir()] == ["backports"]
