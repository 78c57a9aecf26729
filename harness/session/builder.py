# SPDX-License-Identifier: GPL-2.0-only
"""Build kernels in the background while jobs of the same run whose kernels are built are tested.

A thread of the process that talks to the user builds them one after the other.  A worker that needs one waits
until it is in the store, or until a note in the run's directory says why it never will be.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from harness.base.errors import HarnessError, InfraError
from harness.kernel import pending
from harness.kernel.make import BuildProgress, Progress
from harness.kernel.plan import KernelPlan
from harness.kernel.provide import build_kernel
from harness.kernel.store import Built

_log = logging.getLogger("harness.session.builder")

Finished = Callable[[KernelPlan, Built | HarnessError, float], None]
"""Called in the builder's thread after each kernel, with the kernel or the error and the seconds it took."""


class _Stopped(Exception):
    """Raised inside a build that nothing waits for any more."""


@contextlib.contextmanager
def building(
    plans: Sequence[KernelPlan], run_dir: Path, *, compilers: int, finished: Finished
) -> Iterator[None]:
    """Build *plans* in a thread while the with block runs; its end stops a build that is under way."""
    notes = pending.notes_in(run_dir)
    at_work = pending.begin_work(notes)
    for plan in plans:
        # Notes of an earlier part of the run: the host may have been at fault then.
        pending.forget_failure(notes, plan.key)
    stop = threading.Event()

    def check_stop(_progress: BuildProgress) -> None:
        if stop.is_set():
            raise _Stopped

    def build_all() -> None:
        with at_work, contextlib.suppress(_Stopped):
            for plan in plans:
                try:
                    _build(plan, notes, compilers, check_stop, finished)
                except Exception as error:
                    # On a full disk even the failure cannot be noted; waiting processes see the released
                    # lock.
                    _log.warning("building %s: %s", plan.variant.name, error)

    thread = threading.Thread(target=build_all, name="builder", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _build(plan: KernelPlan, notes: Path, compilers: int, progress: Progress, finished: Finished) -> None:
    began = time.monotonic()
    try:
        result: Built | HarnessError = build_kernel(plan, compilers=compilers, progress=progress)
    except _Stopped:
        raise
    except HarnessError as error:
        result = error
    except Exception as error:
        result = InfraError(f"the build failed unexpectedly: {error!r}")
    if isinstance(result, HarnessError):
        pending.note_failure(notes, plan.key, result)
    finished(plan, result, time.monotonic() - began)
