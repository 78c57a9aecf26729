# SPDX-License-Identifier: GPL-2.0-only
"""Diagnostics of a VM must not disturb what its kernel prints."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.machine import diagnose

TEXT = b"[    1.000000][    C0] sysrq: Show backtrace of all active CPUs\r\n" * 40


@pytest.mark.parametrize("panics", [False, True])
def test_no_answer_to_sysrq_is_dropped(tmp_path: Path, panics: bool) -> None:
    """QEMU writes it to the socket byte by byte, and drops what does not fit."""
    dropped: list[int] = []
    answered = threading.Event()

    def guest(server: socket.socket) -> None:
        line, _ = server.accept()
        with line:
            assert line.recv(1) == b"c"
            line.setblocking(False)
            for number in range(len(TEXT)):
                try:
                    line.send(TEXT[number : number + 1])
                except BlockingIOError:
                    line.settimeout(1)
                    try:
                        line.send(TEXT[number : number + 1])
                    except OSError:
                        dropped.append(number)
                        break
                    line.setblocking(False)
            answered.set()
            if not panics:
                line.settimeout(10)
                assert line.recv(1) == b""

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "console"))
        server.listen(1)
        thread = threading.Thread(target=guest, args=(server,))
        thread.start()
        qmp: Any = SimpleNamespace(execute=lambda *arguments, **more: {})
        diagnose.sysrq(qmp, tmp_path / "console", "c")
        thread.join(20)
    assert answered.is_set()
    assert dropped == []
