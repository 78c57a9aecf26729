# SPDX-License-Identifier: GPL-2.0-only
"""Room on this host: VMs of all runs of one user are let in one after the other, while there is room.

Everybody who wants a VM holds a ticket, a file whose flock(2) the kernel drops when its holder dies.  The
oldest ticket that waits is next, so that no run starves.  A host that is asked for more than it has makes
guests stand still, and what their time limits then say is about the host.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.errors import InfraError, UsageError
from harness.host import available_mib, total_mib

PER_PROCESSOR = 2
"""VMs for each of the host's processors: cases wait about as long as they compute (a reset, a transfer of
edu).  On 2 processors a run of 72 s with 1 VM took 57 with 2, 49 with 3 and 42 with 4.
"""

CPUS = 2
"""Processors of the VMs that PER_PROCESSOR counts; one with more takes the place of several."""

RESERVE_MIB = 1024
"""Memory that stays with the host and with compilers."""

MOST_VARIABLE = "VFIO_HARNESS_VMS"
"""Environment: how many VMs of CPUS processors may run at once, whatever PER_PROCESSOR says."""

_SHARED = Path("/tmp")
"""What every process of a user sees, whatever TMPDIR says; XDG_RUNTIME_DIR is not everywhere."""

_POLL_SECONDS = 0.2

_SETTLING_SECONDS = 30.0
"""How long after it was let in a VM may yet touch memory that MemAvailable still counts."""

_log = logging.getLogger("harness.admission")


def most_vms() -> int:
    """How many VMs this host may run at once.  Raises UsageError for a VFIO_HARNESS_VMS that is no number."""
    asked = os.environ.get(MOST_VARIABLE)
    if asked is None:
        return PER_PROCESSOR * len(os.sched_getaffinity(0))
    if not asked.isdecimal() or int(asked) < 1:
        raise UsageError(f"{MOST_VARIABLE} must be a number of VMs, not {asked!r}", hint="such as 4")
    return int(asked)


def room_for(memory_mib: int, cpus: int = CPUS) -> int:
    """How many VMs of *memory_mib* and *cpus* this host has room for when nothing else runs, at least 1."""
    return max(1, min(int(most_vms() / _weight(cpus)), available_mib() // memory_mib))


@contextlib.contextmanager
def admitted(
    memory_mib: int, check: Callable[[], None] = lambda: None, *, cpus: int = CPUS
) -> Iterator[float]:
    """Hold room for a VM of *memory_mib* and *cpus*, waiting as long as others have it: for so many seconds.

    *check* may raise to end the wait.

    Not to be nested: who holds room and waits for more may wait for ever.
    """
    with _ticket(memory_mib, cpus) as ticket:
        began = time.monotonic()
        told = False
        while not ticket.enter():
            if not told:
                _log.info("waiting for room on this host: its other VMs leave none")
                told = True
            check()
            time.sleep(_POLL_SECONDS)
        yield time.monotonic() - began


def _directory() -> Path:
    """Where the tickets of this user lie; one for all caches, runs and settings of TMPDIR."""
    return _SHARED / f"vfio-harness-{os.getuid()}"


def _make_safely(directory: Path) -> None:
    """Make *directory* unless it is there, for this user alone: anybody may have put something in its place.

    Raises InfraError when it is somebody else's, or open to others.
    """
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise InfraError(
            f"cannot keep count of VMs in {directory}: it is not a directory that this user alone writes to",
            hint="remove it",
        )


class _Ticket:
    """A file NUMBER.MIB.CPUS.STATE; the lowest number is the oldest.  Inside, its time is when it came in."""

    def __init__(self, directory: Path, memory_mib: int, cpus: int) -> None:
        self._directory = directory
        self._path = directory / f"{time.time_ns()}-{os.getpid()}.{memory_mib}.{cpus}.waits"
        self._handle = -1

    def enter(self) -> bool:
        """Whether there is room for it, and nobody waits longer; it is inside then.  Raises InfraError."""
        try:
            _make_safely(self._directory)
            # Where the directory goes under our hands it is made anew the next time.
            with contextlib.suppress(FileNotFoundError), _locked(self._directory):
                return self._enter()
        except OSError as error:
            raise InfraError(f"cannot keep count of VMs in {self._directory}: {error.strerror}") from error
        return False

    def _enter(self) -> bool:
        if not self._path.exists():
            # New, or removed by somebody who cleans up /tmp while we wait.
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
        fcntl.flock(self._handle, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Give its room back."""
        # Before the lock goes, so that nobody finds it without a holder; one that stays is a dead one's.
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
    """How many usual VMs its processors stand for; an older harness does not say how many those are."""
    cpus = ticket.name.split(".")[2]
    return _weight(int(cpus)) if cpus.isdecimal() else 1.0


def _weight(cpus: int) -> float:
    """How many VMs of CPUS processors one of *cpus* stands for; none weighs less than one."""
    return max(1.0, cpus / CPUS)


def _promised_mib(ticket: Path) -> int:
    return int(ticket.name.split(".")[1])


def _is_settling(ticket: Path) -> bool:
    """Whether it was let in just now; not when the clock was put back since, nor when it left meanwhile."""
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


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    handle = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _living(directory: Path) -> tuple[list[Path], list[Path]]:
    """The tickets that are inside and that wait, oldest first; a dead holder's is removed."""
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
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        path.unlink(missing_ok=True)
        return False
    finally:
        os.close(handle)
