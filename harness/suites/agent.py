# SPDX-License-Identifier: GPL-2.0-only
"""The host's end of guest/agent.py: one long-lived agent per VM, one request per probe case."""

from __future__ import annotations

import json
from collections.abc import Iterable

from harness.deadline import Deadline
from harness.errors import LostGuest
from harness.ktap import KtapParser, KtapReport
from harness.remote import Guest

GUEST_ROOT = "/run/vfio-harness"
"""Where the harness keeps its files inside the guest (a tmpfs); harness.machine.roots puts guest/ there."""

_READY = "# agent ready"
_DIRTY = "# dirty: "


class Agent:
    """A running agent; raises LostGuest as soon as it stops answering."""

    def __init__(self, guest: Guest, features: Iterable[str], deadline: Deadline) -> None:
        words = ["python3", "-m", "guest.agent", "--features", ",".join(sorted(features))]
        self._stream = guest.stream(f"cd {GUEST_ROOT} && exec " + " ".join(words), deadline)
        said = "nothing came"
        for line in self._lines(deadline):
            if line.startswith(_READY):
                return
            if line.startswith(_DIRTY):
                raise LostGuest(f"the guest is not fit to run cases: {line.removeprefix(_DIRTY)}")
            said = line
        raise LostGuest(f"the agent did not start: {said}")

    def _lines(self, deadline: Deadline) -> Iterable[str]:
        try:
            yield from self._stream.lines(deadline)
        except TimeoutError as error:
            raise LostGuest("the agent stopped answering") from error
        yield "it ended"

    def run(self, case: str, seconds: float, seed: int, deadline: Deadline, raw: list[str]) -> KtapReport:
        """Run one case, `module/name`, appending every line it prints to *raw*; return its document.

        *seconds* is the case's own limit, which the agent enforces; *deadline* is ours, for the agent.
        """
        self._stream.send(json.dumps({"case": case, "timeout": seconds, "seed": seed}))
        parser = KtapParser(expected=(case,))
        for line in self._lines(deadline):
            raw.append(line)
            parser.feed(line)
            if line == f"# END {case}":
                return parser.finish()
        raise LostGuest(f"the agent ended during {case}")

    def close(self) -> None:
        self._stream.close()
