# SPDX-License-Identifier: GPL-2.0-only
"""Toolchain: the compiler, linker and binutils that kernels are built with, one row for each kind.

Nothing else names a compiler or linker, or the make variables that select one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Mapping

from harness.base import process
from harness.base.errors import HostError, UsageError, nearest
from harness.kernel.arch import ARCHES, Arch

DEFAULT = "gcc"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ToolchainIdentity:
    """The versions that its programs print: part of the digest of all that it builds."""

    compiler: str
    linker: str
    tools: str = ""
    """Of the object tools, where they do not come with the linker."""

    def __str__(self) -> str:
        return "; ".join(filter(None, (self.compiler, self.linker, self.tools)))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Toolchain:
    """One kind of compiler and linker, perhaps of a given version or with a prefix."""

    name: str
    """As `--toolchain` takes it."""
    compiler: str
    """The compiler's program without prefix and suffix; likewise the linker's."""
    linker: str
    binutils: tuple[str, ...]
    """The other programs, which kbuild calls."""
    suffixed: bool
    """Whether linker and binutils have the suffix of the compiler."""
    retargetable: bool
    """Whether one compiler builds for every architecture."""
    oldest: int
    """The oldest major version that Linux 7.3 takes (scripts/min-tool-version.sh)."""
    version: re.Pattern[str]
    """Finds the major version in the first line of the compiler's `--version`."""
    select: Callable[[Toolchain], tuple[str, ...]]
    """Returns the make variables that select it, for kernels and selftests."""
    compiler_packages: tuple[str, ...]
    """Debian's packages of the compiler for this host, without suffix; likewise of linker and binutils."""
    linker_packages: tuple[str, ...]
    binutils_packages: tuple[str, ...]
    killed: re.Pattern[str]
    """What its programs print when one of them was killed."""
    coverage: str = ""
    """The program that reads the compiler's coverage notes; empty if none of a kernel can be read."""
    prefix: str = ""
    """What the programs' names begin with: that of a cross compiler, or a directory."""
    suffix: str = ""
    """What the programs' names end with, `-19`."""

    @property
    def label(self) -> str:
        """Its name as part of the name of a job; empty for the default one."""
        return "" if self.name == DEFAULT else label_of(self.name)

    @property
    def make_arguments(self) -> tuple[str, ...]:
        """Its part of make's command line."""
        return self.select(self)

    @property
    def programs(self) -> tuple[str, str]:
        """The names of compiler and linker in PATH."""
        return self.prefix + self.compiler + self.suffix, self._tool(self.linker)

    @property
    def gcov(self) -> str:
        """The name in PATH of the program that reads the compiler's coverage notes; empty without one."""
        return self.prefix + self.coverage + self.suffix if self.coverage else ""

    @property
    def tools(self) -> tuple[str, ...]:
        """The names of the binutils in PATH."""
        return tuple(map(self._tool, self.binutils))

    def _tool(self, program: str) -> str:
        return self.prefix + program + (self.suffix if self.suffixed else "")

    def packages(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return Debian's packages of this version and prefix for the packages *names* of the row."""
        if "/" in self.prefix:
            return ()
        found = {name: name + (self.suffix if name in self.numbered_packages else "") for name in names}
        if self.prefix:
            of = self.prefix.rstrip("-").replace("_", "-")
            foreign = (one for one in ARCHES.values() if one.label and self.prefix == f"{one.triplet}-")
            library = next((f"-{one.debian}-cross" for one in foreign), "")
            return tuple(
                f"{found[name]}{library if name.startswith('lib') else f'-{of}'}"
                for name in names
                if library or not name.startswith("lib")
            )
        return tuple(found.values())

    @property
    def numbered_packages(self) -> tuple[str, ...]:
        """Those of Debian's packages that have a numbered one for each version."""
        compiler = self.compiler_packages[0]
        return (compiler, *self.linker_packages, *self.binutils_packages) if self.suffixed else (compiler,)

    def __str__(self) -> str:
        return " and ".join(self.programs)

    def resolve(self, arch: Arch) -> Toolchain:
        """Return it with the prefix that it needs for *arch*, and the version that this host has.

        Without a version in its name it is the one without a suffix, or the newest one if that is missing,
        incomplete or too old for Linux 7.3.
        """
        crossing = "" if self.retargetable else arch.cross_compile
        plain = dataclasses.replace(self, prefix=self.prefix or crossing)
        if self.prefix or self.suffix:
            return plain
        versions = (dataclasses.replace(plain, suffix=f"-{major}") for major in range(_LAST_MAJOR, 0, -1))
        return next((one for one in (plain, *versions) if one.is_complete and one.is_new_enough), plain)

    @property
    def is_complete(self) -> bool:
        """Whether this host has all of its programs."""
        return all(process.find_tool(program) for program in (*self.programs, *self.tools))

    @property
    def is_new_enough(self) -> bool:
        """Whether its compiler is one that Linux 7.3 takes."""
        found = self.version.search(_version(self.programs[0]))
        return found is None or int(found[1]) >= self.oldest

    def identify(self, arch: Arch) -> ToolchainIdentity:
        """Ask its programs for their versions.

        Raises HostError when one cannot be run, UsageError when it compiles for another architecture.
        """
        compiler, linker = map(_version, self.programs)
        if self.prefix and not self.retargetable:
            target = process.run([self.programs[0], "-dumpmachine"]).stdout.strip()
            if target.partition("-")[0] != arch.host:
                raise UsageError(f"{self.programs[0]} compiles for {target}, not for {arch.name}")
        tools = _version(self.tools[0]) if self.binutils_packages != self.linker_packages else ""
        return ToolchainIdentity(compiler=compiler, linker=linker, tools=tools)


_LAST_MAJOR = 99
"""No compiler has a newer major version yet."""


def _version(program: str) -> str:
    """Return the line with the version that `PROGRAM --version` prints.  Raises HostError when it fails."""
    done = process.run([program, "--version"])
    line = re.search(r"^.*\d\.\d.*$", done.stdout, re.MULTILINE)
    if done.status != 0 or line is None:
        what = "printed no version" if done.status == 0 else done.ending
        raise HostError(f"{program} --version {what}", hint="check that it is whole: reinstall it")
    return line[0].strip()


def _select_gcc(toolchain: Toolchain) -> tuple[str, ...]:
    compiler = toolchain.programs[0]
    return (
        *([f"CROSS_COMPILE={toolchain.prefix}"] if toolchain.prefix else ()),
        *([f"CC={compiler}"] if toolchain.suffix else ()),
        *([f"HOSTCC={compiler}"] if toolchain.suffix and not toolchain.prefix else ()),
    )


def _select_llvm(toolchain: Toolchain) -> tuple[str, ...]:
    # Documentation/kbuild/llvm.rst
    return (f"LLVM={toolchain.prefix or toolchain.suffix or 1}",)


GCC = Toolchain(
    name=DEFAULT,
    compiler="gcc",
    linker="ld",
    binutils=("as", "ar", "nm", "objcopy", "objdump", "readelf", "strip"),
    suffixed=False,
    retargetable=False,
    oldest=8,
    version=re.compile(r"\) (\d+)\."),
    select=_select_gcc,
    compiler_packages=("gcc", "libc6-dev"),
    linker_packages=("binutils",),
    binutils_packages=("binutils",),
    killed=re.compile("Killed signal terminated program|terminated with signal 9"),
    coverage="gcov",
)

LLVM = Toolchain(
    name="llvm",
    compiler="clang",
    linker="ld.lld",
    binutils=tuple(f"llvm-{name}" for name in ("ar", "nm", "objcopy", "objdump", "readelf", "strip")),
    suffixed=True,
    retargetable=True,
    oldest=17,
    version=re.compile(r"version (\d+)\."),
    select=_select_llvm,
    compiler_packages=("clang", "libc6-dev"),
    linker_packages=("lld",),
    binutils_packages=("llvm",),
    killed=re.compile("unable to execute command: Killed"),
)

TOOLCHAINS = {toolchain.name: toolchain for toolchain in (GCC, LLVM)}

EXAMPLE_PREFIX = f"{next(iter(ARCHES.values())).triplet}-"
"""For help and messages."""

_VERSIONED = re.compile(r"([a-z]+)(-[1-9]\d*)")
_PREFIX = re.compile(r"[\w./+~-]*[-/]")


def find_toolchain(name: str) -> Toolchain:
    """Return the toolchain that `--toolchain NAME` means, whether or not this host has it.

    Raises UsageError for a name that means none, with the nearest one.
    """
    versioned = _VERSIONED.fullmatch(name)
    row, suffix = versioned.groups() if versioned else (name, "")
    if row in TOOLCHAINS:
        return dataclasses.replace(TOOLCHAINS[row], name=name, suffix=suffix)
    if _PREFIX.fullmatch(name):
        if "/" in name and not name.startswith("/"):
            raise UsageError(f"toolchain {name!r}: give an absolute path")
        # A directory may hold any row, as kbuild's LLVM=DIRECTORY/; the prefix of a cross compiler is gcc's.
        rows = reversed(TOOLCHAINS.values()) if name.endswith("/") else ()
        found = next((one for one in rows if process.find_tool(name + one.compiler)), GCC)
        return dataclasses.replace(found, name=name, prefix=name)
    meant = {one.compiler: one.name + suffix for one in TOOLCHAINS.values()}.get(row)
    if process.find_tool(f"{name}-{GCC.compiler}"):
        meant = f"{name}-"
    otherwise = f"known: {', '.join(TOOLCHAINS)}, {LLVM.name}-19 and such, a prefix such as {EXAMPLE_PREFIX}"
    hint = f"did you mean {meant!r}?" if meant else nearest(row, TOOLCHAINS, otherwise=otherwise)
    raise UsageError(f"there is no toolchain {name!r}", hint=hint)


def named_in(environ: Mapping[str, str]) -> str:
    """Return the toolchain that LLVM, CROSS_COMPILE and CC in *environ* mean to kbuild; empty for none."""
    name = _named_in(environ)
    with contextlib.suppress(UsageError):
        return find_toolchain(name).name
    return ""


def _named_in(environ: Mapping[str, str]) -> str:
    llvm, prefix = environ.get("LLVM", ""), environ.get("CROSS_COMPILE", "")
    if llvm or prefix:
        return prefix if not llvm else llvm if "/" in llvm else LLVM.name + llvm.removeprefix("1")
    # CC="ccache gcc-13"
    path = (environ.get("CC", "").split() or [""])[-1]
    directory, program = os.path.split(path)
    found = re.fullmatch(r"(.*-)?(gcc|clang)(-\d+)?", program)
    if not found:
        return ""
    where = "" if process.find_tool(program) == path else directory
    if where or found[1]:
        return (f"{where}/" if where else "") + (found[1] or "")
    return next(row.name for row in TOOLCHAINS.values() if row.compiler == found[2]) + (found[3] or "")


def label_of(name: str) -> str:
    """Return the toolchain *name* as part of the name of a job."""
    return name.strip("/-").replace("/", "-")
