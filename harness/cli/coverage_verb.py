# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness coverage`: which lines of the kernel a run reached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from harness.base.errors import HarnessError, UsageError
from harness.base.output import emit, tell
from harness.cli import options
from harness.cli.given import refuse_beside
from harness.results.coverage.model import Coverage
from harness.session import coverage


@click.command("coverage")
@options.run_argument
@click.option(
    "--line",
    "place",
    metavar="FILE:LINE[-LINE]|FILE:FUNCTION",
    help="List the cases that run these lines or this function.",
)
@click.option(
    "--missing",
    is_flag=True,
    help="List the lines of no-IOMMU code that no case ran, and branches not taken.",
)
@click.option("--all", "everything", is_flag=True, help="With --missing: the lines of all files.")
@click.option(
    "--diff",
    "revision",
    is_flag=False,
    flag_value="HEAD",
    metavar="[REV]",
    help="Show which of the lines that changed since REV (default: HEAD) ran, and in which cases.",
)
@click.option(
    "--html", type=click.Path(path_type=Path, file_okay=False), help="Write HTML pages to this directory."
)
@click.option("--lcov", type=click.Path(path_type=Path, dir_okay=False), help="Write an lcov tracefile.")
@click.option("--again", is_flag=True, help="Decode the counters again.")
@click.option("--json", "as_json", is_flag=True, help="Print the tables of all trees as JSON.")
def command(
    run: str | None,
    place: str | None,
    missing: bool,
    everything: bool,
    revision: str | None,
    html: Path | None,
    lcov: Path | None,
    again: bool,
    as_json: bool,
) -> int:
    """Show which lines and branches RUN reached (id or directory; default: the newest with coverage).

    A run has coverage if its kernel was built with counters: run --with gcov.  HTML pages and an lcov
    tracefile are in its directory.  docs/coverage.md says what counts as no-IOMMU code.

    \b
    Examples:
      vfio-harness coverage
      vfio-harness coverage --missing
      vfio-harness coverage --line vfio_main.c:412
      vfio-harness coverage --line hwpt_noiommu.c:noiommu_domain_free
      vfio-harness coverage --diff v7.3
    """
    if everything and not missing:
        raise UsageError("--all needs --missing", hint="add --missing")
    asked = [
        name for name, value in {"place": place, "missing": missing, "revision": revision}.items() if value
    ]
    if len(asked) > 1 or (asked and as_json):
        refuse_beside("one question at a time", only={*asked[1:], "as_json"})
    found = coverage.find_coverage(run, again=again)
    if html is not None or lcov is not None:
        coverage.export(found, html=html, lcov=lcov)
    if place is not None:
        _show(found, lambda one: coverage.show_cases(one, place))
    elif missing:
        _show(found, lambda one: coverage.render_missing(one, noiommu=not everything))
    elif revision is not None:
        _show(found, lambda one: coverage.show_diff(found.run, one, revision))
    elif as_json:
        emit(coverage.to_json(found))
    else:
        _show(found, coverage.render_table, headed=True)
    return 0


def _show(found: coverage.Found, answer: Callable[[Coverage], str], *, headed: bool = False) -> None:
    """Print the *answer* for each source tree; raise the first error if there is none for any.

    With several trees each answer gets the tree's name, unless it is *headed* by it already.
    """
    refused: dict[str, HarnessError] = {}
    for one in found.trees:
        try:
            head = "" if headed or len(found.trees) == 1 else f"{one.tree}:\n"
            emit(head + answer(one))
        except HarnessError as error:
            refused[one.tree] = error
        else:
            coverage.tell_lost(one)
    if len(refused) == len(found.trees):
        raise refused[found.trees[0].tree]
    for tree, why in refused.items():
        tell(f"coverage of {tree}: {why}")
