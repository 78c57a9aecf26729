# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness compare`: show what changed from one run to another."""

from __future__ import annotations

import sys

import click

from harness.base.errors import ExitCode
from harness.base.output import emit, tolerant_stdout
from harness.base.values import dumps
from harness.cli import options
from harness.report import compared, console
from harness.results import compare
from harness.session.reporting import find_run
from harness.suites.registry import may_exist


@click.command("compare")
@options.runs_argument("before")
@options.runs_argument("after")
@click.option("--json", "as_json", is_flag=True, help="Print the changes as JSON.")
def command(before: str, after: str, as_json: bool) -> int:
    """Show what changed from run BEFORE to run AFTER (ids or run directories).

    Jobs are matched by --tree, variant, add-ons, toolchain, architecture and topology, not by release.  If
    each run has one tree only, the trees may differ; likewise the toolchains.
    Exits with 1 when AFTER is worse: new failures, missing cases or missing jobs.

    \b
    Examples:
      vfio-harness compare 20300101-210000-aaaa 20300102-210000-bbbb
    """
    old, new = find_run(before), find_run(after)
    comparison = compare(old, new, exists=may_exist)
    if as_json:
        emit(dumps(compared.to_plain(old, new, comparison)).rstrip("\n"))
    else:
        with tolerant_stdout():
            console.write(
                lambda width, color: compared.render(old, new, comparison, width=width, color=color),
                sys.stdout,
            )
    return ExitCode.CASE_FAILED if comparison.is_worse else ExitCode.GOOD
