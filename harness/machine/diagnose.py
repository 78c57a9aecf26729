# SPDX-License-Identifier: GPL-2.0-only
"""Collect diagnostics of a VM before it is killed: one text file, within a time budget.

A query that fails does not prevent the others.  write_bundle() never raises.
"""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

from harness.base.deadline import Deadline
from harness.base.errors import HarnessError
from harness.kernel.arch import Interrupts
from harness.machine.machine import CONSOLE_ID, CONSOLE_LOG
from harness.machine.pulse import describe_threads
from harness.machine.qmp import Qmp

FILE = "diagnostics.txt"

BUDGET_SECONDS = 12.0

SYSRQ = {
    "l": "backtraces of all vCPUs",
    "w": "blocked tasks",
    "m": "memory",
}
"""SysRq keys and what they print on the console (Documentation/admin-guide/sysrq.rst)."""

_CPUS_SHOWN = 2
"""How many vCPUs' interrupt controllers are shown: the default number of vCPUs."""

_BREAK_PAUSE = 0.1
_SYSRQ_PAUSE = 0.5
_SYSRQ_MOST = 3.0
_QUIET = 0.4


def sysrq(qmp: Qmp, console_socket: Path, key: str) -> None:
    """Send a serial break and *key*: magic SysRq without the guest's help.

    Needs CONFIG_MAGIC_SYSRQ_SERIAL and a process in the guest that holds the serial port open.
    Raises QmpError, or OSError when the console's socket cannot be reached.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(2)
        line.connect(str(console_socket))
        qmp.execute("chardev-send-break", {"id": CONSOLE_ID}, seconds=2)
        _drain(line, _BREAK_PAUSE, _BREAK_PAUSE)
        line.sendall(key.encode("ascii"))
        _drain(line, _SYSRQ_PAUSE, _SYSRQ_MOST)


def _drain(line: socket.socket, quiet: float, most: float) -> None:
    """Read what the guest prints until it is *quiet* for so many seconds, for *most* seconds.

    QEMU writes byte by byte: when some 280 of them are unread the socket is full, and QEMU drops what the
    guest prints, from the console's log too.
    """
    limit = Deadline.after(most)
    # QEMU may end, because the kernel panics.
    with contextlib.suppress(TimeoutError, ConnectionError):
        while not limit.expired:
            line.settimeout(min(quiet, limit.remaining + 0.001))
            if not line.recv(65536):
                return


def write_bundle(directory: Path, pid: int, qmp: Qmp, console_socket: Path, interrupts: Interrupts) -> Path:
    """Collect what BUDGET_SECONDS allow, write it to FILE in *directory* and return that file.

    *pid* is QEMU's.
    """
    limit = Deadline.after(BUDGET_SECONDS)

    def monitor(command: str, seconds: float = 2) -> Callable[[], str]:
        return lambda: qmp.monitor(command, seconds=min(seconds, limit.remaining))

    cpus = range(_CPUS_SHOWN)
    questions: list[tuple[str, Callable[[], str]]] = [
        ("status", lambda: json.dumps(qmp.execute("query-status", seconds=min(2, limit.remaining)))),
        ("registers", monitor("info registers -a", 4)),
        ("interrupts", monitor("info pic")),
        # Shows whether the timer is armed and which interrupts are in service.
        *((f"{interrupts.title} {cpu}", monitor(interrupts.command.format(cpu=cpu))) for cpu in cpus),
        ("threads of QEMU", lambda: describe_threads(pid)),
        ("network", monitor("info usernet")),
        ("PCI as QEMU sees it", monitor("info pci")),
        ("events", lambda: "\n".join(json.dumps(event) for event in qmp.events)),
        *(
            (f"sysrq {key}: {what}", functools.partial(_press, qmp, console_socket, key))
            for key, what in SYSRQ.items()
        ),
    ]
    path = directory / FILE
    with path.open("w", encoding="utf-8") as file:
        for title, ask in questions:
            file.write(f"== {title}\n{_answer(ask, limit)}\n\n")
            file.flush()
    _let_settle(directory / CONSOLE_LOG, limit)
    return path


def _let_settle(console: Path, limit: Deadline) -> None:
    """Wait until the console is quiet: the kernel prints the answers to SysRq in the background."""
    size = -1
    while not limit.expired and console.exists() and size != console.stat().st_size:
        size = console.stat().st_size
        time.sleep(min(_QUIET, limit.remaining))


def _press(qmp: Qmp, console_socket: Path, key: str) -> str:
    sysrq(qmp, console_socket, key)
    return "see the console"


def _answer(ask: Callable[[], str], limit: Deadline) -> str:
    if limit.expired:
        return "(no time left)"
    try:
        return ask().replace("\r", "").rstrip()
    except (HarnessError, OSError, UnicodeError) as error:
        return f"(no answer: {error})"
