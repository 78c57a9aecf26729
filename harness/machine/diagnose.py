# SPDX-License-Identifier: GPL-2.0-only
"""Collect diagnostics of a VM before it is killed: one text file, within a time budget.

A query that fails does not prevent the others.  write_bundle() never raises.
"""

from __future__ import annotations

import functools
import json
import os
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
_SYSRQ_MOST = 3.0
_QUIET = 0.4


def sysrq(qmp: Qmp, keyboard: int, key: str) -> None:
    """Send a serial break and *key*: magic SysRq without the guest's help.

    *keyboard* is the file descriptor of the serial port's input.  Needs CONFIG_MAGIC_SYSRQ_SERIAL and a
    process in the guest that holds the serial port open.  Raises QmpError, or OSError when QEMU is gone.
    """
    qmp.execute("chardev-send-break", {"id": CONSOLE_ID}, seconds=2)
    time.sleep(_BREAK_PAUSE)
    os.write(keyboard, key.encode("ascii"))


def write_bundle(directory: Path, pid: int, qmp: Qmp, keyboard: int, interrupts: Interrupts | None) -> Path:
    """Collect what BUDGET_SECONDS allow, write it to FILE in *directory* and return that file.

    *pid* is QEMU's; *keyboard* as in sysrq().
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
        *(
            (f"{interrupts.title} {cpu}", monitor(interrupts.command.format(cpu=cpu)))
            for cpu in cpus
            if interrupts is not None
        ),
        ("threads of QEMU", lambda: describe_threads(pid)),
        ("network", monitor("info usernet")),
        ("PCI as QEMU sees it", monitor("info pci")),
        ("events", lambda: "\n".join(json.dumps(event) for event in qmp.events)),
        *(
            (f"sysrq {key}: {what}", functools.partial(_press, qmp, keyboard, key, directory, limit))
            for key, what in SYSRQ.items()
        ),
    ]
    path = directory / FILE
    with path.open("w", encoding="utf-8") as file:
        for title, ask in questions:
            file.write(f"== {title}\n{_answer(ask, limit)}\n\n")
            file.flush()
    return path


def _let_settle(console: Path, limit: Deadline) -> None:
    """Wait until the console is quiet: the kernel prints the answers to SysRq in the background."""
    size = -1
    while not limit.expired and console.exists() and size != console.stat().st_size:
        size = console.stat().st_size
        time.sleep(min(_QUIET, limit.remaining))


def _press(qmp: Qmp, keyboard: int, key: str, directory: Path, limit: Deadline) -> str:
    sysrq(qmp, keyboard, key)
    _let_settle(directory / CONSOLE_LOG, limit.within(_SYSRQ_MOST))
    return "see the console"


def _answer(ask: Callable[[], str], limit: Deadline) -> str:
    if limit.expired:
        return "(no time left)"
    try:
        return ask().replace("\r", "").rstrip()
    except (HarnessError, OSError, UnicodeError) as error:
        return f"(no answer: {error})"
