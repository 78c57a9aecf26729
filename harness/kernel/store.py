# SPDX-License-Identifier: GPL-2.0-only
"""The kernel store: finished kernels, by the digest of everything that decides them.

Below the cache directory:

    kernels/KEY/           kernel.json, vmlinux, config, lib/modules, build.log: whole or not there;
                           gcov/: notes and sources for coverage
    debug/KEY/             vmlinux and modules with debug information, for kernels that died
    selftests/KEY/         programs and scripts, shared by all variants of a tree
    headers/KEY/           a tree's user space headers, for the user's own programs
    programs/DIGEST/       the user's own programs and probes, as they were given or compiled
    configs/KEY.config     what olddefconfig made of a plan
    worktrees/REPO/NAME    the user's refs and directories, checked out (harness.kernel.trees)
    repositories/REPO      the git repository of these worktrees (harness.kernel.gittree)
    sources/               unpacked tarballs and Debian packages (harness.kernel.trees, harness.kernel.debian)
    apt/                   Debian's package lists (harness.kernel.debian)
    locks/                 never removed; the kernel drops a lock when its holder dies

Each worktree and unpacked source holds its builds, one O= directory vfio-harness-DIGEST per configuration.

Whole entries are found without a lock, in a read-only cache too; hold() keeps one that is used for long.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.base import paths
from harness.base.cause import Cause
from harness.base.errors import HostError, InfraError
from harness.base.locks import Waiting, making, shared
from harness.kernel.arch import Arch, find_arch, host_arch
from harness.kernel.kconfig import ResolvedConfig

OURS = "vfio-harness-"
"""What the names of our own files in a worktree, or in an unpacked source, begin with."""

_FACTS_FILE = "kernel.json"
_FACTS = (
    *("digest", "release", "build_id", "variant", "tree_label", "toolchain", "build_seconds", "cpu_seconds"),
)
"""What kernel.json must hold."""

_log = logging.getLogger("harness.kernel")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a build left in the store."""

    digest: str  # its key in the store
    arch: Arch
    release: str  # what `uname -r` says
    image: Path  # what boots
    vmlinux: Path  # the ELF file with the symbols, for debuggers
    config: Path
    modules_dir: Path | None  # the directory lib/modules/RELEASE, None when nothing is modular
    build_id: str  # GNU build-id, in hex
    toolchain: str  # versions of compiler and linker
    build_seconds: float  # seconds that the build took
    build_cpu_seconds: float  # the same in CPU time
    gcov: str = ""  # the program that reads its notes; empty without coverage counters
    is_new: bool = dataclasses.field(default=False, compare=False)
    """Whether the caller built it; otherwise it was in the store, or another process was there first."""

    @property
    def spent_cpu_seconds(self) -> float:
        """CPU time that it cost the caller."""
        return self.build_cpu_seconds if self.is_new else 0.0

    @property
    def notes(self) -> Path:
        """The directory with gcov's notes and the sources of the profiled directories, if it has counters."""
        return notes_in(self.vmlinux.parent)

    @property
    def ticks(self) -> bool:
        """Whether it interrupts every processor at a fixed rate, idle or not."""
        return ResolvedConfig.parse(self.config.read_text(encoding="utf-8")).get("HZ_PERIODIC") == "y"

    def debugger(self, server: Path) -> tuple[str, ...]:
        """Return the command that debugs it in the VM whose gdb server is the unix socket *server*."""
        return ("gdb", os.fspath(self.vmlinux), "-ex", f"target remote {server}")


def digest_of(*parts: str) -> str:
    """Return the digest of *parts*, which is a key of the store."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def kernel_entry(key: str) -> Path:
    """Return the directory of the kernel *key*, there or not."""
    return paths.cache_dir() / "kernels" / key


def source_lock(source: Path) -> str:
    """Return the name of the lock on a source of the cache and on the objects built from it."""
    return f"{source.parent.name}-{source.name}.source"


def selftests_entry(key: str) -> Path:
    """Return the directory of the selftests *key*, there or not."""
    return paths.cache_dir() / "selftests" / key


def notes_in(entry: Path) -> Path:
    """Return the directory for Built.notes in a kernel's *entry*."""
    return entry / "gcov"


def is_whole(entry: Path) -> bool:
    """Whether the kernel's directory *entry* is in the store."""
    return (entry / _FACTS_FILE).is_file()


def begin_entry(entry: Path) -> Path:
    """Make an empty directory beside *entry*, to be renamed when it is whole."""
    partial = entry.with_name(f".{entry.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def provide_entry(
    entry: Path,
    busy: str,
    make: Callable[[Path], object],
    waiting: Waiting = lambda: None,
    *,
    is_there: Callable[[Path], bool] = Path.is_dir,
) -> bool:
    """Have *entry* in the cache, whole; return whether it was made now.

    *make* fills a directory beside it, which is then renamed.  Meanwhile other processes wait, say *busy* and
    call *waiting*.  Raises HostError when the cache cannot be written, and what *make* and *waiting* raise.
    """
    if is_there(entry):
        note_use(entry)
        return False
    with making(entry.name, busy, lambda: is_there(entry), waiting) as is_ours, writing_cache(entry):
        if is_ours:
            partial = begin_entry(entry)
            make(partial)
            partial.rename(entry)
    note_use(entry)
    return is_ours


@contextlib.contextmanager
def writing_cache(what: Path) -> Iterator[None]:
    """Turn an OSError of the cache's disk into an InfraError."""
    try:
        yield
    except OSError as error:
        raise HostError(
            f"cannot write to the cache: {error.filename or what}: {error.strerror or error}",
            hint="set VFIO_HARNESS_CACHE to another directory",
        ) from error


def note_use(entry: Path) -> None:
    """Make *entry* the last to be pruned."""
    with contextlib.suppress(OSError):
        os.utime(entry)


def find_built(digest: str) -> Built | None:
    """Return the kernel *digest*, None when the store lacks it; InfraError when it is damaged."""
    entry = kernel_entry(digest)
    if not is_whole(entry):
        return None
    facts = read_facts(entry)
    modules = entry / "lib" / "modules" / str(facts["release"])
    # Entries of older versions do not name it: those were built for this host.
    arch = find_arch(facts["arch"]) if "arch" in facts else host_arch()
    note_use(entry)
    return Built(
        digest=digest,
        arch=arch,
        image=entry / arch.image_name,
        release=str(facts["release"]),
        vmlinux=entry / "vmlinux",
        config=entry / "config",
        modules_dir=modules if modules.is_dir() else None,
        build_id=str(facts["build_id"]),
        toolchain=str(facts["toolchain"]),
        build_seconds=float(facts["build_seconds"]),
        build_cpu_seconds=float(facts["cpu_seconds"]),
        gcov=str(facts.get("gcov", "")),
    )


@contextlib.contextmanager
def hold(
    kernel_digest: str, selftests_digest: str | None = None, programs: Iterable[str] = ()
) -> Iterator[None]:
    """Keep a kernel of the store, selftests and own *programs* from being pruned while a VM runs on them.

    Any number of processes may hold one kernel.  Raises InfraError when one of them was pruned before it
    was held.
    """
    entries = [
        kernel_entry(kernel_digest),
        *([selftests_entry(selftests_digest)] if selftests_digest else []),
        *map(paths.programs_entry, programs),
    ]
    with contextlib.ExitStack() as stack:
        for entry in entries:
            stack.enter_context(shared(entry.name, f"another process is working on {entry}"))
            if not entry.is_dir():
                raise InfraError(
                    f"{entry} was removed from the cache before it could be used",
                    hint="run it again",
                    cause=Cause.KERNEL_MISSING,
                )
            note_use(entry)
        yield


def list_kernels() -> tuple[Mapping[str, Any], ...]:
    """Return the kernel.json of every whole entry in the store, the most recently used last.

    A damaged entry is left out, and a warning names it.
    """
    found = []
    for path in (paths.cache_dir() / "kernels").glob(f"[!.]*/{_FACTS_FILE}"):
        with contextlib.suppress(FileNotFoundError):  # pruned since the glob
            used = path.parent.stat().st_mtime
            try:
                found.append((used, read_facts(path.parent)))
            except InfraError as error:
                _log.warning("%s", error)
    return tuple(facts for _used, facts in sorted(found, key=lambda pair: pair[0]))


def write_facts(entry: Path, facts: Mapping[str, object]) -> None:
    """Write the kernel.json of an entry that is being made."""
    (entry / _FACTS_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def read_facts(entry: Path) -> Mapping[str, Any]:
    """Return the kernel.json of a store entry; InfraError when it is damaged."""
    reason = f"{_FACTS_FILE} is malformed"
    try:
        facts = json.loads((entry / _FACTS_FILE).read_text(encoding="utf-8"))
        if isinstance(facts, dict) and all(name in facts for name in _FACTS):
            return facts
    except (OSError, ValueError) as error:
        reason = str(error)
    raise InfraError(
        f"the store entry {entry} is damaged: {reason}", hint=f"remove {entry}", cause=Cause.KERNEL_MISSING
    )
