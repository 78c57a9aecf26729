# SPDX-License-Identifier: GPL-2.0-only
"""QMP, spoken synchronously: qemu.qmp's asyncio client on a thread of its own.

Any thread may call; a call waits for its own answer only, so that one slow command does not hold up another
caller's wait for an event.  Knows nothing of VMs.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import EventListener, QMPClient, QMPError
from qemu.qmp.protocol import ConnectError
from qemu.qmp.qmp_client import ExecuteError

from harness.deadline import Deadline
from harness.errors import InfraError

ANSWER_SECONDS = 10.0
"""How long QEMU's main loop may take for one command before we call it stuck."""

_T = TypeVar("_T")
Event = Mapping[str, Any]

# The client reports a vanished QEMU as an error of its own; the VM tells that better.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class QmpError(InfraError):
    """QEMU could not be spoken to: gone, silent, or not yet there."""


class QmpRefused(QmpError):
    """QEMU understood, and said no; `kind` is its error class (`GenericError`, `DeviceNotFound`...)."""

    def __init__(self, command: str, kind: str, description: str) -> None:
        super().__init__(f"QEMU refused {command}: {description}")
        self.kind = kind
        self.description = description


class Qmp:
    """A connection to one QEMU."""

    def __init__(self, path: Path, deadline: Deadline) -> None:
        """Connect to the unix socket at *path*; QmpError when that fails before *deadline*."""
        self._events: list[Event] = []
        self._news = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True)
        self._thread.start()
        self._client = QMPClient("harness")
        self._listener = EventListener()
        self._client.register_listener(self._listener)
        try:
            self._await(self._client.connect(str(path)), deadline, "the QMP greeting")
        except ConnectError as error:
            self.close()
            raise QmpError(f"QMP: cannot connect to {path.name}: {error.exc}") from error
        except BaseException:
            self.close()
            raise
        self._pump = asyncio.run_coroutine_threadsafe(self._collect(), self._loop)

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, seconds: float = ANSWER_SECONDS
    ) -> Any:
        """Run a QMP command and return what it returns.

        Raises QmpRefused when QEMU says no, QmpError when it is gone or does not answer within *seconds*.
        """
        try:
            return self._await(self._client.execute(command, arguments), Deadline.after(seconds), command)
        except ExecuteError as error:
            raise QmpRefused(command, error.error_class, str(error)) from error
        except QMPError as error:
            raise QmpError(f"QMP: {command} got no answer: QEMU is gone") from error

    def monitor(self, command: str, *, seconds: float = ANSWER_SECONDS) -> str:
        """Run a command of the human monitor and return what it prints."""
        return str(self.execute("human-monitor-command", {"command-line": command}, seconds=seconds))

    @property
    def events(self) -> tuple[Event, ...]:
        """Every event so far."""
        with self._news:
            return tuple(self._events)

    def wait_event(
        self, name: str, deadline: Deadline, *, since: int = 0, where: Callable[[Event], bool] = bool
    ) -> Event | None:
        """The first event *name* that satisfies *where*, from index *since* of `events` on.

        None when there is none by *deadline*.
        """

        def found() -> Event | None:
            news = self._events[since:]
            return next((event for event in news if event["event"] == name and where(event)), None)

        with self._news:
            return self._news.wait_for(found, deadline.remaining)

    def close(self) -> None:
        """Disconnect; a QEMU that is gone already is no error."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(Exception):
            self._await(self._client.disconnect(), Deadline.after(2), "disconnect")
        with contextlib.suppress(Exception):
            self._await(_end_tasks(), Deadline.after(2), "the end")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(2)
        if not self._thread.is_alive():
            self._loop.close()

    async def _collect(self) -> None:
        async for message in self._listener:
            with self._news:
                self._events.append(dict(message))
                self._news.notify_all()

    def _await(self, work: Coroutine[Any, Any, _T], deadline: Deadline, what: str) -> _T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(deadline.remaining)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise QmpError(f"QMP: QEMU did not answer {what} in time") from None


async def _end_tasks() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
