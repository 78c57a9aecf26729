# SPDX-License-Identifier: GPL-2.0-only
"""Binding and unbinding with allocation failures: each allocation on the way fails in turn.

The kernel's fault injection does it for one task (Documentation/fault-injection/fault-injection.rst): N in
/proc/self/fail-nth fails the Nth allocation from then on; the file reads 0 once that has failed.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from guest import pci
from guest.case import Test, case

DEBUGFS = Path("/sys/kernel/debug")

MOST = 400
"""More than the number of failures possible during a bind, which is 113 on 7.3."""


@contextlib.contextmanager
def failing() -> Iterator[int]:
    """Make allocations that may sleep fail too, without a log line; yield a descriptor of this task's
    fail-nth."""
    for kind in ("failslab", "fail_page_alloc"):
        pci.write(DEBUGFS / kind / "ignore-gfp-wait", "N")
        pci.write(DEBUGFS / kind / "verbose", "0")
    fd = os.open("/proc/thread-self/fail-nth", os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.pwrite(fd, b"0", 0)
        os.close(fd)


def _bind_failing(fd: int, bdf: str, nth: int) -> tuple[int, bool]:
    """Bind with the *nth* allocation failing; return the errno (0 for success) and whether that many were
    made."""
    bind = os.open(pci.BUS / "drivers" / pci.VFIO_PCI / "bind", os.O_WRONLY | os.O_CLOEXEC)
    code, name = 0, bdf.encode()
    try:
        os.pwrite(fd, str(nth).encode(), 0)
        os.write(bind, name)
    except OSError as error:
        code = error.errno or -1
    finally:
        failed = _has_failed(fd)
        os.close(bind)
    return code, failed


def _has_failed(fd: int) -> bool:
    """Return whether the requested failure has happened; cancel it otherwise."""
    try:
        return os.pread(fd, 16, 0).strip(b"\0\n ") == b"0"
    except OSError:
        return False  # the read itself was the next thing to fail
    finally:
        os.pwrite(fd, b"0", 0)


@case(
    needs=("noiommu", "fault-injection", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_create_group(), vfio_group_release(); vfio_main.c __vfio_register_dev()",
    timeout=60,
    destructive=True,
)
def bind_that_fails_leaves_nothing(t: Test) -> None:
    """If any allocation fails during a bind, the bind succeeds completely or fails without leaving anything
    behind, and the kernel reports no bug."""
    bdf = t.device("edu", iommu=False)
    refused = 0
    pci.set_parameter(True)
    with failing() as fd:
        pci.set_override(bdf, pci.VFIO_PCI)
        for nth in range(1, MOST):
            code, failed = _bind_failing(fd, bdf, nth)
            t.check(
                code in (0, errno.ENOMEM, errno.EFAULT),
                f"allocation {nth} failing makes the bind errno {code}",
            )
            t.check_no_complaint()
            if code:
                refused += 1
                t.equal(pci.driver(bdf), None, f"the driver after allocation {nth} failed")
                t.equal(pci.iommu_group(bdf), None, f"the group after allocation {nth} failed")
            else:
                pci.unbind(bdf)
                if not failed:
                    break
        else:
            raise AssertionError(f"a bind makes {MOST} or more allocations")
    t.check(refused > 5, f"a bind failed for only {refused} of the failing allocations")
    with pci.bound(bdf):
        t.check_no_complaint()
