# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness compare`: what changed from one run to another."""

from __future__ import annotations

import sys

import click

from harness.cli import options
from harness.errors import ExitCode
from harness.output import emit, tolerant_stdout
from harness.report import compared, console
from harness.report.json import dumps
from harness.results import compare
from harness.session.background import exists, find_run


@click.command("compare")
@options.runs_argument("before")
@options.runs_argument("after")
@click.option("--json", "as_json", is_flag=True, help="Print the changes as JSON.")
def command(before: str, after: str, as_json: bool) -> int:
    """Say what changed from run BEFORE to run AFTER (ids or run directories).

    Jobs belong together by line, variant, add-ons and topology, whatever the release; two lines can be
    compared where each run is about one.  Exits with 1 when AFTER is worse: new failures, lost cases
    or lost jobs.

    \b
    Examples:
      vfio-harness compare 20300101-210000-aaaa 20300102-210000-bbbb
    """
    old, new = find_run(before), find_run(after)
    comparison = compare(old, new, exists=exists)
    if as_json:
        emit(dumps(compared.to_plain(old, new, comparison)).rstrip("\n"))
    else:
        with tolerant_stdout():
            console.write(
                lambda width, color: compared.render(old, new, comparison, width=width, color=color),
                sys.stdout,
            )
    return ExitCode.CASE_FAILED if comparison.is_worse else ExitCode.GOOD
