# SPDX-License-Identifier: GPL-2.0-only
"""Kernel source trees: find or fetch one, say what it is, never write into it.

A tree keeps a stable path for as long as builds may be reused: kbuild's dependency files carry the
absolute path of the source, so objects built at one path say nothing at another.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISDIR

from harness import paths, process
from harness.errors import InfraError, SourceError, UsageError
from harness.kernel import debian, gittree
from harness.locks import Waiting, locked, shared, wait_patiently

DEFAULT_SPEC = "debian:latest"
_TARBALL = re.compile(r".*\.tar(\.\w+)?$|.*\.t[gx]z$")
_TROUBLE = re.compile(r"[\s:]")
_KCONFIG_INPUT = re.compile(r"(.*/)?(Kconfig[^/]*|Makefile|[^/]*\.config)$|scripts/.*")
"""Files that can change what olddefconfig makes of a fragment: Kconfig files, and the scripts they call."""
_SELFTEST_INPUT = re.compile(r"tools/.*|.*(?<!\.c)(?<!\.S)")
"""Files that can change a selftest: headers, scripts and makefiles anywhere, but no code outside tools/."""


class TreeKind(enum.Enum):
    """Where a tree came from."""

    GIT = "git"  # the user's own checkout
    PLAIN = "plain"  # a directory without git
    WORKTREE = "worktree"  # a ref of the user's repository, checked out in the cache
    TARBALL = "tarball"
    DEBIAN = "debian"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KernelTree:
    """A Linux source tree at a known identity."""

    path: Path
    kind: TreeKind
    version: str  # as its Makefile says: "7.3.4", "7.3.0-rc2"
    identity: str  # digest of all that a build can see
    config_identity: str  # digest of all that a configuration can see
    selftest_identity: str  # digest of all that the selftests can see
    label: str  # what a person calls it
    dirty: bool = False  # differs from the commit it is labelled with
    repository: Path | None = None  # of a WORKTREE: the user's repository
    commit: str | None = None

    @contextlib.contextmanager
    def held(self, waiting: Waiting = wait_patiently) -> Iterator[None]:
        """Keep the tree there and at its identity for the length of the with block.  Not to be nested.

        A WORKTREE can be moved by another process (bisects and series share the path, for their objects'
        sake): it is locked, and put back to its commit when someone moved it meanwhile.  An unpacked source
        could be pruned; the user's own directories are theirs.  Raises what *waiting* raises, which is called
        while another process has the tree.
        """
        if self.kind is TreeKind.WORKTREE and self.repository is not None and self.commit is not None:
            with locked(worktree_lock(self.path), f"another process is using {self.path}", waiting):
                gittree.check_out(self.repository, self.path, self.commit)
                _note_use(self.path)
                yield
        elif self.kind in (TreeKind.TARBALL, TreeKind.DEBIAN):
            with shared(self.path.name, f"another process is unpacking {self.path}", waiting):
                yield
        else:
            yield


def worktree_lock(path: Path) -> str:
    """The name of the lock on a worktree in the cache."""
    return f"{path.parent.name}-{path.name}"


def _note_use(path: Path) -> None:
    """Make *path* the last to be pruned."""
    with contextlib.suppress(OSError):
        os.utime(path)


def open_tree(spec: str | None = None, *, cwd: Path | None = None) -> KernelTree:
    """The tree that *spec* names.

    A directory; `directory@ref` for any ref of its git repository; a tarball; `debian:latest`, `debian:7.3`
    or `debian:7.3=7.3.4-1` for Debian's linux-source package, the newest or that upload.  Without a spec: the
    current directory if it is Linux, else debian:latest.

    Raises UsageError when the spec is wrong or the tree unusable, SourceError when it cannot be fetched.
    """
    _require_plain(paths.cache_dir(), "the cache directory", "set VFIO_HARNESS_CACHE to another directory")
    here = cwd or Path.cwd()
    if spec is None:
        return _open_directory(here) if is_linux(here) else open_tree(DEFAULT_SPEC, cwd=here)
    if spec.startswith("debian:"):
        return _open_debian(spec.removeprefix("debian:"))
    path = (here / Path(spec).expanduser()).absolute()
    if path.is_dir():
        return _open_directory(path)
    if path.is_file():
        return _open_tarball(path)
    directory, at, ref = spec.rpartition("@")
    if at:
        repository = (here / Path(directory or ".").expanduser()).absolute()
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
    """The version that a top-level Makefile's text gives; UsageError when it gives none."""
    found = re.finditer(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION) *= *(\S*)$", makefile, re.MULTILINE)
    values = {match[1]: match[2] for match in found}
    if not values.get("VERSION") or not values.get("PATCHLEVEL"):
        raise UsageError("the top-level Makefile of the kernel tree gives no VERSION and PATCHLEVEL")
    numbers = [values["VERSION"], values["PATCHLEVEL"], values.get("SUBLEVEL") or "0"]
    return ".".join(numbers) + values.get("EXTRAVERSION", "")


def _require_plain(path: Path, what: str, hint: str) -> None:
    """Refuse a path that kbuild refuses late (the top-level Makefile) or breaks on, as source or as O=."""
    found = _TROUBLE.search(os.fspath(path)) or _TROUBLE.search(os.fspath(path.resolve()))
    if found:
        name = "a colon" if found[0] == ":" else "a blank"
        raise UsageError(f"{what} {path} has {name} in its path, which kbuild refuses", hint=hint)


def _require_usable(path: Path) -> str:
    """Refuse what is not Linux, was built in place or cannot be built where it is; return the version."""
    if not is_linux(path):
        raise UsageError(
            f"{path} is not a Linux source tree", hint="give the directory that holds MAINTAINERS"
        )
    for left in (".config", "include/config", "arch/x86/include/generated"):
        if (path / left).exists():
            raise UsageError(
                f"{path} was configured or built in place ({left} is there), so every O= build refuses it",
                hint=f"run 'make -C {path} mrproper' (it deletes {path}/.config: keep a copy if you need it)",
            )
    _require_plain(path, "the kernel tree", "move it; a symbolic link to it is not enough")
    return read_version((path / "Makefile").read_text(encoding="utf-8", errors="replace"))


def _open_directory(path: Path) -> KernelTree:
    path = path.resolve()
    version = _require_usable(path)
    state = gittree.read_state(path)
    if state is None:
        identity, config_identity, selftest_identity = plain_digests(path)
        return KernelTree(
            path=path,
            kind=TreeKind.PLAIN,
            version=version,
            identity=identity,
            config_identity=config_identity,
            selftest_identity=selftest_identity,
            label=f"{path.name} ({version})",
        )
    return KernelTree(
        path=path,
        kind=TreeKind.GIT,
        version=version,
        identity=_digest("git", state.commit, state.changes),
        config_identity=_digest("git", state.commit, _only(_KCONFIG_INPUT, state.changes)),
        selftest_identity=_digest("git", state.commit, _only(_SELFTEST_INPUT, state.changes)),
        label=f"{state.name}{' with local changes' if state.changes else ''}",
        dirty=bool(state.changes),
        commit=state.commit,
    )


def _only(inputs: re.Pattern[str], changes: dict[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in changes.items() if inputs.fullmatch(name)}


def _digest(kind: str, base: str, changes: dict[str, str]) -> str:
    lines = [kind, base, *(f"{name} {digest}" for name, digest in sorted(changes.items()))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def plain_digests(path: Path) -> tuple[str, str, str]:
    """Digests of names, sizes and times below *path*: of all files, those of kconfig, those of selftests."""
    files = sorted((name, facts) for name, facts in _walk(path) if not S_ISDIR(facts.st_mode))
    lines = {name: f"{name} {facts.st_size} {facts.st_mtime_ns}" for name, facts in files}
    config, selftests = (
        [line for name, line in lines.items() if inputs.fullmatch(name)]
        for inputs in (_KCONFIG_INPUT, _SELFTEST_INPUT)
    )
    return _lines_digest(list(lines.values())), _lines_digest(config), _lines_digest(selftests)


def _lines_digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _walk(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Everything below *path* but git's own, with its name relative to *path* and its facts."""
    pending = [os.fspath(path)]
    cut = len(pending[0]) + 1
    while pending:
        with os.scandir(pending.pop()) as scan:
            for entry in scan:
                if entry.name == ".git":
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                yield entry.path[cut:], entry.stat(follow_symlinks=False)


def find_misdated(path: Path, since: float) -> list[Path]:
    """The files below *path* that arrived after *since* with an older modification time.

    rsync, tar and mv leave such files.  make compares modification times, so it would trust older objects.
    """

    def moved(facts: os.stat_result) -> bool:
        return facts.st_ctime >= since > facts.st_mtime

    found, folders = [], []
    if moved(path.stat()):
        folders.append("")
    for name, facts in _walk(path):
        if not S_ISDIR(facts.st_mode):
            if moved(facts) or any(name.startswith(folder) for folder in folders):
                found.append(path / name)
        elif moved(facts):
            folders.append(f"{name}/")
    return found


def _open_ref(repository: Path, ref: str) -> KernelTree:
    state = gittree.resolve(repository, ref)
    version = read_version(gittree.show(repository, state.commit, "Makefile"))
    line = ".".join(version.split(".")[:2])
    root = gittree.repository_root(repository)
    path = gittree.place_of(root) / re.sub(r"[^\w.-]", "-", line)
    # Neighbours in a history mostly share their configuration and their selftests.
    config, selftests = gittree.files_digest(root, state.commit, _KCONFIG_INPUT, _SELFTEST_INPUT)
    tree = KernelTree(
        path=path,
        kind=TreeKind.WORKTREE,
        version=version,
        identity=_digest("git", state.commit, {}),
        config_identity=_digest("files", config, {}),
        selftest_identity=_digest("files", selftests, {}),
        label=state.name,
        repository=root,
        commit=state.commit,
    )
    with tree.held():
        _require_usable(path)
    return tree


def _open_tarball(path: Path) -> KernelTree:
    if not _TARBALL.match(path.name):
        raise UsageError(
            f"{path} is neither a directory nor a tarball", hint="a tarball is called *.tar.xz or alike"
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    target = paths.cache_dir() / "sources" / "tarball" / digest[:24]
    extract_once(path, target)
    return _cached_tree(target, TreeKind.TARBALL, digest, path.name)


def extract_once(tarball: Path, target: Path) -> None:
    """Unpack *tarball*, less its leading directory, as *target*; nothing when that is there already.

    Unpacked beside and renamed, so that a target that exists is whole.
    """
    if target.is_dir():
        return
    with locked(target.name, f"another process is unpacking {tarball.name}"):
        if target.is_dir():
            return
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            done = process.run(
                ["tar", "--extract", "--file", tarball, "--directory", partial, "--strip-components=1"]
            )
            if not done.ok or not is_linux(partial):
                reason = done.stderr.strip() or "it holds something else"
                raise SourceError(f"{tarball} is not a Linux source tarball: {reason[-200:]}")
            partial.rename(target)
        except OSError as error:
            raise InfraError(f"cannot unpack {tarball} into {target.parent}: {error.strerror}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _open_debian(request: str) -> KernelTree:
    source = debian.fetch(request, extract_once)
    return _cached_tree(source.path, TreeKind.DEBIAN, source.digest, source.label)


def _cached_tree(path: Path, kind: TreeKind, digest: str, label: str) -> KernelTree:
    identity = _digest(kind.value, digest, {})
    _note_use(path)
    return KernelTree(
        path=path,
        kind=kind,
        version=_require_usable(path),
        identity=identity,
        config_identity=identity,
        selftest_identity=identity,
        label=label,
    )
