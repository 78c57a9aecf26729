# SPDX-License-Identifier: GPL-2.0-only
"""Report where in the kernel a stuck process is, before it is killed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")


def of_process(pid: int) -> str:
    """Return the wait channel, the system call and the kernel stack of a process, on one line (proc(5))."""
    texts = []
    for name in ("wchan", "syscall", "stack"):
        with contextlib.suppress(OSError):
            texts.append(f"{name}: {' '.join((PROC / str(pid) / name).read_text(encoding='ascii').split())}")
    return "; ".join(texts)


def of_group(group: int) -> Iterator[str]:
    """Yield one line for every living process of the process *group*: its pid, state, and of_process()."""
    for path in sorted(PROC.glob("[0-9]*/stat"), key=lambda path: int(path.parent.name)):
        with contextlib.suppress(OSError):
            # After the name, which may contain anything: state, parent, process group.
            state, _, its_group = path.read_text(errors="replace").rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                yield f"process {path.parent.name} ({state}): {of_process(int(path.parent.name))}"
