# SPDX-License-Identifier: GPL-2.0-only
"""The user space of the `image` root: programs of this host, the libraries they load, and its Python.

What is taken is written down as a Listing, with size and time of every file, so that the next run sees at
once, without asking ldd again, whether the image made from it still says the truth.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from harness import process
from harness.deadline import Deadline
from harness.errors import InfraError

GUEST_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where guests look for programs (guest/init.c, guest/init.sh)."""

NEEDED = ("python3", "dropbear", "sh", "bash", "modprobe", "mount", "tar")
"""Without one of these no case runs: python3 and dropbear for us, the rest for upstream's scripts."""

WANTED = (
    *("awk", "basename", "cat", "chmod", "chown", "cp", "cut", "date", "dd", "dirname", "dmesg", "echo"),
    *("env", "false", "find", "grep", "head", "id", "insmod", "ip", "kill", "less", "ln", "ls"),
    *("lsmod", "lspci", "mkdir", "mktemp", "mv", "nproc", "od", "ps", "pwd", "readlink", "realpath", "rm"),
    *("rmdir", "rmmod", "sed", "seq", "setpci", "setpriv", "sleep", "sort", "stat", "strace", "stty"),
    *("sync", "tail", "tee", "test", "timeout", "touch", "tr", "true", "umount", "uname", "uniq", "vi"),
    *("wc", "xargs"),
)
"""Taken when the host has them: what the selftests' scripts call, and what one wants in a shell."""

_DATA = ("/etc/ld.so.cache", "/usr/share/misc/pci.ids", "/lib/terminfo", "/usr/share/terminfo/x")
"""Files and directories that the programs read; the first tells where libraries are that lie elsewhere."""

_UNUSED = frozenset(
    {"test", "tests", "idlelib", "tkinter", "ensurepip", "turtledemo", "lib2to3", "pydoc_data"}
    | {"site-packages", "dist-packages", "__pycache__"}
)
"""Parts of Python's library that no guest needs; bytecode is made anew for the image."""

_LOADED = re.compile(r"(?:=> )?(/\S+) \(0x")
_ASK_SECONDS = 60.0

_ASK_PYTHON = """
import json, sys, sysconfig
paths = sysconfig.get_paths()
print(json.dumps([sys.executable, paths["stdlib"], paths["platstdlib"]]))
"""


@functools.cache
def _recipe() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What goes into an image and how to see that it is still the same."""

    files: Mapping[str, str]
    """Path in the image, without the leading slash -> path of the file on this host."""
    links: Mapping[str, str]
    """Path in the image -> what the symbolic link there says."""
    stamps: Mapping[str, str]
    """Path on this host -> size and time; directories too, so that new files are noticed."""
    found: Mapping[str, str]
    """Program -> where this host has it; empty for one that it lacks."""
    python: str
    """The interpreter's path, which is the same on this host and in the image."""
    stdlib: str
    """Its library's directory, likewise."""
    recipe: str = dataclasses.field(default_factory=_recipe)
    """The code that collected it."""

    @property
    def fresh(self) -> bool:
        """Whether collecting again would find the same."""
        return (
            self.recipe == _recipe()
            and all(_stamp(path) == stamp for path, stamp in self.stamps.items())
            and all(_which(name) == path for name, path in self.found.items())
        )

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Listing:
        """Raises ValueError or TypeError when *text* is something else."""
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError("not a mapping")
        for name in ("files", "links", "stamps", "found"):
            if not isinstance(fields.get(name), dict):
                raise ValueError(f"{name} is no mapping")
        return cls(**fields)


def _which(name: str) -> str:
    """Where this host has a program that we may copy; empty when it has none."""
    path = process.find_tool(name, path=GUEST_PATH)
    return path if path and os.access(path, os.R_OK) else ""


def _stamp(path: str) -> str:
    try:
        facts = Path(path).stat()
    except OSError:
        return "gone"
    return f"{facts.st_size} {facts.st_mtime_ns}"


def collect() -> Listing:
    """Look for everything on this host.  Raises InfraError when something is missing that cannot be."""
    found = {name: _which(name) for name in (*NEEDED, *WANTED)}
    missing = [name for name in NEEDED if not found[name]]
    if missing:
        raise InfraError(
            f"the image root needs {', '.join(missing)} of this host", hint="run `vfio-harness doctor --fix`"
        )
    collection = _Collection()
    python, stdlib, platform = _ask_python(found["python3"])
    collection.add(python, at=python)
    collection.links["usr/bin/python3"] = python
    for name, path in found.items():
        if path and name != "python3":
            collection.add_program(name, path)
    for directory in dict.fromkeys((stdlib, platform)):
        collection.add_tree(directory, skip=_UNUSED)
    for path in _DATA:
        collection.add_tree(path)
    collection.add_libraries()
    return Listing(
        files=collection.files,
        links=collection.links,
        stamps=collection.stamps,
        found=found,
        python=python,
        stdlib=stdlib,
    )


def _ask_python(python: str) -> tuple[str, str, str]:
    answer = process.run([python, "-I", "-S", "-c", _ASK_PYTHON], deadline=Deadline.after(_ASK_SECONDS))
    executable, stdlib, platform = json.loads(answer.check("asking the guests' Python where it lives").stdout)
    return os.path.realpath(executable), stdlib, platform


class _Collection:
    """Files on their way into a Listing."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.links: dict[str, str] = {}
        self.stamps: dict[str, str] = {}
        self._placed: dict[str, str] = {}

    def add(self, source: str, *, at: str) -> None:
        """Put the file *source* into the image as *at*, which is an absolute path."""
        self.files.setdefault(_merged(at), os.path.realpath(source))
        self.stamps[source] = _stamp(source)

    def add_program(self, name: str, path: str) -> None:
        """Put a program under its own name; one file for all the names of a program like kmod."""
        real = os.path.realpath(path)
        if real in self._placed:
            self.links[f"usr/bin/{name}"] = self._placed[real]
        else:
            self.add(path, at=f"/usr/bin/{name}")
            self._placed[real] = name

    def add_tree(self, top: str, skip: Iterable[str] = ()) -> None:
        """Put a file, or everything below a directory, where the host has it, if it has it."""
        self.stamps[top] = _stamp(top)
        if Path(top).is_file():
            self.add(top, at=top)
        for directory, names, files in os.walk(top):
            names[:] = sorted(name for name in names if name not in skip and not name.startswith("config-"))
            self.stamps[directory] = _stamp(directory)
            for name in sorted(files):
                path = f"{directory}/{name}"
                if os.access(path, os.R_OK):
                    self.add(path, at=path)

    def add_libraries(self) -> None:
        """Put every shared library that the files so far load at start, and those that glibc loads later."""
        objects = [path for path in self.files.values() if _is_elf(path)]
        # Guests have none of the caller's variables.  ldd complains of what is no dynamic object, and what it
        # finds of the others counts.
        ldd = ["env", "-u", "LD_LIBRARY_PATH", "-u", "LD_PRELOAD", "ldd", *objects]
        listed = process.run(ldd, deadline=Deadline.after(_ASK_SECONDS)).stdout
        libraries = sorted({match[1] for match in _LOADED.finditer(listed)})
        for path in (*libraries, *_loaded_later(libraries)):
            self.add(path, at=path)


def _loaded_later(libraries: Iterable[str]) -> Iterator[str]:
    """What glibc loads by itself: unwinding for thread cancellation, and name look-up before 2.34."""
    libc = next((Path(path).parent for path in libraries if Path(path).name == "libc.so.6"), None)
    for name in ("libgcc_s.so.1", "libnss_files.so.2"):
        if libc is not None and (libc / name).exists():
            yield os.fspath(libc / name)


def _merged(path: str) -> str:
    """*path* without its slash, /bin, /lib and /sbin below /usr: the image has links there."""
    relative = path.lstrip("/")
    top = relative.partition("/")[0]
    return f"usr/{relative}" if top in ("bin", "sbin", "lib", "lib64") else relative


def _is_elf(path: str) -> bool:
    with Path(path).open("rb") as file:
        return file.read(4) == b"\x7fELF"
