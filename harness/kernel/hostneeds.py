# SPDX-License-Identifier: GPL-2.0-only
"""What this host needs to fetch and build kernels and selftests: one table for builds and doctor.

Package names are Debian's.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from harness.base.errors import HostError
from harness.base.process import find_tool
from harness.kernel.arch import host_arch
from harness.kernel.debian import KEYRING
from harness.kernel.toolchain import GCC, Toolchain


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HostNeed:
    """A program, a C header or a file that must be on the host."""

    name: str
    packages: tuple[str, ...]
    cost: str
    """What does not work without it."""
    programs: tuple[str, ...] = ()
    """Any one of these will do, unless *every* says otherwise."""
    every: bool = False
    header: str = ""
    """The name of the header in an #include."""
    file: Path | None = None
    vital: bool = True
    """Whether the default run needs it; otherwise only some trees do."""

    @property
    def wanted(self) -> str:
        """What is looked for, as text for people."""
        if self.header:
            return f"<{self.header}>"
        if self.every:
            missing = [program for program in self.programs if find_tool(program) is None]
            named = missing or list(self.programs)
            return f"{named[0]} and {len(named) - 1} more" if len(named) > 2 else ", ".join(named)
        return str(self.file) if self.file is not None else " or ".join(self.programs)

    def find(self) -> str | None:
        """The path of what meets the need, None when the host lacks it."""
        if self.header:
            return find_header(self.header)
        if self.file is not None:
            return str(self.file) if self.file.is_file() else None
        found = [path for program in self.programs if (path := find_tool(program))]
        return next(iter(found), None) if not self.every or len(found) == len(self.programs) else None


def find_header(name: str) -> str | None:
    """Return the path of the C header *name* of this host, None when the host lacks it."""
    places = ("/usr/include", f"/usr/include/{host_arch().triplet}", "/usr/local/include")
    found = (Path(place, name) for place in places)
    return next((str(path) for path in found if path.exists()), None)


def tool(program: str, package: str, cost: str, *, vital: bool = True) -> HostNeed:
    """Return the need of a *program* that *package* provides."""
    return HostNeed(name=program, programs=(program,), packages=(package,), cost=cost, vital=vital)


def _library(name: str, header: str, package: str, cost: str) -> HostNeed:
    return HostNeed(name=name, header=header, packages=(package,), cost=cost)


_NO_BUILD = "no kernel can be built"
_NO_SELFTESTS = "upstream's selftests cannot be built"
_NO_DEBIAN = "Debian's kernel sources cannot be fetched; give a tree of your own"

_MAKE_TOOLS = tuple(tool(name, name, _NO_BUILD) for name in ("make", "flex", "bison", "bc"))


def build_needs(toolchain: Toolchain, cross: str = "") -> tuple[HostNeed, ...]:
    """Return the programs without which no build is begun (Documentation/process/changes.rst)."""
    return (*toolchain_needs(toolchain, cross), *_MAKE_TOOLS)


def toolchain_needs(toolchain: Toolchain, cross: str = "") -> tuple[HostNeed, ...]:
    """Return the programs of *toolchain*; *cross* is the label of an architecture that is not this host's."""
    of = f" of {toolchain.name}" if toolchain.label else ""
    of += f" for {cross}" if cross else ""
    cost = f"nothing can be built with --toolchain {toolchain.name}" if toolchain.label else _NO_BUILD
    cost = f"no kernel can be built for {cross}" if cross else cost
    rows = (
        ("C compiler" + of, toolchain.programs[:1], toolchain.compiler_packages),
        ("linker" + of, toolchain.programs[1:], toolchain.linker_packages),
        ("object tools" + of, toolchain.tools, toolchain.binutils_packages),
    )
    return tuple(
        HostNeed(name=name, programs=programs, every=True, packages=toolchain.packages(packages), cost=cost)
        for name, programs, packages in rows
    )


def require_build_tools(toolchain: Toolchain, cross: str = "") -> None:
    """Raise InfraError naming the programs and packages that a build lacks; parameters as build_needs()."""
    missing = [need for need in build_needs(toolchain, cross) if need.find() is None]
    if missing:
        packages = " ".join(dict.fromkeys(package for need in missing for package in need.packages))
        option = f" --toolchain {toolchain.name}" if toolchain.label else ""
        option += f" --arch {cross}" if cross else ""
        fix = f"install {packages}, or run: vfio-harness doctor{option} --fix"
        kernel = f"a kernel build for {cross}" if cross else "a kernel build"
        raise HostError(
            f"{kernel} needs {', '.join(need.wanted for need in missing)}",
            hint=fix if packages else f"check the prefix {toolchain.name}",
        )


KERNEL_NEEDS = (
    *build_needs(GCC),
    _library("libelf", "libelf.h", "libelf-dev", _NO_BUILD),
    _library("OpenSSL", "openssl/ssl.h", "libssl-dev", _NO_BUILD),
    tool("depmod", "kmod", "modular kernels cannot be built"),
    tool("rsync", "rsync", _NO_SELFTESTS),
    _library("libuuid", "uuid/uuid.h", "uuid-dev", _NO_SELFTESTS),
    _library("libcap", "sys/capability.h", "libcap-dev", _NO_SELFTESTS),
    tool("tar", "tar", "packaged sources cannot be unpacked"),
    tool("xz", "xz-utils", "packaged sources cannot be unpacked"),
    tool("dpkg-deb", "dpkg", _NO_DEBIAN, vital=False),
    HostNeed(
        name="Debian's keys",
        file=KEYRING,
        packages=("debian-archive-keyring",),
        cost=_NO_DEBIAN,
        vital=False,
    ),
    tool("git", "git", "no tree that is a git checkout can be used", vital=False),
)
"""All of it, for the default toolchain."""
