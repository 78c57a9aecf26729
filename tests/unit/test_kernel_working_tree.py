# SPDX-License-Identifier: GPL-2.0-only
"""Any working tree is built as it lies there, and nothing of its user's changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from kernel_fake_tree import make_fake_tree

from harness.base.errors import SourceError
from harness.base.locks import locked
from harness.kernel import gittree
from harness.kernel.plan import plan_kernel
from harness.kernel.store import source_lock
from harness.kernel.trees import open_tree
from harness.kernel.variants import load_catalogue

MAIN = "init/main.c"


def git(directory: Path, *arguments: str) -> str:
    argv = ["git", "-C", str(directory), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    argv += ["-c", "protocol.file.allow=always", *arguments]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with upstream's kind of .gitignore and two commits."""
    for name, value in {"VFIO_HARNESS_CACHE": "cache", "HOME": "home"}.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    tree = make_fake_tree(tmp_path / "linux")
    write(tree / ".gitignore", ".*\n*.o\n*.mod.c\n/vmlinux\n/include/generated/\n!.gitignore\n")
    write(tree / "lib/.gitignore", "crc32table.h\n")
    git(tree, "init", "--quiet", "--initial-branch=main")
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message=one")
    write(tree / MAIN, "void start(void) { int two; }\n")
    git(tree, "commit", "--quiet", "--all", "--message=two")
    return tree


def built_from(spec: Path | str) -> dict[str, str]:
    """The files from which a kernel of the tree is built."""
    tree = open_tree(str(spec))
    with tree.held():
        files = (path for path in tree.path.rglob("*") if path.is_file() and path.name != ".git")
        return {str(path.relative_to(tree.path)): path.read_text(encoding="utf-8") for path in files}


def everything(top: Path) -> dict[str, tuple[int, int, bytes]]:
    """All of a directory, git's own files included: mode, time and content."""
    found = {}
    for path in sorted(top.rglob("*")):
        facts = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        # git shows that an object is needed by its time, so that it is not pruned.
        time = 0 if "objects" in path.parts else facts.st_mtime_ns
        found[str(path.relative_to(top))] = (facts.st_mode, time, content)
    return found


def make_dirty(tree: Path) -> None:
    """Leave staged, unstaged, deleted, renamed and untracked files, and a conflict."""
    git(tree, "checkout", "--quiet", "-b", "other", "HEAD~1")
    write(tree / MAIN, "void start(void) { int other; }\n")
    git(tree, "commit", "--quiet", "--all", "--message=other")
    with pytest.raises(subprocess.CalledProcessError):
        git(tree, "merge", "--quiet", "main")
    write(tree / "drivers/staged.c", "/* staged */\n")
    git(tree, "add", "drivers/staged.c")
    write(tree / "drivers/staged.c", "/* and changed */\n")
    write(tree / "drivers/new.c", "/* new */\n")
    (tree / "MAINTAINERS").rename(tree / "MAINTAINERS.old")
    write(tree / "MAINTAINERS", "changed\n")
    (tree / "scripts/Makefile").unlink()


def test_nothing_of_the_user_changes(repository: Path) -> None:
    """Files, index, refs, objects and worktree list are the same bytes; what is there is what is built."""
    make_dirty(repository)
    before = everything(repository)
    files = built_from(repository)
    assert everything(repository) == before
    assert git(repository, "fsck", "--strict", "--no-dangling") == ""
    assert "<<<<<<<" in files[MAIN]
    assert files["drivers/staged.c"] == "/* and changed */\n"
    assert files["drivers/new.c"] == "/* new */\n"
    assert files["MAINTAINERS"] == "changed\n"
    assert {"MAINTAINERS.old", "scripts/Makefile"} & files.keys() == {"MAINTAINERS.old"}


PRODUCTS = {
    "init/main.o": "object\n",
    "init/.main.o.cmd": "savedcmd\n",
    "init/made.c": "/* made */\n",
    "init/.made.c.cmd": "savedcmd\n",
    "lib/crc32table.h": "/* made */\n",
    "include/generated/autoconf.h": "#define X\n",
    "include/config/auto.conf": "CONFIG_X=y\n",
    "arch/x86/include/generated/asm/x.h": "#define X\n",
    "drivers/x.mod.c": "/* made */\n",
    ".config": "CONFIG_X=y\n",
    "vmlinux": "kernel\n",
    "modules.order": "init/main.o\n",
    "init/main.c~": "an editor's\n",
    "init/.main.c.swp": "an editor's\n",
    "init/main.c.orig": "patch's\n",
}


@pytest.mark.parametrize("kind", ["git", "debian", "plain"])
def test_what_a_build_in_place_left_is_not_built_from(repository: Path, kind: str) -> None:
    """The habit of most developers; in Debian's sources git ignores what is new, but a build reads it."""
    if kind == "plain":
        shutil.rmtree(repository / ".git")
    elif kind == "debian":
        write(repository / ".git" / "info" / "exclude", "/*\n")
    clean = built_from(repository)
    for name, text in PRODUCTS.items():
        write(repository / name, text)
    write(repository / "drivers/vfio/new.c", "/* new */\n")
    write(repository / "build/.gitignore", "*\n")
    write(repository / "build/init/x.c", "/* of another build */\n")
    assert built_from(repository) == {**clean, "drivers/vfio/new.c": "/* new */\n"}


def test_an_edit_touches_one_file(repository: Path) -> None:
    """The path stays, and so do the times of all other files, whatever happens to the user's objects."""
    tree = open_tree(str(repository))
    with tree.held():
        before = {path: path.stat().st_mtime_ns for path in tree.path.rglob("*") if path.is_file()}
    git(repository, "checkout", "--quiet", "-b", "gone")
    write(repository / "drivers/gone.c", "/* gone */\n")
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message=gone")
    assert "drivers/gone.c" in built_from(repository)
    git(repository, "reset", "--quiet", "--hard", "main")
    git(repository, "checkout", "--quiet", "main")
    git(repository, "branch", "-D", "gone")
    git(repository, "reflog", "expire", "--expire=now", "--all")
    git(repository, "gc", "--quiet", "--prune=now")
    write(repository / MAIN, "void start(void) { int edited; }\n")
    edited = open_tree(str(repository))
    assert edited.path == tree.path
    with edited.held():
        after = {path: path.stat().st_mtime_ns for path in tree.path.rglob("*") if path.is_file()}
    assert {path for path in before if after.pop(path) != before[path]} == {tree.path / MAIN}
    assert not after


def in_linked_worktree(tree: Path) -> Path:
    git(tree, "worktree", "add", "--quiet", str(tree.parent / "linked"))
    return tree.parent / "linked"


def in_shallow_clone(tree: Path) -> Path:
    git(tree.parent, "clone", "--quiet", "--depth=1", tree.as_uri(), "shallow")
    return tree.parent / "shallow"


def in_partial_clone(tree: Path) -> Path:
    git(tree, "config", "uploadpack.allowFilter", "true")
    git(tree, "config", "uploadpack.allowAnySHA1InWant", "true")
    git(tree.parent, "clone", "--quiet", "--filter=blob:none", "--no-checkout", tree.as_uri(), "partial")
    git(tree.parent / "partial", "reset", "--quiet", "--", ".")
    git(tree.parent / "partial", "checkout", "--quiet", "--", ".")
    return tree.parent / "partial"


def of_another_user(tree: Path) -> Path:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    for path in [tree, *tree.rglob("*")]:
        os.chown(path, 12345, 12345)
    return tree


def without_a_commit(tree: Path) -> Path:
    shutil.rmtree(tree / ".git")
    git(tree, "init", "--quiet")
    return tree


TREES: dict[str, Callable[[Path], Path]] = {
    "linked worktree": in_linked_worktree,
    "shallow clone": in_shallow_clone,
    "partial clone": in_partial_clone,
    "of another user": of_another_user,
    "without a commit": without_a_commit,
}


@pytest.mark.parametrize("make", TREES.values(), ids=TREES)
def test_kinds_of_trees(repository: Path, make: Callable[[Path], Path]) -> None:
    """The same sources have the same identity wherever they are."""
    identity, files = open_tree(str(repository)).identity, built_from(repository)
    tree = make(repository)
    assert open_tree(str(tree)).identity == identity
    write(tree / "drivers/new.c", "/* new */\n")
    assert built_from(tree) == {**files, "drivers/new.c": "/* new */\n"}


def test_what_a_partial_clone_left_out_is_fetched(repository: Path) -> None:
    tree = in_partial_clone(repository)
    assert "two" not in built_from(f"{tree}@HEAD~1")[MAIN]


@pytest.mark.parametrize("kind", ["submodule", "repository in the repository"])
def test_repositories_in_the_tree_are_built_from(repository: Path, kind: str) -> None:
    """Their sources are read as they lie there, those that are not committed as well."""
    other = repository.parent / "other"
    write(other / "x.c", "/* x */\n")
    git(other, "init", "--quiet")
    git(other, "add", "--all")
    git(other, "commit", "--quiet", "--message=one")
    if kind == "submodule":
        git(repository, "submodule", "--quiet", "add", str(other), "drivers/out")
    else:
        git(repository, "clone", "--quiet", str(other), "drivers/out")
    write(repository / "drivers/out/new.c", "/* new */\n")
    write(repository / "drivers/out/x.c", "/* changed */\n")
    before = everything(repository)
    files = built_from(repository)
    assert {name: text for name, text in files.items() if name.startswith("drivers/out/")} == {
        "drivers/out/x.c": "/* changed */\n",
        "drivers/out/new.c": "/* new */\n",
    }
    assert everything(repository) == before


def test_links_that_leave_the_tree_are_followed(repository: Path) -> None:
    """A link in the cache would lead elsewhere."""
    write(repository.parent / "elsewhere/x.c", "/* x */\n")
    (repository / "drivers/out").symlink_to("../../elsewhere")
    (repository / "drivers/x.c").symlink_to("../../elsewhere/x.c")
    files = built_from(repository)
    assert files["drivers/out/x.c"] == files["drivers/x.c"] == "/* x */\n"


@pytest.mark.parametrize("kind", ["git", "plain"])
def test_runs_in_the_tree_are_no_sources(
    repository: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """They are by default in the current directory: the next run would build another kernel."""
    if kind == "plain":
        shutil.rmtree(repository / ".git")
    monkeypatch.delenv("VFIO_HARNESS_RUNS", raising=False)
    monkeypatch.chdir(repository)
    identity = open_tree(".").identity
    write(repository / "runs/20261130-1/console.txt", "x\n")
    assert open_tree(".").identity == identity


@pytest.mark.parametrize("kind", ["git", "plain"])
@pytest.mark.parametrize("setting", ["VFIO_HARNESS_RUNS", "VFIO_HARNESS_CACHE"])
def test_tree_beside_the_runs_or_in_the_cache_is_read(
    repository: Path, monkeypatch: pytest.MonkeyPatch, setting: str, kind: str
) -> None:
    """One disk for trees and runs is common; a source that the cache unpacked is as good as any."""
    if kind == "plain":
        shutil.rmtree(repository / ".git")
    identity = open_tree(str(repository)).identity
    monkeypatch.setenv(setting, str(repository.parent))
    assert open_tree(str(repository)).identity == identity
    write(repository / "drivers/new.c", "/* new */\n")
    assert open_tree(str(repository)).identity != identity


def test_planning_waits_for_no_build(repository: Path) -> None:
    """A configuration is read beside a build of the same tree, which may take half an hour."""
    tree, variant = open_tree(str(repository)), load_catalogue().variant("group-cdev")
    waited: list[bool] = []

    def plan() -> None:
        plan_kernel(tree, variant)
        waited.append(False)

    with locked(source_lock(tree.path), "busy"):
        thread = threading.Thread(target=plan, daemon=True)
        thread.start()
        thread.join(60)
    assert waited == [False]


def test_large_files_are_no_sources(repository: Path) -> None:
    """Someone's disk image in the tree is neither read nor copied."""
    identity = open_tree(str(repository)).identity
    with (repository / "disk.img").open("wb") as file:
        file.truncate(2**40)
    assert open_tree(str(repository)).identity == identity


def test_files_that_vanish_are_one_sentence(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tree may be deleted, or its disk go away, while it is read."""
    status = gittree.git

    def vanish(directory: Path, arguments: list[str], *rest: object) -> object:
        done = status(directory, arguments, *rest)  # type: ignore[arg-type]
        if arguments[0] == "status":
            shutil.rmtree(repository)
        return done

    write(repository / "drivers/new.c", "/* new */\n")
    monkeypatch.setattr(gittree, "git", vanish)
    with pytest.raises(SourceError, match=rf"cannot read .*{repository}.*") as caught:
        open_tree(str(repository))
    assert "run it again" in (caught.value.hint or "")
