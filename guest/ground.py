# SPDX-License-Identifier: GPL-2.0-only
"""The ground state that every case starts from, and how it is restored after a case.

In the ground state the test devices have no driver and no override, the parameter is off, no huge page is
reserved, no virtual function exists, and no process of the case is alive. Every step of the restore has a
timeout.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from guest import bounded, memory, pci

REAP_TIMEOUT = 10.0
"""Seconds that killed processes have to exit; one in uninterruptible sleep may never exit."""

STEP_TIMEOUT = 15.0
"""Timeout in seconds of one step of the restore."""

RESTORE_TIMEOUT = 60.0
"""Timeout in seconds of all steps together."""

END_TIMEOUT = RESTORE_TIMEOUT + 5.0
"""Most seconds, in wall-clock time on every accelerator, between a case's result line and its `# END` line:
the whole restore and its report.  The host waits so long after a result before it declares the agent dead."""

# Features whose devices the cases use; the restore leaves every other device of the machine alone.
_DEVICE_FEATURES = {"edu": "edu", "edu2": "edu", "igb": "igb", "nvme": "nvme", "aer": "virtio-balloon"}


class Cleaning:
    """The steps done after a case, and those that failed."""

    def __init__(self, done: Iterable[str] = (), dirty: Iterable[str] = ()) -> None:
        self.done = list(done)
        self.dirty = list(dirty)

    def step(self, what: str, action: Callable[[], object]) -> None:
        """Do one step and record it, as dirty if it failed."""
        try:
            action()
        except (OSError, pci.StuckWrite) as error:
            self.dirty.append(f"{what}: {error}")
        else:
            self.done.append(what)


class Ground(NamedTuple):
    """The devices that the agent found at its start."""

    devices: tuple[str, ...]

    @classmethod
    def survey(cls, features: Iterable[str]) -> Ground:
        """Return the Ground of the devices that *features* name."""
        kinds = sorted({_DEVICE_FEATURES[name] for name in features if name in _DEVICE_FEATURES})
        try:
            return cls(tuple(bdf for kind in kinds for bdf in pci.find(kind)))
        except OSError:  # no PCI bus, as where the unit tests run
            return cls(())

    def restore(self, *, first: bool = False) -> Cleaning:
        """Restore the ground state and return the steps done; with *first*, only unbind drivers.

        At the agent's start the parameter keeps its boot value, for the case that checks it. The whole
        restore has a timeout, because even reading an attribute can block on the lock that a blocked unbind
        holds (sriov_numvfs_show(); up to Linux 7.2 driver_override_show() too).
        """
        try:
            return bounded.within(RESTORE_TIMEOUT, lambda: self._restore(first=first))
        except Exception as error:
            return Cleaning(dirty=[f"the ground state was not restored: {error}"])

    def _restore(self, *, first: bool) -> Cleaning:
        cleaning = Cleaning()
        for bdf in self.devices:
            try:
                entries = frozenset(os.listdir(f"{pci.BUS}/devices/{bdf}"))
            except FileNotFoundError:
                cleaning.dirty.append(f"{bdf} is gone")
            else:
                self._restore_device(cleaning, bdf, entries)
        if first:
            return cleaning
        if pci.parameter():
            cleaning.step("parameter set back to N", lambda: pci.set_parameter(False))
        if memory.hugepages():
            cleaning.step("huge pages released", _give_back_hugepages)
        return cleaning

    def _restore_device(self, cleaning: Cleaning, bdf: str, entries: Collection[str]) -> None:
        """Restore one device; *entries* are the names in its directory: after most cases they show that there
        is nothing to do."""
        if "sriov_numvfs" in entries and pci.read(f"{pci.BUS}/devices/{bdf}/sriov_numvfs") != "0":
            cleaning.step(
                f"{bdf}: virtual functions removed",
                lambda: pci.set_virtual_functions(bdf, 0, timeout=STEP_TIMEOUT),
            )
        name = pci.driver(bdf) if "driver" in entries else None
        if name is not None:
            cleaning.step(f"{bdf}: unbound from {name}", lambda: pci.unbind(bdf, timeout=STEP_TIMEOUT))
        elif "vfio-dev" in entries and pci.vfio_dev_name(bdf) is not None:
            # A blocked unbind has already removed the driver link, but its device still exists.
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
    """Kill the process group and wait until it is empty; return a message if processes did not die.

    The caller must be the subreaper of the group, so that orphans become its children.
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
                return [f"processes of group {group} did not die"]
            time.sleep(0.005)
