# SPDX-License-Identifier: GPL-2.0-only
"""Write files atomically."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def write_atomic(path: Path, data: str | bytes, *, durable: bool = False) -> None:
    """Write *data* to *path* so that no reader ever sees part of it.

    With *durable* the data reaches the disk before the name does (fsync(2)).
    Raises OSError, which names a file, and leaves *path* unchanged.
    """
    raw = data.encode() if isinstance(data, str) else data
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "wb") as file:  # noqa: PTH123  # a descriptor has no Path
            # mkstemp(3) makes files private; these get the permissions that open(2) would give.
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            file.write(raw)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(name, path)  # noqa: PTH105
    except BaseException as error:
        if isinstance(error, OSError) and error.errno:
            error.filename = error.filename or os.fspath(path)
        with contextlib.suppress(OSError):
            os.unlink(name)  # noqa: PTH108
        raise


def _umask() -> int:
    """The process's umask, read without changing it (proc_pid_status(5))."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022
