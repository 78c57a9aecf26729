# SPDX-License-Identifier: GPL-2.0-only
"""Trees are recognised, refused with a clear word, identified by content, and never written into."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest
from kernel_fake_tree import git, make_fake_tree

from harness.base.errors import SourceError, UsageError
from harness.kernel.trees import KernelTree, TreeKind, open_tree, read_version


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    for name, value in {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    return make_fake_tree(tmp_path / "linux")


def text_in(tree: KernelTree) -> str:
    """What init/main.c says where the tree is built."""
    with tree.held():
        return (tree.path / "init" / "main.c").read_text(encoding="utf-8")


@pytest.fixture
def repository(tree: Path) -> Path:
    git(tree, "init", "--quiet", "--initial-branch=main")
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message=one")
    git(tree, "tag", "v7.3-rc1")
    return tree


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("VERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 4\nEXTRAVERSION =\n", "7.3.4"),
        ("VERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 0\nEXTRAVERSION = -rc2\n", "7.3.0-rc2"),
    ],
)
def test_version_is_read_from_the_makefile(text: str, version: str) -> None:
    """The tree's own Makefile says which Linux it is."""
    assert read_version(text) == version


def test_plain_directory(tree: Path) -> None:
    """A directory without git is identified by its files."""
    opened = open_tree(str(tree))
    assert (opened.kind, opened.version) == (TreeKind.PLAIN, "7.3.0-rc1")
    assert opened.label == "linux (7.3.0-rc1)"
    assert open_tree(str(tree)).identity == opened.identity
    (tree / "init" / "main.c").write_text("void start(void) { }\n", encoding="utf-8")
    assert open_tree(str(tree)).identity != opened.identity


def test_default_is_the_current_directory(tree: Path) -> None:
    """Without a spec, a kernel developer means the tree they stand in."""
    assert open_tree(None, cwd=tree) == open_tree(str(tree))


@pytest.mark.parametrize("name", ["my cache", "cache:1"])
def test_cache_that_kbuild_refuses(tree: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Objects and sources live in the cache, so the same holds for it."""
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tree.parent / name))
    with pytest.raises(UsageError, match=r"the cache directory .* which kbuild refuses") as caught:
        open_tree(str(tree))
    assert "VFIO_HARNESS_CACHE" in (caught.value.hint or "")


def test_not_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither another directory, nor a file, nor nothing is taken for a tree."""
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").touch()
    with pytest.raises(UsageError, match="not a Linux source tree"):
        open_tree(str(other))
    with pytest.raises(UsageError, match="neither a directory nor a tarball"):
        open_tree(str(other / "notes.txt"))
    with pytest.raises(UsageError, match="no kernel tree 'nowhere'"):
        open_tree("nowhere", cwd=tmp_path)
    with pytest.raises(UsageError, match="is no kernel version"):
        open_tree("debian:newest")


def test_git_identity_is_commit_and_changes(repository: Path) -> None:
    """A clean checkout is its commit; a changed file, an untracked file and a removed one each count."""
    clean = open_tree(str(repository))
    assert (clean.kind, clean.label) == (TreeKind.GIT, "v7.3-rc1")
    main = repository / "init" / "main.c"
    main.write_text("void start(void) { }\n", encoding="utf-8")
    changed = open_tree(str(repository))
    assert "local changes" in changed.label
    assert changed.identity != clean.identity
    assert changed.config_identity == clean.config_identity
    assert changed.selftest_identity == clean.selftest_identity
    (repository / "init" / "new.c").touch()
    untracked = open_tree(str(repository))
    assert len({clean.identity, changed.identity, untracked.identity}) == 3
    (repository / "init" / "new.c").unlink()
    git(repository, "checkout", "--quiet", "init/main.c")
    assert open_tree(str(repository)).identity == clean.identity


def test_changed_kconfig_changes_the_configuration_identity(repository: Path) -> None:
    """A configuration may be remembered across edits of code, not of Kconfig files."""
    clean = open_tree(str(repository))
    with (repository / "Kconfig").open("a", encoding="utf-8") as file:
        file.write("config NEW\n\tbool\n")
    assert open_tree(str(repository)).config_identity != clean.config_identity


def test_ref_is_checked_out_in_the_cache(repository: Path) -> None:
    """`directory@ref` leaves the user's checkout, index and branch alone and keeps one path per series."""
    (repository / "init" / "main.c").write_text("void start(void) { int local; }\n", encoding="utf-8")
    index = (repository / ".git" / "index").read_bytes()
    opened = open_tree(f"{repository}@v7.3-rc1")
    assert opened.kind is TreeKind.REF
    assert "local changes" not in opened.label
    assert "local" not in text_in(opened)
    assert (repository / ".git" / "index").read_bytes() == index
    assert "local" in (repository / "init" / "main.c").read_text(encoding="utf-8")
    git(repository, "commit", "--quiet", "--all", "--message=two")
    assert open_tree(f"{repository}@main").path == opened.path


def test_held_worktree_is_put_back_to_its_commit(repository: Path) -> None:
    """Two trees of one series share a path; whoever builds gets its own commit there."""
    one = open_tree(f"{repository}@v7.3-rc1")
    (repository / "init" / "main.c").write_text("void start(void) { int two; }\n", encoding="utf-8")
    git(repository, "commit", "--quiet", "--all", "--message=two")
    assert "two" in text_in(open_tree(f"{repository}@main"))
    assert "two" not in text_in(one)


def test_neighbouring_commits_share_their_configuration(repository: Path) -> None:
    """A commit shares its parent's configuration and selftests unless it touches what decides them."""
    source, kconfig = repository / "init" / "main.c", repository / "Kconfig"
    opened = [open_tree(f"{repository}@main")]
    for path in (source, kconfig):
        path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
        git(repository, "commit", "--quiet", "--all", "--message=next")
        opened.append(open_tree(f"{repository}@main"))
    assert len({tree.identity for tree in opened}) == 3
    assert opened[0].config_identity == opened[1].config_identity != opened[2].config_identity
    assert opened[0].selftest_identity == opened[1].selftest_identity


def test_other_worktrees_of_the_user_stay_known(repository: Path, tmp_path: Path) -> None:
    """A worktree of the user's whose disk is away is not forgotten for the sake of ours."""
    git(repository, "worktree", "add", "--quiet", str(tmp_path / "theirs"))
    (tmp_path / "theirs").rename(tmp_path / "away")
    opened = open_tree(f"{repository}@v7.3-rc1")
    for _ in range(2):
        assert text_in(opened)
        shutil.rmtree(opened.path)
    assert str(tmp_path / "theirs") in git(repository, "worktree", "list")


def test_hooks_of_the_user_do_not_run(repository: Path) -> None:
    """Checking out in the cache is not the user's checkout."""
    hook = repository / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {repository}/hook-ran\n", encoding="utf-8")
    hook.chmod(0o755)
    for spec in (f"{repository}@main", str(repository)):
        assert text_in(open_tree(spec))
    assert not (repository / "hook-ran").exists()


def test_unknown_ref_names_the_nearest(repository: Path) -> None:
    """A misspelt ref is met with the right spelling."""
    with pytest.raises(UsageError, match=r"no ref 'v7\.3-rc'") as caught:
        open_tree(f"{repository}@v7.3-rc")
    assert "v7.3-rc1" in (caught.value.hint or "")


def test_ref_of_no_repository(tree: Path) -> None:
    """A ref needs git."""
    with pytest.raises(UsageError, match="not a git repository"):
        open_tree(f"{tree}@main")


def test_tarball_is_unpacked_once(tree: Path, tmp_path: Path) -> None:
    """A tarball becomes a tree in the cache, by its digest."""
    path = tmp_path / "linux-7.3.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tree, "linux-7.3")
    opened = open_tree(str(path))
    assert (opened.kind, opened.version) == (TreeKind.TARBALL, "7.3.0-rc1")
    before = (opened.path / "Makefile").stat().st_ino
    assert open_tree(str(path)).identity == opened.identity
    assert (opened.path / "Makefile").stat().st_ino == before


def test_tarball_of_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tarball that is no kernel leaves nothing behind; tar's first line is the reason."""
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.tar.gz").write_text("text")
    with pytest.raises(SourceError, match=r"not a Linux source tarball: .*[^\n]$"):
        open_tree(str(tmp_path / "text.tar.gz"))
    (tmp_path / "notes.txt").touch()
    path = tmp_path / "other.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path / "notes.txt", "other/notes.txt")
    with pytest.raises(SourceError, match="not a Linux source tarball"):
        open_tree(str(path))
    assert list((tmp_path / "cache" / "sources" / "tarball").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "configuration", "selftests"),
    [
        ("drivers/vfio/x.c", False, False),
        ("drivers/vfio/x.h", False, True),
        ("drivers/vfio/Kconfig", True, True),
        ("tools/testing/selftests/vfio/x.c", False, True),
        ("arch/x86/entry/x.S", False, False),
        ("arch/x86/entry/syscalls/syscall_64.tbl", False, True),
    ],
)
def test_identities_tell_what_an_edit_reaches(
    tree: Path, name: str, configuration: bool, selftests: bool
) -> None:
    """A new file anywhere changes a plain tree; its configuration and selftests only if they can see it."""
    before = open_tree(str(tree))
    (tree / name).parent.mkdir(parents=True, exist_ok=True)
    (tree / name).touch()
    after = open_tree(str(tree))
    assert after.identity != before.identity
    assert (after.config_identity != before.config_identity) is configuration
    assert (after.selftest_identity != before.selftest_identity) is selftests
