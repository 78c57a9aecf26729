# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness worker`: work for a fleet."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import click
import platformdirs

from harness.base.errors import InfraError
from harness.base.output import tell
from harness.base.words import count_of
from harness.cli.doctor import CheckState, examine_worker
from harness.cli.fleet_options import insecure_option, keys_option
from harness.fleet.address import check_encrypted, parse_scheduler
from harness.fleet.cluster import require_distributed
from harness.fleet.keys import security
from harness.fleet.supervisor import supervise
from harness.lab.admission import room_for
from harness.session.jobs import DEFAULT_MEMORY_MIB


@click.command("worker")
@click.argument("address")
@click.option("--name", default=socket.gethostname, show_default="host name", help="Unique in the fleet.")
@click.option(
    "--vms",
    type=click.IntRange(1, 256),
    metavar="N",
    help="How many VMs to run at once  [default: as many as fit on this host]",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where kernels and disks arrive  [default: VFIO_HARNESS_CACHE, or ~/.cache/vfio-harness-worker]",
)
@click.option("--builds/--no-builds", default=True, show_default=True, help="Whether to build kernels, too.")
@keys_option
@insecure_option
def command(
    address: str,
    name: str,
    vms: int | None,
    cache: Path | None,
    builds: bool,
    fleet_keys: Path | None,
    insecure: bool,
) -> int:
    """Run VMs for the fleet whose Dask scheduler is at ADDRESS, until interrupted.

    \b
    Examples:
      vfio-harness worker tls://build1:8786 --fleet-keys ~/fleet
      vfio-harness worker tcp://127.0.0.1:8786 --vms 2
    """
    parse_scheduler("worker", address)
    warning = check_encrypted("worker", address, insecure=insecure, keys=fleet_keys)
    if warning:
        tell(warning)
    require_distributed()
    if cache is not None or not os.environ.get("VFIO_HARNESS_CACHE"):
        own = cache or Path(platformdirs.user_cache_dir("vfio-harness-worker"))
        # Not the cache of `run`: kernels arrive without what debuggers need.
        os.environ["VFIO_HARNESS_CACHE"] = os.fspath(own.absolute())
    missing = [check for check in examine_worker() if check.state is CheckState.MISSING]
    if missing:
        raise InfraError(
            f"this host cannot work for a fleet: {missing[0].name}: {missing[0].detail}",
            hint="see: vfio-harness doctor --worker",
        )
    security(fleet_keys)
    count = vms or room_for(DEFAULT_MEMORY_MIB)
    tell(f"worker {name}: {count_of(count, 'VM')} at once for {address}")
    return supervise(address, name, count, fleet_keys, builds=builds)
