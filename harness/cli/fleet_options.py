# SPDX-License-Identifier: GPL-2.0-only
"""The options of a fleet, for the verbs that run on one and for its workers."""

from __future__ import annotations

from pathlib import Path

import click

from harness.base.errors import UsageError
from harness.base.output import tell
from harness.cli.given import refuse_beside
from harness.cli.options import fold
from harness.fleet.address import FleetAddress
from harness.fleet.cluster import FleetWish, check

_NOT_ON_FLEET = ("workers", "keyword", "exit_first", "collect_only", "extra", "watch", "each", "plan_only")
"""Parameters for pytest, or for no run at all."""


def _fleet(fleet: str | None, fleet_keys: Path | None, insecure: bool) -> FleetWish | None:
    if fleet is None:
        if fleet_keys is not None or insecure:
            raise UsageError("--fleet-keys and --insecure are for --fleet", hint="leave them out")
        return None
    refuse_beside("--fleet runs everything on its workers", only=_NOT_ON_FLEET)
    wish = FleetWish(address=FleetAddress.parse(fleet), text=fleet, keys=fleet_keys, insecure=insecure)
    if warning := check(wish):
        tell(warning)
    return wish


keys_option = click.option(
    "--fleet-keys",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="The certificates of the fleet; see: fleet keys.",
)

insecure_option = click.option(
    "--insecure",
    is_flag=True,
    help="Connect to another host without encryption, on a trusted network.",
)

FLEET = ("fleet", "fleet_keys", "insecure")
"""The parameters of fleet_options."""

fleet_options = fold(
    "fleet",
    _fleet,
    *FLEET,
    options=(
        click.option(
            "--fleet",
            metavar="ADDRESS|FILE",
            help="Run on many hosts: tls://HOST:PORT of a Dask scheduler, local:N for N workers here, "
            "or a YAML file that names a class of Dask clusters; see docs/fleet.md.",
        ),
        keys_option,
        insecure_option,
    ),
)
