# SPDX-License-Identifier: GPL-2.0-only
"""The console of a VM: its log file and the splats in it.

QEMU writes the log; this module only reads it, incrementally, so that searching it after every case is cheap.
"""

from __future__ import annotations

import io
import time
from pathlib import Path

from harness.base.deadline import Deadline
from harness.machine.splat import Detector, Splat
from harness.machine.splatpolicy import message_of

POLL_SECONDS = 0.002
"""Pause between two reads of the console; short, because every case ends with such a wait: 20 ms cost 4 % of
a run of short cases.
"""

_TAIL_BYTES = 64 * 1024


class Console:
    """The log file of one VM's console."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._detector = Detector()
        self._read = 0

    @property
    def size(self) -> int:
        """Bytes so far; a position to search from."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def text(self, since: int = 0) -> str:
        """Return the text from byte *since* on."""
        try:
            with self.path.open("rb") as file:
                file.seek(since)
                return _clean(file.read())
        except FileNotFoundError:
            return ""

    def tail(self, lines: int = 40) -> tuple[str, ...]:
        """Return the last *lines* lines."""
        return tuple(self.text(max(0, self.size - _TAIL_BYTES)).splitlines()[-lines:])

    def splats(self) -> tuple[Splat, ...]:
        """Return the splats so far, in the order in which they began."""
        self._advance()
        return self._detector.splats

    @property
    def settled(self) -> bool:
        """Whether the kernel is not printing a splat."""
        self._advance()
        return self._detector.settled

    def wait_for(self, text: str, deadline: Deadline, since: int = 0, *, pause: float = POLL_SECONDS) -> bool:
        """Wait until the console has *text* at byte *since* or later; return False at *deadline*.

        The kernel prints from a thread of its own: its messages during a case are complete only when the
        message that ends the case has arrived too.
        """
        while text not in self.text(since):
            if deadline.expired:
                return False
            time.sleep(pause)
        return True

    def hears(self, message: str, deadline: Deadline, since: int = 0) -> bool:
        """Wait until the kernel printed *message*, with a time stamp, at byte *since* or later.

        Returns False at *deadline*: whatever else the kernel printed since then may be lost as well.
        """
        while True:
            text = self.text(since)
            if any(message_of(line) == message for line in text.splitlines() if message in line):
                return True
            if deadline.expired:
                return False
            time.sleep(POLL_SECONDS)

    def finish(self) -> None:
        """Read the last line even without its newline; call it when QEMU is gone."""
        self._advance(whole=False)

    def _advance(self, *, whole: bool = True) -> None:
        try:
            with self.path.open("rb") as file:
                file.seek(self._read)
                news = file.read()
        except FileNotFoundError:
            return
        end = news.rfind(b"\n") + 1 if whole else len(news)
        for line in io.BytesIO(news[:end]):
            self._detector.feed(_clean(line).rstrip("\n"), self._read)
            self._read += len(line)


def _clean(raw: bytes) -> str:
    return raw.decode("utf-8", errors="replace").replace("\r", "")
