# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness gc`: prune the cache by size and age, and old runs by number and age."""

from __future__ import annotations

import json
import os
import re

import click

from harness.base import paths
from harness.base.output import emit
from harness.kernel.prune import SPARED_SECONDS, CacheEntry, collect_garbage
from harness.results.prune import PrunedRun, prune_runs
from harness.session.reporting import ask

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_DAY = 24 * 3600.0


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)([kmgt]?)(?:i?b)?", value.strip().lower())
    if match is None:
        raise click.BadParameter(f"{value!r} is not a size; write 500M or 20G")
    return int(float(match[1]) * _UNITS[match[2]])


def _seconds(days: float | None) -> float | None:
    return days * _DAY if days is not None else None


@click.command("gc")
@click.option("--max-size", callback=_size, metavar="SIZE", help="Keep at most this much cache, e.g. 20G.")
@click.option(
    "--max-age",
    type=click.FloatRange(min=0),
    metavar="DAYS",
    help="Remove entries that were not used for DAYS days.",
)
@click.option(
    "--spare",
    type=click.FloatRange(min=0),
    default=SPARED_SECONDS / 60,
    metavar="MINUTES",
    help="Keep what was used in the last MINUTES, whatever the limits; 0 is safe only if nothing else runs.",
)
@click.option(
    "--snapshots/--no-snapshots",
    default=True,
    help="Keep the snapshots of guests; only this host can restore them, and only until it reboots.",
)
@click.option(
    "--keep-runs", type=click.IntRange(min=1), metavar="N", help="Remove finished runs except the newest N."
)
@click.option(
    "--runs-older-than",
    type=click.FloatRange(min=0),
    metavar="DAYS",
    help="Remove finished runs that began longer ago.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was removed as JSON.")
def command(
    max_size: int | None,
    max_age: float | None,
    spare: float,
    snapshots: bool,
    keep_runs: int | None,
    runs_older_than: float | None,
    as_json: bool,
) -> None:
    """Remove kernels, objects, sources, images and snapshots, the least recently used first, and old runs.

    Give at least one limit.

    Not removed are files in use or used in the last hour (--spare), and unfinished runs.  The history keeps
    the results of removed runs.

    \b
    Examples:
      vfio-harness gc --max-size 20G --max-age 30
      vfio-harness gc --keep-runs 100 --runs-older-than 90
      vfio-harness gc --max-size 2G --no-snapshots --spare 0
    """
    limits = (max_size, max_age, keep_runs, runs_older_than)
    if snapshots and all(limit is None for limit in limits):
        raise click.UsageError(
            "say what to keep: --max-size, --max-age or --no-snapshots for the cache, --keep-runs or "
            "--runs-older-than for runs"
        )
    removed: list[CacheEntry | PrunedRun] = []
    if max_size is not None or max_age is not None or not snapshots:
        removed += collect_garbage(
            max_bytes=max_size, max_age=_seconds(max_age), spared=spare * 60, snapshots=snapshots
        )
    if keep_runs is not None or runs_older_than is not None:
        remembered = ask(lambda history: {run.directory.name for run in history.runs()})
        root = paths.runs_dir()
        removed += prune_runs(root, remembered, keep=keep_runs, max_age=_seconds(runs_older_than))
    if as_json:
        emit(json.dumps([{"path": os.fspath(e.path), "bytes": e.size} for e in removed], indent=2))
        return
    for entry in removed:
        emit(f"removed {entry.path} ({entry.size / 2**20:.0f} MiB)")
    emit(f"{len(removed)} removed, {sum(e.size for e in removed) / 2**20:.0f} MiB freed")
