# SPDX-License-Identifier: GPL-2.0-only
"""AgentClient: the host's side of guest/agent.py, a long-lived agent in a VM that runs probe cases."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator

from guest.agent import DIRTY, READY
from guest.gcov import PREFIX
from guest.ground import END_TIMEOUT, REAP_TIMEOUT
from guest.resident import PORT
from harness.base.cause import Cause
from harness.base.deadline import Deadline
from harness.base.errors import LostGuest
from harness.ktap import KtapParser, KtapReport
from harness.remote import Guest

VERDICT_SECONDS = REAP_TIMEOUT + 20.0
"""Seconds after a case's timeout in which its result may still come: the agent may have to kill processes."""


class AgentClient:
    """A running agent; raises LostGuest as soon as it stops answering."""

    def __init__(
        self,
        guest: Guest,
        features: Iterable[str],
        deadline: Deadline,
        *,
        fresh: bool = False,
        own: str = "",
        patient: Callable[[Deadline], Deadline] = lambda limit: limit,
    ) -> None:
        """Start it; *fresh* says that the VM has run nothing, so that a taint comes from the boot.

        *own* is a directory of the guest with the user's own probes.  *patient* extends a deadline by the
        time in which the host gives the VM no CPU.
        """
        self._patient = patient
        self.counters = ""
        """The coverage counters of the last case, see guest.gcov; empty if they did not come."""
        words = ["agent", "--features", ",".join(sorted(features)), *["--fresh"] * fresh]
        words += ["--own", own] if own else []
        self._stream = guest.dial(PORT, deadline)
        self._stream.send(json.dumps(words))
        said, dirty = "no output", f"# {DIRTY}"
        for line in self._lines(deadline):
            if line.startswith(READY):
                return
            if line.startswith(dirty):
                said = line.removeprefix(dirty)
                raise LostGuest(f"the guest cannot run cases: {said}", cause=Cause.NO_AGENT)
            said = line
        raise LostGuest(f"the agent did not start: {said}", cause=Cause.NO_AGENT)

    def _lines(self, deadline: Deadline) -> Iterator[str]:
        try:
            yield from self._stream.lines(deadline)
        except TimeoutError as error:
            raise LostGuest("the agent stopped answering", cause=Cause.NO_AGENT) from error
        yield "it ended"

    def run(self, case: str, seconds: float, seed: int, raw: list[str]) -> tuple[KtapReport, str]:
        """Run one case, `module/name`, appending every line it prints to *raw*.

        The agent enforces the timeout of *seconds*; TimeoutError is raised when it does not.  Returns the
        document and, when the guest was lost or could not be cleaned up after the verdict, why the VM cannot
        be used further.
        """
        self.counters = ""
        self._stream.send(json.dumps({"case": case, "timeout": seconds, "seed": seed}))
        parser = KtapParser(expected=(case,))
        limit = self._patient(Deadline.after(seconds + VERDICT_SECONDS))
        if not self._read(parser, lambda: parser.cases, limit, raw):
            raise LostGuest(f"the agent ended during {case}", cause=Cause.NO_ANSWER)
        try:
            ended = self._read(parser, lambda: parser.ended, self._patient(Deadline.after(END_TIMEOUT)), raw)
        except LostGuest as error:
            return parser.finish(), error.message
        except TimeoutError:
            return parser.finish(), "the agent stopped answering"
        report = parser.finish()
        dirty = report.notes("dirty")
        return report, dirty[0] if dirty else ("" if ended else "the agent ended after the verdict")

    def _read(
        self, parser: KtapParser, until: Callable[[], object], deadline: Deadline, raw: list[str]
    ) -> bool:
        """Read until *until* is true; False when the agent ended first."""
        for line in self._stream.lines(deadline):
            if line.startswith(f"# {PREFIX}"):
                self.counters = line.removeprefix(f"# {PREFIX}")
                continue
            raw.append(line)
            parser.feed(line)
            if until():
                return True
        return False

    def close(self) -> None:
        """End the agent."""
        self._stream.close()
