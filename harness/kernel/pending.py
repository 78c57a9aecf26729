# SPDX-License-Identifier: GPL-2.0-only
"""Wait for kernels that another process is still building.

The builder holds a lock on a file while it builds, and leaves a note for each kernel that failed.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from harness.base.cause import Cause
from harness.base.errors import (
    BuildError,
    HarnessError,
    HostError,
    InfraError,
    KernelError,
    NotApplicable,
    NotRefused,
    SourceError,
)
from harness.base.files import write_atomic
from harness.base.locks import take
from harness.kernel.store import Built, find_built

_POLL_SECONDS = 0.2
_AT_WORK = "at-work"
_KINDS = {
    kind.__name__: kind
    for kind in (InfraError, HostError, SourceError, KernelError, BuildError, NotApplicable, NotRefused)
}


def notes_in(run_dir: Path) -> Path:
    """The directory of the builder's lock and notes."""
    return run_dir / "builds"


def begin_work(notes: Path) -> IO[bytes]:
    """Mark a builder as at work in *notes* until the returned file is closed or the process dies."""
    notes.mkdir(parents=True, exist_ok=True)
    sign = (notes / _AT_WORK).open("wb")
    take(sign.fileno())
    return sign


def note_failure(notes: Path, digest: str, error: HarnessError) -> None:
    """Tell every process that waits for the kernel *digest* why there will be none."""
    kind = next((name for name, kind in _KINDS.items() if type(error) is kind), InfraError.__name__)
    note = {"kind": kind, "cause": error.cause, "message": error.message, "hint": error.hint}
    write_atomic(_note(notes, digest), json.dumps(note) + "\n")


def forget_failure(notes: Path, digest: str) -> None:
    """Remove the note of an earlier builder."""
    _note(notes, digest).unlink(missing_ok=True)


def wait_for_kernel(digest: str, run_dir: Path, check: Callable[[], None] = lambda: None) -> Built:
    """Wait until the kernel *digest* is in the store; *check* may raise to end the wait.

    Raises the KernelError or InfraError that its build failed with; InfraError when nothing builds it.
    """
    notes = notes_in(run_dir)
    while True:
        # Check the builder first: if it ends after this check, it has left a kernel or a note.
        at_work = _is_at_work(notes)
        built = find_built(digest)
        if built is not None:
            return built
        with contextlib.suppress(FileNotFoundError):
            raise _read_failure(_note(notes, digest))
        if not at_work:
            raise InfraError(
                f"the kernel {digest[:12]} is not in the store and is not being built",
                hint="vfio-harness run builds it",
                cause=Cause.KERNEL_MISSING,
            )
        check()
        time.sleep(_POLL_SECONDS)


def _note(notes: Path, digest: str) -> Path:
    return notes / f"{digest}.json"


def _read_failure(path: Path) -> HarnessError:
    note = json.loads(path.read_text(encoding="utf-8"))
    cause = Cause(note["cause"]) if note["cause"] else None
    return _KINDS[note["kind"]](note["message"], hint=note["hint"], cause=cause)


def _is_at_work(notes: Path) -> bool:
    """Whether a builder holds its lock."""
    try:
        with (notes / _AT_WORK).open("rb") as file:
            return not take(file.fileno(), alone=False)
    except OSError:
        return False
