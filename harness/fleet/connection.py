# SPDX-License-Identifier: GPL-2.0-only
"""Connection: a client of Dask's scheduler, made anew when it is lost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from harness.base.errors import InfraError

RECONNECT_SECONDS = 300.0
"""How long a client waits for a scheduler that went away."""

_STOP_SECONDS = 2.0
"""Time for a client to close, and for its last words to arrive."""


class FleetLost(InfraError):
    """Nobody can be asked any more: what is left is not to be tried."""


class Connection:
    """A distributed.Client, or the one that replaced it."""

    def __init__(self, connect: Callable[[], Any], resume: str) -> None:
        """*connect* returns a new distributed.Client, or raises InfraError; *resume* goes on with a run."""
        self._connect, self._resume = connect, resume
        self._lost: FleetLost | None = None
        self._take(connect())

    def _take(self, client: Any) -> None:
        self.client = client
        self._comm = client.scheduler_comm

    @property
    def address(self) -> str:
        """The address of the scheduler."""
        return str(self.client.scheduler.address)

    def is_lost(self) -> bool:
        """Whether the connection was lost, and with it all tasks."""
        return self.client.status != "running" or self.client.scheduler_comm is not self._comm

    def renew(self) -> None:
        """Connect again to the scheduler, or to another one at its place; raises FleetLost after a while.

        As a new client: Dask's own gives up for good when it meets a scheduler that is not yet ready.
        """
        if self._lost is not None:
            raise self._lost
        self.close()
        until = time.monotonic() + RECONNECT_SECONDS
        while True:
            try:
                return self._take(self._connect())
            except InfraError as error:
                if time.monotonic() > until:
                    self._lost = FleetLost(
                        f"the fleet's scheduler has not answered for {RECONNECT_SECONDS:.0f} s",
                        hint=f"finished results are kept: {self._resume}",
                    )
                    raise self._lost from error
                time.sleep(1.0)

    def workers(self) -> dict[str, Any] | None:
        """Return what the scheduler says of each worker, by address; None if it does not answer now."""
        with contextlib.suppress(Exception):
            return dict(self.client.scheduler_info(n_workers=-1)["workers"])
        return None

    def check_fetches(self, unfetched: Callable[[str], Any], session: str) -> None:
        """Raise FleetLost when *unfetched*, see harness.fleet.tasks, finds something on a worker."""
        found: list[str] = []
        with contextlib.suppress(Exception):
            said = self.client.run(unfetched, session, on_error="ignore").values()
            found = [one for one in said if one]
        if found:
            remedy = "name the scheduler as all hosts reach it, not localhost, and open ports between them"
            raise FleetLost(found[0], hint=f"{remedy}; then: {self._resume}")

    def close(self) -> None:
        """Leave the fleet; what waits there for this client is forgotten."""
        with contextlib.suppress(Exception):
            self.client.close(timeout=_STOP_SECONDS)
