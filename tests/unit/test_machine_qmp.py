# SPDX-License-Identifier: GPL-2.0-only
"""QMP with a server that answers, refuses, does not answer, and ends."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from machine_fake_qmp import Reply, fake_qmp

from harness.base.deadline import Deadline
from harness.machine.qmp import Qmp, QmpError, QmpRefused


def answers(name: str, arguments: dict[str, Any]) -> Reply | None:
    if name == "device_del":
        return {"error": {"class": "DeviceNotFound", "desc": "Device 'x' not found"}}
    if name == "silence":
        return None
    if name == "human-monitor-command":
        return {"return": f"ran {arguments['command-line']}\r\n"}
    return {"return": {"status": "running"}}


def test_conversation(tmp_path: Path) -> None:
    """execute() returns results, reports refusals and times out; monitor() returns output."""
    with fake_qmp(tmp_path / "s", answers) as server:
        qmp = Qmp(tmp_path / "s", Deadline.after(5))
        assert qmp.execute("query-status") == {"status": "running"}
        assert qmp.monitor("info usernet") == "ran info usernet\r\n"
        with pytest.raises(QmpRefused, match="Device 'x' not found"):
            qmp.execute("device_del", {"id": "x"})
        with pytest.raises(QmpError, match="did not answer silence in time"):
            qmp.execute("silence", seconds=0.1)
        assert [name for name, _ in server.commands] == [
            "query-status",
            "human-monitor-command",
            "device_del",
            "silence",
        ]
        qmp.close()
        qmp.close()


def test_events(tmp_path: Path) -> None:
    """Any thread can wait for an event; events before the start index do not count."""
    with fake_qmp(tmp_path / "s", answers) as server:
        qmp = Qmp(tmp_path / "s", Deadline.after(5))
        server.event("DEVICE_DELETED", device="a")
        assert qmp.wait_event("DEVICE_DELETED", Deadline.after(5)) is not None
        mark = len(qmp.events)
        assert qmp.wait_event("DEVICE_DELETED", Deadline.after(0.05), since=mark) is None
        late = threading.Timer(0.1, server.event, ["DEVICE_DELETED"], {"device": "b"})
        late.start()
        event = qmp.wait_event(
            "DEVICE_DELETED", Deadline.after(5), since=mark, where=lambda e: e["data"]["device"] == "b"
        )
        late.join()
        assert event is not None
        qmp.close()


def test_qemu_vanishes(tmp_path: Path) -> None:
    """When QEMU ends, a pending command fails at once."""
    with fake_qmp(tmp_path / "s", answers) as server:
        qmp = Qmp(tmp_path / "s", Deadline.after(5))
        server.close()
        with pytest.raises(QmpError):
            qmp.execute("query-status")
        qmp.close()


def test_nobody_there(tmp_path: Path) -> None:
    """A failed connection leaves no thread behind."""
    before = threading.active_count()
    with pytest.raises(QmpError, match="cannot connect"):
        Qmp(tmp_path / "none", Deadline.after(1))
    assert threading.active_count() == before


def test_an_answer_that_is_late_for_want_of_a_cpu(tmp_path: Path) -> None:
    """The deadline of a command moves while it waits; without more time it passes."""
    with fake_qmp(tmp_path / "s", answers):
        taken = [0.0]

        def patient(limit: Deadline) -> Deadline:
            return limit.excusing(lambda: taken[0], most=1.0)

        qmp = Qmp(tmp_path / "s", Deadline.after(5), patient)
        began = time.monotonic()
        threading.Timer(0.1, lambda: taken.__setitem__(0, 0.6)).start()
        with pytest.raises(QmpError, match="did not answer silence in time"):
            qmp.execute("silence", seconds=0.3)
        assert time.monotonic() - began >= 0.9
        qmp.close()
