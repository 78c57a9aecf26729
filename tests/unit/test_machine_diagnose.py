# SPDX-License-Identifier: GPL-2.0-only
"""SysRq is a break on the serial port, then a key."""

from __future__ import annotations

import os
import select
from types import SimpleNamespace
from typing import Any

from harness.machine import diagnose


def test_sysrq_is_a_break_and_then_the_key() -> None:
    """A key that comes before the break would be a character of the guest's terminal."""
    keys, keyboard = os.pipe()
    done: list[str] = []

    def execute(command: str, arguments: dict[str, str], seconds: float) -> None:
        assert not select.select([keys], [], [], 0)[0]
        done.append(f"{command} {arguments['id']}")

    qmp: Any = SimpleNamespace(execute=execute)
    try:
        diagnose.sysrq(qmp, keyboard, "w")
        assert done == ["chardev-send-break console"]
        assert os.read(keys, 10) == b"w"
    finally:
        os.close(keys)
        os.close(keyboard)
