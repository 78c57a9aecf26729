# SPDX-License-Identifier: GPL-2.0-only
"""Everything that a build reads is in a tree's identity, and nothing of git's configuration decides it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from kernel_fake_tree import git, make_fake_tree

from harness.base.errors import UsageError
from harness.kernel.trees import open_tree

MAIN = "init/main.c"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a commit v1, and the user's home and cache beside it."""
    for name, value in {"VFIO_HARNESS_CACHE": "cache", "HOME": "home"}.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    (tmp_path / "home").mkdir()
    tree = make_fake_tree(tmp_path / "linux")
    for name in ("arch/x86/Kconfig", "arch/alpha/Kconfig"):
        (tree / name).parent.mkdir(parents=True)
        (tree / name).write_text("# nothing\n", encoding="utf-8")
    git(tree, "init", "--quiet", "--initial-branch=main")
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message=one")
    git(tree, "tag", "v1")
    return tree


def commit(repository: Path, text: str) -> None:
    (repository / MAIN).write_text(text, encoding="utf-8")
    git(repository, "commit", "--quiet", "--all", "--message=next")


def check_out(spec: str) -> Path:
    tree = open_tree(spec)
    with tree.held():
        return tree.path


def contents(top: Path) -> dict[str, bytes]:
    """The files of a checkout, without git's own."""
    files = (path for path in top.rglob("*") if path.is_file() and ".git" not in path.parts)
    return {str(path.relative_to(top)): path.read_bytes() for path in files}


def set_for_user(repository: Path, *words: str) -> None:
    git(repository, "config", "--file", str(repository.parent / "home" / ".gitconfig"), *words)


def convert_line_ends(repository: Path) -> None:
    set_for_user(repository, "core.eol", "crlf")
    set_for_user(repository, "core.attributesFile", str(repository.parent / "attributes"))
    (repository.parent / "attributes").write_text("* text\n", encoding="utf-8")


SETTINGS: dict[str, Callable[[Path], object]] = {
    "autocrlf": lambda tree: set_for_user(tree, "core.autocrlf", "true"),
    "autocrlf of the repository": lambda tree: git(tree, "config", "core.autocrlf", "true"),
    "eol": convert_line_ends,
    "sparse": lambda tree: git(tree, "sparse-checkout", "set", "--cone", "init"),
    "sparse without cones": lambda tree: git(tree, "sparse-checkout", "set", "--no-cone", "/init/"),
    "sparse index": lambda tree: git(tree, "sparse-checkout", "set", "--cone", "--sparse-index", "init"),
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_the_users_settings_of_git_leave_a_ref_as_it_was_committed(
    repository: Path, setting: Callable[[Path], object]
) -> None:
    whole = contents(repository)
    setting(repository)
    assert contents(check_out(f"{repository}@v1")) == whole


def spoil_ownership(path: Path) -> None:
    """Leave a worktree of the user's repository, as an older version made it."""
    repository = path.parents[3] / "linux"
    shutil.rmtree(path)
    git(repository, "worktree", "add", "--quiet", "--force", "--detach", str(path), "v1")


def spoil_index(path: Path) -> None:
    (Path(git(path, "rev-parse", "--absolute-git-dir")) / "index").write_bytes(b"rubbish")


def spoil_record(path: Path) -> None:
    shutil.rmtree(git(path, "rev-parse", "--absolute-git-dir"))


BROKEN: dict[str, Callable[[Path], object]] = {
    "of an older version": spoil_ownership,
    "a lock of a git that was killed": lambda path: (
        Path(git(path, "rev-parse", "--absolute-git-dir")) / "index.lock"
    ).touch(),
    "index": spoil_index,
    "forgotten by the repository": spoil_record,
    "no worktree any more": lambda path: (path / ".git").unlink(),
    "a file that is gone": lambda path: (path / MAIN).unlink(),
    "a directory that is gone": lambda path: shutil.rmtree(path / "drivers"),
    "a file that git ignores": lambda path: (path / "init" / "left.o").touch(),
}


@pytest.mark.parametrize("spoil", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("ref", ["v1", "main"])
def test_broken_worktree_is_mended(repository: Path, spoil: Callable[[Path], object], ref: str) -> None:
    """A broken worktree is brought to the same or another commit like an intact one."""
    (repository / ".gitignore").write_text("*.o\n", encoding="utf-8")
    git(repository, "add", ".gitignore")
    git(repository, "commit", "--quiet", "--message=ignore")
    git(repository, "tag", "--force", "v1")
    commit(repository, "void start(void) { int two; }\n")
    path = check_out(f"{repository}@v1")
    spoil(path)
    git(repository, "checkout", "--quiet", ref)
    assert contents(check_out(f"{repository}@{ref}")) == contents(repository)


@pytest.mark.parametrize("index", ["--sparse-index", "--no-sparse-index"])
def test_sparse_checkout_is_built_whole(repository: Path, index: str) -> None:
    """What is left out is as committed; a file that is there all the same counts."""
    whole, identity = contents(repository), open_tree(str(repository)).identity
    git(repository, "sparse-checkout", "set", "--cone", index, "init")
    assert not (repository / "arch").exists()
    assert open_tree(str(repository)).identity == identity
    assert contents(check_out(str(repository))) == whole
    write(repository / "arch/x86/Kconfig", "# another\n")
    assert (check_out(str(repository)) / "arch/x86/Kconfig").read_text(encoding="utf-8") == "# another\n"


@pytest.mark.parametrize(
    "convert", [lambda tree: git(tree, "config", "core.autocrlf", "true"), convert_line_ends]
)
def test_line_ends_are_as_committed(repository: Path, convert: Callable[[Path], object]) -> None:
    """A checkout with Windows line ends is what git would commit."""
    whole, identity = contents(repository), open_tree(str(repository)).identity
    convert(repository)
    (repository / MAIN).unlink()
    git(repository, "checkout", "--", MAIN)
    assert b"\r\n" in (repository / MAIN).read_bytes()
    assert open_tree(str(repository)).identity == identity
    assert contents(check_out(str(repository))) == whole


def test_windows_line_ends_are_refused(repository: Path) -> None:
    shutil.rmtree(repository / "arch")
    (repository / "Makefile").unlink()
    git(repository, "-c", "core.autocrlf=true", "checkout", "--", ".")
    # git compares a file that is newer than its index, and else believes the index.
    os.utime(repository / "Makefile", (2e9, 2e9))
    with pytest.raises(UsageError, match="Windows line ends") as caught:
        open_tree(str(repository))
    assert f"{repository}@HEAD" in (caught.value.hint or "")


def test_bare_repository_wants_a_ref(repository: Path, tmp_path: Path) -> None:
    git(repository, "clone", "--quiet", "--bare", ".", str(tmp_path / "bare.git"))
    with pytest.raises(UsageError, match="not a Linux source tree") as caught:
        open_tree(".", cwd=tmp_path / "bare.git")
    assert "bare.git@REF" in (caught.value.hint or "")
    assert open_tree(".@v1", cwd=tmp_path / "bare.git").identity == open_tree(f"{repository}@v1").identity


def ignored_source(tree: Path) -> None:
    (tree / ".git" / "info" / "exclude").write_text("/*\n", encoding="utf-8")  # as Debian's .gitignore


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def edit_hidden(tree: Path, flag: str, text: str) -> None:
    git(tree, "update-index", flag, MAIN)
    write(tree / MAIN, text)


def edit_nested(tree: Path, text: str) -> None:
    write(tree / "drivers/out/x.c", text)
    git(tree / "drivers/out", "init", "--quiet")


def edit_linked(tree: Path, text: str) -> None:
    write(tree.parent / "elsewhere" / "x.c", text)
    if not (tree / "drivers/link").exists():
        (tree / "drivers/link").symlink_to(tree.parent / "elsewhere")


def edit_selftest(tree: Path, text: str) -> None:
    write(tree / "tools/new/.gitignore", "# as upstream's selftests have it\n*\n!/**/\n!*.c\n")
    write(tree / "tools/new/x_test.c", text)


EDITS: dict[str, Callable[[Path, str], object]] = {
    "ignored source": lambda tree, text: write(tree / "drivers/vfio/new.c", text),
    "ignored header": lambda tree, text: write(tree / "include/new/deep/new.h", text),
    "ignored Kconfig": lambda tree, text: write(tree / "drivers/vfio/Kconfig.new", text),
    "ignored makefile": lambda tree, text: write(tree / "drivers/new/Makefile", text),
    "ignored part of a makefile": lambda tree, text: write(tree / "drivers/new/lib.mk", text),
    "ignored directory that names its sources": edit_selftest,
    "ignored localversion": lambda tree, text: write(tree / "localversion-next", text),
    "assumed to be unchanged": lambda tree, text: edit_hidden(tree, "--assume-unchanged", text),
    "out of the sparse checkout": lambda tree, text: edit_hidden(tree, "--skip-worktree", text),
    "repository in the repository": lambda tree, text: edit_nested(tree, text),
    "behind a link": lambda tree, text: edit_linked(tree, text),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_what_git_does_not_show_counts(repository: Path, edit: Callable[[Path, str], object]) -> None:
    """A new file and its next edit each change the identity, as in a directory without git."""
    ignored_source(repository)
    seen = [open_tree(str(repository)).identity]
    for text in ("/* one */\n", "/* two, longer */\n"):
        edit(repository, text)
        seen.append(open_tree(str(repository)).identity)
    assert len(set(seen)) == 3
    assert open_tree(str(repository)).identity == seen[-1]


def test_a_link_out_of_a_plain_tree_counts(repository: Path) -> None:
    shutil.rmtree(repository / ".git")
    seen = []
    for text in ("/* one */\n", "/* two, longer */\n"):
        EDITS["behind a link"](repository, text)
        seen.append(open_tree(str(repository)).identity)
    assert len(set(seen)) == 2


@pytest.mark.parametrize("name", ["build/init/x.o", "build/init/x.c", "build/.config", "init/main.o", "tags"])
def test_what_no_build_reads_does_not_count(repository: Path, name: str) -> None:
    """Objects, tags and an O= directory, which ignores itself by its own .gitignore."""
    ignored_source(repository)
    write(repository / "build" / ".gitignore", "# this is build directory, ignore it\n*\n")
    before = open_tree(str(repository))
    write(repository / name, "x\n")
    after = open_tree(str(repository))
    assert (after.identity, after.label) == (before.identity, "v1")


@pytest.mark.parametrize("letter", list("'\"$%;&()[]{}<>|*?#\\`!,=^\t\n"))
def test_path_that_make_or_a_shell_would_read(
    repository: Path, monkeypatch: pytest.MonkeyPatch, letter: str
) -> None:
    """A tree may be anywhere, for it is built in the cache; a cache is refused before anything is built."""
    name, whole = f"a{letter}b", contents(repository)
    moved = repository.rename(repository.parent / name)
    assert contents(check_out(f"{moved}@v1")) == contents(check_out(str(moved))) == whole
    cache = repository.parent / f"cache{letter}b"
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(cache))
    with pytest.raises(UsageError, match=r"the cache directory .* has .* in its path, which kbuild refuses"):
        open_tree(f"{moved}@v1")
    assert not cache.exists()
