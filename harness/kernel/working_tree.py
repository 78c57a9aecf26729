# SPDX-License-Identifier: GPL-2.0-only
"""Write a directory of sources, as it lies there, as a commit of a repository of the cache.

What is tracked and what is untracked is in it; what an earlier build left is not.  The user's index is
copied, and new objects go to the cache, so nothing of the user's changes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from harness.base import paths
from harness.base.errors import SourceError, UsageError
from harness.kernel import gittree
from harness.kernel.store import writing_cache

_SOURCE = re.compile(
    r"(?:.*/)?(?:Kconfig|Makefile|Kbuild|localversion)[^/]*"
    r"|.*\.(?:c|h|S|rs|lds|dts|dtsi|dtso|asn1|inc|def|tbl|y|l|mk|sh|py|pl|awk|sed|bc|cocci|config|pem|x509|bin|fw)"
    r"|.*_shipped"
)
"""Names of files that make and kbuild's scripts read, unlike those that editors and builds leave behind."""

_MADE = re.compile(
    r"(?:arch/\w+/)?include/generated/.*|include/config/.*|vmlinux(?:\.\w+)?|\.config.*"
    r"|.*\.(?:o|a|ko|cmd|d|mod|mod\.c|order|symvers|tmp|gcno|gcda)|(?:.*/)?\.tmp_.*"
    r"|.*(?:~|\.orig|\.rej|\.sw[px])"
)
"""Names of files that a build in place, an editor or patch leaves; no release has such files."""

_ODD = re.compile(r"(?<![^\0])(?!H 100)(\S) (\d+ \S+) \d\t([^\0]+)")
"""An entry of `git ls-files -v -s -z` that is no plain file, or one that git does not compare."""

_LARGE = 2**26
"""Untracked files of more bytes, such as disk images and core dumps, are no sources."""


_AGAIN = "if its files are changing right now, run it again"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorkingTree:
    """A directory of sources, as it was at one moment."""

    root: Path  # of the repository, as for gittree.mirror_of()
    commit: str  # in the mirror
    head: str | None  # the commit that the user has checked out
    name: str  # of that commit, for people; empty without one
    changed: bool  # whether the sources differ from it
    tree: str  # the digest of all files
    files: Mapping[str, str]  # name -> mode and blob
    makefile: str  # the text of the top Makefile


def take_working_tree(top: Path) -> WorkingTree:
    """Write the sources in *top*, a git checkout or a plain directory.

    Sources that git ignores are in it, unless the tree's own .gitignore names them; so are the files of
    repositories in *top*, and those behind links that leave it.  What a sparse checkout leaves out is as
    committed.  Raises UsageError when git cannot read *top*, SourceError when files vanish meanwhile.
    """
    try:
        return _take(top)
    except OSError as error:
        raise SourceError(
            f"cannot read {top}: {error.filename or top}: {error.strerror}",
            hint=_AGAIN,
        ) from error


def _take(top: Path) -> WorkingTree:
    is_git = (top / ".git").exists()
    root = gittree.repository_root(top) if is_git else top
    mirror = gittree.provide_mirror(root)
    index = _index_of(top) if is_git else mirror / "index"
    with _private(mirror, index) as env:
        if not is_git:
            env |= {"GIT_DIR": os.fspath(mirror), "GIT_WORK_TREE": os.fspath(top)}
        work = _Work(top, env)
        names = _changes(work) if is_git else _plain_changes(work)
        ours = _our_places(top)
        work.add(name for name in names if not f"{top}/{name}".startswith(ours))
        tree = work.git("write-tree", what="cannot write the files as a tree").strip()
        makefile = gittree.git(top, ["cat-file", "blob", f"{tree}:Makefile"], env)
        if not is_git:
            with contextlib.suppress(OSError):
                # With the times in it, the next run reads only what changed.
                shutil.copy2(env["GIT_INDEX_FILE"], mirror / ".index")
                (mirror / ".index").replace(mirror / "index")
        head = gittree.git(top, ["rev-parse", "--verify", "--quiet", "HEAD^{commit}"]) if is_git else None
        commit = head.stdout.strip() if head is not None and head.ok else None
        theirs = gittree.git(top, ["rev-parse", f"{commit}^{{tree}}"]).stdout.strip() if commit else ""
        return WorkingTree(
            root=root,
            commit=gittree.commit_tree(top, tree, env),
            head=commit,
            name=gittree.describe(top, commit) if commit else "",
            changed=tree != theirs,
            tree=tree,
            files=work.files(),
            makefile=makefile.stdout,
        )


def _index_of(top: Path) -> Path:
    done = gittree.git(top, ["rev-parse", "--path-format=absolute", "--git-path", "index"])
    if not done.ok:
        raise UsageError(f"git cannot read {top}: {gittree.reason(done)}")
    return Path(done.stdout.rstrip("\n"))


@contextlib.contextmanager
def _private(mirror: Path, index: Path) -> Iterator[dict[str, str]]:
    """Yield the environment in which git uses a copy of *index* and writes objects only into *mirror*.

    If that is read-only, they are lost at the end, but the digest of the files is known.
    """
    with tempfile.TemporaryDirectory(prefix="vfio-harness-") as scratch:
        objects = mirror / "objects"
        env = {**gittree.AS_THE_USER, "GIT_INDEX_FILE": f"{scratch}/index"}
        if not os.access(objects, os.W_OK):
            env["GIT_ALTERNATE_OBJECT_DIRECTORIES"] = gittree.quoted(objects)
            objects = Path(scratch) / "objects"
            objects.mkdir()
        if index.exists():
            with writing_cache(index):
                # The time of an index tells git which files may have changed since.
                shutil.copy2(index, env["GIT_INDEX_FILE"])
        yield {**env, "GIT_OBJECT_DIRECTORY": os.fspath(objects)}


@dataclasses.dataclass(frozen=True, slots=True)
class _Work:
    """A directory, and the environment in which git reads it into a private index."""

    top: Path
    env: Mapping[str, str]

    def git(self, *words: str, given: str = "", what: str = "cannot read the files of the tree") -> str:
        done = gittree.git(self.top, words, self.env, given)
        if not done.ok:
            raise SourceError(
                f"{what} {self.top}: {gittree.reason(done)}",
                hint=_AGAIN,
            )
        return done.stdout

    def files(self) -> dict[str, str]:
        """Return the files in the index: name -> mode and blob."""
        entries = (entry.partition("\t") for entry in self.git("ls-files", "-s", "-z").split("\0"))
        return {name: facts.rpartition(" ")[0] for facts, _, name in entries if name}

    def put(self, lines: Iterable[str]) -> None:
        """Put entries into the index, each a mode, a blob and a name."""
        if given := "".join(f"{line}\0" for line in lines):
            self.git("update-index", "-z", "--index-info", given=given)

    def drop(self, names: Iterable[str]) -> None:
        """Remove entries from the index."""
        self.put(f"0 {'0' * 40}\t{name}" for name in names)

    def add(self, names: Iterable[str]) -> None:
        """Bring the index to what the directory has of *names*; read what links out of it lead to."""
        inside, outside = [], {}
        for name in names:
            path = self.top / name
            if path.is_symlink() and (target := _leaves(path, self.top)) is not None:
                below = files_below(target, f"{name}/") if target.is_dir() else [""]
                files = {f"{name}/{file}".rstrip("/"): target / file for file in below}
                outside.update({name: path for name, path in files.items() if not _is_large(path)})
            else:
                inside.append(name)
        if inside:
            words = ("update-index", "-z", "--add", "--remove", "--replace", "--stdin")
            self.git(*words, given="".join(f"{name}\0" for name in inside))
        if outside:
            given = "".join(f"{path}\n" for path in outside.values())
            blobs = self.git("hash-object", "-w", "--no-filters", "--stdin-paths", given=given).split()
            modes = ("100755" if os.access(path, os.X_OK) else "100644" for path in outside.values())
            self.put(f"{mode} {blob}\t{name}" for mode, blob, name in zip(modes, blobs, outside, strict=True))


def _changes(work: _Work) -> Iterator[str]:
    """Yield the names of the files in which the checkout may differ from its index."""
    # (tag, mode and blob, name); git-ls-files(1) has the tags.
    odd: list[tuple[str, str, str]] = _ODD.findall(work.git("ls-files", "-v", "-s", "-z"))
    hidden = [
        f"{facts}\t{name}"
        for tag, facts, name in odd
        # An entry that a sparse checkout leaves out stays as it is.
        if (tag in "Ss" or tag.islower()) and (tag not in "Ss" or os.path.lexists(work.top / name))
    ]
    # Without these marks git compares the file.
    work.put(hidden)
    words = ("status", "--porcelain=v1", "-z", "--no-renames", "--untracked-files=all")
    status = work.git(*words, "--ignored=matching", "--ignore-submodules=all").split("\0")
    nested = [name for _, facts, name in odd if facts.startswith("160000")]
    work.drop(nested)
    ignored = []
    for code, name in ((entry[:2], entry[3:]) for entry in status if entry):
        if code == "!!":
            ignored.append(name)
        elif code == "??" and name.endswith("/"):
            nested.append(name.rstrip("/"))
        elif code != "??" or not (_is_large(work.top / name) or is_made(work.top, name)):
            yield name
    for name in nested:
        if (work.top / name / ".git").exists():
            listed = gittree.git(work.top / name, ["ls-files", "-z", "-c", "-o", "--exclude-standard"])
            yield from (f"{name}/{file}" for file in gittree.split(listed) if not file.endswith("/"))
    yield from _ignored_sources(work, ignored)
    # Links that are committed may leave the tree, too.
    yield from (name for _, facts, name in odd if facts.startswith("120000"))


def _ignored_sources(work: _Work, ignored: Iterable[str]) -> Iterator[str]:
    """Yield the sources among *ignored*, which git ignores, that no build made.

    A pattern in a .gitignore of the tree means that a build makes the file, unless the top one ignores
    everything, as `/*` does in Debian's sources.  The user's own patterns only keep `git status` short.
    """
    names = [
        name
        for name in ignored
        if name.endswith("/") or _SOURCE.fullmatch(name) or (work.top / name).is_symlink()
    ]
    if not names:
        return
    for name, by_tree in _ignored(work.top, names, work.env):
        if by_tree:
            continue
        path = Path(name)
        directory, base = (path, "") if name.endswith("/") else (path.parent, path.name)
        for below in files_below(work.top / directory, f"{directory}/", only=base):
            if base or _SOURCE.fullmatch(below):
                yield os.fspath(directory / below)


def _ignored(top: Path, names: Iterable[str], env: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    """Yield those of *names* that git ignores, and whether because a .gitignore of the tree names them."""
    given = "".join(f"{name}\0" for name in names)
    asked = gittree.git(top, ["check-ignore", "-v", "-z", "--stdin"], env, given).stdout.split("\0")
    for place, pattern, name in zip(asked[::4], asked[2::4], asked[3::4], strict=False):
        yield name, place.endswith(".gitignore") and (place != ".gitignore" or pattern.strip("/*") != "")


def unread(top: Path, names: Collection[str]) -> set[str]:
    """Return those of *names*, files in *top*, that a build of the working tree does not read."""
    ours = _our_places(top)
    found = {name for name in names if is_made(top, name) or f"{top}/{name}".startswith(ours)}
    if (top / ".git").exists():
        ignored = _ignored(top, names, {})
        found |= {name for name, by_tree in ignored if by_tree or not _SOURCE.fullmatch(name)}
    return found


def _our_places(top: Path) -> tuple[str, ...]:
    """Return what paths in *top* begin with that are our own: runs are by default in the current directory,
    which may be the tree; so may the cache.  Around the tree they may be, too."""
    places = (paths.runs_dir().resolve(), paths.cache_dir().resolve())
    return tuple(f"{place}/" for place in places if top in place.parents)


def _plain_changes(work: _Work) -> list[str]:
    """Return the names of all sources in a directory without git; remove vanished files from the index."""
    found = list(files_below(work.top, ""))
    work.drop(work.files().keys() - set(found))
    return found


def files_below(directory: Path, prefix: str, only: str = "") -> Iterator[str]:
    """Yield the files below *directory*, which the tree knows as *prefix*, without git's own; or *only* one.

    Files that a build made are left out, those that the .gitignore beside them names as well.  A directory
    that ignores itself by its own .gitignore, such as an O=, has none.
    """
    pending = [""]
    while pending:
        place = pending.pop()
        with os.scandir(directory / place) as scan:
            entries = {entry.name: entry for entry in sorted(scan, key=lambda entry: entry.name)}
        ignored = _patterns(Path(entries[".gitignore"].path)) if ".gitignore" in entries else []
        if (place or prefix) and "*" in ignored and not any(word.startswith("!") for word in ignored):
            # Upstream's selftests ignore all as well, but then name their sources.
            continue
        for base, entry in entries.items():
            name = f"{place}{base}"
            if entry.is_dir(follow_symlinks=False):
                if base != ".git" and not only:
                    pending.append(f"{name}/")
            elif not (
                (only and base != only)
                or base in ignored
                or f"/{base}" in ignored
                or is_made(directory, name, prefix)
            ):
                yield name


def is_made(directory: Path, name: str, prefix: str = "") -> bool:
    """Whether a build or an editor made the file *name*, no source, in *directory*.

    kbuild says how it made a file in a `.cmd` beside it.
    """
    path = directory / name
    return _MADE.fullmatch(f"{prefix}{name}") is not None or path.with_name(f".{path.name}.cmd").exists()


def _patterns(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8", errors="replace").split("\n")


def _is_large(path: Path) -> bool:
    return path.lstat().st_size > _LARGE


def _leaves(link: Path, top: Path) -> Path | None:
    """Return what *link* leads to if that is outside of *top*."""
    with contextlib.suppress(OSError, RuntimeError):
        target = link.resolve(strict=True)
        if not target.is_relative_to(top):
            return target
    return None
