# SPDX-License-Identifier: GPL-2.0-only
"""What the harness needs of this host, what is missing, what that costs, and how to install it.

Knows Debian's package names; on another distribution the findings stand and the names are a hint.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from harness import process
from harness.errors import InfraError
from harness.paths import cache_dir
from harness.process import find_tool

DISK_GIB = 6
"""Free space for one source tree (1.9 GiB), one build tree, its copies and a run; measured on 7.3."""

MEMORY_GIB = 3
"""A 1 GiB guest, the compiler and the harness; vfio_pci_driver_test needs a 4 GiB guest on top."""


class State(enum.Enum):
    """How a finding is meant."""

    OK = "ok"
    WARNING = "warning"
    MISSING = "missing"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing the harness looked for."""

    name: str
    state: State
    detail: str
    cost: str = ""
    """What does not work without it."""
    packages: tuple[str, ...] = ()
    """Debian packages that mend it."""

    def to_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "state": self.state.value,
            "detail": self.detail,
            "cost": self.cost,
            "packages": list(self.packages),
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Tool:
    """A need met by any one of several programs."""

    name: str
    programs: tuple[str, ...]
    packages: tuple[str, ...]
    cost: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    """A need met by a C header the compiler can find."""

    name: str
    header: str
    packages: tuple[str, ...]
    cost: str


_NO_BUILD = "no kernel can be built"
_NO_SELFTESTS = "upstream's selftests cannot be built"
_NO_BOOT = "no VM can be booted"

_TOOLS = (
    _Tool(name="C compiler", programs=("gcc",), packages=("gcc", "libc6-dev"), cost=_NO_BUILD),
    _Tool(name="make", programs=("make",), packages=("make",), cost=_NO_BUILD),
    _Tool(name="flex", programs=("flex",), packages=("flex",), cost=_NO_BUILD),
    _Tool(name="bison", programs=("bison",), packages=("bison",), cost=_NO_BUILD),
    _Tool(name="bc", programs=("bc",), packages=("bc",), cost=_NO_BUILD),
    _Tool(name="xz", programs=("xz",), packages=("xz-utils",), cost="packaged sources cannot be unpacked"),
    _Tool(name="rsync", programs=("rsync",), packages=("rsync",), cost=_NO_SELFTESTS),
    _Tool(name="depmod", programs=("depmod",), packages=("kmod",), cost="modular kernels cannot be built"),
    _Tool(name="setpriv", programs=("setpriv",), packages=("util-linux",), cost=_NO_BOOT),
    _Tool(
        name="SSH server for the guest",
        programs=("dropbear", "sshd"),
        packages=("dropbear-bin",),
        cost="guests on the virtme root cannot be reached",
    ),
    _Tool(name="ip", programs=("ip",), packages=("iproute2",), cost="virtme guests get no network"),
)

_HEADERS = (
    _Header(name="libelf", header="libelf.h", packages=("libelf-dev",), cost=_NO_BUILD),
    _Header(name="OpenSSL", header="openssl/ssl.h", packages=("libssl-dev",), cost=_NO_BUILD),
    _Header(name="libuuid", header="uuid/uuid.h", packages=("uuid-dev",), cost=_NO_SELFTESTS),
    _Header(name="libcap", header="sys/capability.h", packages=("libcap-dev",), cost=_NO_SELFTESTS),
)

_INCLUDE = (Path("/usr/include"), Path("/usr/include/x86_64-linux-gnu"), Path("/usr/local/include"))

QEMU_PACKAGES = ("qemu-system-x86",)
"""Taken from the release's backports where the release's own is too old for igb."""

_IGB_SINCE = 8
"""The QEMU major version that brought igb (QEMU 8.0's change log)."""


def _tool(need: _Tool) -> Finding:
    found = next((path for program in need.programs if (path := find_tool(program))), None)
    if found:
        return Finding(name=need.name, state=State.OK, detail=found)
    return Finding(
        name=need.name,
        state=State.MISSING,
        detail=f"{' or '.join(need.programs)} not found",
        cost=need.cost,
        packages=need.packages,
    )


def _header(need: _Header) -> Finding:
    found = next((d / need.header for d in _INCLUDE if (d / need.header).exists()), None)
    if found:
        return Finding(name=need.name, state=State.OK, detail=str(found))
    return Finding(
        name=need.name,
        state=State.MISSING,
        detail=f"<{need.header}> not found",
        cost=need.cost,
        packages=need.packages,
    )


def _qemu() -> Finding:
    from harness.machine.qemu import find_qemu

    try:
        qemu = find_qemu()
    except InfraError as error:
        return Finding(
            name="QEMU", state=State.MISSING, detail=error.message, cost=_NO_BOOT, packages=QEMU_PACKAGES
        )
    if "igb" not in qemu.devices:
        return Finding(
            name="QEMU",
            state=State.WARNING,
            detail=f"{qemu.version_text} has no igb device",
            cost="topologies with igb are refused",
            packages=QEMU_PACKAGES,
        )
    return Finding(name="QEMU", state=State.OK, detail=f"{qemu.version_text} ({qemu.path})")


def _guest_python() -> Finding:
    path = Path("/usr/bin/python3")
    if path.exists():
        return Finding(name="python3 for the guest", state=State.OK, detail=str(path))
    return Finding(
        name="python3 for the guest",
        state=State.MISSING,
        detail=f"no {path}",
        cost="probes cannot run on the virtme root",
        packages=("python3",),
    )


def _disk() -> Finding:
    cache = cache_dir()
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(existing).free / 2**30
    state = State.OK if free >= DISK_GIB else State.WARNING
    cost = "" if state is State.OK else f"a first build wants {DISK_GIB} GiB; see: vfio-harness gc"
    return Finding(name="disk", state=state, detail=f"{free:.0f} GiB free in {existing}", cost=cost)


def _cache() -> Finding:
    cache = cache_dir()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return Finding(
            name="cache",
            state=State.MISSING,
            detail=f"cannot create {cache}: {error.strerror}",
            cost="nothing can be kept; set VFIO_HARNESS_CACHE to a writable directory",
        )
    if os.access(cache, os.W_OK):
        return Finding(name="cache", state=State.OK, detail=str(cache))
    return Finding(
        name="cache",
        state=State.WARNING,
        detail=f"{cache} is read-only",
        cost="only kernels that are already there can be used",
    )


def _memory() -> Finding:
    fields = dict(
        line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    )
    available = int(fields["MemAvailable"].split()[0]) / 2**20
    state = State.OK if available >= MEMORY_GIB else State.WARNING
    cost = "" if state is State.OK else f"a VM beside a build wants {MEMORY_GIB} GiB"
    return Finding(name="memory", state=state, detail=f"{available:.1f} GiB available", cost=cost)


def _acceleration() -> Finding:
    from harness.machine.accel import Accel, choose_accel
    from harness.machine.qemu import find_qemu

    try:
        choice = choose_accel("auto", find_qemu())
    except InfraError as error:
        return Finding(name="acceleration", state=State.WARNING, detail=error.message)
    if choice.accel is Accel.KVM:
        return Finding(name="acceleration", state=State.OK, detail=choice.reason)
    return Finding(
        name="acceleration",
        state=State.WARNING,
        detail=choice.reason,
        cost="guests run several times slower; time limits are scaled",
    )


def examine() -> tuple[Finding, ...]:
    """Look at everything the harness needs of this host."""
    checks: list[Callable[[], Finding]] = [_guest_python, _qemu, _acceleration, _cache, _disk, _memory]
    return (*map(_tool, _TOOLS), *map(_header, _HEADERS), *(check() for check in checks))


def packages_for(findings: Sequence[Finding]) -> tuple[str, ...]:
    """The Debian packages that mend *findings*, each once."""
    return tuple(dict.fromkeys(p for f in findings if f.state is not State.OK for p in f.packages))


def fix(packages: Sequence[str]) -> None:
    """Install *packages* with apt, QEMU from backports where the release's own is too old for igb.

    The system's own sources are not touched.  Raises InfraError when apt is missing, refuses, or may not.
    """
    if find_tool("apt-get") is None:
        raise InfraError("this host has no apt", hint=f"install the equivalents of: {' '.join(packages)}")
    _apt("update", check=False)
    own = [name for name in packages if name not in QEMU_PACKAGES]
    if own:
        _apt("install", *own)
    if len(own) < len(packages):
        if _candidate_major(QEMU_PACKAGES[0]) >= _IGB_SINCE:
            _apt("install", *QEMU_PACKAGES)
        else:
            _from_backports(QEMU_PACKAGES)


def _apt(verb: str, *words: str, options: Sequence[str] = (), check: bool = True) -> None:
    become = [] if os.getuid() == 0 else [find_tool("sudo") or ""]
    flags = ["-y", "--no-install-recommends"] if verb == "install" else ["-q"]
    argv = [*become, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", *options, verb, *flags, *words]
    if not argv[0]:
        raise InfraError("installing packages needs root", hint=f"as root: apt-get install {' '.join(words)}")
    done = process.run(argv)
    if check:
        done.check("apt")


def _candidate_major(package: str) -> int:
    """The upstream major version that the system's own sources offer of *package*, 0 when none."""
    policy = process.run(["apt-cache", "policy", package]).stdout
    match = re.search(r"Candidate: (?:\d+:)?(\d+)", policy)
    return int(match[1]) if match else 0


def _from_backports(packages: Sequence[str]) -> None:
    """Install from this release's backports, through a source list of our own on the machine's mirror."""
    from harness.kernel.debian import KEYRING, find_mirror, own_codename

    codename = own_codename()
    if not codename:
        raise InfraError(f"{' '.join(packages)} of this release is too old", hint="install QEMU 8.0 or newer")
    root = cache_dir() / "apt" / "backports"
    (root / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    suites = (codename, f"{codename}-updates", f"{codename}-backports")
    lines = [f"deb [signed-by={KEYRING}] {find_mirror()} {suite} main\n" for suite in suites]
    (root / "sources.list").write_text("".join(lines), encoding="utf-8")
    settings = {
        "Dir::Etc::sourcelist": root / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": root / "lists",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    _apt("update", options=options)
    _apt("install", *packages, options=[*options, "-t", suites[-1]])
