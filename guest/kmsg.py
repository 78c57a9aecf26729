# SPDX-License-Identifier: GPL-2.0-only
"""Write to and read from the kernel's log (Documentation/ABI/testing/dev-kmsg)."""

from __future__ import annotations

import contextlib
import os

KMSG = "/dev/kmsg"
KERN_WARNING = (
    4  # include/linux/kern_levels.h; the level of WARN(), so that both show on the console or neither
)

BEGIN = "vfio-harness: begin"
"""Logged with an address when a case or a program begins; the host reads it on the console."""

END = "vfio-harness: end"
"""The same when it has ended."""

PROOF = "vfio-harness: heard"
"""Logged with the VM's nonce when the host asks for facts; the host checks that it reaches the console."""


def say(text: str) -> None:
    """Write one line into the kernel's log; do nothing where that is not allowed."""
    with contextlib.suppress(OSError):
        # Opened anew each time: the kernel limits the rate of each opener (printk.devkmsg=ratelimit).
        fd = os.open(KMSG, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, f"<{KERN_WARNING}>{text}\n".encode())
        finally:
            os.close(fd)


class KernelLog:
    """What the kernel prints from the moment this object is made."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        try:
            self._fd = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            self._fd = -1

    def lines(self) -> list[str]:
        """Return every record so far, without the prefix."""
        while self._fd >= 0:
            try:
                record = os.read(self._fd, 8192)
            except BlockingIOError:
                break
            except BrokenPipeError:
                continue  # records were overwritten before they were read: continue with the oldest
            text = record.decode(errors="replace").partition(";")[2]
            self._lines.append(text.split("\n", 1)[0])
        return list(self._lines)

    def close(self) -> None:
        """Stop reading."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
