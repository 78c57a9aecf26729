# SPDX-License-Identifier: GPL-2.0-only
"""Build a tree's own vfio and iommu selftests against its own headers, outside the tree.

They depend on nothing but the source and the compiler, so all variants of a tree share one build.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

from harness.base.errors import BuildError, HostError
from harness.kernel import elf
from harness.kernel.make import Make
from harness.kernel.userspace import libraries_of, top_of

COLLECTIONS = ("vfio", "iommu")
FORM = "4"
"""The version of what build_selftests() leaves behind; part of its key."""

_SOURCE = "tools/testing/selftests"
_FAILED = ".failed"
_SOURCES = "sources.json"
_FEATURES = "features.json"

_LIBVFIO = f"{_SOURCE}/vfio/lib"
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_FINDS_NOT = {
    # vfio_pci_get_cdev_path(): the entry of vfio-dev/ must start with "vfio".
    "libvfio-noiommu-cdev": re.compile(r'strncmp\([^;]*"vfio"'),
    # vfio_pci_group_setup(): a group without the prefix noiommu-.
    "libvfio-noiommu-group": re.compile(r'"/dev/vfio/%[du]"'),
}
"""Feature -> code that shows its lack, if found in a function of libvfio without the word noiommu."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SelftestProgram:
    """One built upstream selftest."""

    collection: str  # the directory under tools/testing/selftests
    name: str
    path: Path


def collections(tree: Path) -> tuple[str, ...]:
    """Return those of COLLECTIONS that the tree has; vfio's appeared in 6.18."""
    return tuple(name for name in COLLECTIONS if (tree / _SOURCE / name / "Makefile").is_file())


def install_headers(make: Make, work: Path, target: Path) -> None:
    """Make the uapi headers of a tree below *work* and copy them to *target*.

    Raises BuildError when they cannot be made, HostError for host trouble.
    """
    work.mkdir(parents=True, exist_ok=True)
    make.run([f"O={work}", "headers"], what="the kernel headers")
    shutil.copytree(work / "usr" / "include", target)


def build_selftests(
    make: Make, work: Path, target: Path, *, headers: Path | None = None, userspace: Path | None = None
) -> None:
    """Install the tree's headers below *work*, build its selftests there and put the programs into *target*.

    With *headers*, the directory of another kernel's, they are compiled against these.  Another architecture
    has its libraries in the entry *userspace* of the cache.
    *target* gets one directory per collection, with the programs and their scripts.  If a program does not
    compile, as in some released kernels, a file beside the others gives the reason: see failures(). The
    digests of the programs' sources are kept, too, and what libvfio can do: see sources() and features().
    Raises BuildError when the headers cannot be made, HostError for host trouble.
    """
    tree = make.tree
    if not collections(tree):
        return
    work.mkdir(parents=True, exist_ok=True)
    if headers is None:
        make.run([f"O={work}", "headers"], what="the kernel headers")
    for name in collections(tree):
        output = work / "selftests" / name
        # Leftovers from another state of the tree would be installed, too.
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        arguments = [
            "--keep-going",
            f"OUTPUT={output}",
            f"KHDR_INCLUDES=-isystem {headers or work / 'usr/include'}",
            f"top_srcdir={tree}",
            *(_foreign(userspace) if userspace is not None else ()),
            "all",
        ]
        try:
            make.run(arguments, directory=f"{_SOURCE}/{name}", what=f"selftests/{name}")
        except BuildError as error:
            (target / f"{name}{_FAILED}").write_text(error.message, encoding="utf-8")
        _install(tree / _SOURCE / name, output, target / name)
        if not list_programs(target, name) and name not in failures(target):
            raise HostError(f"make built no selftest in {output}")
    # Read them now, because a shared worktree may have another ref checked out later.
    (target / _SOURCES).write_text(json.dumps(_digests(tree, target)), encoding="utf-8")
    (target / _FEATURES).write_text(json.dumps(libvfio_features(tree)), encoding="utf-8")


def _foreign(userspace: Path) -> tuple[str, str]:
    """Return the variables of kselftest's lib.mk with which it finds headers and libraries in *userspace*.

    Of the headers only those that the cross compiler has not: it has its own libc.
    """
    return (
        f"USERCFLAGS=-idirafter {top_of(userspace) / 'usr/include'}",
        f"USERLDFLAGS=-L{libraries_of(userspace)}",
    )


def kselftest_headers(tree: Path) -> tuple[Path, ...]:
    """Return the headers of kselftest itself, with which a test prints KTAP."""
    return tuple(sorted((tree / _SOURCE).glob("kselftest*.h")))


def sources(directory: Path) -> dict[str, str]:
    """Return, for each program `collection/name` in *directory*, the SHA-256 of its C file in the tree."""
    return dict(json.loads((directory / _SOURCES).read_text(encoding="utf-8")))


def features(directory: Path) -> tuple[str, ...]:
    """Return what the libvfio of the programs in *directory* can do, as features of guest/needs.py."""
    return tuple(json.loads((directory / _FEATURES).read_text(encoding="utf-8")))


def libvfio_features(tree: Path) -> tuple[str, ...]:
    """Return the features of *tree*'s libvfio: all except those that its source clearly lacks."""
    files = sorted((tree / _LIBVFIO).rglob("*.[ch]"))
    code = (_COMMENT.sub("", file.read_text(encoding="utf-8", errors="replace")) for file in files)
    # A function ends at a brace in the first column.
    functions = [function for text in code for function in text.split("\n}") if "noiommu" not in function]
    return tuple(
        feature for feature, form in _FINDS_NOT.items() if not any(form.search(f) for f in functions)
    )


def _digests(tree: Path, target: Path) -> dict[str, str]:
    """Return what sources() reads; a program without a C file of its name is left out."""
    names = [f"{program.collection}/{program.name}" for program in list_programs(target)]
    files = {name: tree / _SOURCE / f"{name}.c" for name in names}
    return {
        name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items() if file.is_file()
    }


def failures(directory: Path) -> dict[str, str]:
    """Return the reason for each collection in *directory* of which something did not compile."""
    files = sorted(directory.glob(f"*{_FAILED}"))
    return {path.name.removesuffix(_FAILED): path.read_text(encoding="utf-8") for path in files}


def _install(source: Path, output: Path, target: Path) -> None:
    """Copy the programs in *output* and the scripts of *source*."""
    programs = [path for path in output.iterdir() if _is_program(path)]
    if not programs:
        return
    target.mkdir(parents=True, exist_ok=True)
    for path in programs:
        shutil.copy2(path, target / path.name)
    scripts = source / "scripts"
    if scripts.is_dir():
        shutil.copytree(scripts, target / "scripts", dirs_exist_ok=True)


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK) and elf.is_elf(path)


def list_programs(directory: Path, only: str = "*") -> tuple[SelftestProgram, ...]:
    """Return the programs that `build_selftests` left in *directory*, by collection and name."""
    return tuple(
        SelftestProgram(collection=collection.name, name=path.name, path=path)
        for collection in sorted(directory.glob(only))
        if collection.is_dir()
        for path in sorted(collection.iterdir())
        if _is_program(path)
    )
