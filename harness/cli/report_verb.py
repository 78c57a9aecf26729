# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness report`: show an earlier run, in any format."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from harness.base import paths
from harness.base.errors import UsageError
from harness.base.output import emit, tell, tolerant_stdout
from harness.base.words import count_of
from harness.cli import options
from harness.report.console import show
from harness.report.files import FORMATS, check_place, write
from harness.results import Run, RunState, is_alive
from harness.results.merge import merge
from harness.results.store import RunStore
from harness.session.reporting import find_run, see, write_reports


@click.command("report")
@click.argument("runs", nargs=-1, metavar="[RUN]", shell_complete=options.complete_run)
@click.option(
    "--merge",
    "is_merge",
    is_flag=True,
    help="Make one run of several RUNs, such as the shards of a matrix, and show that.",
)
@click.option("--format", "form", type=click.Choice(list(FORMATS)), default="text")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to this file.")
@options.accept_option("RUN")
def command(runs: tuple[str, ...], is_merge: bool, form: str, output: Path | None, accept: str | None) -> int:
    """Show the report of RUN (an id or a run's directory; the newest by default).

    With --merge the runs themselves stay, and the history has the new one in place of them.

    Exits with the exit code of that run.

    \b
    Examples:
      vfio-harness report --format html -o report.html
      vfio-harness report --format markdown
      vfio-harness report --merge shard-1 shard-2 shard-3
    """
    if output is not None:
        check_place("--output", output)
    if len(runs) > 1 and not is_merge:
        raise UsageError("report shows one run", hint="compare BEFORE AFTER, or one run of all: --merge")
    found = _merged(runs) if is_merge else find_run(next(iter(runs), None))
    if accept is not None:
        with RunStore.open(Path(found.directory)) as store:
            store.accept(accept)
            found = store.read()
    seen = see(found)
    if is_merge:
        write_reports(found, seen.background, None)
    if output is not None:
        write(found, form, output, seen.background)
    elif form == "text":
        with tolerant_stdout():
            show(found, sys.stdout, seen.background)
    else:
        emit(FORMATS[form](found, seen.background))
    return int(seen.exit_code)


def _merged(names: tuple[str, ...]) -> Run:
    """Return one run of the runs *names*, which are not going on any more."""
    found = [find_run(name) for name in names]
    for run in found:
        if is_alive(Path(run.directory)):
            raise UsageError(f"run {run.info.id} is still going on", hint="wait for it, or stop it")
    accepted = _accepted(found)
    run = merge(found, paths.runs_dir(), tuple(sys.argv))
    tell(f"{count_of(len(found), 'run')} merged into {run.directory}")
    if accepted and run.state is RunState.FINISHED:
        with RunStore.open(Path(run.directory)) as store:
            store.accept(accepted)
            return store.read()
    return run


def _accepted(runs: Sequence[Run]) -> str:
    """Return why tests may be missing in *runs*; empty unless that is accepted in each that lacks some."""
    reasons = dict.fromkeys(run.accepted for run in runs if run.accepted)
    for run in runs if reasons else ():
        comparison = see(run).background.comparison
        if not run.accepted and comparison is not None and comparison.loses:
            tell(f"not accepted: tests are missing in run {run.info.id}, too")
            return ""
    return "; ".join(reasons)
