# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness report`: show an earlier run, in any format."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from harness.base.output import emit, tolerant_stdout
from harness.cli import options
from harness.report.console import show
from harness.report.files import FORMATS, check_place, write
from harness.results.store import RunStore
from harness.session.reporting import find_run, see


@click.command("report")
@options.run_argument
@click.option("--format", "form", type=click.Choice(list(FORMATS)), default="text")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to this file.")
@options.accept_option("RUN")
def command(run: str | None, form: str, output: Path | None, accept: str | None) -> int:
    """Show the report of RUN (an id or a run's directory; the newest by default).

    Exits with the exit code of that run.

    \b
    Examples:
      vfio-harness report --format html -o report.html
      vfio-harness report --format markdown
    """
    if output is not None:
        check_place("--output", output)
    found = find_run(run)
    if accept is not None:
        with RunStore.open(Path(found.directory)) as store:
            store.accept(accept)
            found = store.read()
    seen = see(found)
    if output is not None:
        write(found, form, output, seen.background)
    elif form == "text":
        with tolerant_stdout():
            show(found, sys.stdout, seen.background)
    else:
        emit(FORMATS[form](found, seen.background))
    return int(seen.exit_code)
