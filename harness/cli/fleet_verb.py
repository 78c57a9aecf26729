# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness fleet`: prepare a fleet."""

from __future__ import annotations

from pathlib import Path

import click

from harness.base.output import emit, tell
from harness.fleet.cluster import require_distributed
from harness.fleet.keys import make_keys


@click.group("fleet")
def command() -> None:
    """Prepare a fleet of hosts; docs/fleet.md has the way from two hosts to a nightly.

    \b
    Examples:
      vfio-harness fleet keys ~/fleet
    """


@command.command("keys")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
def keys(directory: Path) -> int:
    """Make a certificate authority and a certificate in DIRECTORY, for every host of one fleet."""
    require_distributed()
    for path in make_keys(directory):
        emit(str(path))
    tell("copy these three files to every host of the fleet; ca-key.pem stays here, for later certificates")
    return 0
