# SPDX-License-Identifier: GPL-2.0-only
"""Dump the memory of a guest that panicked or hangs, within a budget of disk space and time.

A note beside the dump has its size and duration, or the reason why there is none.  No error of a dump ends a
run: a dump is evidence, and the run goes on without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from harness.base.deadline import Deadline
from harness.base.errors import InfraError
from harness.base.files import write_atomic
from harness.base.host import free_mib
from harness.machine.qmp import Qmp

PANIC_EVENT = "GUEST_PANICKED"
"""QEMU's event when the guest's pvpanic driver reports a panic."""

FILE = "memory.kdump"
NOTE = "memory.json"

SECONDS = 30.0
"""Timeout for one dump, multiplied by that of the accelerator; a guest of 1 GiB takes one or two seconds."""

MOST_MIB = 512
"""Largest dump; those of guests with 1 GiB of memory have some 30 MiB, because most of it was never used."""

MOST_RUN_MIB = 2048
"""Most for all dumps of one run: a kernel may crash in every case."""

SPARED_MIB = 128
"""Free disk space that no dump takes: results and logs are worth more."""

_FORMATS = ("kdump-raw-zlib", "kdump-zlib", "elf")
"""What drgn reads, best first; raw: not flattened for a pipe (QEMU qapi/dump.json, since 8.2)."""

_POLL_SECONDS = 0.05


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DumpNote:
    """What became of the dump of one VM."""

    reason: str = ""
    """Why there is no dump, in one sentence; empty if there is one."""
    format: str = ""
    """QEMU's name of its format."""
    bytes: int = 0
    seconds: float = 0.0


class Dumper:
    """Dumps the memory of one VM."""

    def __init__(self, qmp: Qmp, directory: Path, memory_mib: int, factor: float = 1.0) -> None:
        """Write to *directory*, which is the VM's; timeouts are multiplied by *factor*."""
        self._qmp = qmp
        self._directory = directory
        self._memory_mib = memory_mib
        self._seconds = SECONDS * factor
        self._dumping: threading.Thread | None = None
        self._lock = threading.Lock()
        self._taken: DumpNote | None = None

    def arm(self) -> None:
        """Dump a guest that panics before QEMU ends.  Raises QmpError."""
        self._dumping = self._qmp.when(PANIC_EVENT, self._dump_and_quit)
        # QEMU's command line, which people paste, ends it at once instead.
        self._qmp.execute("set-action", {"panic": "pause"})

    def take(self) -> DumpNote:
        """Write FILE and NOTE, once for each VM; the guest is paused meanwhile.

        A VM whose dump did not end in time can only be ended.
        """
        # The console shows a panic before QEMU reports it: two threads may come here.
        with self._lock:
            if self._taken is None:
                self._taken = self._take()
            return self._taken

    def _take(self) -> DumpNote:
        path, began, form = self._directory / FILE, time.monotonic(), ""
        try:
            path.unlink(missing_ok=True)
            reason = _refusal(self._directory, self._memory_mib)
            if not reason:
                form = _best_format(self._qmp)
                reason = _write(self._qmp, path, form, Deadline.after(self._seconds))
            if not reason:
                seconds = round(time.monotonic() - began, 2)
                return self._note(DumpNote(format=form, bytes=path.stat().st_size, seconds=seconds))
        except (InfraError, OSError) as error:
            reason = str(error)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return self._note(DumpNote(reason=reason))

    def finish(self) -> None:
        """Wait until the dump of a guest that panicked is written, if it did."""
        if self._dumping is not None and self._dumping.ident is not None:
            self._dumping.join()

    def _dump_and_quit(self) -> None:
        self.take()
        with contextlib.suppress(InfraError):
            self._qmp.execute("quit")

    def _note(self, note: DumpNote) -> DumpNote:
        # The report says that the note is missing, as on a full disk.
        with contextlib.suppress(OSError):
            write_atomic(self._directory / NOTE, json.dumps(dataclasses.asdict(note)) + "\n")
        return note


def read_dump_note(directory: Path) -> DumpNote | None:
    """Return the note in the VM's *directory*; None if there is none or it is damaged."""
    try:
        return DumpNote(**json.loads((directory / NOTE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _refusal(directory: Path, memory_mib: int) -> str:
    """Return why no dump fits on the disk or into the run's budget; empty if one does."""
    dumps = (path for path in directory.parent.glob(f"*/{FILE}") if path.parent != directory)
    taken = sum(path.stat().st_blocks * 512 for path in dumps) >> 20
    if taken >= MOST_RUN_MIB:
        return f"the dumps of this run already take {taken} MiB, of {MOST_RUN_MIB}"
    needed = min(memory_mib, MOST_MIB) + SPARED_MIB
    free = free_mib(directory)
    return f"only {free} MiB are free in {directory}, and a dump may need {needed}" if free < needed else ""


def _best_format(qmp: Qmp) -> str:
    offered: Sequence[str] = qmp.execute("query-dump-guest-memory-capability")["formats"]
    return next((form for form in _FORMATS if form in offered), "elf")


def _write(qmp: Qmp, path: Path, form: str, limit: Deadline) -> str:
    """Have QEMU write *path*; return why it did not, or empty.  Raises QmpError."""
    seen = len(qmp.events)
    arguments = {"paging": False, "protocol": f"file:{path.name}", "detach": True, "format": form}
    qmp.execute("dump-guest-memory", arguments)
    while True:
        done = qmp.wait_event("DUMP_COMPLETED", limit.within(_POLL_SECONDS), since=seen)
        if done is not None:
            said = done["data"].get("error")
            return f"QEMU could not write it: {said}" if said else ""
        if limit.expired:
            return "it was not written in time"
        if path.exists() and path.stat().st_blocks * 512 >> 20 > MOST_MIB:
            return f"it is larger than {MOST_MIB} MiB"
