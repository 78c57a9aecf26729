# SPDX-License-Identifier: GPL-2.0-only
"""Admission: no VM starts without room, no process starves, and a dead process holds no room."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from harness.base.errors import DeadlinePassed, InfraError, UsageError
from harness.lab import admission
from harness.lab.admission import admitted, most_vms, room_for

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with 8 GiB and room for two VMs, for this test alone."""
    monkeypatch.setattr(admission, "_directory", lambda: tmp_path / "tickets")
    monkeypatch.setattr(admission, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(admission, "available_mib", lambda: 8 * 1024)
    monkeypatch.setattr(admission, "total_mib", lambda: 8 * 1024)
    monkeypatch.setenv("VFIO_HARNESS_VMS", "2")


def _visit(log: Path, name: str, memory_mib: int, seconds: float) -> None:
    with admitted(memory_mib):
        with log.open("a", encoding="ascii") as file:
            file.write(f"+{name}\n")
        time.sleep(seconds)
        with log.open("a", encoding="ascii") as file:
            file.write(f"-{name}\n")


def _most_at_once(log: Path) -> int:
    inside = most = 0
    for line in log.read_text(encoding="ascii").splitlines():
        inside += 1 if line.startswith("+") else -1
        most = max(most, inside)
    return most


def test_never_more_than_there_is_room_for(tmp_path: Path) -> None:
    """Of twenty that wait, two are admitted at a time, and all in the end."""
    log = tmp_path / "log"
    visits = [FORK.Process(target=_visit, args=(log, str(n), 1024, 0.02)) for n in range(20)]
    for visit in visits:
        visit.start()
    for visit in visits:
        visit.join(30)
    assert [visit.exitcode for visit in visits] == [0] * 20
    assert len(log.read_text(encoding="ascii").splitlines()) == 40
    assert _most_at_once(log) == 2
    assert [path.name for path in (tmp_path / "tickets").iterdir()] == ["lock"]


def test_processors_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A VM of eight vCPUs counts as four of two; a VM that is alone is admitted whatever it needs."""
    monkeypatch.setenv("VFIO_HARNESS_VMS", "4")

    def give_up() -> None:
        raise DeadlinePassed("too late")

    with admitted(1024, cpus=6):
        with pytest.raises(DeadlinePassed), admitted(1024, give_up, cpus=4):
            pass
        with admitted(1024, give_up, cpus=1), pytest.raises(DeadlinePassed), admitted(1024, give_up):
            pass
    with admitted(1024, give_up, cpus=64):
        pass


def test_ticket_of_an_older_harness_is_one_vm() -> None:
    """It may run on this host while the next version is tried."""
    assert admission._weight_of(Path("/x/1700000000-77.1024.in")) == 1
    assert admission._weight_of(Path("/x/1700000000-77.1024.8.in")) == 4


def test_memory_counts(tmp_path: Path) -> None:
    """Two VMs of 4 GiB do not fit into 8 GiB, of which the host needs some."""
    log = tmp_path / "log"
    visits = [FORK.Process(target=_visit, args=(log, str(n), 4096, 0.05)) for n in range(3)]
    for visit in visits:
        visit.start()
    for visit in visits:
        visit.join(30)
    assert _most_at_once(log) == 1


def test_memory_that_is_promised_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that come at once both see the available memory before either has allocated any."""
    monkeypatch.setattr(admission, "available_mib", lambda: 3 * 1024)
    log = tmp_path / "log"
    visits = [FORK.Process(target=_visit, args=(log, str(n), 2048, 0.5)) for n in range(2)]
    for visit in visits:
        visit.start()
    for visit in visits:
        visit.join(30)
    assert _most_at_once(log) == 1


def test_memory_that_is_touched_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a VM has had time to allocate is no longer counted as available."""
    monkeypatch.setattr(admission, "available_mib", lambda: 3 * 1024)
    with admitted(2048):
        later = time.time() + 60
        monkeypatch.setattr("time.time", lambda: later)
        with admitted(2048):
            pass


def test_tickets_that_somebody_removes_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cleanup of /tmp makes no waiting process lose its place."""
    monkeypatch.setenv("VFIO_HARNESS_VMS", "1")
    log = tmp_path / "log"
    with admitted(1024):
        visits = [FORK.Process(target=_visit, args=(log, str(n), 1024, 0.05)) for n in range(2)]
        for visit in visits:
            visit.start()
        _wait_for_tickets(tmp_path, 3)
        (tmp_path / "tickets").rename(tmp_path / "removed")
        for visit in visits:
            visit.join(30)
    assert [visit.exitcode for visit in visits] == [0, 0]
    assert _most_at_once(log) == 1


def test_trouble_while_waiting_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(directory: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(admission, "_living", broken)
    with pytest.raises(InfraError, match=r"cannot count VMs in .*: Input/output error"):
        admitted(1024).__enter__()


def test_big_one_is_not_overtaken(tmp_path: Path) -> None:
    """A big VM that waits is admitted before a small one that came later and would fit now."""
    log = tmp_path / "log"
    with admitted(4096):
        big = FORK.Process(target=_visit, args=(log, "big", 4096, 0.05))
        big.start()
        _wait_for_tickets(tmp_path, 2)
        small = FORK.Process(target=_visit, args=(log, "small", 256, 0.0))
        small.start()
        _wait_for_tickets(tmp_path, 3)
        time.sleep(0.1)
        assert not log.exists()
    for visit in (big, small):
        visit.join(30)
    assert log.read_text(encoding="ascii").startswith("+big\n")


def _wait_for_tickets(tmp_path: Path, number: int) -> None:
    end = time.monotonic() + 10
    while len(list((tmp_path / "tickets").glob("*.*.*"))) < number and time.monotonic() < end:
        time.sleep(0.01)


def _stay(inside: Event) -> None:
    with admitted(1024):
        inside.set()
        time.sleep(60)


@pytest.mark.skipif(sys.platform != "linux", reason="flock(2) as Linux has it")
def test_the_killed_hold_nothing(tmp_path: Path) -> None:
    """The room of a killed process is free at once."""
    for _ in range(2):
        inside = FORK.Event()
        stays = FORK.Process(target=_stay, args=(inside,))
        stays.start()
        assert inside.wait(10)
        assert stays.pid is not None
        os.kill(stays.pid, signal.SIGKILL)
        stays.join()
    began = time.monotonic()
    with admitted(1024), admitted(1024):
        assert time.monotonic() - began < 5


def test_a_wait_can_be_given_up() -> None:
    """A wait ends at the deadline of the run, and leaves no ticket."""

    def check() -> None:
        raise DeadlinePassed("too late")

    with admitted(4096):
        with pytest.raises(DeadlinePassed), admitted(6144, check):
            pass
        with admitted(1024):
            pass


def test_alone_is_always_let_in() -> None:
    """If nothing else runs, a VM that is bigger than the limits is admitted."""
    with admitted(64 * 1024):
        pass


def test_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment variable and the memory limit the number of VMs."""
    assert most_vms() == 2
    assert room_for(1024) == 2
    assert room_for(5000) == 1
    assert (room_for(1024, 1), room_for(1024, 3), room_for(1024, 64)) == (2, 1, 1)
    monkeypatch.setenv("VFIO_HARNESS_VMS", "")
    assert most_vms() > 0, "as every other empty variable"
    monkeypatch.setenv("VFIO_HARNESS_VMS", "many")
    with pytest.raises(UsageError, match="VFIO_HARNESS_VMS must be a positive integer, got 'many'"):
        most_vms()


def test_all_of_a_user_use_one_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Processes with different TMPDIRs share one count."""
    monkeypatch.undo()
    before = admission._directory()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert admission._directory() == before


@pytest.mark.parametrize("place", ["open", "link", "file"])
def test_a_place_that_others_may_write_to_is_refused(tmp_path: Path, place: str) -> None:
    """Another user could have made it, and could hold every ticket."""
    tickets = tmp_path / "tickets"
    if place == "open":
        tickets.mkdir()
        tickets.chmod(0o777)
    elif place == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        tickets.symlink_to(tmp_path / "elsewhere")
    else:
        tickets.touch(mode=0o600)
    with pytest.raises(InfraError, match="it is not a directory that only this user can write to"):
        admitted(1024).__enter__()
    assert not (tmp_path / "elsewhere" / "lock").exists()


def test_a_place_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tickets").mkdir(mode=0o700)
    monkeypatch.setattr("os.getuid", lambda: 4711)
    with pytest.raises(InfraError, match="only this user"):
        admitted(1024).__enter__()
