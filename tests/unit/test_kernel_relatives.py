# SPDX-License-Identifier: GPL-2.0-only
"""A second tree costs what differs, and its kernels are those of a build from nothing."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
from kernel_fake_tree import git, make_fake_tree, needs_build_tools

from harness.base.locks import locked
from harness.kernel.build import BuildTree
from harness.kernel.kconfig import ResolvedConfig
from harness.kernel.provide import Kernel, provide_kernel
from harness.kernel.relatives import start_from_nearest
from harness.kernel.store import read_facts, source_lock
from harness.kernel.trees import open_tree
from harness.kernel.variants import load_catalogue

pytestmark = needs_build_tools

MAIN = "init/main.c"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository, and a cache without anything."""
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    tree = make_fake_tree(tmp_path / "linux")
    git(tree, "init", "--quiet")
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message=one")
    return tree


def provide(spec: Path | str, name: str = "group-cdev") -> Kernel:
    return provide_kernel(open_tree(str(spec)), load_catalogue().variant(name), compilers=1)


def compiled(kernel: Kernel) -> int:
    assert kernel.is_new
    return int(read_facts(kernel.vmlinux.parent)["compiled"])


def clone(source: Path, name: str = "clone", main: str = "") -> Path:
    """A clone with one more file, so that it is another tree, and perhaps another main.c."""
    path = source.parent / name
    git(source.parent, "clone", "--quiet", str(source), str(path))
    (path / f"drivers/{name}.c").touch()
    if main:
        (path / MAIN).write_text(main, encoding="utf-8")
    return path


def from_nothing(spec: Path | str, monkeypatch: pytest.MonkeyPatch, name: str = "group-cdev") -> bytes:
    """The vmlinux of a tree, built in a cache that has nothing else."""
    with monkeypatch.context() as patch:
        patch.setenv("VFIO_HARNESS_CACHE", str(Path(os.environ["VFIO_HARNESS_CACHE"]).parent / "nothing"))
        return provide(spec, name).vmlinux.read_bytes()


def release(source: Path, name: str, main: str) -> Path:
    (source / MAIN).write_text(main, encoding="utf-8")
    os.utime(source / MAIN, (1_000_000_000, 1_000_000_000))
    path = source.parent / name
    with tarfile.open(path, "w:gz") as tar:
        tar.add(source, "linux", filter=lambda info: None if "/.git" in info.name else info)
    return path


def test_a_clone_of_a_tree_has_its_kernels(source: Path) -> None:
    first = provide(source)
    git(source.parent, "clone", "--quiet", str(source), "clone")
    second = provide(source.parent / "clone")
    assert (second.digest, second.is_new) == (first.digest, False)


def test_a_second_tree_compiles_what_differs(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each of its variants, and the bytes are those of a build from nothing."""
    assert [compiled(provide(source, name)) for name in ("group-cdev", "cdev")] == [2, 1]
    other = clone(source)
    assert [compiled(provide(other, name)) for name in ("group-cdev", "cdev")] == [0, 0]
    edited = clone(source, "edited", "void start(void) { int edited; }\n")
    for name in ("group-cdev", "cdev"):
        kernel = provide(edited, name)
        assert compiled(kernel) == 1
        assert kernel.vmlinux.read_bytes() == from_nothing(edited, monkeypatch, name)


def test_an_edit_of_one_tree_leaves_the_other(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They share files and objects at first, but no change."""
    provide(source)
    other = clone(source)
    provide(other)
    (source / MAIN).write_text("void start(void) { int edited; }\n", encoding="utf-8")
    assert compiled(provide(source)) == 1
    (other / "drivers/more.c").touch()
    kernel = provide(other)
    assert compiled(kernel) == 0
    assert kernel.vmlinux.read_bytes() == from_nothing(other, monkeypatch)


def test_later_builds_of_a_relative_are_not_used(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be newer than files of this tree that differ."""
    provide(source)
    other = clone(source)
    provide(other)
    (source / MAIN).write_text("void start(void) { int edited; }\n", encoding="utf-8")
    provide(source, "cdev")
    kernel = provide(other, "cdev")
    assert kernel.vmlinux.read_bytes() == from_nothing(other, monkeypatch, "cdev")


def test_the_next_release_compiles_what_differs(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tarball keeps the times of its files, which say nothing."""
    first = provide(release(source, "linux-1.tar.gz", "void start(void) { int one; }\n"))
    tarball = release(source, "linux-2.tar.gz", "void start(void) { for (;;); }\n")
    second = provide(tarball)
    assert compiled(second) == 1
    assert second.build_id != first.build_id
    assert second.vmlinux.read_bytes() == from_nothing(tarball, monkeypatch)
    # A directory is started from an unpacked source, too.
    assert compiled(provide(source)) == 0


def test_a_source_is_unpacked_before_its_relative_is_built(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a matrix of two trees, which are both opened first."""
    first = release(source, "linux-1.tar.gz", "void start(void) { int one; }\n")
    second = release(source, "linux-2.tar.gz", "void start(void) { for (;;); }\n")
    open_tree(str(second))
    provide(first)
    kernel = provide(second)
    assert compiled(kernel) == 1
    assert kernel.vmlinux.read_bytes() == from_nothing(second, monkeypatch)


def test_a_tree_that_is_being_built_is_not_waited_for(source: Path) -> None:
    """Its files may change at any moment."""
    tree = open_tree(str(source))
    provide(source)
    other = clone(source)
    with locked(source_lock(tree.path), "busy"):
        assert compiled(provide(other)) == 2


def test_paths_of_host_programs_are_those_of_the_copy(tmp_path: Path) -> None:
    """All objects depend on objtool, which is built with absolute paths; its times stay."""
    config = ResolvedConfig.parse("CONFIG_X=y\n")
    theirs, ours = (
        BuildTree(tmp_path / "7.3" / "vfio-harness-a"),
        BuildTree(tmp_path / "7.3" / "vfio-harness-b"),
    )
    record = theirs.path / "tools/objtool/.check.o.cmd"
    record.parent.mkdir(parents=True)
    record.write_text(f"-o {theirs.path}/tools/check.o -I{tmp_path}/7.3/tools {tmp_path}/7.3-x/y\n")
    os.utime(record, (1_000_000_000, 1_000_000_000))
    theirs.set_config(config)
    theirs.note_begun(1.0)
    theirs.note_finished(1)
    assert start_from_nearest(ours, config) == 0
    copy = ours.path / "tools/objtool/.check.o.cmd"
    assert copy.read_text() == f"-o {ours.path}/tools/check.o -I{tmp_path}/7.3/tools {tmp_path}/7.3-x/y\n"
    assert copy.stat().st_mtime == 1_000_000_000
    counted = BuildTree(tmp_path / "7.3" / "vfio-harness-counted")
    wanted = ResolvedConfig.parse("CONFIG_X=y\nCONFIG_Y=y\nCONFIG_Z=y\n")
    counted.path.mkdir()
    counted.set_config(ResolvedConfig.parse("CONFIG_GCOV_KERNEL=y\nCONFIG_X=y\nCONFIG_Y=y\nCONFIG_Z=y\n"))
    counted.note_begun(1.0)
    counted.note_finished(1)
    # One symbol, but all objects.
    assert start_from_nearest(BuildTree(tmp_path / "7.3" / "vfio-harness-d"), wanted) == 2
    debugged = ResolvedConfig.parse("CONFIG_X=y\nCONFIG_DEBUG_INFO=y\n")
    assert start_from_nearest(BuildTree(tmp_path / "7.3" / "vfio-harness-c"), debugged) is None
