# SPDX-License-Identifier: GPL-2.0-only
"""Load from a mapped BAR at any time: a SIGBUS becomes an OSError, and the process lives on.

The handler puts an ordinary page where the BAR was mapped, so that the load that it interrupted ends; the
next one maps the BAR again. Only for a process that does nothing else with SIGBUS, such as a racer.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal

from guest import libc, vfio
from guest.memory import MAP_FIXED, PAGE, READ_WRITE

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)


class Touch:
    """A BAR, mapped shared.  Each of its pages faults by itself."""

    def __init__(self, device: vfio.Device, index: int = vfio.BAR0) -> None:
        region = device.region(index)
        self.pages = region.size // PAGE
        self._fd, self._offset = device.fd, region.offset
        self._address = libc.mmap(region.size, READ_WRITE, mmap.MAP_SHARED, self._fd, self._offset)
        self._page, self._gone = 0, False
        # Kept as long as the process, because the kernel keeps its address.
        self._handler = _Handler(self._hide)
        libc.handle_signal(signal.SIGBUS, ctypes.cast(self._handler, ctypes.c_void_p).value or 0)

    def _hide(self, _number: int) -> None:
        self._gone = True
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED
        libc.mmap(PAGE, READ_WRITE, flags, address=self._address + self._page)

    def read32(self, offset: int) -> int:
        """Load 4 bytes; raise OSError with EFAULT for a SIGBUS."""
        self._page = offset - offset % PAGE
        value = int(ctypes.c_uint32.from_address(self._address + offset).value)
        if self._gone:
            self._gone = False
            flags, where = mmap.MAP_SHARED | MAP_FIXED, self._address + self._page
            libc.mmap(PAGE, READ_WRITE, flags, self._fd, self._offset + self._page, address=where)
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        return value
