# SPDX-License-Identifier: GPL-2.0-only
"""Ask the host for actions that the guest cannot do itself: unplug a device, plug one in, send an NMI.

Requests and answers are JSON lines over a virtio-serial port; the host's side is harness/machine/hostlink.py.
"""

from __future__ import annotations

import json
import os
import select
import time
from typing import Any, Optional

PORT = "/dev/virtio-ports/vfio-harness.hostlink"


class HostRefused(RuntimeError):
    """The host answered that it cannot do the action."""


class HostSilent(RuntimeError):
    """There is no port, or no answer came in time."""


class HostLink:
    """The client of the host-action port, opened at the first request: only one process can have it open."""

    def __init__(self, path: str = PORT) -> None:
        self._path = path
        self._fd: Optional[int] = None
        self._id = 0
        self._buffer = b""

    def request(self, action: str, *, timeout: float = 20.0, **arguments: object) -> dict[str, Any]:
        """Do *action* on the host and return its answer; raise HostRefused or HostSilent."""
        fd = self._open()
        self._id += 1
        line = json.dumps({"id": self._id, "action": action, **arguments}) + "\n"
        os.write(fd, line.encode())
        deadline = time.monotonic() + timeout
        while True:
            answer = json.loads(self._read_line(fd, deadline, action))
            if not isinstance(answer, dict) or answer.get("id") != self._id:
                continue  # the late answer to a request that timed out
            if not answer.get("ok"):
                raise HostRefused(f"the host refused {action}: {answer.get('error', 'no reason given')}")
            return answer

    def unplug(self, device: str) -> None:
        """Request the removal of the QEMU device *device* (its id); the guest must still release it."""
        self.request("unplug", device=device)

    def plug(self, device: str) -> None:
        """Plug the QEMU device with the id *device* back in."""
        self.request("plug", device=device)

    def nmi(self) -> None:
        """Raise an NMI on every CPU."""
        self.request("nmi")

    def link(self, device: str, *, up: bool) -> None:
        """Plug or pull the network cable of the QEMU device with the id *device*."""
        self.request("link", device=device, up=up)

    def error(self, device: str) -> None:
        """Make the QEMU device with the id *device* report an uncorrectable error that is not fatal."""
        self.request("error", device=device)

    def close(self) -> None:
        """Close the port; the next request opens it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
            self._buffer = b""

    def _open(self) -> int:
        if self._fd is None:
            try:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                raise HostSilent(f"cannot open the port to the host: {error}") from error
        return self._fd

    def _read_line(self, fd: int, deadline: float, action: str) -> bytes:
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                raise HostSilent(f"the host did not answer {action} in time")
            data = os.read(fd, 4096)
            if not data:
                raise HostSilent(f"the host closed the port during {action}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line
