# SPDX-License-Identifier: GPL-2.0-only
"""The user's own programs and probes: read once into the store, and compiled for a kernel.

What is read is what runs: later changes of the user's files reach no run that has begun.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from harness.base import paths, process
from harness.base.deadline import Deadline
from harness.base.errors import HostError, UsageError, nearest
from harness.kernel.make import Progress, ignore_progress
from harness.kernel.provide import SelftestPlan, provide_headers
from harness.kernel.store import digest_of, provide_entry
from harness.kernel.toolchain import Toolchain

FORM = "1"
"""The version of how programs are compiled; part of their keys."""

_MOST_MIB = 64
"""Guests keep programs in memory, and the smallest guest has 1 GiB."""

_LEFT_OUT = frozenset({".git", "__pycache__"})

_NAME = re.compile(r"[\w.+-]+")
"""A name that needs no quoting in an address."""

_REFUSED = re.compile(
    r"[^\s:]+:\d+(?::\d+)?: (?:fatal )?error: |.*: (?:undefined reference to |multiple definition of )"
)
"""What a compiler or a linker prints about the source."""

_COMPILE_SECONDS = 300.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A program of the user's in the store, as it was given."""

    name: str
    """Its name in addresses."""
    digest: str
    """Of its files."""
    main: str
    """The file that is run, or compiled; empty for a directory of probes."""
    is_directory: bool

    @property
    def is_source(self) -> bool:
        """Whether it has to be compiled."""
        return self.main.endswith(".c")

    @property
    def executable(self) -> str:
        """The file that is run."""
        return self.main.removesuffix(".c")

    @property
    def entry(self) -> Path:
        """The directory in the store with its files."""
        return paths.programs_entry(self.digest)

    def place_in(self, directory: Path) -> Path:
        """Return the path of its copy in *directory*, which can be given in its place."""
        return directory / (self.name if self.is_directory else self.main)

    def copy_to(self, directory: Path) -> None:
        """Copy it as it was given into *directory*, unless it is there.  Raises OSError."""
        target = self.place_in(directory)
        if not target.exists():
            directory.mkdir(parents=True, exist_ok=True)
            if self.is_directory:
                shutil.copytree(self.entry, target)
            else:
                shutil.copy2(self.entry / self.main, target)


def take_program(path: Path) -> Taken:
    """Read the program *path*, a file or a directory, into the store.

    Raises UsageError for what cannot be run, InfraError when the store cannot be written.
    """
    files = _files(path, "--program")
    name = path.absolute().name if path.is_dir() else re.sub(r"\.(?:c|py|sh)$", "", path.name)
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"--program {path}: {name!r} cannot be part of an address",
            hint="rename it: letters, digits and . _ + - are allowed",
        )
    main = path.name
    if path.is_dir():
        choices = (name, f"{name}.sh", f"{name}.py", f"{name}.c")
        main = next((choice for choice in choices if choice in files), "")
        if not main:
            raise UsageError(f"--program {path}: it has no program {name}", hint=f"nor {name}.sh, .py or .c")
    _check_can_run(files[main], main)
    return Taken(name=name, digest=_store(files), main=main, is_directory=path.is_dir())


def _check_can_run(path: Path, main: str) -> None:
    """Refuse a file that is neither a source nor executable."""
    if main.endswith((".c", ".py")):
        return
    if not os.access(path, os.X_OK):
        raise UsageError(f"--program: {path} is not executable", hint=f"chmod +x {path}")
    with path.open("rb") as file:
        start = file.read(4)
    if start != b"\x7fELF" and not start.startswith(b"#!"):
        raise UsageError(
            f"--program: {path} is neither an ELF file nor a script that begins with #!",
            hint="C sources are called *.c, Python programs *.py",
        )


def take_probes(path: Path) -> Taken:
    """Read the Python files of the directory *path* into the store.  Raises as take_program()."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"--probes {path}: it is not a directory", hint=f"give {path.parent}")
    files = {name: file for name, file in _files(path, "--probes").items() if "/" not in name}
    sources = {name: file for name, file in files.items() if name.endswith(".py") and name != "__init__.py"}
    if not sources:
        raise UsageError(f"--probes {path}: it has no module", hint="probes are in *.py files")
    return Taken(name=path.absolute().name, digest=_store(sources), main="", is_directory=True)


def _files(path: Path, option: str) -> dict[str, Path]:
    """Return the file *path*, or those below it, by the names under which the store has them."""
    try:
        if not path.exists():
            there = [one.name for one in path.absolute().parent.iterdir()] if path.parent.is_dir() else []
            hint = nearest(path.name, there, otherwise="")
            raise UsageError(f"{option}: there is no {path}", hint=hint or None)
        files = dict(_walk(path)) if path.is_dir() else {path.name: path}
        if not files:
            raise UsageError(f"{option} {path}: the directory is empty")
        size = sum(file.stat().st_size for file in files.values())
        for file in files.values():
            if not os.access(file, os.R_OK):
                raise UsageError(f"{option}: {file} is not readable")
    except OSError as error:
        raise UsageError(f"{option}: {error.filename or path}: {error.strerror}") from error
    if size > _MOST_MIB << 20:
        raise UsageError(
            f"{option} {path}: {size >> 20} MiB are too many: at most {_MOST_MIB} fit into a guest"
        )
    return files


def _walk(top: Path) -> Iterator[tuple[str, Path]]:
    """Yield the regular files below *top*, with the targets of links in their place."""
    for directory, names, files in os.walk(top):
        names[:] = sorted(set(names) - _LEFT_OUT)
        for name in sorted(files):
            path = Path(directory, name)
            if path.is_file():
                yield os.fspath(path.relative_to(top)), path


def _store(files: Mapping[str, Path]) -> str:
    """Put *files* into the store; return the digest of their names, modes and contents."""
    try:
        read = {name: (os.access(path, os.X_OK), path.read_bytes()) for name, path in files.items()}
    except OSError as error:
        where = error.filename or ", ".join(map(os.fspath, files.values()))
        raise UsageError(f"{where}: {error.strerror}") from error
    parts = (f"{name} {mode} {hashlib.sha256(data).hexdigest()}" for name, (mode, data) in read.items())
    entry = paths.programs_entry(digest_of("files", FORM, *sorted(parts)))

    def write(partial: Path) -> None:
        for name, (executable, data) in read.items():
            target = partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            target.chmod(0o755 if executable else 0o644)

    provide_entry(entry, "another process is reading the same program", write)
    return entry.name


def provide_program(
    plan: SelftestPlan | None, taken: Taken, *, compilers: int, progress: Progress = ignore_progress
) -> str:
    """Return the digest of *taken* ready to run: a source is compiled as *plan* says for selftests.

    Statically, against the uapi headers of the kernel's own tree and with its toolchain.  Raises UsageError
    with the compiler's first error, and for a source without a *plan*; BuildError and InfraError for the
    headers, HostError for a broken toolchain.
    """
    if not taken.is_source:
        return taken.digest
    if plan is None:
        raise UsageError(
            f"{taken.main} cannot be compiled: a finished kernel comes without the source of its headers",
            hint="give a source for them, --selftests TREE, or compile it yourself",
        )
    parts = ("program", FORM, taken.digest, plan.headers.selftest_identity, str(plan.built_with))
    entry = paths.programs_entry(digest_of(*parts, plan.arch.name))

    def compile_it(partial: Path) -> None:
        headers = provide_headers(plan, compilers=compilers, progress=progress)
        shutil.copytree(taken.entry, partial, dirs_exist_ok=True)
        _compile(plan.toolchain, headers, partial, taken)

    provide_entry(entry, f"another process is compiling {taken.main}", compile_it)
    return entry.name


def _compile(toolchain: Toolchain, headers: Path, directory: Path, taken: Taken) -> None:
    # As upstream's selftests, which define it on the command line too (tools/testing/selftests/lib.mk).
    options = ["-O2", "-static", "-pthread", "-D_GNU_SOURCE="]
    places = ["-isystem", os.fspath(headers / "include"), "-I", os.fspath(headers)]
    argv = [toolchain.programs[0], *options, *places, "-o", taken.executable, taken.main]
    done = process.run(argv, cwd=directory, deadline=Deadline.after(_COMPILE_SECONDS))
    if done.ok:
        return
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    refused = next((line for line in lines if _REFUSED.match(line)), None)
    if refused is None:
        said = lines[-1] if lines else "no output"
        raise HostError(f"{argv[0]} cannot compile {taken.main}: {said}", hint="see: vfio-harness doctor")
    alone = not taken.is_directory and re.search(r"fatal error: .*\.h: No such file", refused)
    raise UsageError(
        f"{taken.main} does not compile against the headers of the kernel: {refused}",
        hint="give a program of several files as a directory" if alone else None,
    )
