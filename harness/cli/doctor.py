# SPDX-License-Identifier: GPL-2.0-only
"""Check what the harness needs of this host: what is missing, what that costs, and how to install it.

Package names are Debian's; on another distribution the checks hold and the names are a hint.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from harness.base import process
from harness.base.errors import HarnessError, HostError, InfraError
from harness.base.host import available_mib
from harness.base.locks import locked
from harness.base.paths import cache_dir
from harness.base.process import find_tool
from harness.fleet.cluster import require_distributed
from harness.fleet.version import own_version
from harness.kernel import debian
from harness.kernel.arch import ARCHES, Arch, find_arch, host_arch
from harness.kernel.hostneeds import KERNEL_NEEDS, HostNeed, tool, toolchain_needs
from harness.kernel.toolchain import DEFAULT, GCC, TOOLCHAINS, find_toolchain
from harness.kernel.userspace import provide_userspace, userspace_entry

DISK_GIB = 6
"""Free space that one source tree (1.9 GiB), one build tree, its copies and a run need; measured on 7.3."""

WORKER_DISK_GIB = 2
"""Free space for a worker: a kernel, its disks and some snapshots of 0.3 GiB each."""

MEMORY_GIB = 3
"""Memory for a 1 GiB guest, the compiler and the harness; vfio_pci_driver_test needs a 4 GiB guest on top."""


class CheckState(enum.Enum):
    """Whether the host has what was looked for."""

    OK = "ok"
    WARNING = "warning"
    MISSING = "missing"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing the harness looked for."""

    name: str
    state: CheckState
    detail: str
    cost: str = ""
    """What does not work without it."""
    packages: tuple[str, ...] = ()
    """Debian packages that provide it."""

    def to_json(self) -> dict[str, object]:
        return {**dataclasses.asdict(self), "state": self.state.value}


_NO_BOOT = "no VM can be booted"
_NO_IMAGE = "the default root cannot be made; --root virtme boots half as fast"

_BOOT_NEEDS = (
    tool("setpriv", "util-linux", _NO_BOOT),
    HostNeed(
        name="SSH server for the guest",
        programs=("dropbear",),
        packages=("dropbear-bin",),
        cost="the default root cannot be reached; --root virtme can if sshd is there",
    ),
    tool("mkfs.erofs", "erofs-utils", _NO_IMAGE),
    tool("modprobe", "kmod", _NO_IMAGE),
    tool("mount", "mount", _NO_IMAGE),
    tool("ip", "iproute2", "virtme guests get no network"),
    tool("lspci", "pciutils", "a shell in the guest lacks it"),
)

_WORKER_NEEDS = ("setpriv", "mkfs.erofs")
"""Those of them that a worker needs: root disks come to it."""

QEMU_PACKAGES = tuple(dict.fromkeys(arch.qemu_package for arch in ARCHES.values()))
"""Packages to take from backports if those of the release are too old for igb."""

_IGB_SINCE = 8
"""The QEMU major version that brought igb (QEMU 8.0's change log)."""


def _look(need: HostNeed) -> Check:
    found = need.find()
    if found:
        return _ok(need.name, found)
    return Check(
        name=need.name,
        state=CheckState.MISSING if need.vital else CheckState.WARNING,
        detail=f"{need.wanted} not found",
        cost=need.cost,
        packages=need.packages,
    )


def _ok(name: str, detail: str) -> Check:
    return Check(name=name, state=CheckState.OK, detail=detail)


def _warning(name: str, detail: str, cost: str = "", packages: tuple[str, ...] = ()) -> Check:
    return Check(name=name, state=CheckState.WARNING, detail=detail, cost=cost, packages=packages)


def _missing(name: str, detail: str, cost: str, packages: tuple[str, ...] = ()) -> Check:
    return Check(name=name, state=CheckState.MISSING, detail=detail, cost=cost, packages=packages)


def _qemu(arch: Arch) -> Check:
    from harness.machine.qemu import find_qemu

    name, packages = f"QEMU{_of(arch)}", (arch.qemu_package,)
    try:
        qemu = find_qemu(arch=arch)
    except HarnessError as error:
        return _missing(name, error.message, _NO_BOOT, packages)
    if "igb" not in qemu.devices:
        detail = f"{qemu.version_text} has no igb device"
        return _warning(name, detail, "topologies with igb are refused", packages)
    return _ok(name, f"{qemu.version_text} ({qemu.path})")


def _of(arch: Arch) -> str:
    """Return what tells the need of guests of *arch* from that of this host's."""
    return f" for {arch.label} guests" if arch.label else ""


def _userspace(arch: Arch) -> Check:
    name, entry = f"user space{_of(arch)}", userspace_entry(arch)
    if entry.is_dir():
        return _ok(name, str(entry))
    return _warning(name, "not fetched yet", "the first run fetches and unpacks some 40 MB of packages")


def examine_foreign(arch: Arch) -> tuple[Check, ...]:
    """Check what guests of another architecture need besides."""
    crossing = tuple(map(_look, toolchain_needs(GCC.resolve(arch), arch.label)))
    return (*crossing, _qemu(arch), *_firmware(arch), _userspace(arch))


def _firmware(arch: Arch) -> tuple[Check, ...]:
    """Check the firmware that does not come with QEMU, if *arch* needs any."""
    if arch.roots_firmware is None:
        return ()
    (file, package), name = arch.roots_firmware, f"firmware{_of(arch)}"
    if Path(file).is_file():
        return (_ok(name, file),)
    return (_warning(name, f"no {file}", "topologies with a pxb-pcie are refused", (package,)),)


def _guest_python() -> Check:
    name, path = "python3 for the guest", Path("/usr/bin/python3")
    if path.exists():
        return _ok(name, str(path))
    return _missing(name, f"no {path}", "probes cannot run on the virtme root", ("python3",))


def _disk() -> Check:
    cache = cache_dir()
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(existing).free / 2**30
    detail = f"{free:.0f} GiB free in {existing}"
    if free >= DISK_GIB:
        return _ok("disk", detail)
    return _warning("disk", detail, f"a first build needs {DISK_GIB} GiB; see: vfio-harness gc")


def _cache() -> Check:
    cache = cache_dir()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        cost = "nothing can be cached; set VFIO_HARNESS_CACHE to a writable directory"
        return _missing("cache", f"cannot create {cache}: {error.strerror}", cost)
    if os.access(cache, os.W_OK):
        return _ok("cache", str(cache))
    return _warning("cache", f"{cache} is read-only", "only kernels that are already there can be used")


def _memory() -> Check:
    available = available_mib() / 1024
    detail = f"{available:.1f} GiB available"
    if available >= MEMORY_GIB:
        return _ok("memory", detail)
    return _warning("memory", detail, f"a VM beside a build needs {MEMORY_GIB} GiB")


def _acceleration() -> Check:
    from harness.machine.accel import Accel, choose_accel
    from harness.machine.qemu import find_qemu

    try:
        choice = choose_accel("auto", find_qemu())
    except HarnessError as error:
        return _warning("acceleration", error.message)
    if choice.accel is Accel.KVM:
        return _ok("acceleration", choice.reason)
    cost = "guests run several times slower; time limits are scaled"
    return _warning("acceleration", choice.reason, cost)


def _toolchain(name: str, arch: Arch) -> tuple[Check, ...]:
    """Check a toolchain that is not the default one."""
    toolchain = find_toolchain(name).resolve(arch)
    checks = tuple(map(_look, toolchain_needs(toolchain, arch.label)))
    compiler = toolchain.programs[0]
    if any(check.state is not CheckState.OK for check in checks) or toolchain.is_new_enough:
        return checks
    detail = f"{toolchain.identify(arch).compiler} ({checks[0].detail})"
    cost = f"Linux 7.3 refuses {compiler} before version {toolchain.oldest}"
    packages = () if find_toolchain(name).suffix else toolchain.compiler_packages
    return (_warning(checks[0].name, detail, cost, packages), *checks[1:])


def examine(toolchains: Sequence[str] = (), arches: Sequence[str] = ()) -> tuple[Check, ...]:
    """Check everything the harness needs of this host; *toolchains* and *arches* besides the default ones."""
    here = host_arch()
    others = (_guest_python(), _qemu(here), *_firmware(here), _acceleration(), _cache(), _disk(), _memory())
    foreign = [arch for arch in map(find_arch, dict.fromkeys(arches)) if arch.label]
    more = [
        check
        for name in dict.fromkeys(toolchains)
        if name != DEFAULT
        # The prefix of a cross compiler is for one architecture.
        for arch in (foreign if foreign and find_toolchain(name).prefix else [host_arch(), *foreign])
        for check in _toolchain(name, arch)
    ]
    more += [check for arch in foreign for check in examine_foreign(arch)]
    return (*map(_look, (*KERNEL_NEEDS, *_BOOT_NEEDS)), *dict.fromkeys(more), *others)


def examine_worker() -> tuple[Check, ...]:
    """Check what a worker of a fleet needs of this host to boot VMs."""
    needs = [need for need in _BOOT_NEEDS if need.name in _WORKER_NEEDS]
    room = _disk()
    free = shutil.disk_usage(next(p for p in (cache_dir(), *cache_dir().parents) if p.exists())).free
    if free < WORKER_DISK_GIB << 30:
        room = _missing("disk", room.detail, f"kernels, disks and snapshots need {WORKER_DISK_GIB} GiB")
    cache = _cache()
    if cache.state is CheckState.WARNING:
        cache = _missing("cache", cache.detail, "kernels and disks cannot arrive")
    return (*map(_look, needs), _distributed(), _qemu(host_arch()), _acceleration(), cache, room, _memory())


def _distributed() -> Check:
    try:
        require_distributed()
    except HostError as error:
        return _missing("distributed", error.message, f"it cannot join a fleet; {error.hint}")
    return _ok("distributed", f"vfio-harness {own_version()}; workers and clients must have the same")


def packages_for(checks: Sequence[Check]) -> tuple[str, ...]:
    """Return the Debian packages that *checks* lack, each once."""
    return tuple(dict.fromkeys(p for c in checks if c.state is not CheckState.OK for p in c.packages))


def fix(packages: Sequence[str]) -> None:
    """Install *packages* with apt, QEMUs from backports where the release's own are too old for igb.

    apt and sudo talk to the user on their own terminal.  The system's own sources are not touched.
    Raises InfraError when apt is missing or fails, or when there is neither root nor sudo.
    """
    if find_tool("apt-get") is None:
        raise InfraError("this host has no apt", hint=f"install the equivalents of: {' '.join(packages)}")
    _apt("update", check=False)
    packages = tuple(dict.fromkeys(found for name in packages for found in _new_enough(name)))
    emulators = [name for name in packages if name in QEMU_PACKAGES]
    own = [name for name in packages if name not in emulators]
    if own:
        _apt("install", *own)
    if emulators:
        if _candidate_major(emulators[0]) >= _IGB_SINCE:
            _apt("install", *emulators)
        else:
            _from_backports(emulators)


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


def _new_enough(package: str) -> tuple[str, ...]:
    """Return *package*, or all of its toolchain in the newest version if that is too old for Linux 7.3."""
    row = next((row for row in TOOLCHAINS.values() if package in row.numbered_packages), GCC)
    compiler = row.compiler_packages[0]
    if package not in row.numbered_packages or _candidate_major(compiler) >= row.oldest:
        return (package,)
    known = process.run(["apt-cache", "pkgnames", f"{compiler}-"]).stdout
    majors = map(int, re.findall(rf"^{compiler}-(\d+)$", known, re.MULTILINE))
    newest = max(majors, default=0)
    return tuple(f"{name}-{newest}" for name in row.numbered_packages) if newest >= row.oldest else (package,)


def _candidate_major(package: str) -> int:
    """Return the upstream major version of *package* in the system's own sources, 0 when there is none."""
    policy = process.run(["apt-cache", "policy", package]).stdout
    match = re.search(r"Candidate: (?:\d+:)?(\d+)", policy)
    return int(match[1]) if match else 0


def fetch_userspaces(arches: Sequence[str]) -> None:
    """Fetch and unpack what guests of the foreign ones of *arches* are made of.  Raises InfraError."""
    for arch in map(find_arch, dict.fromkeys(arches)):
        if arch.label:
            provide_userspace(arch)


def _from_backports(packages: Sequence[str]) -> None:
    """Install from this release's backports, with a source list of our own for the mirror of this host."""
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
