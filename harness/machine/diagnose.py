# SPDX-License-Identifier: GPL-2.0-only
"""What a VM can still tell before it is killed: one text file, made under a budget.

Each question may go unanswered; the others are asked all the same.  Nothing here raises.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import HarnessError
from harness.machine.machine import CONSOLE_ID, CONSOLE_LOG
from harness.machine.pulse import describe_threads
from harness.machine.qmp import Qmp

FILE = "diagnostics.txt"

BUDGET_SECONDS = 12.0

SYSRQ = {
    "l": "backtraces of all processors",
    "w": "blocked tasks",
    "m": "memory",
}
"""Keys pressed on the guest's console (Documentation/admin-guide/sysrq.rst); the answers go to its log."""

_CPUS_SHOWN = 2
"""Processors whose interrupt controller is looked at; what a machine has by default."""

_BREAK_PAUSE = 0.1
_SYSRQ_PAUSE = 0.5
_QUIET = 0.4


def sysrq(qmp: Qmp, console_socket: Path, key: str) -> None:
    """Send a serial break and *key*: magic SysRq without the guest's help.

    Needs CONFIG_MAGIC_SYSRQ_SERIAL and somebody in the guest who holds the serial port open.
    Raises QmpError, or OSError when the console's socket cannot be reached.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(2)
        line.connect(str(console_socket))
        qmp.execute("chardev-send-break", {"id": CONSOLE_ID}, seconds=2)
        time.sleep(_BREAK_PAUSE)
        line.sendall(key.encode("ascii"))
        time.sleep(_SYSRQ_PAUSE)


def write_bundle(directory: Path, pid: int, qmp: Qmp, console_socket: Path, deadline: Deadline) -> Path:
    """Ask everything there is time for and write it to FILE in *directory*; return the file.

    *pid* is QEMU's.
    """
    limit = deadline.within(BUDGET_SECONDS)
    questions: list[tuple[str, Callable[[], str]]] = [
        ("status", lambda: json.dumps(qmp.execute("query-status", seconds=min(2, limit.remaining)))),
        ("registers", lambda: qmp.monitor("info registers -a", seconds=min(4, limit.remaining))),
        ("interrupts", lambda: qmp.monitor("info pic", seconds=min(2, limit.remaining))),
        # Whether a processor's timer is armed, and what it has begun and not ended.
        *((f"local APIC {cpu}", _local_apic(qmp, cpu, limit)) for cpu in range(_CPUS_SHOWN)),
        ("threads of QEMU", lambda: describe_threads(pid)),
        ("network", lambda: qmp.monitor("info usernet", seconds=min(2, limit.remaining))),
        ("PCI as QEMU sees it", lambda: qmp.monitor("info pci", seconds=min(2, limit.remaining))),
        ("events", lambda: "\n".join(json.dumps(event) for event in qmp.events)),
        *((f"sysrq {key}: {what}", _press(qmp, console_socket, key)) for key, what in SYSRQ.items()),
    ]
    path = directory / FILE
    with path.open("w", encoding="utf-8") as file:
        for title, ask in questions:
            file.write(f"== {title}\n{_answer(ask, limit)}\n\n")
            file.flush()
    _let_settle(directory / CONSOLE_LOG, limit)
    return path


def _local_apic(qmp: Qmp, cpu: int, limit: Deadline) -> Callable[[], str]:
    return lambda: qmp.monitor(f"info lapic {cpu}", seconds=min(2, limit.remaining))


def _let_settle(console: Path, limit: Deadline) -> None:
    """Wait until the console is quiet: what the keys asked for is printed in the background."""
    size = -1
    while not limit.expired and console.exists() and size != console.stat().st_size:
        size = console.stat().st_size
        time.sleep(min(_QUIET, limit.remaining))


def _press(qmp: Qmp, console_socket: Path, key: str) -> Callable[[], str]:
    def press() -> str:
        sysrq(qmp, console_socket, key)
        return "see the console"

    return press


def _answer(ask: Callable[[], str], limit: Deadline) -> str:
    if limit.expired:
        return "(no time left)"
    with contextlib.suppress(UnicodeError):
        try:
            return ask().replace("\r", "").rstrip()
        except (HarnessError, OSError) as error:
            return f"(no answer: {error})"
    return "(unreadable)"
