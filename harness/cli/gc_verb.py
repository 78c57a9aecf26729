# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness gc`: prune the cache by size and age."""

from __future__ import annotations

import json
import os
import re

import click

from harness.cli.output import emit
from harness.kernel.prune import collect_garbage

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_DAY = 24 * 3600.0


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt]?)(?:i?b)?", value.strip().lower())
    if match is None:
        raise click.BadParameter(f"{value!r} is no size; write 500M or 20G")
    return int(float(match[1]) * _UNITS[match[2]])


@click.command("gc")
@click.option("--max-size", callback=_size, metavar="SIZE", help="Keep at most this much, e.g. 20G.")
@click.option(
    "--max-age", type=click.FloatRange(min=0), metavar="DAYS", help="Drop what is unused for longer."
)
@click.option("--json", "as_json", is_flag=True, help="Print what was removed as JSON.")
def command(max_size: int | None, max_age: float | None, as_json: bool) -> None:
    """Prune kernels, objects, sources, images and snapshots, the least recently used first.

    What was used within the last hour, or is in use, stays.

    \b
    Example:
      vfio-harness gc --max-size 20G --max-age 30
    """
    if max_size is None and max_age is None:
        raise click.UsageError("say what to keep: --max-size, --max-age or both")
    age = max_age * _DAY if max_age is not None else None
    removed = collect_garbage(max_bytes=max_size, max_age=age)
    if as_json:
        emit(json.dumps([{"path": os.fspath(e.path), "bytes": e.size} for e in removed], indent=2))
        return
    for entry in removed:
        emit(f"removed {entry.path} ({entry.size / 2**20:.0f} MiB)")
    emit(f"{len(removed)} removed, {sum(e.size for e in removed) / 2**20:.0f} MiB freed")
