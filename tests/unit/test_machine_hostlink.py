# SPDX-License-Identifier: GPL-2.0-only
"""The host-action port, from the guest's end of the socket to QMP."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from machine_fake_qmp import FakeQmp, Reply, fake_qmp

from harness.base.deadline import Deadline
from harness.machine import hostlink
from harness.machine.hostlink import Actions, HostLink
from harness.machine.qmp import Qmp
from harness.machine.topology import load_topology


class Guest:
    """A guest's end of the port, and the QEMU behind it."""

    def __init__(self, directory: Path, server: FakeQmp) -> None:
        self.server = server
        self.qmp = Qmp(directory / "qmp", Deadline.after(5))
        self.actions = Actions(self.qmp, load_topology("hotplug"))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(directory / "link"))
            listener.listen(1)
            self.link = HostLink(directory / "link", self.actions)
            self.port, _ = listener.accept()
        self.port.settimeout(5)

    def send(self, text: str) -> Reply:
        self.port.sendall(text.encode() + b"\n")
        reply: Reply = json.loads(self.port.makefile("rb").readline())
        return reply

    def ask(self, action: str, **words: object) -> Reply:
        return self.send(json.dumps({"id": 7, "action": action, **words}))

    def close(self) -> None:
        self.link.close()
        self.port.close()
        self.qmp.close()


def answers(name: str, arguments: dict[str, Any]) -> Reply:
    if name == "human-monitor-command" and "edu1" in arguments["command-line"]:
        return {"return": "Error: Duplicate device ID 'edu1'\r\n"}
    if name == "human-monitor-command" and arguments["command-line"].startswith("pcie_aer_inject_error"):
        known = "igb0" in arguments["command-line"]
        return {"return": "OK id: igb0 root bus: pci0000\r\n" if known else "Error: Id 'edu0' has no AER\r\n"}
    if name == "human-monitor-command":
        return {"return": ""}
    return {"return": {}}


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    with fake_qmp(tmp_path / "qmp", answers) as server:
        made = Guest(tmp_path, server)
        yield made
        made.close()


def test_actions(guest: Guest) -> None:
    """Each action becomes one QMP command, and the host knows which devices differ from boot."""
    assert guest.ask("unplug", device="edu0") == {"id": 7, "ok": True}
    assert guest.ask("nmi") == {"id": 7, "ok": True}
    assert guest.ask("link", device="igb0", up=False) == {"id": 7, "ok": True}
    assert guest.server.commands == [
        ("device_del", {"id": "edu0"}),
        ("inject-nmi", {}),
        ("set_link", {"name": "igb0", "up": False}),
    ]
    assert guest.actions.altered == {"edu0", "igb0"}
    assert guest.ask("link", device="igb0", up=True)["ok"]
    assert guest.actions.altered == {"edu0"}


def test_an_error_is_sent_by_the_human_monitor(guest: Guest) -> None:
    """QMP has no command for it; a device that has an error leaves the machine as it was."""
    assert guest.ask("error", device="igb0") == {"id": 7, "ok": True}
    sent = {"command-line": "pcie_aer_inject_error igb0 COMP_TIME"}
    assert guest.server.commands == [("human-monitor-command", sent)]
    assert guest.actions.altered == frozenset()


def test_plug_waits_for_the_guest_to_let_go(guest: Guest) -> None:
    """A device is plugged after the guest released it, with the properties of the command line."""
    guest.ask("unplug", device="edu0")
    release = threading.Timer(0.2, guest.server.event, ["DEVICE_DELETED"], {"device": "edu0"})
    release.start()
    assert guest.ask("plug", device="edu0") == {"id": 7, "ok": True}
    release.join()
    command = guest.server.commands[-1][1]["command-line"]
    assert command == "device_add edu,id=edu0,bus=port1,addr=00.0,dma_mask=0xffffffffffffffff"
    assert guest.actions.altered == frozenset()


def test_plug_gives_up(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the guest never releases the device, the request fails and the port still works."""
    monkeypatch.setattr(hostlink, "RELEASE_SECONDS", 0.1)
    guest.ask("unplug", device="edu0")
    assert "still holds 'edu0'" in guest.ask("plug", device="edu0")["error"]
    assert guest.ask("nmi")["ok"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("rubbish", "a request must be a JSON object"),
        ("[1]", "a request must be a JSON object"),
        ('{"id": 1, "action": "dance"}', "there is no action 'dance'"),
        ('{"id": 1, "action": "unplug", "device": "edu9"}', "there is no device 'edu9', did you mean 'edu1'"),
        ('{"id": 1, "action": "unplug", "device": "port0"}', "there is no device 'port0'"),
        ('{"id": 1, "action": "link", "device": "igb0", "up": 1}', "'up' must be true or false"),
        ('{"id": 1, "action": "plug", "device": "edu1"}', "Duplicate device ID"),
        ('{"id": 1, "action": "error", "device": "edu0"}', "has no AER"),
    ],
)
def test_bad_requests(guest: Guest, text: str, complaint: str) -> None:
    """A bad request gets an error as its answer."""
    reply = guest.send(text)
    assert reply["ok"] is False
    assert complaint in reply["error"]


def test_lines_arrive_in_pieces(guest: Guest) -> None:
    """The port is a stream; two requests in one piece get two answers."""
    guest.port.sendall(b'{"id": 1, "act')
    guest.port.sendall(b'ion": "nmi"}\n{"id": 2, "action": "nmi"}\n')
    stream = guest.port.makefile("rb")
    assert [json.loads(stream.readline())["id"] for _ in range(2)] == [1, 2]
