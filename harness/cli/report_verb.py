# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness report`: an earlier run once more, in any format."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from harness import paths
from harness.cli import options
from harness.cli.output import emit, tolerant_stdout
from harness.errors import UsageError, nearest
from harness.report import FORMATS, show, write
from harness.results import Run, exit_code, list_runs, load


def _find(run: str | None) -> Run:
    """The run called *run*: its directory, its id, or the newest when nothing is said."""
    root = paths.runs_dir()
    if run is not None and (Path(run).is_dir() or "/" in run):
        return load(Path(run))
    readable = [summary for summary in list_runs(root) if summary.info is not None]
    known = {summary.directory.name: summary.directory for summary in readable}
    if run is None:
        if not known:
            raise UsageError(f"there are no runs in {root}", hint="vfio-harness run makes one")
        # The newest comes first.
        return load(readable[0].directory)
    if run not in known:
        raise UsageError(f"there is no run {run!r} in {root}", hint=nearest(run, known))
    return load(known[run])


@click.command("report")
@options.run_argument
@click.option("--format", "form", type=click.Choice(list(FORMATS)), default="text", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to this file.")
def command(run: str | None, form: str, output: Path | None) -> int:
    """Show the report of RUN (an id or a run's directory; the newest by default).

    Exits as the run itself did.
    """
    found = _find(run)
    if output is not None:
        write(found, form, output)
    elif form == "text":
        with tolerant_stdout():
            show(found, sys.stdout)
    else:
        emit(FORMATS[form](found))
    return int(exit_code(found))
