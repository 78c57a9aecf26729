# SPDX-License-Identifier: GPL-2.0-only
"""Kernel source trees: find or fetch one, identify it, never write into it.

What belongs to the user is built in a worktree of the cache: a ref, or a directory as it lies there.  Its
path stays the same, so that an edit only rebuilds what it touches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from harness.base import paths, process
from harness.base.errors import SourceError, UsageError
from harness.base.locks import Waiting, locked, shared
from harness.kernel import debian, gittree
from harness.kernel.relatives import start_from_relative
from harness.kernel.store import OURS, note_use, provide_entry, source_lock
from harness.kernel.working_tree import take_working_tree

DEBIAN = "debian:"
"""What `--tree` begins with for a source that every host can fetch by itself."""

DEFAULT_SPEC = f"{DEBIAN}latest"
_TARBALL = re.compile(r".*\.tar(\.\w+)?$|.*\.t[gx]z$")
_TROUBLE = re.compile(r"[^\w./+~@-]")
"""A character that make, kbuild's shell scripts or sed do not accept in a name."""
_KCONFIG_INPUT = re.compile(r"(.*/)?(Kconfig[^/]*|Makefile[^/]*|[^/]*\.config)$|scripts/.*")
"""Files that can change what olddefconfig makes of a fragment: Kconfig files, and the scripts they call."""
_SELFTEST_INPUT = re.compile(r"tools/.*|.*(?<!\.c)(?<!\.S)")
"""Files that can change a selftest: headers, scripts and makefiles anywhere, but no code outside tools/."""


class TreeKind(enum.Enum):
    """Where a tree came from."""

    GIT = "git"  # the user's own checkout, as it lies there
    PLAIN = "plain"  # a directory without git
    REF = "ref"  # a ref of the user's repository
    TARBALL = "tarball"
    DEBIAN = "debian"


class _Identities(TypedDict):
    """The three identities of a KernelTree."""

    identity: str
    config_identity: str
    selftest_identity: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KernelTree:
    """A Linux source tree at a known identity."""

    path: Path  # where it is built from, in the cache; what belongs to the user is there when it is held
    kind: TreeKind
    version: str  # as its Makefile says: "7.3.4", "7.3.0-rc2"
    identity: str  # digest of all that a build can see
    config_identity: str  # digest of all that a configuration can see
    selftest_identity: str  # digest of all that the selftests can see
    label: str  # for people
    exact: str = ""  # a spec that always opens this source, if the requested one may move
    repository: Path | None = None  # the user's: see gittree.mirror_of()
    commit: str | None = None  # the user's
    checkout: str = ""  # what to check out at *path*, a commit; empty for an unpacked source

    @contextlib.contextmanager
    def held(self, waiting: Waiting = lambda: None) -> Iterator[None]:
        """Check out the tree at its path, and keep other processes from it and its objects.  Do not nest it.

        Trees share the path of a worktree, and so its objects: it is checked out again when another process
        moved it.  Raises what *waiting* raises, which is called while another process has the tree.
        """
        with locked(source_lock(self.path), f"another process is building from {self.path}", waiting):
            if self.repository is not None and self.checkout:
                mirror = gittree.provide_mirror(self.repository)
                with shared(mirror.name, f"another process is pruning {mirror}", waiting):
                    gittree.check_out(mirror, self.path, self.checkout, start_from_relative)
                    note_use(self.path)
                    yield
            else:
                with shared(self.path.name, f"another process is unpacking {self.path}", waiting):
                    yield

    @contextlib.contextmanager
    def configurable(self) -> Iterator[Path]:
        """Yield a directory with all files of the tree that kconfig reads, without waiting for builds."""
        if self.repository is None or not self.checkout:
            with shared(self.path.name, f"another process is unpacking {self.path}"):
                yield self.path
            return
        path = self.path.with_name(f"{self.path.name}-kconfig")
        mark = path / f"{OURS}identity"
        busy = f"another process is configuring {self.label}"
        with shared(source_lock(path), busy):
            if _reads(mark) == self.config_identity:
                note_use(path)
                yield path
                return
        with locked(source_lock(path), busy):
            mirror = gittree.provide_mirror(self.repository)
            files = gittree.list_files(mirror, self.checkout)
            inputs = {name: facts for name, facts in files.items() if _KCONFIG_INPUT.fullmatch(name)}
            mark.unlink(missing_ok=True)
            gittree.check_out(mirror, path, gittree.commit_files(mirror, inputs))
            mark.write_text(self.config_identity, encoding="ascii")
            yield path


def _reads(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""


def open_tree(spec: str | None = None, *, cwd: Path | None = None) -> KernelTree:
    """Open the tree that *spec* names.

    A directory; `directory@ref` for any ref of its git repository; a tarball; `debian:latest`, `debian:7.3`
    or `debian:7.3=7.3.4-1` for Debian's linux-source package, the newest or that upload.  Without a spec: the
    current directory if it is Linux, else debian:latest.

    Raises UsageError when the spec is wrong or the tree unusable, SourceError when it cannot be fetched.
    """
    _require_plain(paths.cache_dir())
    here = cwd or Path.cwd()
    if spec is None:
        return _open_directory(here) if is_linux(here) else open_tree(DEFAULT_SPEC, cwd=here)
    if spec.startswith(DEBIAN):
        return _open_debian(spec.removeprefix(DEBIAN))
    path = (here / paths.expanded(spec)).absolute()
    if path.is_dir():
        return _open_directory(path)
    if path.is_file():
        return _open_tarball(path)
    directory, at, ref = spec.rpartition("@")
    if at:
        repository = (here / paths.expanded(directory or ".")).absolute()
        if repository.is_dir():
            return _open_ref(repository, ref)
    raise UsageError(
        f"there is no kernel tree {spec!r}",
        hint="give a directory, directory@ref, a tarball, debian:latest, debian:7.3 or debian:7.3=7.3.4-1",
    )


def is_linux(path: Path) -> bool:
    """Whether *path* is the top of a Linux source tree."""
    return all((path / name).exists() for name in ("Kbuild", "Kconfig", "MAINTAINERS", "drivers", "scripts"))


def read_version(makefile: str) -> str:
    """Return the version in the text of a top-level Makefile; UsageError when there is none."""
    found = re.finditer(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION) *= *(\S*)$", makefile, re.MULTILINE)
    values = {match[1]: match[2] for match in found}
    if not values.get("VERSION") or not values.get("PATCHLEVEL"):
        raise UsageError("the top-level Makefile of the kernel tree gives no VERSION and PATCHLEVEL")
    numbers = [values["VERSION"], values["PATCHLEVEL"], values.get("SUBLEVEL") or "0"]
    return ".".join(numbers) + values.get("EXTRAVERSION", "")


def _require_plain(cache: Path) -> None:
    """Refuse a cache at a path that kbuild cannot handle as source or O=, or that a shell would interpret."""
    found = _TROUBLE.search(os.fspath(cache)) or _TROUBLE.search(os.fspath(cache.resolve()))
    if found:
        name = {":": "a colon", " ": "a blank"}.get(found[0], repr(found[0]))
        shown = cache if str(cache).isprintable() else repr(str(cache))
        raise UsageError(
            f"the cache directory {shown} has {name} in its path, which kbuild refuses",
            hint="set VFIO_HARNESS_CACHE to another directory",
        )


def _open_directory(path: Path) -> KernelTree:
    path = path.resolve()
    if not is_linux(path) and not gittree.tracks(path, "MAINTAINERS"):
        hint = "give the directory that holds MAINTAINERS"
        if (path / "HEAD").is_file() and (path / "objects").is_dir():
            hint = f"it is a bare repository: give {path}@REF"
        raise UsageError(f"{path} is not a Linux source tree", hint=hint)
    found = take_working_tree(path)
    if "\r\n" in found.makefile:
        raise UsageError(
            f"{path} has Windows line ends, so no kernel can be built from it",
            hint=f"give {path}@HEAD, or set core.autocrlf there as it was when its files were checked out",
        )
    version = read_version(found.makefile)
    name = found.name or f"{path.name} ({version})"
    return KernelTree(
        path=_worktree(found.root, version, path),
        kind=TreeKind.GIT if found.root != path else TreeKind.PLAIN,
        version=version,
        label=f"{name}{' with local changes' if found.name and found.changed else ''}",
        repository=found.root,
        commit=found.head,
        checkout=found.commit,
        **_identities(("tree", found.tree), found.files),
    )


def _worktree(root: Path, version: str, directory: Path | None = None) -> Path:
    """Return the path at which sources of one line are built: one for all refs, one for each directory."""
    line = ".".join(version.split(".")[:2])
    name = f"{line}-{directory.name}-{_digest(os.fspath(directory))[:6]}" if directory else line
    return gittree.worktrees_of(root) / re.sub(r"[^\w.-]", "-", name, flags=re.ASCII)


def _identities(base: Sequence[str], files: Mapping[str, str]) -> _Identities:
    """Return the identities of a KernelTree: *base* decides the whole, of *files* those that matter to it.

    Neighbours in a history mostly share their configuration and their selftests.
    """
    whole = _digest(*base)
    config, selftests = (
        _digest(*(f"{name} {facts}" for name, facts in sorted(files.items()) if inputs.fullmatch(name)))
        for inputs in (_KCONFIG_INPUT, _SELFTEST_INPUT)
    )
    return {
        "identity": whole,
        "config_identity": config if files else whole,
        "selftest_identity": selftests if files else whole,
    }


def _digest(*lines: str) -> str:
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _open_ref(repository: Path, ref: str) -> KernelTree:
    root = gittree.repository_root(repository)
    state = gittree.resolve(repository, ref)
    version = read_version(gittree.show(repository, state.commit, "Makefile"))
    files = gittree.list_files(repository, state.commit)
    if "MAINTAINERS" not in files:
        raise UsageError(f"{repository} at {state.name} is not a Linux source tree")
    tree = gittree.tree_of(repository, state.commit)
    return KernelTree(
        path=_worktree(root, version),
        kind=TreeKind.REF,
        version=version,
        label=state.name,
        repository=root,
        commit=state.commit,
        checkout=state.commit,
        **_identities(("tree", tree), files),
    )


def _open_tarball(path: Path) -> KernelTree:
    if not _TARBALL.match(path.name):
        raise UsageError(
            f"{path} is neither a directory nor a tarball", hint="a tarball is called *.tar.xz or similar"
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    target = paths.cache_dir() / "sources" / "tarball" / digest[:24]
    extract_once(path, target)
    return _cached_tree(target, TreeKind.TARBALL, digest, path.name)


def extract_once(tarball: Path, target: Path) -> None:
    """Unpack *tarball*, without its leading directory, as *target* unless that exists.

    Raises SourceError when it cannot be unpacked, HostError when the cache cannot be written.
    """

    def unpack(partial: Path) -> None:
        words = ["--force-local", "--strip-components=1", "--extract"]
        done = process.run(["tar", *words, "--file", tarball, "--directory", partial])
        if not done.ok or not is_linux(partial):
            # It may be a gigabyte, on a full disk.
            shutil.rmtree(partial)
            reason = (done.stderr.strip() or "it holds something else").splitlines()[0]
            raise SourceError(f"{tarball} is not a Linux source tarball: {reason}")
        start_from_relative(partial)

    provide_entry(target, f"another process is unpacking {tarball.name}", unpack)


def _open_debian(request: str) -> KernelTree:
    source = debian.fetch(request, extract_once)
    tree = _cached_tree(source.path, TreeKind.DEBIAN, source.digest, source.label)
    return dataclasses.replace(tree, exact=f"debian:{source.request}")


def _cached_tree(path: Path, kind: TreeKind, digest: str, label: str) -> KernelTree:
    note_use(path)
    return KernelTree(
        path=path,
        kind=kind,
        version=read_version((path / "Makefile").read_bytes().decode(errors="replace")),
        label=label,
        **_identities((kind.value, digest), {}),
    )
