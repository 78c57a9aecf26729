# SPDX-License-Identifier: GPL-2.0-only
"""Which QEMU this host has, and what that QEMU can emulate.

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
import tempfile
from pathlib import Path

from harness import paths, process
from harness.deadline import Deadline
from harness.errors import InfraError

BINARY = "qemu-system-x86_64"
OLDEST = (7, 2)
"""The oldest QEMU this is tried with: Debian bookworm's."""

_ASK_SECONDS = 20.0
_HINT = "run `vfio-harness doctor --fix`"
_VERSION = re.compile(r"version (\d+)\.(\d+)(?:\.(\d+))?")
_DEVICE = re.compile(r'^name "([^"]+)"(?:, bus [\w-]+)?(?:, alias "([^"]+)")?')
_PROPERTY = re.compile(r"^  ([\w.\[\]-]+)=")

BUS_PROPERTIES = frozenset({"bus", "addr", "id"})
"""What every PCI -device takes although `-device X,help` does not always list it (qdev-monitor.c)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Qemu:
    """One build of QEMU: where it is, its version and the device models compiled into it."""

    path: Path
    version: tuple[int, int, int]
    devices: frozenset[str]
    identity: str
    """Names this build among all builds on the host."""
    has_qboot: bool = False
    """Whether the firmware qboot.rom came with it."""

    @property
    def version_text(self) -> str:
        return ".".join(map(str, self.version))

    def properties(self, driver: str) -> frozenset[str]:
        """The properties `-device <driver>` takes.

        Raises InfraError when QEMU does not answer.
        """
        return _properties(self, driver)


def find_qemu(path: Path | str | None = None) -> Qemu:
    """The QEMU to use: *path*, or `qemu-system-x86_64` from PATH.

    A word without a slash is looked up in PATH as a shell does; a Path, which cannot tell `./qemu` from
    `qemu`, means a file of the current directory first.  What is found has an absolute path: QEMU runs
    elsewhere.
    Raises InfraError when there is none, it does not run or is older than OLDEST.
    """
    found = _find(path)
    binary = Path(found).absolute()
    try:
        about = binary.stat()
    except OSError as error:
        raise InfraError(f"{binary}: {error.strerror}", hint=_HINT) from error
    return _probe(binary, f"{binary.resolve()}:{about.st_mtime_ns}:{about.st_size}")


def _find(path: Path | str | None) -> str:
    word = BINARY if path is None else os.fspath(path)
    if "/" in word or (isinstance(path, Path) and path.is_file()):
        return os.fspath(Path(word).expanduser())
    found = process.find_tool(word)
    if found is None:
        raise InfraError(f"{word} is not installed", hint=_HINT)
    return found


@functools.cache
def _probe(binary: Path, identity: str) -> Qemu:
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
        raise InfraError(
            f"{binary} is QEMU {numbers[0]}.{numbers[1]}; {oldest} or newer is needed", hint=_HINT
        )
    has_qboot = any((Path(directory) / "qboot.rom").is_file() for directory in data)
    return Qemu(
        path=binary,
        version=numbers,
        devices=frozenset(devices),
        identity=identity,
        has_qboot=has_qboot,
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
    """The numbers in `qemu-system-x86_64 --version`; InfraError when there are none."""
    match = _VERSION.search(text)
    if match is None:
        raise InfraError(f"QEMU's --version is not understood: {text.strip()[:80]!r}", hint=_HINT)
    return int(match[1]), int(match[2]), int(match[3] or 0)


def parse_devices(text: str) -> frozenset[str]:
    """The driver names, aliases included, in the output of `-device help`."""
    names = (name for line in text.splitlines() if (m := _DEVICE.match(line)) for name in m.groups())
    return frozenset(name for name in names if name is not None)


def parse_properties(text: str) -> frozenset[str]:
    """The property names in the output of `-device <driver>,help`."""
    return frozenset(m[1] for line in text.splitlines() if (m := _PROPERTY.match(line)))


def _ask(binary: Path, *words: str) -> str:
    answer = process.run([binary, *words], deadline=Deadline.after(_ASK_SECONDS))
    return answer.check("asking QEMU what it can do").stdout


def _note(identity: str) -> Path:
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return paths.cache_dir() / "host" / f"qemu-{digest}.json"


def _recall(identity: str) -> dict[str, object]:
    """What was remembered about this build; nothing when the note is absent or damaged."""
    return read_note(_note(identity))


def _remember(identity: str, facts: dict[str, object]) -> None:
    write_note(_note(identity), {**_recall(identity), **facts})


def read_note(path: Path) -> dict[str, object]:
    """The JSON mapping in *path*, empty when it is missing or not one: a note may always be lost."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_note(path: Path, facts: dict[str, object]) -> None:
    """Replace *path* in one step, so that parallel workers never read half a note.

    A cache that cannot be written costs time, not correctness: errors are dropped.
    """
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(facts, file)
        Path(name).replace(path)
