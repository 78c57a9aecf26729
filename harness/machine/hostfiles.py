# SPDX-License-Identifier: GPL-2.0-only
"""List the user space of the `image` root: programs of this host, their libraries, and its Python.

For guests of another architecture they are those of a user space that harness.kernel.userspace unpacked.

The Listing records size and time of every file, so that the next run sees at once, without running ldd again,
whether the image made from it is still up to date.  An unpacked user space never changes.
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

from harness.base import process, values
from harness.base.deadline import Deadline
from harness.base.errors import HostError
from harness.kernel import elf
from harness.kernel.arch import Arch
from harness.kernel.userspace import identity_of, packages_of, provide_userspace, top_of

GUEST_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where guests look for programs (guest/init.c, guest/init.sh)."""

NEEDED = ("python3", "dropbear", "sh", "bash", "modprobe", "mount", "tar")
"""Programs that every guest needs: python3 and dropbear for us, the rest for upstream's scripts."""

WANTED = (
    *(
        "awk",
        "base64",
        "basename",
        "cat",
        "chmod",
        "chown",
        "cp",
        "cut",
        "date",
        "dd",
        "dirname",
        "dmesg",
        "echo",
    ),
    *("env", "false", "find", "grep", "head", "id", "insmod", "ip", "kill", "less", "ln", "ls"),
    *("lsmod", "lspci", "mkdir", "mktemp", "mv", "nproc", "od", "ps", "pwd", "readlink", "realpath", "rm"),
    *("rmdir", "rmmod", "scp", "sed", "seq", "setpci", "setpriv", "sleep", "sort", "stat", "strace", "stty"),
    *("sync", "tail", "tee", "test", "timeout", "touch", "tr", "true", "umount", "uname", "uniq", "vi"),
    *("wc", "which", "xargs"),
)
"""Taken if the host has them: programs of the selftests' scripts, and for a shell.  Dropbear serves no files
but through scp.
"""

_DATA = ("/etc/ld.so.cache", "/usr/share/misc/pci.ids", "/lib/terminfo", "/usr/share/terminfo/x")
"""Files and directories that the programs read; the first locates libraries in unusual places."""

_UNUSED = frozenset(
    {"test", "tests", "idlelib", "tkinter", "ensurepip", "turtledemo", "lib2to3", "pydoc_data"}
    | {"site-packages", "dist-packages", "__pycache__"}
)
"""Parts of Python's library that no guest needs; bytecode is compiled for the image."""

_ALTERNATIVES = {"awk": "mawk", "which": "which.debianutils"}
"""What Debian's update-alternatives(1) would have made of packages that are installed, not only unpacked."""

_SONAME = re.compile(r".*\.so\.\d+$")
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
    """The files of an image, and stamps that show whether they have changed since."""

    files: Mapping[str, str]
    """Path in the image, without the leading slash -> path of the file on this host."""
    links: Mapping[str, str]
    """Path in the image -> the target of the symbolic link there."""
    stamps: Mapping[str, str]
    """Path on this host -> size and time; directories too, to notice new files."""
    found: Mapping[str, str]
    """Program -> its path on this host; empty if it has none."""
    python: str
    """The interpreter's path, which is the same on this host and in the image."""
    stdlib: str
    """The directory of its library, likewise."""
    packages: str = ""
    """What the packages are whose files these are; empty if they are this host's own."""
    recipe: str = dataclasses.field(default_factory=_recipe)
    """Digest of the code that collected it."""

    @property
    def fresh(self) -> bool:
        """Whether collecting again would find the same."""
        return (
            self.recipe == _recipe()
            and all(_stamp(path) == stamp for path, stamp in self.stamps.items())
            and all(_which(name) == path for name, path in self.found.items())
        )

    @property
    def identity(self) -> str:
        """What is the same when the image is; for unpacked packages on all hosts."""
        return f"{self.packages} {self.recipe}" if self.packages else self.to_json()

    @property
    def compiler(self) -> str:
        """The Python of this host that writes bytecode for that of the guests; empty if there is none."""
        return _which(Path(self.python).name) if self.packages else self.python

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Listing:
        """Return the Listing that to_json() wrote; ValueError or UsageError for anything else."""
        return values.structure(json.loads(text), cls, "the listing of the host's files")


def _which(name: str) -> str:
    """Return the path of a program that may be read; empty if this host has none."""
    path = process.find_tool(name, path=GUEST_PATH)
    return path if path and os.access(path, os.R_OK) else ""


def _stamp(path: str) -> str:
    try:
        facts = Path(path).stat()
    except OSError:
        return "gone"
    return f"{facts.st_size} {facts.st_mtime_ns}"


def collect(arch: Arch) -> Listing:
    """List the files for guests of *arch*.

    Raises HostError if this host lacks a program that every guest needs, InfraError as provide_userspace().
    """
    return _collect_own() if arch.is_host else _collect_foreign(arch)


def _collect_foreign(arch: Arch) -> Listing:
    entry = provide_userspace(arch)
    top = top_of(entry)
    path = ":".join(f"{top}{place}" for place in GUEST_PATH.split(":"))
    collection = _Collection(os.fspath(top))
    for name in (*NEEDED, *WANTED):
        found = process.find_tool(name, path=path) or process.find_tool(
            _ALTERNATIVES.get(name, name), path=path
        )
        if found and name != "python3":
            collection.add_program(name, found)
    real = os.path.realpath(f"{top}/usr/bin/python3")
    python = real.removeprefix(os.fspath(top))
    collection.add(real, at=python)
    collection.links["usr/bin/python3"] = python
    stdlib = f"/usr/lib/{Path(python).name}"
    collection.add_tree(stdlib, skip=_UNUSED)
    for place in _DATA:
        collection.add_tree(place)
    # Of some architectures the dynamic linker is in /usr/lib64.
    for directory in ("/usr/lib", "/usr/lib64", f"/usr/lib/{arch.triplet}"):
        for library in sorted(Path(f"{top}{directory}").glob("*")):
            if _SONAME.match(library.name):
                collection.add(os.fspath(library), at=f"{directory}/{library.name}")
    listed = os.fspath(packages_of(entry))
    return Listing(
        files=collection.files,
        links=collection.links,
        stamps={listed: _stamp(listed)},
        found={},
        python=python,
        stdlib=stdlib,
        packages=identity_of(entry),
    )


def _collect_own() -> Listing:
    found = {name: _which(name) for name in (*NEEDED, *WANTED)}
    missing = [name for name in NEEDED if not found[name]]
    if missing:
        raise HostError(
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
    executable, stdlib, platform = json.loads(answer.check("asking the guests' Python for its paths").stdout)
    return os.path.realpath(executable), stdlib, platform


class _Collection:
    """Files on their way into a Listing."""

    def __init__(self, root: str = "") -> None:
        """*root* is the directory on this host that is the root directory of the files."""
        self._root = root
        self.files: dict[str, str] = {}
        self.links: dict[str, str] = {}
        self.stamps: dict[str, str] = {}
        self._placed: dict[str, str] = {}

    def add(self, source: str, *, at: str) -> None:
        """Add the file *source* as *at*, an absolute path in the image."""
        self.files.setdefault(merged(at), os.path.realpath(source))
        self.stamps[source] = _stamp(source)

    def add_program(self, name: str, path: str) -> None:
        """Add a program; other names of the same file, as of kmod, become links."""
        real = os.path.realpath(path)
        if real in self._placed:
            self.links[f"usr/bin/{name}"] = self._placed[real]
        else:
            self.add(path, at=f"/usr/bin/{name}")
            self._placed[real] = name

    def add_tree(self, top: str, skip: Iterable[str] = ()) -> None:
        """Add a file, or everything below a directory, at its own path; nothing if there is none."""
        here = f"{self._root}{top}"
        self.stamps[here] = _stamp(here)
        if Path(here).is_file():
            self.add(here, at=top)
        for directory, names, files in os.walk(here):
            names[:] = sorted(name for name in names if name not in skip and not name.startswith("config-"))
            self.stamps[directory] = _stamp(directory)
            for name in sorted(files):
                path = f"{directory}/{name}"
                if os.access(path, os.R_OK):
                    self.add(path, at=path.removeprefix(self._root))

    def add_libraries(self) -> None:
        """Add the shared libraries that the files so far load at start, and those that glibc loads later."""
        objects = [path for path in self.files.values() if elf.is_elf(Path(path))]
        # Guests have no variables of the caller.  ldd fails for static objects and still lists the others.
        ldd = ["env", "-u", "LD_LIBRARY_PATH", "-u", "LD_PRELOAD", "ldd", *objects]
        listed = process.run(ldd, deadline=Deadline.after(_ASK_SECONDS)).stdout
        libraries = sorted({match[1] for match in _LOADED.finditer(listed)})
        for path in (*libraries, *_loaded_later(libraries)):
            self.add(path, at=path)


def _loaded_later(libraries: Iterable[str]) -> Iterator[str]:
    """Yield what glibc loads by itself: for thread cancellation, and for name look-up before 2.34."""
    libc = next((Path(path).parent for path in libraries if Path(path).name == "libc.so.6"), None)
    for name in ("libgcc_s.so.1", "libnss_files.so.2"):
        if libc is not None and (libc / name).exists():
            yield os.fspath(libc / name)


def merged(path: str) -> str:
    """Return the place of *path* in the image: without its slash, and below /usr if a link leads there."""
    relative = path.lstrip("/")
    top = relative.partition("/")[0]
    return f"usr/{relative}" if top in ("bin", "sbin", "lib", "lib64") else relative
