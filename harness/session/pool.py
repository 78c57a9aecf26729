# SPDX-License-Identifier: GPL-2.0-only
"""A fleet whose workers build commits and test them, each worker one at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from harness.base.errors import InfraError, UsageError
from harness.base.output import tell
from harness.base.words import count_of
from harness.fleet import evidence
from harness.fleet.cluster import LOG_DIRECTORY, FleetWish, connector, store_process
from harness.fleet.connection import Connection, FleetLost
from harness.fleet.pool import Pool
from harness.fleet.resources import for_build, for_unit
from harness.kernel.arch import find_arch
from harness.kernel.plan import installed_toolchain
from harness.kernel.toolchain import find_toolchain
from harness.lab.abilities import resources_for
from harness.lab.artefacts import COMMON_TOOLCHAINS, Artefact
from harness.machine.topology import read_topology
from harness.session.wishes import KernelWish

__all__ = ["FleetLost", "Pool", "commit_pool", "take_in"]


def refuse_kernel(kernel: KernelWish) -> None:
    """Raise UsageError for a kernel that no other host builds."""
    if find_arch(kernel.arch).label or kernel.toolchain not in COMMON_TOOLCHAINS:
        raise UsageError(
            f"workers of a fleet build for their own architecture, with {' or '.join(COMMON_TOOLCHAINS)}",
            hint="leave --arch and --toolchain out, or --fleet",
        )


@contextlib.contextmanager
def commit_pool(
    wish: FleetWish,
    directory: Path,
    source: Path,
    kernel: KernelWish,
    *,
    accel: str,
    topologies: tuple[str, ...],
    memory_mib: int,
    resume: str,
) -> Iterator[Pool]:
    """Yield the pool whose workers test commits of *source*, an entry of the store.

    *directory* gets the logs; *resume* is the command that goes on after the fleet was lost.

    Raises UsageError and InfraError when there is no fleet, or none that can do this.
    """
    arch, toolchain = find_arch(kernel.arch), find_toolchain(kernel.toolchain)
    devices = [device.driver for name in topologies for device in read_topology(name).devices]
    needs = for_unit(resources_for(arch.name, accel, devices, memory_mib))
    needs |= for_build(str(installed_toolchain(arch, toolchain)[1]))
    try:
        (directory / LOG_DIRECTORY).mkdir(exist_ok=True)
    except OSError as error:
        raise InfraError(f"cannot write {error.filename or directory}: {error.strerror}") from error
    with contextlib.ExitStack() as stack:
        connection = Connection(stack.enter_context(connector(wish, directory, builds=True)), resume)
        stack.callback(connection.close)
        pool = Pool(
            connection,
            directory.name,
            Artefact.of(source),
            needs,
            tell,
            keep_up=stack.enter_context(store_process(connection.address, wish, directory.name, directory)),
            waits=wish.address.file is not None,
            log=str(directory / LOG_DIRECTORY),
        )
        stack.callback(pool.close)
        tell(f"fleet: {count_of(pool.wait(), 'worker')}")
        yield pool


def take_in(packed: bytes, directory: Path) -> None:
    """Unpack an answer's files into *directory*.  Raises InfraError."""
    try:
        directory.mkdir(exist_ok=True)
        evidence.take_in(packed, directory)
    except OSError as error:
        raise InfraError(f"cannot write to {directory}: {error.strerror}") from error
