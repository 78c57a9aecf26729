# SPDX-License-Identifier: GPL-2.0-only
"""Cargo: the result of a Dask task that is an archive, a file on each worker that has it.

Dask moves it like any result, from worker to worker.  Pickling reads the file, unpickling writes it, checks
its SHA-256 and unpacks it into the store, so that neither the scheduler nor the client ever holds it.
"""

from __future__ import annotations

import mmap
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.base import paths
from harness.base.errors import HarnessError
from harness.lab.artefacts import Archive, Artefact, archive_path, pack, unpack


def fleet_dir() -> Path:
    """Return the directory of what a worker keeps beside its store."""
    return paths.cache_dir() / "fleet"


def archives_dir() -> Path:
    """Return the directory of the archives that this host has packed or received."""
    return fleet_dir() / "archives"


class Cargo:
    """An archive that this host has, or the reason why it could not be stored here."""

    def __init__(self, archive: Archive, trouble: str = "") -> None:
        self.archive = archive
        self.trouble = trouble

    def __sizeof__(self) -> int:
        """What Dask reckons with when it chooses a worker: the bytes that would have to travel."""
        return self.archive.size

    def __reduce_ex__(self, _protocol: Any) -> tuple[Callable[..., Cargo], tuple[Any, ...]]:
        path = archive_path(archives_dir(), self.archive.digest)
        if not path.is_file():
            # It was removed because it had not been used for a while.  Equal entries give equal archives.
            pack(Artefact(self.archive.place), archives_dir())
        os.utime(path)
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return _arrive, (self.archive, pickle.PickleBuffer(data))


def _arrive(archive: Archive, data: Any) -> Cargo:
    """Store what another worker sent.  Trouble is kept for the unit that needs it, which can say so."""
    path = archive_path(archives_dir(), archive.digest)
    partial = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        partial.replace(path)
        unpack(archive, path)
    except (OSError, HarnessError) as error:
        partial.unlink(missing_ok=True)
        return Cargo(archive, f"{archive.place} cannot be stored: {error}")
    return Cargo(archive)
