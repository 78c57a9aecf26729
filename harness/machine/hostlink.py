# SPDX-License-Identifier: GPL-2.0-only
"""Serves the host-action port: what a case in the guest asks of its host, done over QMP.

One JSON line each way.  A request is `{"id": n, "action": "...", ...}`, its answer `{"id": n, "ok": true}` or
`{"id": n, "ok": false, "error": "..."}`:

    unplug {device}     take the device with that id out of its slot; the guest may hold it when we answer
    plug {device}       put it in (again); waits until the guest has let go of the one that was there
    nmi {}              raise an NMI on every processor
    link {device, up}   plug or pull the device's network cable
    error {device}      have the device report an uncorrectable error that is not fatal

A request never waits for the guest's answer to itself, so that no case can deadlock with its host.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.deadline import Deadline
from harness.errors import HarnessError, nearest
from harness.machine.devices import Device, Topology
from harness.machine.machine import device_words
from harness.machine.qmp import Event, Qmp, QmpRefused

RELEASE_SECONDS = 15.0
"""How long `plug` waits for the guest to let go of the device that was unplugged before (guests wait 20)."""

_LINE_LIMIT = 64 * 1024


class BadRequest(Exception):
    """The request makes no sense; the text goes back to the guest."""


class Actions:
    """What a guest may ask for, on one machine."""

    def __init__(self, qmp: Qmp, topology: Topology) -> None:
        self._qmp = qmp
        self._topology = topology
        self._leaving: dict[str, int] = {}
        """Devices asked to leave, and how many events there had been by then."""
        self._absent = {device.id for device in topology.endpoints if not device.plugged}
        self._at_boot = frozenset(self._absent)
        self._link_down: set[str] = set()

    @property
    def altered(self) -> frozenset[str]:
        """Devices that are not as the topology has them at boot: gone, added, or with the cable pulled."""
        return frozenset((self._absent ^ self._at_boot) | self._link_down)

    def perform(self, request: Mapping[str, Any]) -> None:
        """Do what *request* says; BadRequest or HarnessError when it cannot be done."""
        actions: dict[str, Callable[[Mapping[str, Any]], None]] = {
            "unplug": lambda words: self.unplug(self._device(words)),
            "plug": lambda words: self.plug(self._device(words)),
            "nmi": lambda words: self.nmi(),
            "link": lambda words: self.link(self._device(words), up=_flag(words, "up")),
            "error": lambda words: self.error(self._device(words)),
        }
        action = request.get("action")
        if not isinstance(action, str) or action not in actions:
            raise BadRequest(f"there is no action {action!r}, {nearest(str(action), actions)}")
        actions[action](request)

    def unplug(self, device: Device) -> None:
        """Ask the guest to release *device*."""
        self._leaving[device.id] = len(self._qmp.events)
        try:
            self._qmp.execute("device_del", {"id": device.id})
        except QmpRefused:
            del self._leaving[device.id]
            raise
        self._absent.add(device.id)

    def plug(self, device: Device) -> None:
        """Put *device* into its slot."""
        since = self._leaving.get(device.id)
        if since is not None:

            def is_ours(event: Event) -> bool:
                return bool(event["data"].get("device") == device.id)

            limit = Deadline.after(RELEASE_SECONDS)
            if self._qmp.wait_event("DEVICE_DELETED", limit, since=since, where=is_ours) is None:
                raise BadRequest(
                    f"the guest still holds {device.id!r} {RELEASE_SECONDS:.0f} s after its unplug"
                )
            del self._leaving[device.id]
        # By the human monitor: it reads values as the command line does, QMP wants their types.
        complaint = self._qmp.monitor(f"device_add {device_words(device)[1]}").strip()
        if complaint:
            raise QmpRefused("device_add", "GenericError", complaint.removeprefix("Error: "))
        self._absent.discard(device.id)

    def nmi(self) -> None:
        self._qmp.execute("inject-nmi")

    def link(self, device: Device, *, up: bool) -> None:
        """Set the carrier of *device*."""
        self._qmp.execute("set_link", {"name": device.id, "up": up})
        (self._link_down.discard if up else self._link_down.add)(device.id)

    def error(self, device: Device) -> None:
        """Send the error message of a PCI Express function whose request was not answered in time."""
        command = "pcie_aer_inject_error"
        answer = self._qmp.monitor(f"{command} {device.id} COMP_TIME").strip()
        if not answer.startswith("OK "):
            raise QmpRefused(command, "GenericError", answer.removeprefix("Error: "))

    def _device(self, request: Mapping[str, Any]) -> Device:
        name = request.get("device")
        for device in self._topology.endpoints:
            if device.id == name:
                return device
        known = nearest(str(name), (device.id for device in self._topology.endpoints))
        raise BadRequest(f"there is no device {name!r}, {known}")


def _flag(request: Mapping[str, Any], name: str) -> bool:
    value = request.get(name)
    if not isinstance(value, bool):
        raise BadRequest(f"{name!r} must be true or false, not {value!r}")
    return value


def answer(line: bytes, perform: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    """What to reply to one line of the guest's."""
    try:
        request = json.loads(line)
    except ValueError:
        return {"id": None, "ok": False, "error": "that was not JSON"}
    if not isinstance(request, dict):
        return {"id": None, "ok": False, "error": "a request is a JSON object"}
    try:
        perform(request)
    except BadRequest as error:
        return {"id": request.get("id"), "ok": False, "error": str(error)}
    except HarnessError as error:
        return {"id": request.get("id"), "ok": False, "error": error.message}
    return {"id": request.get("id"), "ok": True}


class HostLink:
    """The server of one VM's port: a thread that lives until close()."""

    def __init__(self, path: Path, actions: Actions) -> None:
        """Connect to QEMU's end of the port, the unix socket at *path*; OSError when it is not there."""
        self.actions = actions
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise
        self._thread = threading.Thread(target=self._serve, name="hostlink", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        pending = b""
        while True:
            try:
                news = self._socket.recv(4096)
            except OSError:
                return
            if not news:
                return
            *lines, pending = (pending + news).split(b"\n")
            if len(pending) > _LINE_LIMIT:
                pending = b""
            for line in lines:
                reply = json.dumps(answer(line, self.actions.perform)) + "\n"
                with contextlib.suppress(OSError):
                    self._socket.sendall(reply.encode())

    def close(self) -> None:
        """Stop serving; an action under way may still finish."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(1)
        self._socket.close()
