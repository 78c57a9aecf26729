# SPDX-License-Identifier: GPL-2.0-only
"""Synchronous QMP: the asyncio client of qemu.qmp on a thread of its own.

Any thread may call.  A call waits only for its own answer, so a slow command does not delay other callers.
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

from harness.base.deadline import Deadline
from harness.base.errors import InfraError

ANSWER_SECONDS = 10.0
"""Timeout for one command: without an answer by then, QEMU's main loop is stuck."""

_CHECK_SECONDS = 0.5
"""Pause in a wait between checks for a moved deadline."""

_T = TypeVar("_T")
Event = Mapping[str, Any]

# The client logs an error when QEMU ends; the VM reports that itself.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class QmpError(InfraError):
    """QEMU does not answer: it has ended, hangs, or does not listen yet."""


class QmpRefused(QmpError):
    """QEMU refused a command."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(f"QEMU refused {command}: {description}")
        self.description = description


class Qmp:
    """A connection to one QEMU."""

    def __init__(
        self, path: Path, deadline: Deadline, patient: Callable[[Deadline], Deadline] = lambda limit: limit
    ) -> None:
        """Connect to the unix socket at *path*; QmpError when that fails before *deadline*.

        *patient* extends the deadline of every command by the time in which the host gives QEMU no CPU.
        """
        self._patient = patient
        self._events: list[Event] = []
        self._reactions: dict[str, Callable[[], object]] = {}
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
        """Run a QMP command and return its result.

        Raises QmpRefused when QEMU refuses it, QmpError when QEMU does not answer within *seconds*.
        """
        try:
            limit = self._patient(Deadline.after(seconds))
            return self._await(self._client.execute(command, arguments), limit, command)
        except ExecuteError as error:
            raise QmpRefused(command, str(error)) from error
        except QMPError as error:
            raise QmpError(f"QMP: no answer to {command}: QEMU has ended") from error

    def monitor(self, command: str, *, seconds: float = ANSWER_SECONDS) -> str:
        """Run a command of the human monitor and return its output."""
        return str(self.execute("human-monitor-command", {"command-line": command}, seconds=seconds))

    @property
    def events(self) -> tuple[Event, ...]:
        """All events so far."""
        with self._news:
            return tuple(self._events)

    def wait_event(
        self, name: str, deadline: Deadline, *, since: int = 0, where: Callable[[Event], bool] = bool
    ) -> Event | None:
        """Return the first event *name* that satisfies *where*, from index *since* of `events` on.

        Waits for it until *deadline*, then returns None.
        """

        def found() -> Event | None:
            news = self._events[since:]
            return next((event for event in news if event["event"] == name and where(event)), None)

        with self._news:
            return self._news.wait_for(found, deadline.remaining)

    def when(self, name: str, react: Callable[[], object]) -> threading.Thread:
        """Return a thread that calls *react* at the first event *name*; it never starts if there is none."""
        thread = threading.Thread(target=react, name=f"qmp-{name}", daemon=True)
        with self._news:
            self._reactions[name] = thread.start
        return thread

    def close(self) -> None:
        """Disconnect; QEMU may have ended already."""
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
                react = self._reactions.pop(str(message["event"]), None)
                if react is not None:
                    react()
                self._news.notify_all()

    def _await(self, work: Coroutine[Any, Any, _T], deadline: Deadline, what: str) -> _T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        while not concurrent.futures.wait([future], min(deadline.remaining, _CHECK_SECONDS)).done:
            if deadline.expired:
                future.cancel()
                raise QmpError(f"QMP: QEMU did not answer {what} in time")
        return future.result()


async def _end_tasks() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
