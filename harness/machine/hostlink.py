# SPDX-License-Identifier: GPL-2.0-only
"""Serve the host-action port: carry out over QMP what a case in the guest requests from its host.

One JSON line each way.  A request is `{"id": n, "action": "...", ...}`, its answer `{"id": n, "ok": true}` or
`{"id": n, "ok": false, "error": "..."}`:

    unplug {device}     unplug the device with that id; the guest may still hold it when we answer
    plug {device}       plug it (again); waits until the guest has released the one that was unplugged
    nmi {}              raise an NMI on every vCPU
    link {device, up}   set the carrier of the device
    error {device}      have the device report an uncorrectable, non-fatal error

No request waits for something that the requesting case would have to do, so no case can deadlock.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.base.deadline import Deadline
from harness.base.errors import HarnessError, nearest
from harness.machine.devices import Device, Topology
from harness.machine.machine import device_words
from harness.machine.qmp import Event, Qmp, QmpRefused

RELEASE_SECONDS = 15.0
"""How long `plug` waits for the guest to release the unplugged device; guests wait 20 s."""

_LINE_LIMIT = 64 * 1024


class BadRequest(HarnessError):
    """An invalid request; the message goes back to the guest."""


_ACTIONS = ("unplug", "plug", "nmi", "link", "error")


class Actions:
    """The actions on one machine that its guest may ask for."""

    def __init__(self, qmp: Qmp, topology: Topology) -> None:
        self._qmp = qmp
        self._devices = {device.id: device for device in topology.endpoints}
        self._leaving: dict[str, int] = {}
        """Device whose unplug was requested -> number of QMP events at that time."""
        self._absent = {device.id for device in topology.endpoints if not device.plugged}
        self._at_boot = frozenset(self._absent)
        self._link_down: set[str] = set()

    @property
    def altered(self) -> frozenset[str]:
        """Devices that differ from the state at boot: unplugged, plugged, or without carrier."""
        return frozenset((self._absent ^ self._at_boot) | self._link_down)

    def perform(self, request: Mapping[str, Any]) -> None:
        """Carry out *request*; raises HarnessError when that fails."""
        match request.get("action"):
            case "unplug":
                self._unplug(self._device(request))
            case "plug":
                self._plug(self._device(request))
            case "nmi":
                self._qmp.execute("inject-nmi")
            case "link":
                self._link(self._device(request), request.get("up"))
            case "error":
                # A completion timeout, an uncorrectable error.
                done = self._monitor("pcie_aer_inject_error", f"{self._device(request).id} COMP_TIME")
                if not done.startswith("OK "):
                    raise QmpRefused("pcie_aer_inject_error", done)
            case action:
                raise BadRequest(f"there is no action {action!r}, {nearest(str(action), _ACTIONS)}")

    def _unplug(self, device: Device) -> None:
        """Ask the guest to release *device*."""
        self._leaving[device.id] = len(self._qmp.events)
        try:
            self._qmp.execute("device_del", {"id": device.id})
        except QmpRefused:
            del self._leaving[device.id]
            raise
        self._absent.add(device.id)

    def _plug(self, device: Device) -> None:
        """Put *device* into its slot."""
        since = self._leaving.get(device.id)
        if since is not None:

            def is_ours(event: Event) -> bool:
                return bool(event["data"].get("device") == device.id)

            limit = Deadline.after(RELEASE_SECONDS)
            if self._qmp.wait_event("DEVICE_DELETED", limit, since=since, where=is_ours) is None:
                seconds = f"{RELEASE_SECONDS:.0f} s"
                raise BadRequest(f"the guest still holds {device.id!r} {seconds} after its unplug")
            del self._leaving[device.id]
        complaint = self._monitor("device_add", device_words(device)[1])
        if complaint:
            raise QmpRefused("device_add", complaint)
        self._absent.discard(device.id)

    def _monitor(self, command: str, words: str) -> str:
        """Run a command of the human monitor, which parses values like the command line."""
        return self._qmp.monitor(f"{command} {words}").strip().removeprefix("Error: ")

    def _link(self, device: Device, up: object) -> None:
        """Set the carrier of *device*."""
        if not isinstance(up, bool):
            raise BadRequest(f"'up' must be true or false, not {up!r}")
        self._qmp.execute("set_link", {"name": device.id, "up": up})
        (self._link_down.discard if up else self._link_down.add)(device.id)

    def _device(self, request: Mapping[str, Any]) -> Device:
        name = str(request.get("device"))
        if name not in self._devices:
            raise BadRequest(f"there is no device {name!r}, {nearest(name, self._devices)}")
        return self._devices[name]


def answer(line: bytes, perform: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    """Return the reply to one line from the guest."""
    try:
        request = json.loads(line)
    except ValueError:
        request = None
    if not isinstance(request, dict):
        return {"id": None, "ok": False, "error": "a request must be a JSON object"}
    try:
        perform(request)
    except HarnessError as error:
        return {"id": request.get("id"), "ok": False, "error": error.message}
    return {"id": request.get("id"), "ok": True}


class HostLink:
    """The server of one VM's port: a thread that runs until close()."""

    def __init__(self, path: Path, actions: Actions) -> None:
        """Connect to the unix socket of the port at *path*; raises OSError when it is not there."""
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
                news = self._socket.recv(_LINE_LIMIT)
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
        """Stop serving; a running action may still finish."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(1)
        self._socket.close()
