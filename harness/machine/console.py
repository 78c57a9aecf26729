# SPDX-License-Identifier: GPL-2.0-only
"""The console of a VM: its log file, and what the kernel said in it.

QEMU writes the log; here it is only read.  Reading is incremental, so that asking after every case is cheap.
"""

from __future__ import annotations

import io
import time
from pathlib import Path

from harness.deadline import Deadline
from harness.machine.splat import Detector, Splat

_POLL_SECONDS = 0.002
"""Waited for after every case, so that a longer one is felt: 20 ms took 4 % of a run of short cases."""

_TAIL_BYTES = 64 * 1024


class Console:
    """The log file of one VM's serial port."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._detector = Detector()
        self._read = 0

    @property
    def size(self) -> int:
        """Bytes so far; a position to look for splats from."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def text(self, since: int = 0) -> str:
        """What was written from byte *since* on."""
        try:
            with self.path.open("rb") as file:
                file.seek(since)
                return _clean(file.read())
        except FileNotFoundError:
            return ""

    def tail(self, lines: int = 40) -> tuple[str, ...]:
        """The last *lines* lines."""
        return tuple(self.text(max(0, self.size - _TAIL_BYTES)).splitlines()[-lines:])

    def splats(self, since: int = 0) -> tuple[Splat, ...]:
        """The splats that began at byte *since* or later."""
        self._advance()
        return tuple(splat for splat in self._detector.splats if splat.offset >= since)

    @property
    def case(self) -> str | None:
        """The case that runs now, by the console's own account."""
        self._advance()
        return self._detector.case

    @property
    def settled(self) -> bool:
        """Whether the kernel is not in the middle of a splat."""
        self._advance()
        return self._detector.settled

    def wait_for(self, text: str, deadline: Deadline, since: int = 0) -> bool:
        """Wait until *text* stands on the console from byte *since* on; False when it does not by *deadline*.

        The kernel prints from a thread of its own: what it said during a case is complete only when the
        message that ended the case has arrived too.
        """
        while text not in self.text(since):
            if deadline.expired:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def finish(self) -> None:
        """Take the last line even if nothing ended it; call when QEMU is gone."""
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
