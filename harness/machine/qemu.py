# SPDX-License-Identifier: GPL-2.0-only
"""Find the QEMU of this host and ask what it can emulate.

Asking QEMU for its devices and their properties costs a process each time, so the answers are remembered
per binary: path, modification time and size together name one build of QEMU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from harness.base import paths, process
from harness.base.deadline import Deadline
from harness.base.errors import HostError, UsageError
from harness.base.files import write_atomic
from harness.kernel.arch import ARCHES, Arch, host_arch

OLDEST = (7, 2)
"""The oldest QEMU that is tested: Debian bookworm's."""

SETTING = "VFIO_HARNESS_QEMU"
"""The environment variable that names the QEMU of this host to use when no option does."""

_ASK_SECONDS = 20.0
_HINT = "run `vfio-harness doctor --fix`"
_NAMED_HINT = f"give --qemu, or {SETTING}, the path of a QEMU"
_VERSION = re.compile(r"version (\d+)\.(\d+)(?:\.(\d+))?")
_DEVICE = re.compile(r'^name "([^"]+)"(?:, bus [\w-]+)?(?:, alias "([^"]+)")?')
_PROPERTY = re.compile(r"^  ([\w.\[\]-]+)=")

BUS_PROPERTIES = frozenset({"bus", "addr", "id"})
"""Properties that every PCI -device takes, although `-device X,help` may not list them (qdev-monitor.c)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Qemu:
    """One build of QEMU: where it is, its version and the device models compiled into it."""

    path: Path
    version: tuple[int, int, int]
    devices: frozenset[str]
    identity: str
    """Names this build among all builds on the host."""
    arch: Arch = dataclasses.field(default_factory=host_arch)
    """The architecture of its guests."""
    has_firmware: bool = False
    """Whether `arch.firmware` came with it."""

    @property
    def version_text(self) -> str:
        return ".".join(map(str, self.version))

    def properties(self, driver: str) -> frozenset[str]:
        """Return the properties that `-device <driver>` takes.

        Raises InfraError when QEMU does not answer.
        """
        return _properties(self, driver)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QemuNeed:
    """What the QEMU that runs a Job must have."""

    version: tuple[int, int] = OLDEST
    devices: tuple[str, ...] = ()

    def check(self, qemu: Qemu) -> None:
        """Raise HostError when *qemu* is too old or lacks a device."""
        if qemu.version[:2] < self.version:
            oldest = ".".join(map(str, self.version))
            message = f"{qemu.path} is QEMU {qemu.version_text}; {oldest} or newer is needed"
            raise HostError(message, hint=_HINT)
        missing = [name for name in self.devices if name not in qemu.devices]
        if missing:
            message = f"QEMU {qemu.version_text} ({qemu.path}) has no device {', '.join(missing)}"
            raise HostError(message, hint="install a newer QEMU")


@contextlib.contextmanager
def chosen_qemu(path: str | None) -> Iterator[None]:
    """Make *path* the QEMU of this process and its workers in a with block; None changes nothing."""
    before = os.environ.get(SETTING)
    try:
        if path is not None:
            os.environ[SETTING] = os.fspath(qemu_path(path))
        yield
    finally:
        os.environ.pop(SETTING, None)
        if before is not None:
            os.environ[SETTING] = before


def find_qemu(path: Path | str | None = None, arch: Arch | None = None) -> Qemu:
    """Return the QEMU to use for guests of *arch* (default: this host's).

    That is *path*, the one that VFIO_HARNESS_QEMU names, or the one in PATH.

    A word without a slash is looked up in PATH as a shell does; a Path, which cannot tell `./qemu` from
    `qemu`, means a file of the current directory first.  What is found has an absolute path: QEMU runs
    elsewhere.
    Raises InfraError when there is none, it does not run or is older than OLDEST, UsageError when it is the
    one for another architecture.
    """
    arch = arch or host_arch()
    named = path is not None or bool(os.environ.get(SETTING))
    binary = Path(_find(path, arch)).absolute()
    try:
        about = binary.stat()
    except OSError as error:
        hint = _NAMED_HINT if named else f"run: {arch.doctor}"
        raise HostError(f"{binary}: {error.strerror}", hint=hint) from error
    other = next((one for one in ARCHES.values() if one.qemu == binary.resolve().name), arch)
    if other is not arch:
        hint = f"give the path of a {arch.qemu}, or --arch {other.name}"
        raise UsageError(f"{binary} is the QEMU for {other.name} guests, not for {arch.name}", hint=hint)
    return _probe(binary, f"{binary.resolve()}:{about.st_mtime_ns}:{about.st_size}", arch)


def qemu_path(path: Path | str) -> Path:
    """Return the absolute path of the QEMU *path*, as find_qemu() looks it up.  Raises HostError."""
    return Path(_find(path, host_arch())).absolute()


def _find(path: Path | str | None, arch: Arch) -> str:
    word = os.fspath(path) if path is not None else os.environ.get(SETTING) or arch.qemu
    if "/" in word or (isinstance(path, Path) and path.is_file()):
        return os.fspath(paths.expanded(word))
    found = process.find_tool(word)
    if found is None:
        hint = f"run: {arch.doctor}" if word == arch.qemu else _NAMED_HINT
        raise HostError(f"{word} is not installed", hint=hint)
    return found


@functools.cache
def _probe(binary: Path, identity: str, arch: Arch) -> Qemu:
    known = _recall(identity)
    version = known.get("version")
    devices = known.get("devices")
    data = known.get("data")
    if not isinstance(version, str) or not isinstance(devices, list) or not isinstance(data, list):
        version = _ask(binary, "--version")
        devices = sorted(parse_devices(_ask(binary, "-device", "help")))
        data = _ask(binary, "-L", "help").split()
        _remember(identity, {"version": version, "devices": devices, "data": data})
    numbers = parse_version(version)
    if numbers[:2] < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise HostError(
            f"{binary} is QEMU {numbers[0]}.{numbers[1]}; {oldest} or newer is needed", hint=_HINT
        )
    firmware = arch.firmware
    has_firmware = firmware is not None and any(Path(place, firmware).is_file() for place in data)
    return Qemu(
        path=binary,
        version=numbers,
        devices=frozenset(devices),
        identity=identity,
        arch=arch,
        has_firmware=has_firmware,
    )


@functools.cache
def _properties(qemu: Qemu, driver: str) -> frozenset[str]:
    key = f"properties {driver}"
    listed = _recall(qemu.identity).get(key)
    if not isinstance(listed, list):
        listed = sorted(parse_properties(_ask(qemu.path, "-device", f"{driver},help")))
        _remember(qemu.identity, {key: listed})
    return frozenset(listed) | BUS_PROPERTIES


def parse_version(text: str) -> tuple[int, int, int]:
    """Return the numbers in QEMU's `--version`; InfraError when there are none."""
    match = _VERSION.search(text)
    if match is None:
        raise HostError(f"QEMU's --version is not understood: {text.strip()[:80]!r}", hint=_HINT)
    return int(match[1]), int(match[2]), int(match[3] or 0)


def parse_devices(text: str) -> frozenset[str]:
    """Return the driver names, with aliases, in the output of `-device help`."""
    names = (name for line in text.splitlines() if (m := _DEVICE.match(line)) for name in m.groups())
    return frozenset(name for name in names if name is not None)


def parse_properties(text: str) -> frozenset[str]:
    """Return the property names in the output of `-device <driver>,help`."""
    return frozenset(m[1] for line in text.splitlines() if (m := _PROPERTY.match(line)))


def _ask(binary: Path, *words: str) -> str:
    answer = process.run([binary, *words], deadline=Deadline.after(_ASK_SECONDS))
    return answer.check("asking QEMU what it can do").stdout


def _note(identity: str) -> Path:
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return paths.cache_dir() / "host" / f"qemu-{digest}.json"


def _recall(identity: str) -> dict[str, object]:
    """Return what was remembered about this build; nothing when the note is missing or damaged."""
    return read_note(_note(identity))


def _remember(identity: str, facts: dict[str, object]) -> None:
    write_note(_note(identity), {**_recall(identity), **facts})


def read_note(path: Path) -> dict[str, object]:
    """Return the JSON mapping in *path*; empty when it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_note(path: Path, facts: dict[str, object]) -> None:
    """Write *facts* to *path*.  Errors are ignored: without a note the answer is found again."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(facts))
