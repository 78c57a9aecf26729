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

_PYTEST = ("workers", "keyword", "exit_first", "collect_only", "extra")
_NO_RUN = ("watch", "each", "plan_only", "reset")


def _run_fleet(fleet: str | None, fleet_keys: Path | None, insecure: bool) -> FleetWish | None:
    return _fleet(fleet, fleet_keys, insecure, (*_PYTEST, *_NO_RUN))


def _commit_fleet(fleet: str | None, fleet_keys: Path | None, insecure: bool) -> FleetWish | None:
    return _fleet(fleet, fleet_keys, insecure, _NO_RUN)


def _fleet(
    fleet: str | None, fleet_keys: Path | None, insecure: bool, refused: tuple[str, ...]
) -> FleetWish | None:
    if fleet is None:
        if fleet_keys is not None or insecure:
            raise UsageError("--fleet-keys and --insecure are for --fleet", hint="leave them out")
        return None
    refuse_beside("--fleet runs everything on its workers", only=refused)
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

_OPTIONS = (
    click.option(
        "--fleet",
        metavar="ADDRESS|FILE",
        help="Run on many hosts: tls://HOST:PORT of a Dask scheduler, local:N for N workers here, "
        "or a YAML file that names a class of Dask clusters; see docs/fleet.md.",
    ),
    keys_option,
    insecure_option,
)

fleet_options = fold("fleet", _run_fleet, *FLEET, options=_OPTIONS)

commit_fleet_options = fold("fleet", _commit_fleet, *FLEET, options=_OPTIONS)
"""The same for verbs that test commits, each by a run of its own, with pytest."""
