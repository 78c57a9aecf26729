# SPDX-License-Identifier: GPL-2.0-only
"""Evidence: the files of VM directories that travel from a worker to the client, within a limit.

The timings and counters of every VM, and for a bad result everything small.  Dumps of a guest's memory stay.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from harness.base import paths
from harness.base.errors import InfraError
from harness.results.model import Result

MOST_BYTES = 16 << 20
"""Of the files of one unit, before they are packed."""

_MOST_FILE = 4 << 20
"""A larger file is a dump or a disk, except a console that never ends."""


class Evidence:
    """What a worker still has to hand over of a run."""

    def __init__(self, directory: Path, process: str) -> None:
        """*directory* is that of the run; *process* is in the names of this worker's VM directories."""
        self.directory = directory
        self._mark = f"-{process}-"
        self._bad: set[str] = set()
        self._sent: dict[Path, int] = {}
        """File -> when it had been modified when it was sent."""

    def note(self, result: Result) -> None:
        """Send everything small of the VM's directory if *result* is bad."""
        if result.is_bad and result.vm_dir:
            self._bad.add(result.vm_dir)

    def pack(self) -> tuple[bytes, int]:
        """Return an archive with the files that are new, and how many were too large for it."""
        return _pack(self.directory, self._new_files())

    def _new_files(self) -> Iterator[Path]:
        for path in self._files():
            with contextlib.suppress(FileNotFoundError):  # The VM may still run.
                modified = path.stat().st_mtime_ns
                if self._sent.get(path) != modified:
                    self._sent[path] = modified
                    yield path

    def _files(self) -> Iterator[Path]:
        for vm in sorted(self.directory.glob(f"vm/*{self._mark}*")):
            is_bad = str(vm.relative_to(self.directory)) in self._bad
            for path in sorted(vm.rglob("*")):
                wanted = path.name == paths.TIMING_FILE or path.parent.name == paths.COUNTERS or is_bad
                if wanted and path.is_file() and not path.is_symlink():
                    yield path


def pack_directory(directory: Path) -> tuple[bytes, int]:
    """Return an archive of the small files in *directory*, and how many were too large for it."""
    files = (path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
    # Its own files before those of VMs.
    return _pack(directory, sorted(files, key=lambda path: (len(path.parts), path)))


def _pack(directory: Path, files: Iterable[Path]) -> tuple[bytes, int]:
    buffer, dropped, total = io.BytesIO(), 0, 0
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=3) as tar:
        for path in files:
            with contextlib.suppress(FileNotFoundError):
                name, size = path.relative_to(directory), path.stat().st_size
                if total + size > MOST_BYTES or (size > _MOST_FILE and name.parts[0] == "vm"):
                    dropped += 1
                    continue
                total += size
                tar.add(path, str(name), recursive=False)
    return (buffer.getvalue() if total else b""), dropped


def take_in(packed: bytes, directory: Path, below: str = "") -> None:
    """Unpack what Evidence.pack() or pack_directory() returned into *directory*.

    Raises OSError; InfraError when it is damaged, or has anything but files in the child *below*, if given.
    """

    def check(member: tarfile.TarInfo, target: str) -> tarfile.TarInfo:
        for name in (member.name, member.linkname or member.name):
            parts = PurePosixPath(name).parts
            if below and (parts[:1] != (below,) or ".." in parts or not (member.isreg() or member.islnk())):
                raise InfraError(f"{name} is no file below {below}/")
        return tarfile.data_filter(member, target)

    if packed:
        try:
            with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as tar:
                tar.extractall(directory, filter=check)
        except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InfraError(f"the archive is damaged: {error}") from error
