# SPDX-License-Identifier: GPL-2.0-only
"""A QMP server for tests with canned answers, over a real socket."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Reply = dict[str, Any]

GREETING = {
    "QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": []}
}


class FakeQmp:
    """One server, one client; `commands` is what the client asked."""

    def __init__(self, path: Path, answers: Callable[[str, dict[str, Any]], Reply | None]) -> None:
        self.commands: list[tuple[str, dict[str, Any]]] = []
        self._answers = answers
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(1)
        self._client: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            self._client, _ = self._server.accept()
            self._send(GREETING)
            for request in self._requests(self._client):
                name, arguments = request["execute"], request.get("arguments", {})
                if name != "qmp_capabilities":
                    self.commands.append((name, arguments))
                reply = {"return": {}} if name == "qmp_capabilities" else self._answers(name, arguments)
                if reply is not None:
                    self._send({**reply, **({"id": request["id"]} if "id" in request else {})})

    @staticmethod
    def _requests(client: socket.socket) -> Iterator[dict[str, Any]]:
        """What the client sends: JSON without line ends, which QEMU parses as it comes."""
        pending = ""
        while news := client.recv(4096):
            pending = (pending + news.decode()).lstrip()
            with contextlib.suppress(ValueError):
                while pending:
                    request, end = json.JSONDecoder().raw_decode(pending)
                    pending = pending[end:].lstrip()
                    yield request

    def _send(self, message: Reply) -> None:
        assert self._client is not None
        self._client.sendall(json.dumps(message).encode() + b"\r\n")

    def event(self, name: str, **data: object) -> None:
        """Send an event."""
        self._send({"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 0}})

    def close(self) -> None:
        """Vanish as a QEMU does that is killed."""
        for end in (self._client, self._server):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
        self._thread.join(2)


@contextlib.contextmanager
def fake_qmp(path: Path, answers: Callable[[str, dict[str, Any]], Reply | None]) -> Iterator[FakeQmp]:
    """A FakeQmp for the length of the block."""
    server = FakeQmp(path, answers)
    try:
        yield server
    finally:
        server.close()
