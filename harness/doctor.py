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
from harness.host import available_mib
from harness.kernel import debian
from harness.kernel.hostneeds import KERNEL_NEEDS, HostNeed
from harness.locks import locked
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


_NO_BOOT = "no VM can be booted"
_NO_IMAGE = "the default root cannot be made; --root virtme boots half as fast"

_BOOT_NEEDS = (
    HostNeed(name="setpriv", programs=("setpriv",), packages=("util-linux",), cost=_NO_BOOT),
    HostNeed(
        name="SSH server for the guest",
        programs=("dropbear",),
        packages=("dropbear-bin",),
        cost="the default root cannot be reached; --root virtme can if sshd is there",
    ),
    HostNeed(
        name="mkfs.erofs",
        programs=("mkfs.erofs",),
        packages=("erofs-utils",),
        cost=_NO_IMAGE,
    ),
    HostNeed(name="modprobe", programs=("modprobe",), packages=("kmod",), cost=_NO_IMAGE),
    HostNeed(name="mount", programs=("mount",), packages=("mount",), cost=_NO_IMAGE),
    HostNeed(name="ip", programs=("ip",), packages=("iproute2",), cost="virtme guests get no network"),
    HostNeed(name="lspci", programs=("lspci",), packages=("pciutils",), cost="a shell in the guest lacks it"),
)

QEMU_PACKAGES = ("qemu-system-x86",)
"""Taken from the release's backports where the release's own is too old for igb."""

_IGB_SINCE = 8
"""The QEMU major version that brought igb (QEMU 8.0's change log)."""


def _look(need: HostNeed) -> Finding:
    found = need.find()
    if found:
        return Finding(name=need.name, state=State.OK, detail=found)
    return Finding(
        name=need.name,
        state=State.MISSING if need.vital else State.WARNING,
        detail=f"{need.wanted} not found",
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
    available = available_mib() / 1024
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
    return (*map(_look, (*KERNEL_NEEDS, *_BOOT_NEEDS)), *(check() for check in checks))


def packages_for(findings: Sequence[Finding]) -> tuple[str, ...]:
    """The Debian packages that mend *findings*, each once."""
    return tuple(dict.fromkeys(p for f in findings if f.state is not State.OK for p in f.packages))


def fix(packages: Sequence[str]) -> None:
    """Install *packages* with apt, QEMU from backports where the release's own is too old for igb.

    apt, and sudo before it, talk to the user on their own terminal.  The system's own sources are not
    touched.
    Raises InfraError when apt is missing, refuses, or may not.
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
    status = process.run_foreground(argv)
    if check and status != 0:
        what = " ".join(["apt-get", verb, *words])
        raise InfraError(f"{what} failed with status {status}", hint="apt's own messages are above")


def _candidate_major(package: str) -> int:
    """The upstream major version that the system's own sources offer of *package*, 0 when none."""
    policy = process.run(["apt-cache", "policy", package]).stdout
    match = re.search(r"Candidate: (?:\d+:)?(\d+)", policy)
    return int(match[1]) if match else 0


def _from_backports(packages: Sequence[str]) -> None:
    """Install from this release's backports, through a source list of our own on the machine's mirror."""
    codename = debian.own_codename()
    if not codename:
        raise InfraError(f"{' '.join(packages)} of this release is too old", hint="install QEMU 8.0 or newer")
    root = cache_dir() / "apt" / "backports"
    suites = (codename, f"{codename}-updates", f"{codename}-backports")
    lines = [f"deb [signed-by={debian.KEYRING}] {debian.find_mirror()} {suite} main\n" for suite in suites]
    settings = {
        "Dir::Etc::sourcelist": root / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": root / "lists",
        "APT::Sandbox::User": "root",  # lists in the user's cache stay the user's to remove
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    with locked(debian.LISTS_LOCK, "another process is asking Debian's mirror"):
        try:
            (root / "lists" / "partial").mkdir(parents=True, exist_ok=True)
            (root / "sources.list").write_text("".join(lines), encoding="utf-8")
        except OSError as error:
            raise InfraError(f"cannot write to the cache: {root}: {error.strerror}") from error
        _apt("update", options=options)
        _apt("install", *packages, options=[*options, "-t", suites[-1]])
