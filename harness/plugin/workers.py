# SPDX-License-Identifier: GPL-2.0-only
"""xdist's worker processes: how they start, and how they end when the run is interrupted.

A Ctrl-C reaches every process of the terminal's group, at any moment: while a worker imports modules, or
cleans up after the first Ctrl-C.  So workers have a session of their own, and this process ends them in
order.  A worker dies with this process, and its VM with the worker.
"""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

import pytest
from xdist.workermanage import NodeManager, WorkerController  # type: ignore[import-untyped]

from harness.base import process
from harness.base.errors import HostError, InfraError
from harness.lab.retries import WORKER_STARTS


class Workers:
    """The workers of a run."""

    def __init__(self, manager: NodeManager, specs: list[Any]) -> None:
        """Take over from *manager*, which is about to start a worker for each of *specs*."""
        self._manager = manager
        self._setup_node: Callable[..., WorkerController] = manager.setup_node
        self._teardown_nodes: Callable[[], None] = manager.teardown_nodes
        self._started: list[WorkerController] = []
        setsid = process.find_tool("setsid")
        if setsid is None:
            raise HostError("setsid is missing", hint="install util-linux")
        for spec in specs:
            spec.python = shlex.join([setsid, *process.mortal([sys.executable])])
        manager.setup_node, manager.teardown_nodes = self._start, self._end

    @classmethod
    def of(cls, config: pytest.Config, specs: list[Any]) -> Workers:
        """Return the workers that xdist is about to start in the run of *config*."""
        xdist: Any = config.pluginmanager.get_plugin("dsession")
        return cls(xdist.nodemanager, specs)

    def _start(self, spec: Any, putevent: object) -> WorkerController:
        """Start a worker, and another one if it dies before xdist knows it."""
        trouble: Exception | None = None
        for _ in range(WORKER_STARTS):
            try:
                node = self._setup_node(spec, putevent)
            except (EOFError, OSError) as error:
                trouble = error
                # As xdist does for a worker that it replaces.
                spec.id = None
                self._manager.group.allocate_id(spec)
            else:
                self._started.append(node)
                return node
        raise InfraError(f"{WORKER_STARTS} workers died while starting: {trouble}") from trouble

    def _end(self) -> None:
        """End all workers in order; at once when another interrupt comes."""
        try:
            self._teardown_nodes()
        except KeyboardInterrupt:
            for node in self._started:
                node.gateway._io.popen.kill()
            raise

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Interrupt each worker, so that it stops its VM; execnet would first wait for 5 seconds."""
        for node in self._started:
            # One that is still loading has no VM, and would print where it was.
            is_ready = hasattr(node, "workerinfo")
            node.gateway._io.popen.send_signal(signal.SIGINT if is_ready else signal.SIGKILL)


def heed_one_interrupt() -> None:
    """Make this process, a worker, obey the first SIGINT only: execnet sends another one 5 seconds later."""
    signal.signal(signal.SIGINT, _interrupted)


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    # A handler, because children would inherit SIG_IGN.
    signal.signal(signal.SIGINT, _ignore)
    raise KeyboardInterrupt


def _ignore(number: int, frame: FrameType | None) -> None:
    """Handle a SIGINT after the first one."""
