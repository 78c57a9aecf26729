# SPDX-License-Identifier: GPL-2.0-only
"""The host's end of guest/agent.py: a long-lived agent in a VM, one request per probe case."""

from __future__ import annotations

import json
from collections.abc import Iterable

from guest.agent import DIRTY, READY
from guest.ground import END_TIMEOUT, REAP_TIMEOUT
from guest.resident import PORT
from harness.deadline import Deadline
from harness.errors import LostGuest
from harness.ktap import DocumentEnded, Event, Finished, KtapParser, KtapReport
from harness.remote import Guest

VERDICT_SECONDS = REAP_TIMEOUT + 20.0
"""How long past a case's own limit its result line may take: the agent may have to reap what hung."""


class Agent:
    """A running agent; raises LostGuest as soon as it stops answering."""

    def __init__(
        self,
        guest: Guest,
        features: Iterable[str],
        deadline: Deadline,
        *,
        fresh: bool = False,
        alongside: bool = False,
    ) -> None:
        """Start it; *fresh* says that the VM has run nothing, so that a taint there is the boot's.

        One that runs *alongside* others takes only cases that may, and leaves the machine as it is.
        """
        words = ["agent", "--features", ",".join(sorted(features))]
        words += ["--fresh"] * fresh + ["--alongside"] * alongside
        self._stream = guest.dial(PORT, deadline)
        self._stream.send(json.dumps(words))
        said, dirty = "nothing came", f"# {DIRTY}"
        for line in self._lines(deadline):
            if line.startswith(READY):
                return
            if line.startswith(dirty):
                raise LostGuest(f"the guest is not fit to run cases: {line.removeprefix(dirty)}")
            said = line
        raise LostGuest(f"the agent did not start: {said}")

    def _lines(self, deadline: Deadline) -> Iterable[str]:
        try:
            yield from self._stream.lines(deadline)
        except TimeoutError as error:
            raise LostGuest("the agent stopped answering") from error
        yield "it ended"

    def run(self, case: str, seconds: float, seed: int, raw: list[str]) -> tuple[KtapReport, str]:
        """Run one case, `module/name`, appending every line it prints to *raw*.

        *seconds* is the case's own limit, which the agent enforces.  Returns the document and, when the guest
        was lost or could not be cleaned up after the verdict, why the VM is spoilt.  Raises TimeoutError when
        the agent does not enforce it.
        """
        self._stream.send(json.dumps({"case": case, "timeout": seconds, "seed": seed}))
        parser = KtapParser(expected=(case,))
        if not self._read_until(Finished, case, parser, Deadline.after(seconds + VERDICT_SECONDS), raw):
            raise LostGuest(f"the agent ended during {case}")
        try:
            ended = self._read_until(DocumentEnded, case, parser, Deadline.after(END_TIMEOUT), raw)
        except LostGuest as error:
            return parser.finish(), error.message
        except TimeoutError:
            return parser.finish(), "the agent stopped answering"
        report = parser.finish()
        dirty = report.notes("dirty")
        return report, dirty[0] if dirty else ("" if ended else "the agent ended after the verdict")

    def _read_until(
        self, event: type[Event], case: str, parser: KtapParser, deadline: Deadline, raw: list[str]
    ) -> bool:
        """Read until *event* comes; False when the agent ended first."""
        for line in self._stream.lines(deadline):
            raw.append(line)
            if any(isinstance(happened, event) for happened in parser.feed(line)):
                return True
        return False

    def close(self) -> None:
        self._stream.close()
