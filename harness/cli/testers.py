# SPDX-License-Identifier: GPL-2.0-only
"""What builds and tests the commits of `bisect` and `mutate`: this host, or the workers of a fleet."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from harness.base.output import tell
from harness.bisect.on_fleet import FleetTester, refuse_unportable
from harness.bisect.state import StepOptions
from harness.bisect.step import ONE_VM, RUNS_NAME, Tester, VMTester
from harness.fleet.cluster import FleetWish
from harness.kernel.arch import find_arch
from harness.kernel.commits import provide_commits
from harness.machine.accel import choose_accel
from harness.machine.qemu import find_qemu
from harness.session.jobs import DEFAULT_MEMORY_MIB
from harness.session.pool import commit_pool, refuse_kernel

MakeTester = Callable[[Sequence[str]], Tester]
"""Makes a Tester that passes options to `run`."""


def refuse(fleet: FleetWish | None, options: StepOptions) -> None:
    """Raise UsageError for *options* that cannot be carried out on *fleet*, if there is one."""
    if fleet is not None:
        refuse_unportable(options)
        refuse_kernel(options.kernel)


@contextlib.contextmanager
def commit_testers(
    fleet: FleetWish | None,
    directory: Path,
    repository: Path,
    options: StepOptions,
    *,
    mirror: Callable[[], Path],
    commits: Callable[[], Collection[str]],
    resume: str,
    boot: bool = False,
) -> Iterator[MakeTester]:
    """Yield what makes testers of the commits of *repository*, whose runs are kept in *directory*.

    Of *mirror*, a repository of the cache, a fleet gets *commits*; *resume* is the command that goes on after
    the fleet was lost.  Raises UsageError and InfraError.
    """
    runs = directory / RUNS_NAME
    if fleet is None:
        yield lambda conduct: VMTester(os.fspath(repository), options, runs, boot=boot, conduct=conduct)
        return
    refuse(fleet, options)
    pairs = list(itertools.pairwise(options.machine))
    given = dict(pairs)
    # The same everywhere: a time limit that is enough with KVM is none without.
    arch = find_arch(options.kernel.arch)
    accel = choose_accel(given.get("--accel", "auto"), find_qemu(arch=arch)).accel.value
    options = dataclasses.replace(options, machine=(*options.machine, "--accel", accel))
    tell("packing the source for the fleet")
    source = provide_commits(mirror(), commits())
    with commit_pool(
        fleet,
        directory,
        source,
        options.kernel,
        accel=accel,
        topologies=tuple(value for option, value in pairs if option == "--topology"),
        memory_mib=int(given.get("--memory", DEFAULT_MEMORY_MIB)),
        resume=resume,
    ) as pool:
        yield lambda conduct: FleetTester(pool, options, runs, boot=boot, conduct=conduct)


@contextlib.contextmanager
def one_tester(made: contextlib.AbstractContextManager[MakeTester]) -> Iterator[Tester]:
    """Yield the tester that gives a verdict with one fresh VM."""
    with made as make:
        yield make(ONE_VM)
