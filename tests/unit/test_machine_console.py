# SPDX-License-Identifier: GPL-2.0-only
"""Reading a console log that grows."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from harness.base.deadline import Deadline
from harness.machine.console import Console


def test_splats_are_found_while_the_log_grows(tmp_path: Path) -> None:
    """An incomplete line is not searched; positions are bytes of the file, carriage returns included."""
    log = tmp_path / "console.log"
    console = Console(log)
    assert (console.splats(), console.size, console.tail()) == ((), 0, ())
    log.write_bytes(b"[    1.000000] vfio-harness: begin a/b\r\n[    1.100000] BUG: Bad ")
    assert console.splats() == ()
    with log.open("ab") as file:
        file.write(b"page state in process x\r\n[    1.2000")
    (found,) = console.splats()
    assert (found.title, found.case, found.offset) == ("BUG: Bad page state in process x", "a/b", 40)
    assert not console.settled
    console.finish()
    assert console.tail(1) == ("[    1.2000",)


def test_hears_only_the_kernel(tmp_path: Path) -> None:
    """The same words without a time stamp are a program's; what came before does not count."""
    console = Console(tmp_path / "console.log")
    said = "vfio-harness: end m/c"
    stamped = f"[    1.000000][   T55] {said}\n"
    for text, heard in ((f"{said}\n", False), (stamped, True), (f"login: {stamped}", True)):
        console.path.write_text(text, encoding="utf-8")
        assert console.hears(said, Deadline.after(0)) is heard
        assert not console.hears(said, Deadline.after(0), since=len(text))


def test_wait_for(tmp_path: Path) -> None:
    """wait_for() waits for text to appear and ignores text before its start position."""
    log = tmp_path / "console.log"
    log.write_text("end a/b\n", encoding="utf-8")
    console = Console(log)
    position = console.size

    def write_late() -> None:
        time.sleep(0.1)
        with log.open("a", encoding="utf-8") as file:
            file.write("end a/b\n")

    assert not console.wait_for("end a/b", Deadline.after(0.05), since=position)
    writer = threading.Thread(target=write_late)
    writer.start()
    assert console.wait_for("end a/b", Deadline.after(5), since=position)
    writer.join()
