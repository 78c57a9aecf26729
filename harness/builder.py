# SPDX-License-Identifier: GPL-2.0-only
"""Kernels that are built while others of the same run are tested already.

The process that talks to the user builds them, one after the other.  Whoever needs one waits until the store
has it, or until the run's directory says why it never will.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from harness.errors import ExitCode, HarnessError, InfraError, KernelError
from harness.kernel.make import BuildProgress
from harness.kernel.store import Built, KernelPlan, build_kernel, find_built

_log = logging.getLogger("harness.builder")

_POLL_SECONDS = 0.2

Finished = Callable[[KernelPlan, Built | HarnessError, float], None]
"""Told, from the builder's thread, of every kernel that is there or will not be, and the seconds it took."""


class _Stopped(Exception):
    """Raised inside a build that nobody waits for any more."""


class Builder:
    """Builds kernels in a thread of its own for the length of a with block."""

    def __init__(self, plans: Sequence[KernelPlan], run_dir: Path, *, jobs: int, finished: Finished) -> None:
        self._plans = tuple(plans)
        self._notes = _notes_in(run_dir)
        self._jobs = jobs
        self._finished = finished
        self._stop = threading.Event()
        self._at_work: IO[bytes] | None = None
        """A file that is locked for as long as there is hope; flock(2) ends with us, whatever happens."""
        self._thread = threading.Thread(target=self._build_all, name="builder", daemon=True)

    def __enter__(self) -> Builder:
        self._notes.mkdir(parents=True, exist_ok=True)
        for plan in self._plans:
            # Of an earlier part of the run: what failed then may have been the host's fault.
            _note_of(self._notes, plan.key).unlink(missing_ok=True)
        self._at_work = (self._notes / _AT_WORK).open("wb")
        fcntl.flock(self._at_work, fcntl.LOCK_EX)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop a build that is under way, for the tests that wanted it are over."""
        self._stop.set()
        self._thread.join()

    def _build_all(self) -> None:
        assert self._at_work is not None
        with self._at_work:
            for plan in self._plans:
                try:
                    self._build(plan)
                except _Stopped:
                    return
                except Exception as error:
                    # On a full disk not even a failure can be noted; who waits is told by the lock.
                    _log.warning("building %s: %s", plan.variant.name, error)

    def _build(self, plan: KernelPlan) -> None:
        began = time.monotonic()
        try:
            came_of_it: Built | HarnessError = build_kernel(plan, jobs=self._jobs, progress=self._check_stop)
        except _Stopped:
            raise
        except HarnessError as error:
            came_of_it = error
        except Exception as error:
            came_of_it = InfraError(f"the build broke off: {error!r}")
        if isinstance(came_of_it, HarnessError):
            _note_failure(self._notes, plan.key, came_of_it)
        self._finished(plan, came_of_it, time.monotonic() - began)

    def _check_stop(self, _progress: BuildProgress) -> None:
        if self._stop.is_set():
            raise _Stopped


_AT_WORK = "at-work"


def _notes_in(run_dir: Path) -> Path:
    return run_dir / "builds"


def _note_of(notes: Path, digest: str) -> Path:
    """Where it stands why there will be no kernel *digest*."""
    return notes / f"{digest}.json"


def _note_failure(notes: Path, digest: str, error: HarnessError) -> None:
    note = {"message": error.message, "hint": error.hint, "exit_code": int(error.exit_code)}
    partial = notes / f".{digest}.json"
    partial.write_text(json.dumps(note) + "\n", encoding="utf-8")
    partial.rename(_note_of(notes, digest))


def wait_for_kernel(digest: str, run_dir: Path, check: Callable[[], None] = lambda: None) -> Built:
    """The kernel *digest*, once it is in the store; *check* may raise to end the wait.

    Raises KernelError or InfraError, as its build did, when that failed; InfraError when nobody builds it.
    """
    notes = _notes_in(run_dir)
    while True:
        # Asked first: a builder that ends between the two questions has left a kernel or a note.
        at_work = _at_work(notes)
        built = find_built(digest)
        if built is not None:
            return built
        with contextlib.suppress(FileNotFoundError):
            _raise_noted(json.loads(_note_of(notes, digest).read_text(encoding="utf-8")))
        if not at_work:
            raise InfraError(
                f"the kernel {digest[:12]} is not in the store and nobody is building it",
                hint="vfio-harness run builds it",
            )
        check()
        time.sleep(_POLL_SECONDS)


def _raise_noted(note: dict[str, str | int | None]) -> None:
    kind = KernelError if note["exit_code"] == ExitCode.KERNEL else InfraError
    hint = note["hint"]
    raise kind(str(note["message"]), hint=str(hint) if hint else None)


def _at_work(notes: Path) -> bool:
    """Whether a builder holds its lock."""
    try:
        with (notes / _AT_WORK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
