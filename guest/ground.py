# SPDX-License-Identifier: GPL-2.0-only
"""The ground state that every case starts from, and the way back to it after one.

Ground: the test devices have no driver and no override, the parameter is off, no huge page is reserved, no
virtual function exists, no process of the case lives.  Every step is bounded in time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from guest import bounded, memory, pci

REAP_TIMEOUT = 10.0
"""Seconds that killed processes may take to go: one in uninterruptible sleep may never do."""

STEP_TIMEOUT = 15.0
"""Seconds that one step back to the ground state may take."""

RESTORE_TIMEOUT = 60.0
"""Seconds that all the steps together may take."""

END_TIMEOUT = RESTORE_TIMEOUT + 5.0
"""Seconds, by the wall clock whatever the accelerator, that may pass between a case's result line and its
`# END` line: all of the restore, and writing down what it came to.  Whoever reads the agent's answer waits
that long after a result before calling the agent dead."""

# Features whose devices belong to the cases; any other device in the machine is none of our business.
_DEVICE_FEATURES = {"edu": "edu", "edu2": "edu", "igb": "igb", "nvme": "nvme", "aer": "virtio-balloon"}


@dataclass
class Cleaning:
    """What had to be done after a case, and what could not be."""

    done: list[str] = field(default_factory=list)
    dirty: list[str] = field(default_factory=list)

    def step(self, what: str, action: Callable[[], object]) -> None:
        """Do one step and note it; note it as dirty when it failed."""
        try:
            action()
        except (OSError, pci.StuckWrite) as error:
            self.dirty.append(f"{what}: {error}")
        else:
            self.done.append(what)


@dataclass(frozen=True)
class Ground:
    """The devices that the agent found at its start."""

    devices: tuple[str, ...]

    @classmethod
    def survey(cls, features: Iterable[str]) -> Ground:
        """Note the devices that *features* speak of."""
        kinds = sorted({_DEVICE_FEATURES[name] for name in features if name in _DEVICE_FEATURES})
        try:
            return cls(tuple(bdf for kind in kinds for bdf in pci.find(kind)))
        except OSError:  # no PCI bus: the unit tests' machine
            return cls(())

    def restore(self, *, first: bool = False) -> Cleaning:
        """Put everything back and say what it took; with *first* nothing but drivers is touched.

        At the agent's start the parameter keeps its boot value, for the case that looks at it.  All of it is
        bounded: even reading an attribute can block, on the lock that a blocked unbind holds
        (sriov_numvfs_show(); up to Linux 7.2 driver_override_show() too).
        """
        try:
            return bounded.within(RESTORE_TIMEOUT, lambda: self._restore(first=first))
        except Exception as error:
            return Cleaning(dirty=[f"the ground state was not restored: {error}"])

    def _restore(self, *, first: bool) -> Cleaning:
        cleaning = Cleaning()
        for bdf in self.devices:
            if pci.exists(bdf):
                self._restore_device(cleaning, bdf)
            else:
                cleaning.dirty.append(f"{bdf} is gone")
        if first:
            return cleaning
        if pci.parameter():
            cleaning.step("parameter back to N", lambda: pci.set_parameter(False))
        if memory.hugepages():
            cleaning.step("huge pages given back", _give_back_hugepages)
        return cleaning

    def _restore_device(self, cleaning: Cleaning, bdf: str) -> None:
        numvfs = pci.path_of(bdf) / "sriov_numvfs"
        if numvfs.exists() and pci.read(numvfs) != "0":
            cleaning.step(
                f"{bdf}: virtual functions removed",
                lambda: pci.set_virtual_functions(bdf, 0, timeout=STEP_TIMEOUT),
            )
        name = pci.driver(bdf)
        if name is not None:
            cleaning.step(f"{bdf}: taken off {name}", lambda: pci.unbind(bdf, timeout=STEP_TIMEOUT))
        elif pci.vfio_dev_name(bdf) is not None:
            # An unbind that blocks has removed the driver link already; its device is still there.
            cleaning.step(f"{bdf}: unbind finished", lambda: _wait_for_unbind(bdf))
        if pci.override(bdf):
            cleaning.step(f"{bdf}: override cleared", lambda: pci.set_override(bdf, ""))


def _give_back_hugepages() -> None:
    left = memory.set_hugepages(0)
    if left:
        raise OSError(errno.EBUSY, f"{left} huge pages are still in use")


def _wait_for_unbind(bdf: str) -> None:
    deadline = time.monotonic() + STEP_TIMEOUT
    while pci.vfio_dev_name(bdf) is not None or pci.driver(bdf) is not None:
        if time.monotonic() > deadline:
            raise pci.StuckWrite(f"the unbind of {bdf} has not finished")
        time.sleep(0.01)


def reap_group(group: int) -> list[str]:
    """Kill the process group and wait until it is empty; return what would not die.

    The caller is the subreaper of the group, so that orphans come to it.
    """
    deadline = time.monotonic() + REAP_TIMEOUT
    while True:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
        try:
            pid, _ = os.waitpid(-group, os.WNOHANG)
        except ChildProcessError:
            return []
        if pid == 0:
            if time.monotonic() > deadline:
                return [f"processes of group {group} would not die"]
            time.sleep(0.005)
