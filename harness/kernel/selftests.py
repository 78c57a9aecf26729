# SPDX-License-Identifier: GPL-2.0-only
"""Build a tree's own vfio and iommu selftests against its own headers, outside the tree.

They depend on the source and the compiler only, so every variant of a tree shares one build.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

from harness.errors import BuildError, InfraError
from harness.kernel.hostneeds import SELFTEST_LIBRARIES
from harness.kernel.make import Progress, ignore_progress, run_make

COLLECTIONS = ("vfio", "iommu")
FORM = "2"
"""Of what build_selftests() leaves behind: a store entry of another form is none."""

_SOURCE = "tools/testing/selftests"
_FAILED = ".failed"
_SOURCES = "sources.json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SelftestProgram:
    """One built upstream selftest."""

    collection: str  # the directory under tools/testing/selftests
    name: str
    path: Path


def collections(tree: Path) -> tuple[str, ...]:
    """Those of COLLECTIONS that the tree has; vfio's appeared in 6.18."""
    return tuple(name for name in COLLECTIONS if (tree / _SOURCE / name / "Makefile").is_file())


def build_selftests(
    tree: Path, work: Path, target: Path, log: Path, *, jobs: int, progress: Progress = ignore_progress
) -> None:
    """Install the tree's headers below *work*, build its selftests there and put the programs into *target*.

    *target* gets one directory per collection, with the programs and the scripts beside them; for one that
    does not compile, which released kernels have, a file that says why: see failures().  What the programs
    were made from is noted there too: see sources().
    Raises BuildError when the headers cannot be made, or make stops without a compiler's word.
    """
    if not collections(tree):
        return
    work.mkdir(parents=True, exist_ok=True)
    run_make(tree, [f"O={work}", f"-j{jobs}", "headers"], log, what="the kernel headers", progress=progress)
    for name in collections(tree):
        output = work / "selftests" / name
        output.mkdir(parents=True, exist_ok=True)
        arguments = [
            f"OUTPUT={output}",
            f"KHDR_INCLUDES=-isystem {work}/usr/include",
            f"top_srcdir={tree}",
            f"-j{jobs}",
            "all",
        ]
        try:
            run_make(tree / _SOURCE / name, arguments, log, what=f"selftests/{name}", progress=progress)
        except BuildError as error:
            _refuse_if_ours(error)
            (target / f"{name}{_FAILED}").write_text(error.message, encoding="utf-8")
        else:
            _install(tree / _SOURCE / name, output, target / name)
    # Here and not later: a worktree that several refs share shows another one by then.
    (target / _SOURCES).write_text(json.dumps(_digests(tree, target)), encoding="utf-8")


def sources(directory: Path) -> dict[str, str]:
    """`collection/name` of each program in *directory* -> SHA-256 of the C file of that name in its tree."""
    return dict(json.loads((directory / _SOURCES).read_text(encoding="utf-8")))


def _digests(tree: Path, target: Path) -> dict[str, str]:
    """What sources() tells; a program without a C file of its name is not in it."""
    names = [f"{program.collection}/{program.name}" for program in list_programs(target)]
    files = {name: tree / _SOURCE / f"{name}.c" for name in names}
    return {
        name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items() if file.is_file()
    }


def failures(directory: Path) -> dict[str, str]:
    """Collection -> why it does not compile, of those that `build_selftests` could not build."""
    files = sorted(directory.glob(f"*{_FAILED}"))
    return {path.name.removesuffix(_FAILED): path.read_text(encoding="utf-8") for path in files}


def _refuse_if_ours(error: BuildError) -> None:
    """Raise what is not the tree's fault: a library that the host lacks, a compiler that was killed."""
    for need in SELFTEST_LIBRARIES:
        if f"{need.header}: No such file" in error.log:
            packages = " ".join(need.packages)
            raise InfraError(f"the selftests need {need.wanted} of this host", hint=f"install {packages}")
    if ": error: " not in error.log:
        raise error


def _install(source: Path, output: Path, target: Path) -> None:
    """Copy the programs that make left in *output*, and the scripts of *source*."""
    target.mkdir(parents=True, exist_ok=True)
    programs = [path for path in output.iterdir() if _is_program(path)]
    if not programs:
        raise InfraError(f"make built no selftest in {output}")
    for path in programs:
        shutil.copy2(path, target / path.name)
    scripts = source / "scripts"
    if scripts.is_dir():
        shutil.copytree(scripts, target / "scripts", dirs_exist_ok=True)


def _is_program(path: Path) -> bool:
    if not path.is_file() or not os.access(path, os.X_OK):
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def list_programs(directory: Path) -> tuple[SelftestProgram, ...]:
    """The programs that `build_selftests` left in *directory*, by collection and name."""
    return tuple(
        SelftestProgram(collection=collection.name, name=path.name, path=path)
        for collection in sorted(directory.iterdir())
        if collection.is_dir()
        for path in sorted(collection.iterdir())
        if _is_program(path)
    )
