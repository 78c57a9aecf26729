# SPDX-License-Identifier: GPL-2.0-only
"""Cases that do one thing, for `python -m tools.bench --only cases`; loaded like a user's own probes."""

from __future__ import annotations

import time

from guest import forked, pci
from guest.case import Test, case
from guest.opened import opened

NEEDS = ("noiommu", "edu", "!viommu")


@case(cites="none")
def nothing(t: Test) -> None:
    """Nothing is done: what all cases cost."""


@case(cites="none")
def forks_once(t: Test) -> None:
    """A child process that does nothing."""
    forked.call(lambda: None)


@case(cites="none")
def reads_sysfs(t: Test) -> None:
    """A hundred reads of a sysfs attribute."""
    for _ in range(100):
        pci.read(pci.PARAMETER)


@case(cites="none", needs=NEEDS)
def binds(t: Test) -> None:
    """A device is bound to vfio-pci and released."""
    with pci.bound(t.device("edu")):
        pass


@case(cites="none", needs=NEEDS)
def opens(t: Test) -> None:
    """A device is bound, opened, closed and released."""
    with opened(t, t.device("edu")):
        pass


@case(cites="none")
def idles(t: Test) -> None:
    """The guest sleeps for a second: what every wait costs."""
    time.sleep(1)
