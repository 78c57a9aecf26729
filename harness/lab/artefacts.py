# SPDX-License-Identifier: GPL-2.0-only
"""Artefacts: the entries of the store that a Job names by digest, as archives that travel to another store.

An entry's own digest is that of what it was made from.  What arrives is checked by the SHA-256 of the
archive, which the host that has the entry says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import os
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from harness.base import paths
from harness.base.cause import Cause
from harness.base.errors import HarnessError, InfraError
from harness.base.host import default_compilers
from harness.base.locks import making, shared
from harness.kernel.arch import find_arch, host_arch
from harness.kernel.kconfig import Fragment
from harness.kernel.plan import installed_toolchain, plan_kernel
from harness.kernel.provide import build_kernel
from harness.kernel.store import (
    Built,
    begin_entry,
    find_built,
    is_whole,
    kernel_entry,
    note_use,
    provide_entry,
    selftests_entry,
    writing_cache,
)
from harness.kernel.toolchain import GCC, LLVM, find_toolchain
from harness.kernel.trees import DEBIAN, open_tree
from harness.kernel.variants import load_catalogue
from harness.machine.disks import disk_path
from harness.machine.roots import find_root
from harness.plan import Job

COMMON_TOOLCHAINS = (GCC.name, LLVM.name)
"""The toolchains that a host says it has; of others it does not know that it would be asked for them."""

_STAYS = ("gcov", "build.log", "lines.json")
"""What no VM reads of a kernel's entry: the client locates splats with it."""

_LEVEL = 3
"""gzip: a kernel of 17 MB shrinks to a third either way, and level 9 takes six times as long."""

_BUSY = "another process is unpacking"


@dataclasses.dataclass(frozen=True, slots=True)
class Artefact:
    """An entry of the store: a directory, or the file of a disk."""

    place: str
    """Relative to the cache directory: `kernels/DIGEST`."""

    @classmethod
    def of(cls, path: Path) -> Artefact:
        """Return the artefact at *path* in this host's store."""
        return cls(str(path.relative_to(paths.cache_dir())))

    @property
    def path(self) -> Path:
        return paths.cache_dir() / self.place

    @property
    def is_there(self) -> bool:
        """Whether this host's store has it, whole."""
        return is_whole(self.path) if self.place.startswith("kernels/") else self.path.exists()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep it from being pruned, for which it is too new afterwards."""
        with shared(self.path.name, f"another process is pruning {self.path}"):
            note_use(self.path)
            yield


@dataclasses.dataclass(frozen=True, slots=True)
class Archive:
    """An Artefact as one file."""

    place: str
    """That of the Artefact."""
    digest: str
    """SHA-256 of the file, in hex."""
    size: int


def artefacts_of(job: Job) -> tuple[Artefact, ...]:
    """Return everything of the store that *job* names, its kernel first."""
    entries = [kernel_entry(job.kernel.digest)]
    entries += [selftests_entry(job.kernel.selftests)] if job.kernel.selftests else []
    entries += map(paths.programs_entry, job.own.digests)
    entries += (disk_path(kind, digest) for kind, digest in sorted(job.root.disks.items()))
    return tuple(map(Artefact.of, entries))


def provide_disks(jobs: Iterable[Job]) -> None:
    """Have the disks that *jobs* name in this host's store.  Raises InfraError when it cannot make them."""
    named = {(job.root.name, job.arch, tuple(sorted(job.root.disks.items()))) for job in jobs}
    for name, arch, disks in sorted(named):
        if disks:
            find_root(name, find_arch(arch), dict(disks)).parts(paths.guest_dir(), None, None)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuildOrder:
    """A kernel to build, on this host or on another one."""

    digest: str
    tree: str
    """As `--tree` names it, pinned to one source."""
    variant: str
    addons: tuple[str, ...]
    fragments: tuple[Fragment, ...]
    toolchain: str
    arch: str
    built_with: str
    """The versions of compiler and linker that are part of the digest."""
    profile: bool = False
    """Whether it counts how often each line runs."""
    source: Artefact | None = None
    """A repository that travels to hosts which do not have `tree`."""
    commit: str = ""
    """The commit in there."""

    @property
    def is_anywhere(self) -> bool:
        """Whether other hosts can get the source and may have the compiler; else its own host builds it.

        That one keeps what counts and locates lines, too, which does not travel.
        """
        return self.may_travel and (self.tree.startswith(DEBIAN) or self.source is not None)

    @property
    def may_travel(self) -> bool:
        """Whether other hosts may build it once they have its source."""
        is_foreign = bool(find_arch(self.arch).label)
        return self.toolchain in COMMON_TOOLCHAINS and not is_foreign and not self.profile

    @property
    def at_home(self) -> BuildOrder:
        """The same for the host that has `tree`."""
        return dataclasses.replace(self, source=None)


def build_ordered(order: BuildOrder, check: Callable[[], None] = lambda: None) -> Built:
    """Return the kernel of *order*: from this host's store, or built now; *check* may raise to end that.

    Raises KernelError and InfraError.
    """
    if (built := find_built(order.digest)) is not None:
        return built
    tree = f"{order.source.path}@{order.commit}" if order.source is not None else order.tree
    plan = plan_kernel(
        open_tree(tree),
        load_catalogue().variant(order.variant),
        order.addons,
        order.fragments,
        toolchain=find_toolchain(order.toolchain),
        arch=find_arch(order.arch),
    )
    if plan.key != order.digest:
        message = f"{order.tree} gives another {order.variant} kernel here than when the run was planned"
        raise InfraError(message, hint="run it again", cause=Cause.KERNEL_MISSING)
    return build_kernel(plan, compilers=default_compilers(), progress=lambda _: check())


def own_toolchains() -> tuple[str, ...]:
    """Return BuildOrder.built_with of the toolchains that this host can build kernels for itself with."""
    found = []
    for name in COMMON_TOOLCHAINS:
        with contextlib.suppress(HarnessError):
            found.append(str(installed_toolchain(host_arch(), find_toolchain(name))[1]))
    return tuple(found)


def pack(artefact: Artefact, directory: Path) -> tuple[Archive, Path]:
    """Write *artefact* of this host's store to a file in *directory*; equal entries give equal files.

    Raises InfraError when the store does not have it.
    """
    unfinished = directory / f"{artefact.place.replace('/', '-')}.{os.getpid()}-{threading.get_ident()}"
    with shared(artefact.path.name, f"another process is making {artefact.path}"):
        if not artefact.is_there:
            message = f"{artefact.path} is not in the cache any more"
            raise InfraError(message, hint="run it again", cause=Cause.KERNEL_MISSING)
        with (
            unfinished.open("wb") as file,
            gzip.GzipFile("", "wb", _LEVEL, file, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar,
        ):
            for name, path in _members(artefact.path):
                tar.add(path, name, recursive=False, filter=_plain)
    digest = digest_of(unfinished)
    path = archive_path(directory, digest)
    unfinished.replace(path)
    return Archive(artefact.place, digest, path.stat().st_size), path


def archive_path(directory: Path, digest: str) -> Path:
    """Return where the archive *digest* is in *directory*, or would be."""
    return directory / f"{digest}.tar.gz"


def digest_of(path: Path) -> str:
    """Return the SHA-256 of the file *path*."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(archive: Archive, path: Path) -> None:
    """Put what is in the file *path* into this host's store.

    Raises InfraError when it is not *archive*, or when the store cannot be written to.
    """
    found = digest_of(path)
    if found != archive.digest:
        path.unlink()
        message = f"{archive.place} arrived damaged: SHA-256 {found}, not {archive.digest}"
        raise InfraError(message, cause=Cause.HOST)
    artefact = Artefact(archive.place)
    if artefact.is_there:
        return
    busy = f"{_BUSY} {artefact.path}"
    if artefact.path.suffix == ".erofs":
        # A disk is a file, so its archive unpacks into a directory beside it.
        with (
            making(artefact.path.name, busy, lambda: artefact.is_there) as is_ours,
            writing_cache(artefact.path),
        ):
            if is_ours:
                beside = begin_entry(artefact.path.with_suffix(".arrived"))
                _extract(archive, path, beside)
                (beside / artefact.path.name).replace(artefact.path)
                beside.rmdir()
        note_use(artefact.path)
        return
    provide_entry(
        artefact.path,
        busy,
        lambda target: _extract(archive, path, target),
        is_there=lambda _entry: artefact.is_there,
    )


def _members(path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        yield path.name, path
        return
    for file in sorted(path.rglob("*")):
        relative = file.relative_to(path)
        if path.parent.name != "kernels" or relative.parts[0] not in _STAYS:
            yield str(relative), file


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave out who made *member*, and when."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def _extract(archive: Archive, path: Path, target: Path) -> None:
    try:
        with tarfile.open(path, "r:gz") as tar:
            # Nothing outside *target*, no devices, no owners.
            tar.extractall(target, filter="data")
    except tarfile.TarError as error:
        raise InfraError(f"{archive.place} is refused: {error}", cause=Cause.HOST) from error
