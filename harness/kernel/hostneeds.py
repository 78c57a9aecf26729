# SPDX-License-Identifier: GPL-2.0-only
"""What kernels and selftests need of this host to be fetched and built: one table for whoever asks.

Package names are Debian's.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from harness.kernel.debian import KEYRING
from harness.process import find_tool

_INCLUDE = (Path("/usr/include"), Path("/usr/include/x86_64-linux-gnu"), Path("/usr/local/include"))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HostNeed:
    """A program, a C header or a file that must be on the host."""

    name: str
    packages: tuple[str, ...]
    cost: str
    """What does not work without it."""
    programs: tuple[str, ...] = ()
    """Any one of these will do."""
    header: str = ""
    """As it is included."""
    file: Path | None = None
    vital: bool = True
    """Whether the default run needs it; otherwise only some trees do."""

    @property
    def wanted(self) -> str:
        """What is looked for, in words."""
        if self.header:
            return f"<{self.header}>"
        return str(self.file) if self.file is not None else " or ".join(self.programs)

    def find(self) -> str | None:
        """The path of what meets the need, None when the host lacks it."""
        if self.header:
            return next((str(d / self.header) for d in _INCLUDE if (d / self.header).exists()), None)
        if self.file is not None:
            return str(self.file) if self.file.is_file() else None
        return next((path for program in self.programs if (path := find_tool(program))), None)


def _tool(program: str, package: str, cost: str, *, vital: bool = True) -> HostNeed:
    return HostNeed(name=program, programs=(program,), packages=(package,), cost=cost, vital=vital)


def _library(name: str, header: str, package: str, cost: str) -> HostNeed:
    return HostNeed(name=name, header=header, packages=(package,), cost=cost)


_NO_BUILD = "no kernel can be built"
_NO_SELFTESTS = "upstream's selftests cannot be built"
_NO_DEBIAN = "Debian's kernel sources cannot be had; give a tree of your own"

BUILD_TOOLS = (
    HostNeed(name="C compiler", programs=("gcc",), packages=("gcc", "libc6-dev"), cost=_NO_BUILD),
    HostNeed(name="linker", programs=("ld",), packages=("binutils",), cost=_NO_BUILD),
    _tool("make", "make", _NO_BUILD),
    _tool("flex", "flex", _NO_BUILD),
    _tool("bison", "bison", _NO_BUILD),
    _tool("bc", "bc", _NO_BUILD),
)
"""The programs without which no build is begun (Documentation/process/changes.rst)."""

SELFTEST_LIBRARIES = (
    _library("libuuid", "uuid/uuid.h", "uuid-dev", _NO_SELFTESTS),
    _library("libcap", "sys/capability.h", "libcap-dev", _NO_SELFTESTS),
)
"""What the vfio and iommu selftests include from the host."""

KERNEL_NEEDS = (
    *BUILD_TOOLS,
    _library("libelf", "libelf.h", "libelf-dev", _NO_BUILD),
    _library("OpenSSL", "openssl/ssl.h", "libssl-dev", _NO_BUILD),
    _tool("depmod", "kmod", "modular kernels cannot be built"),
    _tool("rsync", "rsync", _NO_SELFTESTS),
    *SELFTEST_LIBRARIES,
    _tool("tar", "tar", "packaged sources cannot be unpacked"),
    _tool("xz", "xz-utils", "packaged sources cannot be unpacked"),
    _tool("dpkg-deb", "dpkg", _NO_DEBIAN, vital=False),
    HostNeed(
        name="Debian's keys",
        file=KEYRING,
        packages=("debian-archive-keyring",),
        cost=_NO_DEBIAN,
        vital=False,
    ),
    _tool("git", "git", "no tree that is a git checkout can be used", vital=False),
)
"""Everything."""
