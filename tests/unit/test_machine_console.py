# SPDX-License-Identifier: GPL-2.0-only
"""Reading a console log that grows."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from harness.deadline import Deadline
from harness.machine.console import Console


def test_splats_are_found_while_the_log_grows(tmp_path: Path) -> None:
    """Half a line is not judged; positions count bytes of the file, carriage returns included."""
    log = tmp_path / "console.log"
    console = Console(log)
    assert (console.splats(), console.size, console.tail()) == ((), 0, ())
    log.write_bytes(b"[    1.000000] vfio-harness: begin a/b\r\n[    1.100000] BUG: Bad ")
    assert console.splats() == ()
    assert console.case == "a/b"
    middle = console.size
    with log.open("ab") as file:
        file.write(b"page state in process x\r\n[    1.2000")
    (found,) = console.splats()
    assert (found.title, found.case, found.offset) == ("BUG: Bad page state in process x", "a/b", 40)
    assert console.splats(since=middle) == ()
    assert not console.settled
    console.finish()
    assert console.tail(1) == ("[    1.2000",)


def test_wait_for(tmp_path: Path) -> None:
    """A text that comes late is waited for; one that was there before the position does not count."""
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
