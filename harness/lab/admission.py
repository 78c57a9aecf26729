# SPDX-License-Identifier: GPL-2.0-only
"""Admission: VMs of all runs of one user start in order, and only while this host has CPUs and memory left.

A process that wants a VM holds a ticket, a file with a flock(2), which ends with the process.  The oldest
waiting ticket is next, so that no run starves.  On an overloaded host guests stall, and their timeouts say
nothing about the kernel.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.base.cause import Cause
from harness.base.errors import InfraError, UsageError
from harness.base.host import available_mib, total_mib, usable_cpus
from harness.base.locks import alone_with, take

PER_PROCESSOR = 2
"""VMs per CPU of the host: cases wait about as long as they compute (a reset, a transfer of edu).  On 2 CPUs
a run of 72 s with 1 VM took 57 with 2, 49 with 3 and 42 with 4.
"""

CPUS = 2
"""How many vCPUs of a VM count as one in PER_PROCESSOR; a VM with more counts several times."""

RESERVE_MIB = 1024
"""Memory kept for the host and for compilers."""

MOST_VARIABLE = "VFIO_HARNESS_VMS"
"""Environment variable: the number of VMs of CPUS vCPUs that may run at once, instead of PER_PROCESSOR."""

_SHARED = Path("/tmp")
"""Seen by every process of a user, unlike TMPDIR; XDG_RUNTIME_DIR does not exist everywhere."""

_POLL_SECONDS = 0.2

_SETTLING_SECONDS = 30.0
"""How long after its admission a VM may still allocate memory that MemAvailable counts as free."""

_log = logging.getLogger("harness.lab.admission")


def most_vms() -> int:
    """Return how many VMs this host may run at once.  Raises UsageError for a bad VFIO_HARNESS_VMS."""
    asked = os.environ.get(MOST_VARIABLE, "")
    if not asked:
        return PER_PROCESSOR * usable_cpus()
    if not re.fullmatch(r"\d{1,9}", asked) or int(asked) < 1:
        raise UsageError(f"{MOST_VARIABLE} must be a positive integer, got {asked!r}", hint="such as 4")
    return int(asked)


def room_for(memory_mib: int, cpus: int = CPUS) -> int:
    """Return how many VMs of *memory_mib* and *cpus* fit on this host when nothing else runs, at least 1."""
    return max(1, min(int(most_vms() / _weight(cpus)), available_mib() // memory_mib))


@contextlib.contextmanager
def admitted(
    memory_mib: int, check: Callable[[], None] = lambda: None, *, cpus: int = CPUS
) -> Iterator[float]:
    """Wait until a VM of *memory_mib* and *cpus* may run, and reserve them; yield the seconds waited.

    *check* may raise to end the wait.  Do not nest: a process that waits while it holds a reservation may
    wait forever.
    """
    with _ticket(memory_mib, cpus) as ticket:
        began = time.monotonic()
        told = False
        while not ticket.enter():
            if not told:
                _log.info("waiting: other VMs use all CPUs or memory of this host")
                told = True
            check()
            time.sleep(_POLL_SECONDS)
        yield time.monotonic() - began


def _directory() -> Path:
    """Return the directory of this user's tickets, the same for all caches, runs and settings of TMPDIR."""
    return _SHARED / f"vfio-harness-{os.getuid()}"


def _make_safely(directory: Path) -> None:
    """Make *directory* for this user alone, if it does not exist.

    Raises InfraError when another user owns it or may write to it.
    """
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise InfraError(
            f"cannot count VMs in {directory}: it is not a directory that only this user can write to",
            hint="remove it",
            cause=Cause.HOST,
        )


class _Ticket:
    """A file NUMBER.MIB.CPUS.STATE; the lowest number is the oldest.  Its time is that of its admission."""

    def __init__(self, directory: Path, memory_mib: int, cpus: int) -> None:
        self._directory = directory
        self._path = directory / f"{time.time_ns()}-{os.getpid()}.{memory_mib}.{cpus}.waits"
        self._handle = -1

    def enter(self) -> bool:
        """Admit it if it is next and there is room; return whether it was.  Raises InfraError."""
        try:
            _make_safely(self._directory)
            # If the directory is removed meanwhile, the next call makes it again.
            with contextlib.suppress(FileNotFoundError), alone_with(self._directory / "lock", create=True):
                return self._enter()
        except OSError as error:
            message = f"cannot count VMs in {self._directory}: {error.strerror}"
            raise InfraError(message, cause=Cause.HOST) from error
        return False

    def _enter(self) -> bool:
        if not self._path.exists():
            # New, or removed by a cleanup of /tmp.
            self._write()
        inside, waiting = _living(self._directory)
        if waiting[:1] != [self._path] or (inside and not _is_room(inside, self._path)):
            return False
        os.utime(self._path)
        self._path = self._path.rename(self._path.with_suffix(".in"))
        return True

    def _write(self) -> None:
        self._close()
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        take(self._handle)

    def remove(self) -> None:
        """Release its reservation."""
        # Before the lock, so that no process takes it for the ticket of a dead one.
        with contextlib.suppress(OSError):
            self._path.unlink()
        self._close()

    def _close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _is_room(inside: list[Path], wanted: Path) -> bool:
    untouched = sum(_promised_mib(path) for path in inside if _is_settling(path))
    everybody = [*inside, wanted]
    return (
        sum(map(_weight_of, everybody)) <= most_vms()
        and sum(map(_promised_mib, everybody)) <= total_mib() - RESERVE_MIB
        and _promised_mib(wanted) <= available_mib() - untouched
    )


def _weight_of(ticket: Path) -> float:
    """Return its weight; tickets of an older harness do not have the number of vCPUs."""
    cpus = ticket.name.split(".")[2]
    return _weight(int(cpus)) if cpus.isdecimal() else 1.0


def _weight(cpus: int) -> float:
    """Return how many VMs of CPUS vCPUs a VM of *cpus* counts as, at least 1."""
    return max(1.0, cpus / CPUS)


def _promised_mib(ticket: Path) -> int:
    return int(ticket.name.split(".")[1])


def _is_settling(ticket: Path) -> bool:
    """Whether it was admitted just now; False if the clock was set back since, or if it is gone."""
    try:
        return 0 <= time.time() - ticket.stat().st_mtime < _SETTLING_SECONDS
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _ticket(memory_mib: int, cpus: int) -> Iterator[_Ticket]:
    ticket = _Ticket(_directory(), memory_mib, cpus)
    try:
        yield ticket
    finally:
        ticket.remove()


def _living(directory: Path) -> tuple[list[Path], list[Path]]:
    """Return the admitted and the waiting tickets, oldest first; remove those of dead processes."""
    found: dict[str, list[Path]] = {".in": [], ".waits": []}
    for path in sorted(directory.iterdir(), key=lambda path: path.name):
        if path.suffix in found and _is_held(path):
            found[path.suffix].append(path)
    return found[".in"], found[".waits"]


def _is_held(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if not take(handle):
            return True
        path.unlink(missing_ok=True)
        return False
    finally:
        os.close(handle)
