# SPDX-License-Identifier: GPL-2.0-only
"""Dump a guest's memory, within the budget; with a fake QMP server."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from machine_fake_qmp import FakeQmp, Reply, fake_qmp

from harness.base.deadline import Deadline
from harness.machine import dump
from harness.machine.dump import FILE, NOTE, PANIC_EVENT, Dumper, DumpNote, read_dump_note
from harness.machine.qmp import Qmp


class Guest:
    """A QEMU that can dump, and the Dumper of its VM."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.formats = ["elf", "kdump-zlib"]
        self.error = ""
        """What QEMU says when it has tried to write."""
        self.ends = True
        self.ended = threading.Event()
        self.server: FakeQmp | None = None
        self.dumper: Dumper | None = None

    def answer(self, name: str, arguments: dict[str, Any]) -> Reply | None:
        if name == "query-dump-guest-memory-capability":
            return {"return": {"formats": self.formats}}
        if name == "dump-guest-memory":
            path = self.directory / arguments["protocol"].removeprefix("file:")
            path.write_bytes(b"x" * 5000)
            if self.ends:
                threading.Timer(0.05, self._complete).start()
        if name == "quit":
            self.ended.set()
        return {"return": {}}

    def _complete(self) -> None:
        assert self.server is not None
        self.server.event("DUMP_COMPLETED", **({"error": self.error} if self.error else {}))

    @property
    def asked(self) -> list[str]:
        assert self.server is not None
        return [name for name, _ in self.server.commands]


@contextlib.contextmanager
def guest(tmp_path: Path) -> Iterator[tuple[Guest, Dumper]]:
    directory = tmp_path / "vm" / "job-1"
    directory.mkdir(parents=True)
    made = Guest(directory)
    with fake_qmp(tmp_path / "qmp.sock", made.answer) as made.server:
        qmp = Qmp(tmp_path / "qmp.sock", Deadline.after(5))
        try:
            yield made, Dumper(qmp, directory, 1024)
        finally:
            qmp.close()


def test_a_dump_is_compressed_where_qemu_can(tmp_path: Path) -> None:
    """The best format that is offered; the note has its size and how long it took."""
    with guest(tmp_path) as (qemu, dumper):
        note = dumper.take()
        assert (note.format, note.bytes, note.reason) == ("kdump-zlib", 5000, "")
        assert read_dump_note(qemu.directory) == note
        arguments = next(given for name, given in qemu.server.commands if name == "dump-guest-memory")  # type: ignore[union-attr]
        assert arguments["paging"] is False


def test_one_dump_for_each_vm(tmp_path: Path) -> None:
    """The first is the one nearest to the cause."""
    with guest(tmp_path) as (qemu, dumper):
        assert dumper.take() is dumper.take()
        assert qemu.asked.count("dump-guest-memory") == 1


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written, and the note says how much is free and how much a dump may need."""
    monkeypatch.setattr(dump, "free_mib", lambda directory: 100)
    with guest(tmp_path) as (qemu, dumper):
        note = dumper.take()
        assert note.reason.startswith("only 100 MiB are free in ")
        assert note.reason.endswith(f", and a dump may need {dump.MOST_MIB + dump.SPARED_MIB}")
        assert (qemu.asked, read_dump_note(qemu.directory)) == ([], note)
        assert not (qemu.directory / FILE).exists()


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    """What QEMU says is the reason, and nothing is left of the dump."""
    with guest(tmp_path) as (qemu, dumper):
        qemu.error = "dump: failed to save memory: No space left on device"
        assert dumper.take().reason == f"QEMU could not write it: {qemu.error}"
        assert not (qemu.directory / FILE).exists()


def test_a_dump_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up at its timeout."""
    monkeypatch.setattr(dump, "SECONDS", 0.2)
    with guest(tmp_path) as (qemu, dumper):
        qemu.ends = False
        assert dumper.take().reason == "it was not written in time"
        assert not (qemu.directory / FILE).exists()


def test_a_dump_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up at its limit."""
    monkeypatch.setattr(dump, "MOST_MIB", -1)
    with guest(tmp_path) as (qemu, dumper):
        qemu.ends = False
        assert dumper.take().reason == "it is larger than -1 MiB"


def test_the_dumps_of_a_run_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that crashes in every case does not fill the disk."""
    monkeypatch.setattr(dump, "MOST_RUN_MIB", 1)
    with guest(tmp_path) as (qemu, dumper):
        other = qemu.directory.with_name("job-2") / FILE
        other.parent.mkdir()
        other.write_bytes(os.urandom(2 << 20))
        assert dumper.take().reason == "the dumps of this run already take 2 MiB, of 1"


def test_a_guest_that_panics(tmp_path: Path) -> None:
    """QEMU waits until it is dumped, and then ends."""
    with guest(tmp_path) as (qemu, dumper):
        dumper.arm()
        assert qemu.server is not None
        assert qemu.server.commands == [("set-action", {"panic": "pause"})]
        dumper.finish()  # nothing to wait for
        qemu.server.event(PANIC_EVENT, action="pause")
        assert qemu.ended.wait(5)
        dumper.finish()
        assert qemu.asked[-2:] == ["dump-guest-memory", "quit"]
        assert read_dump_note(qemu.directory) is not None


def test_notes(tmp_path: Path) -> None:
    """A VM that did not die has none; a damaged one counts as none."""
    assert read_dump_note(tmp_path) is None
    (tmp_path / NOTE).write_text('{"reason": "x"}', encoding="utf-8")
    assert read_dump_note(tmp_path) == DumpNote(reason="x")
    (tmp_path / NOTE).write_text('{"reason"', encoding="utf-8")
    assert read_dump_note(tmp_path) is None
