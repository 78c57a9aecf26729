# SPDX-License-Identifier: GPL-2.0-only
"""The user space of another architecture: Debian's packages, unpacked without running anything of them.

Guests get their programs from it, and selftests are compiled against its libraries.  apt resolves, fetches
and verifies the packages with a configuration of its own; the system's lists and foreign architectures are
neither read nor changed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from harness.base import paths, process
from harness.base.cause import Cause
from harness.base.errors import HostError, SourceError
from harness.base.locks import locked
from harness.kernel import debian
from harness.kernel.arch import Arch
from harness.kernel.store import digest_of, provide_entry

PROGRAMS = (
    *(
        "bash",
        "coreutils",
        "dash",
        "debianutils",
        "dropbear-bin",
        "findutils",
        "grep",
        "iproute2",
        "kmod",
        "less",
    ),
    *("mawk", "mount", "ncurses-base", "pciutils", "procps", "python3", "sed", "strace", "tar", "util-linux"),
)
"""Packages with the programs of harness.machine.hostfiles."""

LIBRARIES = {"libcap-dev": "libcap.*", "uuid-dev": "libuuid.*"}
"""Packages with what upstream's selftests are linked with, and the files of each."""

_LAYOUT = "usr-is-merged"
"""Without it apt chooses usrmerge, which needs perl."""

_FORM = "3"
"""Raise it when the same packages are unpacked in another way."""

_MERGED = ("bin", "lib", "lib64", "sbin")
_UPDATE_SECONDS = 300.0
_DOWNLOAD_SECONDS = 900.0
_log = logging.getLogger("harness.kernel")


def top_of(entry: Path) -> Path:
    """Return the root directory in the *entry* of a user space."""
    return entry / "root"


def libraries_of(entry: Path) -> Path:
    """Return the directory with LIBRARIES and nothing else: the C library is that of the cross compiler."""
    return entry / "libraries"


def packages_of(entry: Path) -> Path:
    """Return the file with a line for each package: its file's name and SHA-256."""
    return entry / "packages"


def identity_of(entry: Path) -> str:
    """Return what is the same wherever the same packages were unpacked."""
    return digest_of(_FORM, packages_of(entry).read_text(encoding="utf-8"))


def userspace_entry(arch: Arch) -> Path:
    """Return the directory in the cache with the user space of *arch*, there or not."""
    wanted = (*PROGRAMS, *LIBRARIES, _LAYOUT)
    key = digest_of("userspace", _FORM, _release(), *wanted)
    return paths.cache_dir() / "userspaces" / f"{arch.name}-{key[:16]}"


def provide_userspace(arch: Arch) -> Path:
    """Return the entry of the user space of *arch*, which is fetched and unpacked once.

    The packages are those of this host's release of Debian, else of the oldest one known.
    Raises HostError without apt, SourceError when the mirror has not what is needed.
    """
    entry = userspace_entry(arch)
    if entry.is_dir():
        return entry
    for program in ("apt-get", "dpkg-deb"):
        if process.find_tool(program) is None:
            raise HostError(
                f"guests of {arch.name} are made of Debian's packages, and this host has no {program}",
                hint=f"use a host with apt, or one that is {arch.name}",
            )
    if not debian.KEYRING.is_file():
        raise HostError(f"{debian.KEYRING} is missing", hint="install debian-archive-keyring")
    provide_entry(
        entry,
        f"another process is fetching the packages for guests of {arch.name}",
        lambda partial: _make(arch, partial),
    )
    return entry


def _release() -> str:
    return debian.own_codename() or debian.RELEASES[0]


def _make(arch: Arch, partial: Path) -> None:
    archives, top = partial / "archives", top_of(partial)
    (archives / "partial").mkdir(parents=True)
    top.mkdir()
    _fetch(arch, archives)
    packages = sorted(archives.glob("*.deb"))
    _log.info("unpacking %d packages for guests of %s", len(packages), arch.name)
    for package in packages:
        argv = ["dpkg-deb", "--extract", os.fspath(package), os.fspath(top)]
        process.run(argv).check(f"cannot unpack {package.name}", Cause.SOURCE)
    _merge(top)
    _relink(top)
    libraries_of(partial).mkdir()
    for library in (
        path for pattern in LIBRARIES.values() for path in (top / "usr/lib" / arch.triplet).glob(pattern)
    ):
        (libraries_of(partial) / library.name).symlink_to(f"../{library.relative_to(partial)}")
    listed = (f"{package.name} {hashlib.sha256(package.read_bytes()).hexdigest()}\n" for package in packages)
    packages_of(partial).write_text("".join(listed), encoding="utf-8")
    shutil.rmtree(archives)


def _fetch(arch: Arch, archives: Path) -> None:
    """Have apt put the packages of *arch*, with all that they depend on, into *archives*."""
    release, mirror = _release(), debian.find_mirror()
    suites = (release,) if release == "sid" else (release, f"{release}-updates")
    with locked(debian.LISTS_LOCK, "another process is asking Debian's mirror"):
        root = debian.apt_root() / arch.name
        debian.write_sources(root, mirror, suites)
        only = {"APT::Architecture": arch.debian, "APT::Architectures": arch.debian}
        options = debian.apt_options(root, {**only, "Dir::Cache::archives": os.fspath(archives)})
        _apt([*options, "update"], _UPDATE_SECONDS, f"asking {mirror}")
        _log.info("fetching packages for guests of %s", arch.name)
        wanted = ["install", "-y", "--no-install-recommends", "--download-only"]
        argv = [*options, *wanted, *PROGRAMS, *LIBRARIES, _LAYOUT]
        _apt(argv, _DOWNLOAD_SECONDS, f"fetching packages for guests of {arch.name}")


def _apt(words: list[str], seconds: float, what: str) -> None:
    done = debian.bounded(["apt-get", "-q", *words], seconds, what)
    if not done.ok:
        raise SourceError(f"{what} failed: {debian.errors_in(done)[0]}")


def _merge(top: Path) -> None:
    """Move what packages have in /bin, /lib, /lib64 and /sbin below /usr, as Debian's usrmerge does."""
    for name in _MERGED:
        for path in _files(top / name):
            target = top / "usr" / path.relative_to(top)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(target):
                path.rename(target)
        shutil.rmtree(top / name, ignore_errors=True)
        (top / "usr" / name).mkdir(parents=True, exist_ok=True)
        (top / name).symlink_to(f"usr/{name}")


def _relink(top: Path) -> None:
    """Make absolute links relative: on this host they would lead to this host's files."""
    for path in list(_files(top)):
        if path.is_symlink() and (said := str(path.readlink())).startswith("/"):
            path.unlink()
            path.symlink_to(os.path.relpath(f"{top}{said}", path.parent))


def _files(top: Path) -> Iterator[Path]:
    """Yield the files below *top*, and the links, which are not followed."""
    for directory, names, files in os.walk(top):
        links = [name for name in names if Path(directory, name).is_symlink()]
        yield from (Path(directory, name) for name in (*files, *links))
